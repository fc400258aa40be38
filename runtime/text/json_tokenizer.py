"""The tokenizer that lies beside a safetensors model: tokenizer.json, or BERT's vocab.txt."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from mesh.errors import BadModelFile, ModelNotFound, PromptTooLong
from runtime.formats.json_files import MAX_JSON_BYTES, read_object

TOKENIZER: Final = "tokenizer.json"
VOCABULARY: Final = "vocab.txt"
UNKNOWN: Final = "[UNK]"
HALF: Final = "\N{REPLACEMENT CHARACTER}"  # what stands for bytes that are no letter yet


class JsonTokenizer:
    """Text to token ids and back."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        # How long a text may be is for the model to say, not for whoever saved the file.
        tokenizer.no_truncation()
        tokenizer.no_padding()

    @classmethod
    def open(cls, folder: Path) -> JsonTokenizer:
        """Raises ModelNotFound when there is no tokenizer, BadModelFile for one that is damaged.

        Takes seconds for a vocabulary of a quarter of a million tokens, and all threads wait.
        """
        path = folder / TOKENIZER
        if path.is_file():
            if path.stat().st_size > MAX_JSON_BYTES:
                raise BadModelFile(f"{path} has more than {MAX_JSON_BYTES} bytes")
            try:
                return cls(tokenizers.Tokenizer.from_file(str(path)))
            except Exception as error:  # the library raises nothing more precise
                raise BadModelFile(f"{path} is no tokenizer: {error}") from None
        if (folder / VOCABULARY).is_file():
            return cls(_word_pieces(folder))
        raise ModelNotFound(
            f"{folder} has neither {TOKENIZER} nor {VOCABULARY}; take a complete model folder"
        )

    def encode(self, text: str, *, special: bool = True, most: int | None = None) -> list[int]:
        """Token ids, with what the model wants around a text unless `special` is False.

        Raises PromptTooLong for more than `most` tokens.
        """
        # Half a surrogate pair, which JSON can carry, is no letter: it becomes U+FFFD.
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special).ids
        if most is not None and len(ids) > most:
            raise PromptTooLong(
                f"the text has {len(ids)} tokens and the model reads {most}; shorten it"
            )
        return ids

    def encode_cut(self, text: str, most: int) -> list[int]:
        """As `encode`, but a text too long loses its end; what stands around it stays."""
        ids = self.encode(text)
        if len(ids) <= most:
            return ids
        around = self._tokenizer.num_special_tokens_to_add(is_pair=False)
        bare = self._tokenizer.encode(text, add_special_tokens=False)
        bare.truncate(max(0, most - around))
        cut: list[int] = self._tokenizer.post_process(bare).ids
        return cut

    def decode(self, token_ids: Iterable[int]) -> str:
        """The text, without special tokens; an unknown id is left out."""
        text: str = self._tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """What a token adds to a text that goes on, in UTF-8; nothing for a special token."""
        once, twice = self.decode([token_id]), self.decode([token_id, token_id])
        return twice[len(once) :].encode()

    def name_of(self, token_id: int) -> str:
        """The token as the vocabulary writes it; nothing for an unknown id."""
        return self._tokenizer.id_to_token(token_id) or ""

    def stream(self) -> JsonStream:
        return JsonStream(self)

    def id_of(self, token: str) -> int | None:
        """The id of a token by its exact text."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found


class JsonStream:
    """Turns tokens into text as they come.

    What a token adds depends on those before it (a space between words), so it is decoded behind
    the tokens that added the piece before.
    """

    def __init__(self, tokenizer: JsonTokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []  # whose text was shown last
        self._now: list[int] = []  # whose text was not

    def push(self, token_id: int) -> str:
        """The text that is complete now; half a letter waits for its other half."""
        self._now.append(token_id)
        text = self._text()
        if not text or text.endswith(HALF):
            return ""
        self._before, self._now = self._now, []
        return text

    def finish(self) -> str:
        """What is left at the end, without the half of a letter."""
        return self._text().rstrip(HALF)

    def _text(self) -> str:
        shown = self._tokenizer.decode(self._before)
        return self._tokenizer.decode(self._before + self._now)[len(shown) :]


def _word_pieces(folder: Path) -> tokenizers.Tokenizer:
    """BERT's own rules over a vocabulary of a line a token."""
    path = folder / VOCABULARY
    config = read_object(folder / "tokenizer_config.json") or {}
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise BadModelFile(f"{path} has more than {MAX_JSON_BYTES} bytes")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise BadModelFile(f"{path} cannot be read: {error}") from None
    ids = {token: number for number, token in enumerate(lines)}
    missing = [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in ids]
    if missing:
        raise BadModelFile(f"{path} has no {', '.join(missing)}; is it BERT's vocabulary?")
    tokenizer = tokenizers.Tokenizer(models.WordPiece(vocab=ids, unk_token=UNKNOWN))
    tokenizer.add_special_tokens(
        [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token in ids]
    )
    tokenizer.normalizer = normalizers.BertNormalizer(
        lowercase=bool(config.get("do_lower_case", True)),
        strip_accents=config.get("strip_accents"),
        handle_chinese_chars=bool(config.get("tokenize_chinese_chars", True)),
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(
        ("[SEP]", ids["[SEP]"]), ("[CLS]", ids["[CLS]"])
    )
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer
