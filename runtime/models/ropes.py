"""Rotary positions as files describe them, and the scalings that we know."""

from __future__ import annotations

from mesh.errors import BadModelFile, UnsupportedModel
from runtime.models.metadata import Metadata
from runtime.models.spec import Llama3Scaling, RopeSpec


def gguf_rope(read: Metadata, base: float) -> RopeSpec:
    """`base` where the file has none. Llama 3's scaling is a tensor of the file, not told here.

    Raises BadModelFile, and UnsupportedModel for a scaling that we do not have.
    """
    base = read.positive("rope.freq_base", base)
    match read.text("rope.scaling.type", "none"):
        case "linear":
            return RopeSpec(base, read.positive("rope.scaling.factor", 1.0))
        case "none":
            return RopeSpec(base)
        case other:
            raise _unknown(other, "'linear' and 'none'")


def config_rope(config: Metadata, base: float, context: int) -> RopeSpec:
    """From `rope_parameters`, or from `rope_theta` and `rope_scaling` as older files have it."""
    config.only("partial_rotary_factor", 1.0)
    base = config.positive("rope_theta", base)
    key = "rope_parameters" if config.has("rope_parameters") else "rope_scaling"
    return rope_of(config.table(key), base, context)


def rope_of(parameters: Metadata, base: float, context: int) -> RopeSpec:
    """`base` and `context` are what the parameters mean where they do not say.

    Raises BadModelFile, and UnsupportedModel for a scaling that we do not have.
    """
    parameters.only("partial_rotary_factor", 1.0)
    base = parameters.positive("rope_theta", base)
    match parameters.text("rope_type", parameters.text("type", "default")):
        case "default":
            return RopeSpec(base)
        case "linear":
            return RopeSpec(base, parameters.positive("factor"))
        case "llama3":
            return RopeSpec(base, scaling=_llama3(parameters, context))
        case other:
            raise _unknown(other, "'default', 'linear' and 'llama3'")


def _llama3(parameters: Metadata, context: int) -> Llama3Scaling:
    low, high = parameters.positive("low_freq_factor"), parameters.positive("high_freq_factor")
    if low >= high:
        raise BadModelFile(
            f"low_freq_factor is below high_freq_factor; the file says {low} and {high}"
        )
    return Llama3Scaling(
        factor=parameters.positive("factor"),
        low=low,
        high=high,
        context=parameters.count("original_max_position_embeddings", context),
    )


def _unknown(kind: str, known: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"rope scaling {kind!r:.60} is not known; known are {known}. Take a model without it."
    )
