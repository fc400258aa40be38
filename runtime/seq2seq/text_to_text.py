"""Text to text with T5 or BART: translations, summaries, answers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mesh.errors import UnsupportedModel
from runtime.compute.precision import Precision
from runtime.models.seq2seq_spec import MelEntrySpec
from runtime.sampling import Sampling
from runtime.seq2seq.chain import Chain, column
from runtime.seq2seq.folder import open_folder
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.text.json_tokenizer import JsonTokenizer


class TextToText:
    """An encoder-decoder with its tokenizer."""

    def __init__(self, chain: Chain, tokenizer: JsonTokenizer) -> None:
        """Raises UnsupportedModel for what does not read or does not write."""
        spec = chain.spec
        if spec.decoder is None or isinstance(spec.source, MelEntrySpec):
            raise UnsupportedModel(
                f"{spec.architecture} does not turn text into text; take a T5 or a BART"
            )
        self.chain = chain
        self.tokenizer = tokenizer

    @classmethod
    def open(
        cls, path: Path, cuts: Sequence[int] = (), precision: Precision = Precision.FP32
    ) -> TextToText:
        """A folder as Hugging Face lays it out; raises as `open_folder` does."""
        chain = Chain.of(Seq2SeqCheckpoint(open_folder(path), precision), cuts)
        return cls(chain, JsonTokenizer.open(path))

    def answer(self, text: str, max_new_tokens: int, sampling: Sampling | None = None) -> str:
        """What the decoder says to `text`. Raises PromptTooLong."""
        rows = column(self.tokenizer.encode(text, most=self.chain.spec.source.context))
        return self.tokenizer.decode(self.chain.generate(rows, max_new_tokens, sampling=sampling))
