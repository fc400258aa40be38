"""Small encoders and encoder-decoders that `transformers` makes and saves, with random weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers

VOCABULARY = 99
LAYERS = 3  # of each stack
SUPPRESSED = list(range(5, 40))
SUPPRESSED_FIRST = [2, *range(40, 60)]
_SIZES = {"vocab_size": VOCABULARY, "pad_token_id": 0}


def _bert(kind: str) -> Any:
    config = transformers.BertConfig(
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=48,
        num_labels=5,
        **_SIZES,
    )
    return getattr(transformers, f"Bert{kind}")(config)


def _distilbert(kind: str) -> Any:
    config = transformers.DistilBertConfig(
        dim=32,
        n_layers=LAYERS,
        n_heads=4,
        hidden_dim=64,
        max_position_embeddings=48,
        num_labels=5,
        **_SIZES,
    )
    return getattr(transformers, f"DistilBert{kind}")(config)


def _t5(feed_forward: str, *, tied: bool) -> Any:
    config = transformers.T5Config(
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=LAYERS,
        num_decoder_layers=LAYERS,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=20,
        feed_forward_proj=feed_forward,
        tie_word_embeddings=tied,
        decoder_start_token_id=0,
        **_SIZES,
    )
    model = transformers.T5ForConditionalGeneration(config)
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(VOCABULARY, 32) * 0.3)
    return model


def _bart() -> Any:
    config = transformers.BartConfig(
        d_model=32,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=4,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        scale_embedding=True,
        **_SIZES,
    )
    model = transformers.BartForConditionalGeneration(config)
    model.final_logits_bias.normal_(std=0.2)
    model.generation_config.forced_bos_token_id = 7
    model.generation_config.forced_eos_token_id = None
    return model


def _whisper() -> Any:
    config = transformers.WhisperConfig(
        d_model=32,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_mel_bins=20,
        max_source_positions=50,
        max_target_positions=40,
        decoder_start_token_id=3,
        bos_token_id=1,
        eos_token_id=2,
        **_SIZES,
    )
    model = transformers.WhisperForConditionalGeneration(config)
    model.generation_config.suppress_tokens = SUPPRESSED
    model.generation_config.begin_suppress_tokens = SUPPRESSED_FIRST
    return model


ENCODERS: Mapping[str, Callable[[], Any]] = {
    "bert": lambda: _bert("Model"),
    "bert-masked": lambda: _bert("ForMaskedLM"),
    "bert-classes": lambda: _bert("ForSequenceClassification"),
    "distilbert": lambda: _distilbert("Model"),
    "distilbert-masked": lambda: _distilbert("ForMaskedLM"),
    "distilbert-classes": lambda: _distilbert("ForSequenceClassification"),
}
TRANSLATORS: Mapping[str, Callable[[], Any]] = {
    "t5-1.0": lambda: _t5("relu", tied=True),
    "t5-1.1": lambda: _t5("gated-gelu", tied=False),
    "bart": _bart,
}
ALL = {**ENCODERS, **TRANSLATORS, "whisper": _whisper}


def write_random(name: str, folder: Path) -> Any:
    """Saves the model of that name into `folder` and returns it: the reference."""
    torch.manual_seed(sum(map(ord, name)))
    model = ALL[name]().eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            # Fresh biases are 0 and norms 1: nothing would show. And with words that weigh little
            # against the layers, a tied head does not just repeat the token before.
            is_word = any(mark in parameter_name for mark in ("shared", "embed_tokens", "word_emb"))
            parameter.add_(torch.randn_like(parameter) * (0.1 if is_word else 0.2))
    model.save_pretrained(folder)
    return model
