"""How a decoder's answer begins, what it must not say, and what ends it: the model's own rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from mesh.errors import BadModelFile
from runtime.models.seq2seq_spec import Seq2SeqSpec

if TYPE_CHECKING:
    from torch import Tensor

# Not minus infinity: a sampler takes what is not finite for a damaged file.
NEVER: Final = float(np.finfo(np.float32).min)


@dataclass(frozen=True, slots=True)
class Decoding:
    """Token ids, all of them inside the vocabulary."""

    start: int  # the token that stands before the first one said
    ends: frozenset[int]
    suppressed: tuple[int, ...] = ()  # never said
    suppressed_first: tuple[int, ...] = ()  # not as the first one said
    forced_first: int | None = None  # the first one said, whatever the model thinks

    def ruled(self, logits: Tensor, *, first: bool) -> Tensor:
        """[V] -> [V] with what must not be said as improbable as can be."""
        ruled = logits.clone()
        ruled[list(self.suppressed)] = NEVER
        if first:
            ruled[list(self.suppressed_first)] = NEVER
            if self.forced_first is not None:
                kept = ruled[self.forced_first].clone()
                ruled.fill_(NEVER)
                ruled[self.forced_first] = kept
        return ruled


def read_decoding(
    generation: Mapping[str, Any], config: Mapping[str, Any], spec: Seq2SeqSpec
) -> Decoding:
    """generation_config.json counts, then config.json. Raises BadModelFile."""

    def ids(key: str) -> tuple[int, ...]:
        value = generation.get(key, config.get(key))
        listed = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(one) is not int or not 0 <= one < spec.vocabulary for one in listed):
            raise BadModelFile(
                f"{key}: expected token ids from 0 to {spec.vocabulary - 1}, got {value!r:.60}"
            )
        return tuple(listed)

    starts = ids("decoder_start_token_id") or ids("bos_token_id")
    if not starts:
        raise BadModelFile(
            "neither generation_config.json nor config.json has a decoder_start_token_id; "
            "take a complete model folder"
        )
    forced = ids("forced_bos_token_id")
    return Decoding(
        start=starts[0],
        ends=frozenset(ids("eos_token_id")),
        suppressed=ids("suppress_tokens"),
        suppressed_first=ids("begin_suppress_tokens"),
        forced_first=forced[0] if forced else None,
    )
