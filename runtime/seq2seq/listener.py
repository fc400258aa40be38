"""Speech as Whisper hears it: a recording in windows, and what it says of each as text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mesh.errors import BadModelFile, BadPrompt, ConfigError, UnsupportedModel
from runtime.models.seq2seq_spec import MelEntrySpec, Seq2SeqSpec
from runtime.models.whisper_ct2 import ENGLISH_VOCABULARY
from runtime.seq2seq.mel import FRAMES_PER_S, SAMPLE_RATE, log_mel
from runtime.text.json_tokenizer import JsonTokenizer

# A spoken command is shorter. A window is padded with silence up to its end, which takes time, and
# the small models mishear short commands in 30 s of it: 0.105 of the words instead of 0.035.
COMMAND_WINDOW_S: Final = 10.0
MAX_WINDOW_S: Final = 30.0
MIN_WINDOW_S: Final = 1.0
# A longer recording is cut where it is quietest, in the last part of each window.
CUT_PART: Final = 0.3
QUIET_SAMPLES: Final = SAMPLE_RATE // 10
# A window that speech fills to its end makes the model say the same again and again. Three times
# in a row is a loop; a shorter run of tokens may be what was said ("no, no, no").
SHORTEST_LOOP: Final = 4
LOOP_TURNS: Final = 3
SHORTEST_SAMPLES: Final = SAMPLE_RATE // 10  # less than this at the end is no word


class Listener:
    """How one Whisper is asked: what its decoder is given, and how long it may speak."""

    def __init__(self, spec: Seq2SeqSpec, tokenizer: JsonTokenizer, language: str = "en") -> None:
        """Raises BadPrompt for a language that the model does not know, UnsupportedModel for a
        model that does not hear.
        """
        if not isinstance(spec.source, MelEntrySpec):
            raise UnsupportedModel(f"{spec.architecture} does not hear; take a Whisper")
        self.spec = spec
        self.tokenizer = tokenizer
        self.mels = spec.source.mels
        self.max_window_s = min(MAX_WINDOW_S, 2 * spec.source.context / FRAMES_PER_S)
        self.most_tokens = spec.context // 2  # as the original: half for what was said before
        self.prompt = self._prompt(language)

    def windows(
        self, pcm: npt.NDArray[np.float32] | Tensor, window_s: float = COMMAND_WINDOW_S
    ) -> Iterator[Tensor]:
        """[frames, mels] of each window of [N] samples at 16 kHz from -1 to 1.

        A recording longer than the window is heard in several. Raises BadPrompt for samples that
        are no sound, ConfigError for a window the model cannot hear at once.
        """
        if not MIN_WINDOW_S <= window_s <= self.max_window_s:
            raise ConfigError(
                f"the window lies between {MIN_WINDOW_S:g} and {self.max_window_s:g} s, "
                f"got {window_s}"
            )
        samples = torch.as_tensor(pcm).float()
        if samples.dim() != 1 or not torch.isfinite(samples).all():
            raise BadPrompt(f"expected one row of finite samples, got shape {list(samples.shape)}")
        for part in pieces(samples, window_s):
            yield log_mel(part, window_s, self.mels)

    def text(self, said: Sequence[int]) -> str:
        """The words of one window; what came round and round at its end is said once."""
        period = looping(said)
        kept = said[: len(said) - (LOOP_TURNS - 1) * period] if period else said
        return self.tokenizer.decode(kept).strip()

    def _prompt(self, language: str) -> list[int]:
        """What stands before the text: for a multilingual model its language and task as well."""
        marks = ["<|startoftranscript|>", "<|notimestamps|>"]
        if self.spec.vocabulary <= ENGLISH_VOCABULARY:
            if language != "en":
                raise BadPrompt("the model knows English only; take a multilingual Whisper")
        elif not re.fullmatch("[a-z]{2,3}", language):
            raise BadPrompt(
                f"a language is two or three letters, such as 'en'; got {language!r:.20}"
            )
        else:
            marks[1:1] = [f"<|{language}|>", "<|transcribe|>"]
        ids = [self.tokenizer.id_of(mark) for mark in marks]
        if None in ids:
            missing = marks[ids.index(None)]
            if missing == f"<|{language}|>":
                raise BadPrompt(f"the model does not know the language {language!r:.20}")
            raise BadModelFile(f"the tokenizer has no {missing}; take a complete Whisper folder")
        return [one for one in ids if one is not None]


def pieces(pcm: Tensor, window_s: float) -> Iterator[Tensor]:
    """`pcm` cut into parts of at most `window_s`, where it is quietest."""
    window = round(window_s * SAMPLE_RATE)
    while pcm.shape[0] > window:
        cut = _quietest(pcm[:window])
        yield pcm[:cut]
        pcm = pcm[cut:]
    if pcm.shape[0] >= SHORTEST_SAMPLES:
        yield pcm


def looping(said: Sequence[int]) -> int:
    """How many tokens come round and round at the end; 0 if none do."""
    for period in range(SHORTEST_LOOP, len(said) // LOOP_TURNS + 1):
        turns = [said[len(said) - turn * period :][:period] for turn in range(1, LOOP_TURNS + 1)]
        if all(turn == turns[0] for turn in turns):
            return period
    return 0


def _quietest(pcm: Tensor) -> int:
    """The middle of the quietest tenth of a second in the last part."""
    first = round(pcm.shape[0] * (1 - CUT_PART))
    steps = (pcm.shape[0] - first) // QUIET_SAMPLES
    last = pcm[first : first + steps * QUIET_SAMPLES].view(steps, QUIET_SAMPLES)
    return first + int(last.square().mean(dim=1).argmin()) * QUIET_SAMPLES + QUIET_SAMPLES // 2
