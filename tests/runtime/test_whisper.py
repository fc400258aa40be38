"""Whisper tiny.en out of its package: the transcripts of `transformers`, and few wrong words.

The commands are spoken by espeak-ng, so the word error rate compares and promises nothing.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mesh.errors import BadPrompt, ConfigError, ModelNotFound, UnsupportedModel
from runtime.compute.precision import Precision
from runtime.formats.quantize import dequantise
from runtime.seq2seq.folder import open_folder
from runtime.seq2seq.listener import Listener
from runtime.seq2seq.mel import SAMPLE_RATE, log_mel
from runtime.seq2seq.weights import Seq2SeqCheckpoint
from runtime.stored.model_packages import WHISPER
from tests.runtime.library import Transcriber

COMMANDS = [
    "turn on the kitchen lights",
    "set the bedroom to twenty degrees",
    "dim the hallway lamp",
    "is the front door locked",
    "play some music in the living room",
    "set a timer for ten minutes",
    "what is the weather tomorrow",
    "open the garage door",
    "turn off the heating at night",
    "add milk to the shopping list",
]
NUMBERS = {"10": "ten", "20": "twenty"}
MAX_WORD_ERROR_RATE = 0.06
CUTS = [(4,), (2, 6)]  # encoder and decoder apart; three devices
TOLERANCE = 1e-4  # of the largest logit


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return WHISPER.folder()
    except ModelNotFound as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def whisper(folder: Path) -> Transcriber:
    return Transcriber(folder)


@pytest.fixture(scope="module")
def commands() -> list[Tensor]:
    if shutil.which("espeak-ng") is None:
        pytest.skip("espeak-ng is not installed; run: apt-get install espeak-ng")
    return [spoken(command) for command in COMMANDS]


@pytest.fixture(scope="module")
def transcripts(whisper: Transcriber, commands: list[Tensor]) -> list[str]:
    return [whisper.transcribe(pcm) for pcm in commands]


def spoken(text: str) -> Tensor:
    """[N] at 16 kHz, from what espeak-ng says at 22.05 kHz."""
    said = subprocess.run(["espeak-ng", "--stdout", text], capture_output=True, check=True).stdout
    with wave.open(io.BytesIO(said)) as file:
        rate, frames = file.getframerate(), file.readframes(file.getnframes())
    pcm = torch.frombuffer(bytearray(frames), dtype=torch.int16).float() / 32768
    count = round(pcm.shape[0] * SAMPLE_RATE / rate)
    spectrum = torch.fft.rfft(pcm)[: count // 2 + 1]
    return torch.fft.irfft(spectrum, n=count) * count / pcm.shape[0]


def words(text: str) -> list[str]:
    return [NUMBERS.get(word, word) for word in re.findall(r"[a-z0-9']+", text.lower())]


def distance(said: list[str], meant: list[str]) -> int:
    """Words to be put in, left out or exchanged."""
    row = list(range(len(meant) + 1))
    for number, word in enumerate(said, 1):
        before, row[0] = row[0], number
        for index, other in enumerate(meant, 1):
            before, row[index] = (
                row[index],
                min(row[index] + 1, row[index - 1] + 1, before + (word != other)),
            )
    return row[-1]


@pytest.fixture(scope="module")
def reference(folder: Path) -> Iterator[Any]:
    """transformers' own model, with windows of 10 s like ours and the weights of the package."""
    transformers = pytest.importorskip("transformers")
    opened = open_folder(folder)
    sizes = {key: value for key, value in opened.config.items() if "suppress" not in key}
    config = transformers.WhisperConfig(**sizes | {"max_source_positions": 500})
    model = transformers.WhisperForConditionalGeneration(config).eval()
    weights = {
        f"model.{name}": dequantise(opened.file.raw(name), info.type, info.shape)
        for name, info in opened.file.tensors.items()
    }
    positions = "model.encoder.embed_positions.weight"
    weights[positions] = weights[positions][:500]
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["proj_out.weight"], [])
    model.tie_weights()
    return model


@torch.inference_mode()
def test_transcribes_what_transformers_transcribes(
    whisper: Transcriber, commands: list[Tensor], reference: Any
) -> None:
    """The same logits at each token of each command, and the same words."""
    decoding = whisper.chain.checkpoint.decoding
    assert decoding is not None
    for pcm in commands:
        frames = log_mel(pcm, 10.0, whisper.listener.mels)
        ours = list(whisper.chain.generate(frames, 100, whisper.listener.prompt))
        said = [*whisper.listener.prompt, *ours]
        encoded = reference.model.encoder(frames.T[None])
        logits = reference(encoder_outputs=encoded, decoder_input_ids=torch.tensor([said])).logits
        choices = logits[0, len(whisper.listener.prompt) - 1 :]  # [tokens + 1, V]
        choices[:, list(decoding.suppressed)] = -torch.inf
        choices[0, list(decoding.suppressed_first)] = -torch.inf
        assert choices.argmax(dim=-1).tolist()[:-1] == ours
        assert int(choices[-1].argmax()) in decoding.ends


@torch.inference_mode()
def test_logits_are_those_of_transformers(
    whisper: Transcriber, commands: list[Tensor], reference: Any
) -> None:
    for number, pcm in enumerate(commands[:5]):
        frames = log_mel(pcm, 10.0, whisper.listener.mels)
        target = [*whisper.listener.prompt, *range(1000 + number, 1020 + number)]
        session = whisper.chain.open()
        whisper.chain.encode(session, frames)
        ours = whisper.chain.logits(session, 0, target)
        whisper.chain.close(session)
        encoded = reference.model.encoder(frames.T[None])
        theirs = reference(
            encoder_outputs=encoded, decoder_input_ids=torch.tensor([target])
        ).logits[0]
        error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
        print(f"largest relative error {error:.1e}, absolute {(ours - theirs).abs().max():.1e}")
        assert error < TOLERANCE


def test_few_words_are_wrong(transcripts: list[str]) -> None:
    said, meant = [words(text) for text in transcripts], [words(text) for text in COMMANDS]
    wrong = sum(distance(one, other) for one, other in zip(said, meant, strict=True))
    rate = wrong / sum(map(len, meant))
    print(f"word error rate {rate:.3f}: {transcripts}")
    assert rate <= MAX_WORD_ERROR_RATE


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_hears_the_same_on_two_and_three_devices(
    cuts: tuple[int, ...],
    folder: Path,
    whisper: Transcriber,
    commands: list[Tensor],
    transcripts: list[str],
) -> None:
    cut = Transcriber(folder, cuts)
    assert len(cut.chain.stages) == len(cuts) + 1
    assert [cut.transcribe(pcm) for pcm in commands] == transcripts


def test_weights_in_bytes_hear_as_well(folder: Path, commands: list[Tensor]) -> None:
    compact = Transcriber(folder, precision=Precision.INT8)
    said, meant = [words(compact.transcribe(pcm)) for pcm in commands], map(words, COMMANDS)
    wrong = sum(distance(one, other) for one, other in zip(said, meant, strict=True))
    assert wrong / sum(len(words(command)) for command in COMMANDS) <= MAX_WORD_ERROR_RATE


def test_a_long_recording_is_heard_in_several_windows(
    whisper: Transcriber, commands: list[Tensor]
) -> None:
    """Ten commands in a row, half a second of silence between: about 25 s."""
    pause = torch.zeros(SAMPLE_RATE // 2)
    recording = torch.cat([part for pcm in commands for part in (pcm, pause)])
    assert recording.shape[0] > 20 * SAMPLE_RATE
    said, meant = words(whisper.transcribe(recording)), words(" ".join(COMMANDS))
    assert distance(said, meant) / len(meant) < 0.2


def test_a_window_without_a_pause_at_its_end_does_not_loop(
    whisper: Transcriber, commands: list[Tensor]
) -> None:
    """In 5 s the model says "Turn off the heating at night." some thirty times."""
    said = words(whisper.transcribe(commands[8], window_s=5.0))
    assert said == words(COMMANDS[8])


def test_silence_is_no_sound_to_speak_of(whisper: Transcriber) -> None:
    assert whisper.transcribe(torch.zeros(100)) == ""
    assert len(words(whisper.transcribe(torch.zeros(SAMPLE_RATE)))) <= 2


@pytest.mark.parametrize("window_s", [0.5, 30.5, float("nan")])
def test_a_window_that_cannot_be_heard_at_once(whisper: Transcriber, window_s: float) -> None:
    with pytest.raises(ConfigError, match="the window lies between 1 and 30 s"):
        whisper.transcribe(torch.zeros(SAMPLE_RATE), window_s)


@pytest.mark.parametrize("pcm", [torch.zeros(2, 100), torch.tensor([0.0, float("nan")])])
def test_what_is_no_sound(whisper: Transcriber, pcm: Tensor) -> None:
    with pytest.raises(BadPrompt, match="one row of finite samples"):
        whisper.transcribe(pcm)


def test_a_model_that_does_not_hear(tmp_path: Path, whisper: Transcriber) -> None:
    pytest.importorskip("transformers")
    from tests.runtime.random_encoders import write_random

    write_random("t5-1.0", tmp_path)
    spec = Seq2SeqCheckpoint(open_folder(tmp_path)).spec
    with pytest.raises(UnsupportedModel, match="t5 does not hear"):
        Listener(spec, whisper.listener.tokenizer)
