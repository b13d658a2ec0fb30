"""Which tokens the output head keeps, from texts; what the texts' other half would lose.

Kept are: every token of the texts as they stand, and of their words at the beginning of a line, within one, in small
letters and with a capital; what anything can be spelled with, which is every single byte, and digits, punctuation and
spaces of up to four; the added tokens, end tokens among them. CORPUS, which is short, also keeps every English word and
piece of one. Rows are filled up with the lowest ids, which a tokenizer has learned first, to a multiple that products
and the greedy choice take whole.

The embeddings stay whole: what is left out can be read, in questions or drafts, but is not said as it is. The model is
not told, and was not trained to spell it in other tokens: this is not lossless.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.runtime.bundle.file_names import HEAD_TOKENS
from vl3edge.runtime.bundle.specs import NO_VOCABULARY, VocabularySpec

from ..errors import ExportError
from .texts import CORPUS, texts

MULTIPLE = 64  # rows; of the fp16 graph's greedy choice the narrowest row
_PLAIN = re.compile(rb"[^A-Za-z\x80-\xff]{1,4}")  # digits, punctuation and spaces
_ENGLISH = re.compile(rb"[ ']?(?:[A-Z]?[a-z]+|[A-Z]+)")
_SPECIAL_ID = 0  # what argmax says of nothing but NaN


@dataclass(frozen=True)
class HeadVocabulary:
    """ids: int64 [n], ascending, the tokens that the head keeps; None is all."""

    ids: np.ndarray | None = None
    spec: VocabularySpec = NO_VOCABULARY

    def write(self, folder: Path) -> None:
        """Writes the bundle's file of them, if the head has not all."""
        if self.ids is not None:
            np.save(folder / HEAD_TOKENS, self.ids.astype(np.int32))


WHOLE = HeadVocabulary()


def head_vocabulary(checkpoint: Checkpoint, source: str | None) -> HeadVocabulary:
    """What the head of this checkpoint keeps for a file of texts, or CORPUS; None keeps all.

    Raises ExportError for texts that cannot be used, or a tokenizer whose tokens are not bytes.
    """
    if source is None:
        return WHOLE
    lines = texts(source)
    rule = _Rule(checkpoint, english=source == CORPUS)
    ids = rule.kept(lines)
    if len(ids) == checkpoint.config.text.vocab_size:
        return WHOLE
    name = "the calibration's conversations and English words" if source == CORPUS else Path(source).name
    return HeadVocabulary(ids, VocabularySpec(name, *rule.held_out(lines[::2], lines[1::2])))


class _Rule:
    """What is kept of one checkpoint's vocabulary."""

    def __init__(self, checkpoint: Checkpoint, english: bool) -> None:
        source = checkpoint.tokenizer_json()
        self._tokenizer = Tokenizer.from_str(source)
        self._vocab_size = checkpoint.config.text.vocab_size
        added = {token["id"] for token in json.loads(source)["added_tokens"]}
        named = self._tokenizer.get_vocab(with_added_tokens=False)
        self._bytes = {id_: content for name, id_ in named.items() if id_ not in added and (content := _bytes_of(name))}
        if sum(len(content) == 1 for content in self._bytes.values()) < len(_BYTES):
            raise ExportError("--vocabulary needs a tokenizer of bytes, as Qwen2's is, which this checkpoint's is not")
        patterns = [_PLAIN, *([_ENGLISH] if english else [])]
        self._always = {_SPECIAL_ID, *added, *checkpoint.config.eos_token_ids, *(named.values() - self._bytes.keys())}
        self._always |= {
            id_
            for id_, content in self._bytes.items()
            if len(content) == 1 or any(pattern.fullmatch(content) for pattern in patterns)
        }

    def kept(self, lines: Sequence[str]) -> np.ndarray:
        """The ids int64 [n], ascending."""
        words = {word.strip("\"'.,:;!?()[]{}<>") for line in lines for word in line.split()}
        forms = {form for word in words for form in (word, word.lower(), word[:1].upper() + word[1:])}
        said = self._ids([*lines, *forms, *(f" {form}" for form in forms)])
        ids = {id_ for id_ in self._always | set(said) if id_ < self._vocab_size}
        wanted = min(-(-len(ids) // MULTIPLE) * MULTIPLE, self._vocab_size)
        others = (id_ for id_ in range(self._vocab_size) if id_ not in ids)
        return np.array(sorted(ids | {next(others) for _ in range(wanted - len(ids))}), np.int64)

    def held_out(self, lines: Sequence[str], others: Sequence[str]) -> tuple[int, int, int]:
        """Tokens of the other lines; those of them not in a head made from `lines`; what that head spells these in."""
        ids = set(self.kept(lines).tolist())
        contents = {self._bytes[id_] for id_ in ids if id_ in self._bytes}
        tokens = self._ids(others)
        lost = [id_ for id_ in tokens if id_ not in ids]
        return len(tokens), len(lost), sum(_spelled(self._bytes[id_], contents) for id_ in lost)

    def _ids(self, lines: Iterable[str]) -> list[int]:
        encodings = self._tokenizer.encode_batch(list(lines), add_special_tokens=False)
        return [id_ for encoding in encodings for id_ in encoding.ids]


def _bytes_of(name: str) -> bytes | None:
    """The bytes of a token by its name in a byte-level tokenizer, in which each byte is one printable character."""
    return bytes(_BYTES[character] for character in name) if _BYTES.keys() >= set(name) else None


def _byte_characters() -> dict[str, int]:
    """The byte of each character: printable ones of Latin-1 are themselves, the others those from 256 on, in order."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + k): byte for k, byte in enumerate(others)}


_BYTES = _byte_characters()


def _spelled(content: bytes, known: Collection[bytes]) -> int:
    """The least number of known pieces that make up the content; every byte is one."""
    least = [0]
    for end in range(1, len(content) + 1):
        least.append(1 + min(least[start] for start in range(end) if content[start:end] in known))
    return least[-1]
