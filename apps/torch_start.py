"""Importing torch for a process that goes on computing: the garbage collector stays out of it."""

from __future__ import annotations

import gc
import sys


def import_torch() -> None:
    """To be called before anything else imports torch; afterwards it does nothing.

    The garbage collector rests meanwhile: it would look through 240,000 new objects again and
    again, all of which stay. From then on it leaves them alone, which spares 100 ms each time that
    it looks through everything.
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        import torch  # noqa: F401 - for those who import it next
    finally:
        gc.freeze()
        gc.enable()
