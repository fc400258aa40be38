"""Traffic: what the steps of a model look like, and which stages of a plan they go through.

Tokens go to the stage with the first layer that reads them: the first one, or, behind an encoder,
that with the decoder's first layer. A source goes through all stages, the encoder's and those of
the decoder, which remember what it became.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.errors import ProtocolError
from mesh.tensor_frame import DType
from planner.plan import Plan


@dataclass(frozen=True, slots=True)
class Source:
    """What an encoder takes: [rows, width], the whole of it in one step."""

    dtype: DType  # INT32: token ids; FLOAT32: a spectrogram
    width: int
    max_rows: int


@dataclass(frozen=True, slots=True)
class Traffic:
    """Of one model. A decoder alone has no source; an encoder alone answers with a vector."""

    hidden_size: int
    source: Source | None = None
    encoder_layers: int = 0
    vector_width: int = 0  # 0: the model has a decoder, which answers with tokens

    def most_rows(self, context: int) -> int:
        """Of a source, in a session of so many tokens: where a decoder remembers a text, the plan
        has no room for a longer one.
        """
        assert self.source is not None, "a decoder alone has no source"
        is_remembered = self.source.dtype is DType.INT32 and not self.vector_width
        return min(self.source.max_rows, context) if is_remembered else self.source.max_rows

    def entry(self, plan: Plan) -> int:
        """The number of the stage that tokens go to first. Raises ProtocolError where none does."""
        for index, stage in enumerate(plan.stages):
            if self.encoder_layers in stage.layers:
                return index
        raise ProtocolError("the model of this plan has no decoder that would take tokens")
