"""Splicing: text ids and visual tokens become one sequence of decoder inputs.

The embedding table stays on disk as a memory map: it costs no memory of the device, and a step reads one row of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import BundleError
from .prompt import Piece, VisualSlot
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
        try:
            with path.open("rb") as file:
                header_bytes = int.from_bytes(file.read(8), "little")
                if header_bytes > _MAX_HEADER_BYTES:
                    raise ValueError("its header is too long")
                entries = json.loads(file.read(header_bytes))
            self._parts = {
                name: _mapped(path, 8 + header_bytes, entry)
                for name, entry in entries.items()
                if name != "__metadata__"
            }
            first = self._parts["embeddings" if "embeddings" in self._parts else "codes"]
            self._bits = first.shape[1] * 8 // hidden_size
            fits = first.shape[1] == hidden_size if "embeddings" in self._parts else self._bits in (4, 8)
            if len(first) != vocab_size or not fits:
                raise ValueError(f"it has the shape {list(first.shape)}, not [{vocab_size}, {hidden_size}]")
            if "codes" in self._parts and hidden_size % self._parts["scales"].shape[1]:
                raise ValueError("its scales do not fit its codes")
        except (OSError, ValueError, KeyError, TypeError, IndexError) as e:
            raise BundleError(f"{path} is not a usable embedding table ({e}). Export the bundle again.") from e

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Embeddings float32 [n, hidden_size] of ids int64 [n]."""
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

    def row(self, token_id: int) -> np.ndarray:
        """Embedding float32 [hidden_size] of one id."""
        return self.rows(np.array([token_id]))[0]


def _mapped(path: Path, start: int, entry: dict[str, Any]) -> np.ndarray:
    """One tensor of a safetensors file, memory-mapped."""
    rows, columns = entry["shape"]
    return np.memmap(path, _DTYPES[entry["dtype"]], "r", start + entry["data_offsets"][0], (rows, columns))


def _unpacked(packed: np.ndarray, bits: int, count: int) -> np.ndarray:
    """uint8 [n, count] of codes that are one to a byte, or two with the first in the low half."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)[:, :count]


@dataclass(frozen=True)
class Visual:
    """The visual tokens of one clip or image: tokens float32 [N, hidden], those of frame k after those of k−1.

    uid: unique in this process; together with a token's index it identifies a position's content.
    """

    tokens: np.ndarray
    tokens_per_frame: tuple[int, ...]
    uid: int


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

    def embeddings(self, table: EmbeddingTable, start: int = 0) -> np.ndarray:
        """Decoder inputs float32 [S − start, hidden] of the positions from `start` on."""
        result = table.rows(self.ids[start:])
        for position, tokens in self.spans:
            skip = max(0, start - position)
            if skip < len(tokens):
                at = position + skip - start
                result[at : at + len(tokens) - skip] = tokens[skip:]
        return result


def splice(
    pieces: Sequence[Piece],
    visuals: Sequence[Visual],
    placeholder_ids: Sequence[int],
    tokenizer: Tokenizer,
) -> SplicedPrompt:
    """Puts a prompt's pieces together; visuals[k] and placeholder_ids[k] belong to the k-th media item."""
    starts = [np.concatenate([[0], np.cumsum(visual.tokens_per_frame)]) for visual in visuals]
    ids: list[np.ndarray] = []
    keys: list[np.ndarray] = []
    spans: list[tuple[int, np.ndarray]] = []
    length = 0
    for piece in pieces:
        if isinstance(piece, VisualSlot):
            first, last = starts[piece.media][piece.frame : piece.frame + 2]
            tokens = visuals[piece.media].tokens[first:last]
            spans.append((length, tokens))
            part = np.full(len(tokens), placeholder_ids[piece.media], np.int64)
            key = -1 - ((np.int64(visuals[piece.media].uid) << 32) + np.arange(first, last, dtype=np.int64))
        else:
            part = np.array([piece], np.int64) if isinstance(piece, int) else tokenizer.encode(piece)
            key = part
        ids.append(part)
        keys.append(key)
        length += len(part)
    return SplicedPrompt(np.concatenate(ids), np.concatenate(keys), tuple(spans))


def common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    """How many leading keys two sequences share."""
    shortest = min(len(a), len(b))
    differ = np.flatnonzero(a[:shortest] != b[:shortest])
    return int(differ[0]) if len(differ) else shortest
