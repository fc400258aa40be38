"""All stages of an encoder or encoder-decoder in one process, one behind the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mesh.errors import GenerationFailed
from mesh.ids import SessionId
from planner.plan import Span
from runtime.sampling import Sampling
from runtime.seq2seq.stage import Seq2SeqStage
from runtime.seq2seq.weights import Seq2SeqCheckpoint


class Chain:
    """A model cut into stages, driven step by step. One session at a time."""

    def __init__(self, checkpoint: Seq2SeqCheckpoint, stages: Sequence[Seq2SeqStage]) -> None:
        """`stages` have all layers between them, in order."""
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.stages = stages

    @classmethod
    def of(cls, checkpoint: Seq2SeqCheckpoint, cuts: Sequence[int] = ()) -> Chain:
        """Cut in front of the layers in `cuts`, ascending; without any, one stage."""
        edges = (0, *cuts, checkpoint.spec.layers)
        spans = [Span(first, last) for first, last in zip(edges, edges[1:], strict=False)]
        return cls(checkpoint, [Seq2SeqStage.load(checkpoint, span) for span in spans])

    def encode(self, session: SessionId, rows: Tensor) -> Tensor | None:
        """Sends a source through; see Seq2SeqStage.encode."""
        out: Tensor | None = rows
        for stage in self.stages:
            if out is None:
                raise GenerationFailed("the session was closed while it was under way")
            out = stage.encode(session, out)
        return out

    def step(self, session: SessionId, position: int, tokens: Sequence[int]) -> int:
        """Sends target tokens through; the token that follows them."""
        out: Tensor | None = column(tokens)
        for stage in self.stages:
            if out is None:
                raise GenerationFailed("the session was closed while it was under way")
            out = stage.step(session, position, out, True)
        if out is None:
            raise GenerationFailed("the last stage chose no token where one was asked for")
        return int(out[0, 0])

    def answer(self, rows: Tensor) -> Tensor:
        """What an encoder without a decoder says to a source."""
        session = self._opened(Sampling(), 1)
        try:
            out = self.encode(session, rows)
        finally:
            self._close(session)
        assert out is not None, "an encoder answers on its last stage"
        return out

    def generate(
        self,
        rows: Tensor,
        max_new_tokens: int,
        prompt: Sequence[int] | None = None,
        sampling: Sampling | None = None,
    ) -> Iterator[int]:
        """The tokens that the decoder says about a source, without the one that ends them.

        `prompt` is what the decoder is taken to have said already; by default its start token.
        """
        decoding = self.checkpoint.decoding
        if decoding is None:
            raise GenerationFailed(f"{self.spec.architecture} only reads; it has no decoder")
        said = list(prompt) if prompt is not None else [decoding.start]
        session = self._opened(sampling or Sampling(), len(said))
        try:
            self.encode(session, rows)
            position = 0
            for _ in range(min(max_new_tokens, self.spec.context - len(said))):
                token = self.step(session, position, said)
                if token in decoding.ends:
                    return
                yield token
                position, said = position + len(said), [token]
        finally:
            self._close(session)

    def _opened(self, sampling: Sampling, prompt_tokens: int) -> SessionId:
        session = SessionId.new()
        for stage in self.stages:
            stage.open(session, sampling, self.spec.context, prompt_tokens)
        return session

    def _close(self, session: SessionId) -> None:
        for stage in self.stages:
            stage.close(session)


def column(tokens: Sequence[int]) -> Tensor:
    """[S, 1] int32, as tokens travel."""
    return torch.tensor(tokens, dtype=torch.int32)[:, None]
