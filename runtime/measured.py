"""What was measured of a model on this device, and the file in which it is kept.

A device is measured once for a model, a precision, a version of this software, and the threads or
the torch device that it computes with.
"""

from __future__ import annotations

import json
import os
import platform
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from mesh.codec import from_plain, to_plain
from mesh.errors import ProtocolError
from planner.profile import Curve, PartCurves
from runtime.checkpoints import Model
from runtime.compute.torch_device import CPU

MEASURE_VERSION = 7  # raise when the compute path changes, so that old figures are not believed


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds on this device: one layer at several token counts, the head for one token."""

    layer: Curve
    head_s: float
    parts: PartCurves | None = None  # None: its layers cannot be shared
    slowdown: float = 1.0  # seconds that a second of processor time takes while it computes
    own_core: bool = False  # whether computing leaves a core for the network


def stored(
    checkpoint: Model, folder: Path, threads: int, device: torch.device = CPU
) -> Measured | None:
    """What was measured before for this model, version and machine. Reads the disk."""
    try:
        record = json.loads(_path(checkpoint, folder, threads, device).read_text())
        if record["model"] != checkpoint.model_id or record["machine"] != _machine():
            return None
        measured: Measured = from_plain(Measured, record["measured"])
    except (OSError, ValueError, KeyError, TypeError, ProtocolError):
        return None  # not measured yet, or a torn file: measuring again costs seconds
    return measured


def store(
    measured: Measured,
    checkpoint: Model,
    folder: Path,
    threads: int,
    device: torch.device = CPU,
) -> None:
    """Keeps a measurement. A full disk costs a measurement next time, nothing more."""
    record = {
        "model": checkpoint.model_id,
        "machine": _machine(),
        "measured": to_plain(measured),
    }
    path = _path(checkpoint, folder, threads, device)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}.tmp")
        scratch.write_text(json.dumps(record))
        scratch.replace(path)


def _machine() -> str:
    return f"{platform.machine()} {os.cpu_count()} torch {torch.__version__} v{MEASURE_VERSION}"


def _path(checkpoint: Model, folder: Path, threads: int, device: torch.device) -> Path:
    by = threads if device == CPU else str(device).replace(":", "")
    return folder / f"{checkpoint.model_id[:16]}-{checkpoint.precision}-{by}.json"
