"""Splicing: text ids and visual tokens become one sequence of decoder inputs.

The embedding table stays on disk as a memory map: it costs no memory of the device, and a step reads one row of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .errors import BundleError
from .prompt import Piece, VisualSlot
from .tokenizer import Tokenizer

_DTYPES = {"F16": np.float16, "F32": np.float32}
_MAX_HEADER_BYTES = 1 << 20


class EmbeddingTable:
    """Rows of the decoder's input embeddings, from a safetensors file with one tensor `embeddings` [vocab, hidden]."""

    def __init__(self, path: Path, vocab_size: int, hidden_size: int) -> None:
        try:
            with path.open("rb") as file:
                header_bytes = int.from_bytes(file.read(8), "little")
                if header_bytes > _MAX_HEADER_BYTES:
                    raise ValueError("its header is too long")
                entry = json.loads(file.read(header_bytes))["embeddings"]
            dtype = _DTYPES[entry["dtype"]]
            if entry["shape"] != [vocab_size, hidden_size]:
                raise ValueError(f"its shape is {entry['shape']}, not {[vocab_size, hidden_size]}")
            offset = 8 + header_bytes + entry["data_offsets"][0]
            self._rows = np.memmap(path, dtype, "r", offset, (vocab_size, hidden_size))
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise BundleError(f"{path} is not a usable embedding table ({e}). Export the bundle again.") from e

    def rows(self, ids: np.ndarray) -> np.ndarray:
        """Embeddings float32 [n, hidden_size] of ids int64 [n]."""
        return self._rows[ids].astype(np.float32)

    def row(self, token_id: int) -> np.ndarray:
        """Embedding [hidden_size] of one id, in the table's own dtype."""
        return self._rows[token_id]


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
