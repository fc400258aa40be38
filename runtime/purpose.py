"""What a model is for, as a person would say it."""

from __future__ import annotations

from enum import StrEnum


class Purpose(StrEnum):
    """Known from the model's own files, before any weight is read."""

    TEXT = "text"  # a decoder: continues texts, answers chats
    EMBEDDINGS = "embeddings"  # an encoder: texts to vectors, near each other when they mean alike
    TEXT_TO_TEXT = "text-to-text"  # reads a text and writes another
    SPEECH_TO_TEXT = "speech-to-text"
    LABELS = "labels"  # an encoder that was trained to tell classes of texts apart
