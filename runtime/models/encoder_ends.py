"""Where rows come in and where answers come out: embeddings, the first convolutions, the heads."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from mesh.errors import GenerationFailed, PromptTooLong
from runtime.compute.linear import Linear
from runtime.models.encoder_block import Norm
from runtime.models.mlp import ACTIVATIONS
from runtime.models.norms import parameter
from runtime.models.seq2seq_spec import MelEntrySpec, Seq2SeqSpec, TokenEntrySpec


class Table(nn.Module):
    """Rows that are looked up or added as they are."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()
        self.weight = parameter(rows, columns)


class Convolution(nn.Module):
    """Over three frames; `stride` is how far it moves on."""

    def __init__(self, rows: int, columns: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.weight, self.bias = parameter(rows, columns, 3), parameter(rows)

    def forward(self, x: Tensor) -> Tensor:
        """[1, columns, S] -> [1, rows, S / stride]"""
        return F.conv1d(x, self.weight, self.bias, stride=self.stride, padding=1)


class TokenEntry(nn.Module):
    """Rows of the embedding to hidden states: scale, positions, kind, norm."""

    def __init__(self, spec: Seq2SeqSpec, entry: TokenEntrySpec) -> None:
        super().__init__()
        self.entry = entry
        size = spec.hidden_size
        self.positions = Table(entry.position_rows, size) if entry.position_rows else None
        self.kinds = Table(entry.kinds, size) if entry.kinds else None
        self.norm = Norm.of(spec) if entry.normed else None

    def forward(self, words: Tensor, position: int = 0) -> Tensor:
        """[S, hidden] of the tokens at `position`.. -> [S, hidden]

        Raises PromptTooLong when they reach beyond the positions that the model knows.
        """
        end = position + words.shape[0]
        if end > self.entry.context:
            raise PromptTooLong(
                f"the model reads {self.entry.context} tokens at once, got {end}; shorten the text"
            )
        hidden = words * self.entry.scale
        if self.positions is not None:
            first = position + self.entry.position_offset
            hidden = hidden + self.positions.weight[first : first + words.shape[0]]
        if self.kinds is not None:
            hidden = hidden + self.kinds.weight[0]
        return hidden if self.norm is None else self.norm(hidden)


class MelEntry(nn.Module):
    """Two convolutions over the spectrogram; the second halves the number of frames."""

    def __init__(self, spec: Seq2SeqSpec, entry: MelEntrySpec) -> None:
        super().__init__()
        self.entry = entry
        size = spec.hidden_size
        self.first = Convolution(size, entry.mels, 1)
        self.second = Convolution(size, size, 2)
        self.positions = Table(entry.context, size)

    def forward(self, frames: Tensor) -> Tensor:
        """[S, mels] -> [S / 2, hidden]. Raises GenerationFailed for another shape."""
        count, mels = frames.shape
        if mels != self.entry.mels or not 2 <= count <= 2 * self.entry.context:
            raise GenerationFailed(
                f"the model hears 2 to {2 * self.entry.context} frames of {self.entry.mels} "
                f"bands, got {count} of {mels}"
            )
        x = F.gelu(self.first(frames.T[None]))  # [1, hidden, S]
        hidden = F.gelu(self.second(x))[0].T  # [S / 2, hidden]
        return hidden + self.positions.weight[: hidden.shape[0]]


class Exit(nn.Module):
    """Hidden states to logits; see ExitSpec."""

    def __init__(self, spec: Seq2SeqSpec) -> None:
        super().__init__()
        self.exit = spec.exit
        size = spec.hidden_size
        has_transform = self.exit.transform is not None
        self.transform = Linear(size, size, bias=True) if has_transform else None
        self.norm = Norm.of(spec) if self.exit.normed else None
        self.output = Linear(self.exit.outputs, size, bias=self.exit.biased)
        self.logits_bias = Table(1, self.exit.outputs) if self.exit.logits_bias else None

    def forward(self, hidden: Tensor) -> Tensor:
        """[S, hidden] -> [S, outputs]"""
        if self.transform is not None and self.exit.transform is not None:
            hidden = ACTIVATIONS[self.exit.transform](self.transform(hidden))
        if self.norm is not None:
            hidden = self.norm(hidden)
        logits: Tensor = self.output(hidden * self.exit.scale)
        return logits if self.logits_bias is None else logits.add(self.logits_bias.weight)
