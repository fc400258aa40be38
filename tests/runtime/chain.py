"""All stages of an encoder or encoder-decoder in one process, driven by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mesh.ids import SessionId
from planner.plan import Span
from runtime.chosen import from_payload
from runtime.models.seq2seq_spec import Output
from runtime.sampling import Sampling
from runtime.seq2seq.reader import column
from runtime.seq2seq.stage import Seq2SeqStage
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.stage import Slice


def load_stage(checkpoint: Seq2SeqCheckpoint, span: Span) -> Seq2SeqStage:
    sections = {index: checkpoint.load_layer(index) for index in range(span.first, span.last)}
    is_last = span.last == checkpoint.spec.layers
    return Seq2SeqStage(checkpoint, span, sections, checkpoint.load_head() if is_last else None)


class Chain:
    """A model cut into stages, driven step by step. One session at a time."""

    def __init__(self, checkpoint: Seq2SeqCheckpoint, stages: Sequence[Seq2SeqStage]) -> None:
        self.checkpoint = checkpoint
        self.spec = checkpoint.spec
        self.stages = stages

    @classmethod
    def of(cls, checkpoint: Seq2SeqCheckpoint, cuts: Sequence[int] = ()) -> Chain:
        edges = (0, *cuts, checkpoint.spec.layers)
        spans = [Span(first, last) for first, last in zip(edges, edges[1:], strict=False)]
        return cls(checkpoint, [load_stage(checkpoint, span) for span in spans])

    def open(self) -> SessionId:
        session = SessionId.new()
        for stage in self.stages:
            stage.open(session, Sampling(), self.spec.context)
        return session

    def close(self, session: SessionId) -> None:
        for stage in self.stages:
            stage.close(session)

    def encode(
        self, session: SessionId, rows: Tensor, first: int = 1, *, choose: bool = False
    ) -> Tensor | None:
        return self._through(self.stages, Slice(session, first, rows, choose, is_source=True))

    def step(self, session: SessionId, position: int, tokens: Sequence[int]) -> int:
        depth = self.spec.encoder.layers
        stages = [stage for stage in self.stages if stage.span.last > depth]
        row = self._through(stages, Slice(session, position, column(tokens), choose=True))
        assert row is not None
        return from_payload(row.numpy().tobytes(), row.shape[1]).token

    @torch.inference_mode()
    def logits(self, session: SessionId, position: int, tokens: Sequence[int]) -> Tensor:
        """[S, V] after each of the tokens; of one stage with all layers."""
        (stage,) = self.stages
        hidden = stage.decode(column(tokens), position, stage._open[session].caches)
        assert stage._ending is not None
        return stage._ending.logits(hidden)

    def vector(self, rows: Tensor) -> Tensor:
        """[1, width], as an encoder answers."""
        session = self.open()
        out = self.encode(session, rows, choose=True)
        self.close(session)
        assert out is not None
        return out

    @torch.inference_mode()
    def answer(self, rows: Tensor) -> Tensor:
        """What the model's own head says, or all hidden states where it has none."""
        hidden = rows
        for stage in self.stages:
            hidden = stage.encode(hidden)
        head = self.checkpoint.load_exit()
        if head is None:
            return hidden
        by_first = self.spec.exit.output is Output.CLASSES
        return head.forward(hidden[:1] if by_first else hidden)

    def generate(
        self, rows: Tensor, max_new_tokens: int, prompt: Sequence[int] | None = None
    ) -> Iterator[int]:
        """Greedy, without the token that ends it."""
        decoding = self.checkpoint.decoding
        assert decoding is not None
        said = list(prompt) if prompt is not None else [decoding.start]
        session = self.open()
        self.encode(session, rows, len(said))
        position = 0
        for _ in range(min(max_new_tokens, self.spec.context - len(said))):
            token = self.step(session, position, said)
            if token in decoding.ends:
                break
            yield token
            position, said = position + len(said), [token]
        self.close(session)

    def _through(self, stages: Sequence[Seq2SeqStage], step: Slice) -> Tensor | None:
        for stage in stages:
            (out,) = stage.turn([step])
            if out is None:
                return None
            step = Slice(step.session, step.position, out, step.choose, step.is_source)
        return step.rows
