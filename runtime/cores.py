"""How many cores this process gets: fewer than there are, in a container or on a busy device.

Measured, since a limit is not to be seen from within every kind of container.
"""

from __future__ import annotations

import hashlib
import threading
import time
from typing import Final

TRY_S: Final = 0.08  # most of a limit's period of 0.1 s, which is the usual one
_BLOCK: Final = bytes(1 << 18)  # hashed at once, without the interpreter's lock


def cores(threads: int) -> float:
    """Seconds of processor time a second that so many busy threads get together."""
    until_s = time.perf_counter() + TRY_S

    def work() -> None:
        while time.perf_counter() < until_s:
            hashlib.sha256(_BLOCK)

    began_s, spent_s = time.perf_counter(), time.process_time()
    busy = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for one in busy:
        one.start()
    for one in busy:
        one.join()
    return (time.process_time() - spent_s) / (time.perf_counter() - began_s)
