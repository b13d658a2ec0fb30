"""Splicing: text ids and visual tokens become one sequence of decoder inputs.

The embedding table stays on disk as a memory map: it costs no memory of the device, and a step reads one row of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..bundle.bundle import Bundle
from ..errors import BundleError
from .chat_template import Piece, VisualSlot
from .tokenizer import Tokenizer

_DTYPES = {"F16": np.float16, "F32": np.float32, "U8": np.uint8}
_MAX_HEADER_BYTES = 1 << 20


class EmbeddingTable:
    """Rows of the decoder's input embeddings, from a safetensors file.

    The file holds `embeddings` float16 or float32 [vocab, hidden]; or, shared with a quantized output head, `codes`
    uint8 [vocab, hidden · bits / 8], `scales` float16 [vocab, blocks] and perhaps `zero_points`, packed as the operator
    MatMulNBits has them.
    """

    def __init__(self, path: Path, vocab_size: int, hidden_size: int) -> None:
        self._hidden_size = hidden_size
        self._num_rows = vocab_size
        try:
            with path.open("rb") as file:
                header_bytes = int.from_bytes(file.read(8), "little")
                if header_bytes > _MAX_HEADER_BYTES:
                    raise ValueError("its header is too long")
                entries = json.loads(file.read(header_bytes))
            self._parts: dict[str, np.ndarray] = {
                name: _mapped(path, 8 + header_bytes, entry)
                for name, entry in entries.items()
                if name != "__metadata__"
            }
            first = self._parts["embeddings" if "embeddings" in self._parts else "codes"]
            self._bits = first.shape[1] * 8 // hidden_size
            self._check(vocab_size, first)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as e:
            raise BundleError(f"{path} is not a usable embedding table ({e}). Export the bundle again.") from e

    @classmethod
    def of(cls, bundle: Bundle) -> EmbeddingTable:
        text = bundle.manifest.text
        return cls(bundle.path("embeddings.safetensors"), text.vocab_size, text.hidden_size)

    def _check(self, vocab_size: int, first: np.ndarray) -> None:
        """ValueError or KeyError unless the tensors fit one another and the sizes asked for."""
        hidden, parts = self._hidden_size, self._parts
        fits = first.shape[1] == hidden if "embeddings" in parts else first.shape[1] * 8 in (4 * hidden, 8 * hidden)
        if len(first) != vocab_size or not fits:
            raise ValueError(f"it has the shape {list(first.shape)}, not [{vocab_size}, {hidden}]")
        if "embeddings" in parts:
            if first.dtype == np.uint8:
                raise ValueError("its embeddings are whole numbers")
            return
        scales = parts["scales"]
        zeros = parts.get("zero_points")
        if not scales.shape[1] or hidden % scales.shape[1] or len(scales) != vocab_size or scales.dtype == np.uint8:
            raise ValueError("its scales do not fit its codes")
        if zeros is not None and zeros.shape != (vocab_size, -(-scales.shape[1] * self._bits // 8)):
            raise ValueError("its zero points do not fit its scales")
        if any(part is not None and part.dtype != np.uint8 for part in (first, zeros)):
            raise ValueError("its codes are not bytes")

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Embeddings float32 [n, hidden_size] of ids int64 [n]; BundleError for an id beyond the vocabulary."""
        if len(ids) and not 0 <= ids.min() <= ids.max() < self._num_rows:
            raise BundleError(f"tokenizer.json gives ids up to {ids.max()}, the embeddings have {self._num_rows} rows.")
        if "embeddings" in self._parts:
            return self._parts["embeddings"][ids].astype(np.float32)
        scales = self._parts["scales"][ids].astype(np.float32)
        codes = _unpacked(self._parts["codes"][ids], self._bits, self._hidden_size).reshape(*scales.shape, -1)
        centred = codes.astype(np.float32)
        if "zero_points" in self._parts:
            centred -= _unpacked(self._parts["zero_points"][ids], self._bits, scales.shape[1])[..., None]
        else:
            centred -= 2 ** (self._bits - 1)
        return (centred * scales[..., None]).reshape(len(ids), -1)

    @property
    def is_quantized(self) -> bool:
        return "codes" in self._parts

    def steps(self, ids: np.ndarray) -> np.ndarray:
        """The mean step of the grid, float32 [n], of the rows of ids int64 [n] of a quantized table."""
        return np.abs(self._parts["scales"][ids].astype(np.float32)).mean(axis=1)

    def row(self, token_id: int) -> np.ndarray:
        """Embedding float32 [hidden_size] of one id."""
        return self.rows(np.array([token_id]))[0]


def _mapped(path: Path, start: int, entry: dict[str, Any]) -> np.ndarray:
    """One tensor of a safetensors file, memory-mapped."""
    rows, columns = entry["shape"]
    begin, dtype = entry["data_offsets"][0], np.dtype(_DTYPES[entry["dtype"]])
    if any(type(size) is not int or size < 0 for size in (rows, columns, begin)):
        raise ValueError("a size in its header is no whole number")
    if start + begin + rows * columns * dtype.itemsize > path.stat().st_size:
        raise ValueError("a tensor lies beyond its end")
    return np.memmap(path, dtype, "r", start + begin, (rows, columns))


def _unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """uint8 [n, count] of codes that are one to a byte, or two with the first in the low half."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)[:, :count]


@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of one clip or image: tokens float32 [N, hidden], those of frame k after those of k−1.

    uid: unique in this process; together with a token's index it identifies a position's content.
    """

    tokens: np.ndarray
    tokens_per_frame: tuple[int, ...]
    uid: int

    def frame(self, index: int) -> tuple[int, np.ndarray]:
        """The number of a frame's first token, and its tokens float32 [n, hidden]."""
        start = sum(self.tokens_per_frame[:index])
        return start, self.tokens[start : start + self.tokens_per_frame[index]]


class FrameTokens(Protocol):
    """Visual tokens frame by frame: a `VisualTokens`, or a clip that is still being encoded."""

    @property
    def uid(self) -> int: ...

    def frame(self, index: int) -> tuple[int, np.ndarray]: ...


@dataclass(frozen=True)
class SplicedPrompt:
    """A spliced prompt.

    ids: int64 [S], the placeholder's id where a visual token stands (what transformers' input_ids hold).
    keys: int64 [S], equal at two positions only if the same content stands there; how cached prefixes are found.
    spans: (position, visual tokens float32 [n, hidden]) of every frame, in order.
    """

    ids: np.ndarray
    keys: np.ndarray
    spans: tuple[tuple[int, np.ndarray], ...]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def media_tokens(self) -> int:
        """Visual tokens, and what the template writes between the frames of one video: fewer frames make fewer."""
        total = sum(len(tokens) for _, tokens in self.spans)
        for (start, tokens), (following, _) in pairwise(self.spans):
            if _uid(self.keys[start]) == _uid(self.keys[following]):
                total += following - start - len(tokens)
        return total

    def head(self, length: int) -> SplicedPrompt:
        """Its first `length` tokens."""
        spans = tuple((at, tokens[: length - at]) for at, tokens in self.spans if at < length)
        return SplicedPrompt(self.ids[:length], self.keys[:length], spans)

    def followed_by(self, ids: Sequence[int] | np.ndarray) -> SplicedPrompt:
        """With text tokens of these ids after it."""
        more = np.array(ids, np.int64)
        return SplicedPrompt(np.append(self.ids, more), np.append(self.keys, more), self.spans)

    def embeddings(self, table: EmbeddingTable, start: int = 0) -> np.ndarray:
        """Decoder inputs float32 [S − start, hidden] of the positions from `start` on."""
        result = table.rows(self.ids[start:])
        for position, tokens in self.spans:
            skip = max(0, start - position)
            if skip < len(tokens):
                at = position + skip - start
                result[at : at + len(tokens) - skip] = tokens[skip:]
        return result


def _uid(key: np.int64) -> int:
    """Of the visual that a visual token's key stands for."""
    return int(-1 - key) >> 32


def splice(
    pieces: Sequence[Piece],
    visuals: Sequence[FrameTokens],
    placeholder_ids: Sequence[int],
    tokenizer: Tokenizer,
) -> SplicedPrompt:
    """Puts a prompt's pieces together; visuals[k] and placeholder_ids[k] belong to the k-th media item."""
    whole = list(stream_incremental(pieces, visuals, placeholder_ids, tokenizer, every=None))
    return whole[-1]


def stream_incremental(
    pieces: Sequence[Piece],
    visuals: Sequence[FrameTokens],
    placeholder_ids: Sequence[int],
    tokenizer: Tokenizer,
    every: int | None,
) -> Iterator[SplicedPrompt]:
    """The prompt while it is being made: its beginning whenever `every` more tokens are there, at last the whole."""
    ids: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    spans: list[tuple[int, np.ndarray]] = []
    length = given = 0
    for piece in pieces:
        if isinstance(piece, VisualSlot):
            visual = visuals[piece.media]
            first, tokens = visual.frame(piece.frame)
            spans.append((length, tokens))
            part = np.full(len(tokens), placeholder_ids[piece.media], np.int64)
            numbers = np.arange(first, first + len(tokens), dtype=np.int64)
            key = -1 - ((np.int64(visual.uid) << 32) + numbers)
        else:
            part = np.array([piece], np.int64) if isinstance(piece, int) else tokenizer.encode(piece)
            key = part
        ids.append(part)
        keys.append(key)
        length += len(part)
        if every is not None and length - given >= every:
            given = length
            yield SplicedPrompt(np.concatenate(ids), np.concatenate(keys), tuple(spans))
    yield SplicedPrompt(np.concatenate(ids), np.concatenate(keys), tuple(spans))


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading keys two sequences share."""
    shortest = min(len(a), len(b))
    differ = np.flatnonzero(a[:shortest] != b[:shortest])
    return int(differ[0]) if len(differ) else shortest
