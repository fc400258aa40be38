"""What this device needs for a layer and for the head of a model, of whatever kind it is."""

from __future__ import annotations

import torch

from runtime import profiler
from runtime.checkpoints import Model
from runtime.compute.torch_device import CPU
from runtime.measured import Measured
from runtime.weights import Checkpoint


def measure(model: Model, device: torch.device = CPU) -> Measured:
    """Runs in the worker thread; takes seconds. Raises BadModelFile for a damaged file."""
    if isinstance(model, Checkpoint):
        return profiler.measure(model, device)
    from runtime.seq2seq.measuring import measure_stacks

    return measure_stacks(model, device)
