"""Text to ids and back: a wrapper of `tokenizers` that never reads special tokens out of plain text.

`encode` sees text only; special tokens enter a prompt by id, placed by the chat template (`prompt.py`). `Detokenizer`
turns a stream of ids into text without ever showing half a character.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as RustTokenizer

from ..bundle.bundle import Bundle
from ..bundle.file_names import SPECIAL_TOKENS
from ..bundle.json_file import read_json_file
from ..errors import BundleError

_MAX_BYTES = 64 << 20  # six times the released one
_REPLACEMENT = "\ufffd"  # what decoding writes for bytes that are not yet a character


class Tokenizer:
    """A bundle's tokenizer.

    added: every added token of the tokenizer (`<|im_end|>`, `<image>`, …) and its id; they are matched in what the
    chat template writes, never in text that users write.
    special: what chat templates call `eos_token`, `pad_token`, …; None for bundles of before they were written.
    """

    def __init__(self, path: Path) -> None:
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise ValueError(f"it has more than {_MAX_BYTES >> 20} MiB")
            source = path.read_text(encoding="utf-8")
            settings = json.loads(source)
            self._full = RustTokenizer.from_str(source)
            self.added = {token["content"]: int(token["id"]) for token in settings["added_tokens"]}
            if "" in self.added:
                raise ValueError("an added token is empty")
            # Without its added tokens the same tokenizer reads `<|im_end|>` as the characters it is made of.
            self._plain = RustTokenizer.from_str(json.dumps({**settings, "added_tokens": []}))
        except Exception as e:  # tokenizers raises plain Exception
            raise BundleError(f"{path} is not a usable tokenizer ({e}). Export the bundle again.") from e
        self.special: dict[str, str] | None = None
        beside = path.with_name(SPECIAL_TOKENS)
        if beside.is_file():
            self.special = named_tokens(read_json_file(beside, _MAX_BYTES, "Export the bundle again."))
        for tokenizer in (self._full, self._plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()

    @classmethod
    def of(cls, bundle: Bundle) -> Tokenizer:
        return cls(bundle.path("tokenizer.json"))

    def encode(self, text: str) -> np.ndarray:
        """Ids of plain text, int64 [n]; nothing in it can become an added token."""
        return np.array(self._plain.encode(text, add_special_tokens=False).ids, np.int64)

    def decode(self, ids: list[int]) -> str:
        """Text of ids, without special tokens."""
        return str(self._full.decode(ids, skip_special_tokens=True))

    def token(self, token_id: int) -> str:
        """The string of one id; KeyError for an id the tokenizer does not have."""
        text = self._full.id_to_token(token_id)
        if text is None:
            raise KeyError(token_id)
        return str(text)


def named_tokens(settings: Any) -> dict[str, str]:
    """The special tokens that a tokenizer_config.json names, each as its text: `eos_token` and whatever ends so."""
    found = {}
    for name, value in settings.items() if isinstance(settings, Mapping) else ():
        text = value.get("content") if isinstance(value, Mapping) else value
        if name.endswith("_token") and isinstance(text, str):
            found[name] = text
    return found


class Detokenizer:
    """Incremental decoding: the pieces joined are the text of all ids decoded at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._shown: list[int] = []  # the last ids already shown: decoders may treat a first token differently
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """Adds an id; returns the text that became certain, often one word, sometimes nothing."""
        self._pending.append(token_id)
        text = self._new_text()
        if text.endswith(_REPLACEMENT):  # perhaps the first bytes of a longer character
            return ""
        return self._emit(text)

    def flush(self) -> str:
        """What is left at the end, complete or not."""
        return self._emit(self._new_text()) if self._pending else ""

    def _new_text(self) -> str:
        before = self._tokenizer.decode(self._shown)
        return self._tokenizer.decode(self._shown + self._pending)[len(before) :]

    def _emit(self, text: str) -> str:
        self._shown, self._pending = self._pending, []
        return text
