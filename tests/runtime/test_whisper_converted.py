"""A Whisper converted by CTranslate2 is the Whisper it was made from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from mesh.errors import BadModelFile, UnsupportedModel
from planner.plan import Span
from runtime.seq2seq.folder import open_folder
from runtime.seq2seq.weights import Seq2SeqCheckpoint

pytest.importorskip("transformers")
import transformers

from tests.runtime.chain import Chain, load_stage
from tests.runtime.ctranslate2_writer import write_converted
from tests.runtime.holed_copy import holed

NEW_TOKENS = 12
SOUNDS = [
    torch.randn(60, 20, generator=torch.Generator().manual_seed(seed)) * seed
    for seed in range(1, 6)
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The original, and the converted one."""
    torch.manual_seed(7)
    config = transformers.WhisperConfig(
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=1,
        decoder_attention_heads=1,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        num_mel_bins=20,
        max_source_positions=30,
        max_target_positions=40,
        vocab_size=51_864,
        decoder_start_token_id=50_257,
        eos_token_id=50_256,
        bos_token_id=50_256,
        pad_token_id=50_256,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.suppress_tokens = [5, 6]
    model.generation_config.begin_suppress_tokens = [50_256]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    original, converted = tmp_path_factory.mktemp("original"), tmp_path_factory.mktemp("converted")
    model.save_pretrained(original)
    weights = {k: v for k, v in model.state_dict().items() if k != "proj_out.weight"}
    write_converted(weights, converted / "model.bin")
    write_config(converted, suppress_ids=[5, 6], suppress_ids_begin=[50_256])
    return original, converted


def write_config(folder: Path, **entries: Any) -> None:
    (folder / "config.json").write_text(json.dumps(entries))


def said(chain: Chain) -> list[list[int]]:
    return [list(chain.generate(sound, NEW_TOKENS)) for sound in SOUNDS]


def test_it_says_the_same(folders: tuple[Path, Path]) -> None:
    original, converted = (Seq2SeqCheckpoint(open_folder(folder)) for folder in folders)
    assert converted.spec == original.spec
    assert converted.decoding == original.decoding
    expected = said(Chain.of(original))
    assert len({tuple(tokens) for tokens in expected}) > 1
    for cuts in ((), (2,), (1, 3)):
        assert said(Chain.of(converted, cuts)) == expected


def test_each_device_needs_only_its_part_of_the_file(
    folders: tuple[Path, Path], tmp_path: Path
) -> None:
    whole = Seq2SeqCheckpoint(open_folder(folders[1]))
    spans = (Span(0, 1), Span(1, 4), Span(4, 5))
    parts = [holed(folders[1], tmp_path / str(span), span) for span in spans]
    assert {part.model_id for part in parts} == {whole.model_id}
    stages = [load_stage(part, span) for part, span in zip(parts, spans, strict=True)]
    assert said(Chain(whole, stages)) == said(Chain.of(whole))


def test_a_converted_model_of_another_kind(folders: tuple[Path, Path], tmp_path: Path) -> None:
    body = (folders[1] / "model.bin").read_bytes().replace(b"WhisperSpec", b"MarianXSpec", 1)
    (tmp_path / "model.bin").write_bytes(body)
    write_config(tmp_path)
    with pytest.raises(UnsupportedModel, match="holds a 'MarianXSpec'"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"encoder/conv1/weight", b"encoder/conv3/weight"),
        (b"encoder/layer_0/ffn/linear_0/weight", b"encoder/layer_0/ffn/linear_7/weight"),
        (b"decoder/embeddings/weight", b"decoder/embedding5/weight"),
    ],
)
def test_a_converted_model_with_a_name_that_fits_nowhere(
    old: bytes, new: bytes, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    body = (folders[1] / "model.bin").read_bytes().replace(old, new)
    (tmp_path / "model.bin").write_bytes(body)
    write_config(tmp_path)
    with pytest.raises(BadModelFile):
        Seq2SeqCheckpoint(open_folder(tmp_path))
