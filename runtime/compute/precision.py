"""How weights are held and multiplied: what a person may choose, and what `auto` means."""

from __future__ import annotations

from enum import StrEnum


class Precision(StrEnum):
    """Of the weights in memory. Activations are fp32 with each: 8-bit ones ruin a model.

    What is more compact than bf16 takes loops that run on processors only. An accelerator holds
    bf16 instead, and its products take bf16 activations too, as it is built for.
    """

    AUTO = "auto"  # int8, which keeps a quantised file's weights as they are
    FP32 = "fp32"  # exact, four bytes a weight
    BF16 = "bf16"  # two bytes a weight
    INT8 = "int8"  # a byte a weight and a scale for each 16 or 32


def resolved(precision: Precision) -> Precision:
    """What `auto` stands for; the perplexity of each is in docs/performance.md."""
    return Precision.INT8 if precision is Precision.AUTO else precision
