"""The torch device that this device computes on: its processor, or an accelerator beside it.

The weights and the caches live there; rows come in and go out as tensors of the processor.
"""

from __future__ import annotations

from typing import Final

import torch

from mesh.errors import ConfigError

CPU: Final = torch.device("cpu")
AUTO: Final = "auto"


def choose(name: str = AUTO) -> torch.device:
    """`cpu`, `cuda`, `cuda:1` or `mps`; `auto` is the best of those that are here.

    Raises ConfigError for one that is not here.
    """
    found = here()
    if name == AUTO:
        return torch.device(found[0])
    # Compared as text: torch would take devices that none of this was tried on.
    if name == "cuda" and "cuda:0" in found:
        return torch.device("cuda:0")
    if name not in found:
        raise ConfigError(
            f"--device is {AUTO!r} or one that is here: {', '.join(found)}; got {name!r:.60}"
        )
    return torch.device(name)


def here() -> list[str]:
    """What this machine has, as torch calls it, the best first; the processor is the last."""
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, CPU.type]


def runs_loops(device: torch.device) -> bool:
    """Whether our compiled loops, and the forms of weights that they read, can be used there."""
    return device.type == CPU.type


def synchronize(device: torch.device) -> None:
    """Waits for all that was started there, so that a clock read now means something."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def free_bytes(device: torch.device) -> int | None:
    """What its own memory has free; None where it computes in the machine's memory."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None
