"""The KV cache: keys and values of sequences side by side, one row each.

One append-only buffer per layer and kind that the decoder's graph reads and writes in place; nothing is copied between
steps. A row's first positions alone are valid, so going back is setting its length. The buffers are the host's or a
GPU's (`buffers.py`), in the type that the graph has.
"""

from __future__ import annotations

from itertools import takewhile

import numpy as np

from ..backends.buffers import HOST, Buffer, Memory
from ..bundle.specs import TextSpec
from ..errors import ContextLengthError
from .rope import Rotary

CAPACITY_STEP = 256
FIRST_RUNG = 1024
_MOVED_AT_ONCE = 1024  # positions: bounds the copies and the tables for turning keys


class KvCache:
    """Keys and values of all layers, empty at first; `resize` makes the rows.

    dtype: float32 or float16.
    buffers: key and value of layer 0, of layer 1, …: [rows, kv_heads, capacity, head_dim] each.
    lengths: int32 [rows], tokens in each row.
    """

    def __init__(self, spec: TextSpec, memory: Memory = HOST, dtype: type = np.float32) -> None:
        self.spec = spec
        self.memory = memory
        self.dtype = np.dtype(dtype)
        self.buffers: list[Buffer] = []
        self.clear()

    def clear(self) -> None:
        """Frees the memory."""
        for buffer in self.buffers:
            buffer.release()
        self.buffers = []
        self.lengths = np.zeros(0, np.int32)
        self.capacity = 0

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def num_bytes(self) -> int:
        return self.rows * self.bytes_per_row(self.capacity)

    def bytes_per_row(self, capacity: int) -> int:
        """Memory of one row of this capacity."""
        return bytes_per_row(self.spec, capacity, self.dtype.itemsize)

    def resize(self, rows: int, capacity: int) -> None:
        """Makes room for so many rows and tokens a row, keeping the content of the rows that remain.

        MemoryError or BackendError, when there is no room, leaves the cache empty.
        """
        lengths = self._lengths_in(rows, capacity)
        if rows == 0:
            self.clear()
            return
        shape = (rows, *self.row_shape(capacity))
        try:
            for index in range(2 * self.spec.num_layers):  # one at a time: the peak is one buffer more, not a cache
                new = self.memory.zeros(shape, self.dtype)
                if index == len(self.buffers):
                    self.buffers.append(new)
                    continue
                old, self.buffers[index] = self.buffers[index], new
                self._copy(old, new, lengths)
                old.release()
        except BaseException:
            self.clear()  # out of memory, or interrupted: the buffers have different sizes
            raise
        self.lengths, self.capacity = lengths, capacity

    def adopt(self, buffers: list[Buffer], capacity: int) -> None:
        """`resize` to buffers that are there, all zeros, of `row_shape` each; those of before are left as they are."""
        lengths = self._lengths_in(buffers[0].shape[0], capacity)
        for old, new in zip(self.buffers, buffers, strict=False):  # there are none yet in an empty cache
            self._copy(old, new, lengths)
        self.buffers, self.lengths, self.capacity = buffers, lengths, capacity

    def row_shape(self, capacity: int) -> tuple[int, ...]:
        """Of one row of a buffer."""
        return (self.spec.num_kv_heads, capacity, self.spec.head_dim)

    def _lengths_in(self, rows: int, capacity: int) -> np.ndarray:
        """The lengths in a cache of another size; ValueError if a row that remains does not fit it."""
        kept = min(rows, self.rows)
        longest = int(self.lengths[:kept].max(initial=0))
        if longest > capacity:
            raise ValueError(f"a row holds {longest} tokens: they do not fit a capacity of {capacity}")
        lengths = np.zeros(rows, np.int32)
        lengths[:kept] = self.lengths[:kept]
        return lengths

    @staticmethod
    def _copy(source: Buffer, target: Buffer, lengths: np.ndarray) -> None:
        for row in range(min(source.shape[0], target.shape[0])):
            target.copy_positions(row, source, row, int(lengths[row]))

    def move_row(self, source: int, target: int) -> None:
        """Moves the content of row `source` to row `target`; `source` is then empty."""
        length = int(self.lengths[source])
        for buffer in self.buffers:
            buffer.copy_positions(target, buffer, source, length)
        self.lengths[target] = length
        self.lengths[source] = 0

    def copy_row(self, source: int, target: int, length: int) -> None:
        """Makes row `target` hold the first `length` tokens of row `source`."""
        for buffer in self.buffers:
            buffer.copy_positions(target, buffer, source, length)
        self.lengths[target] = length

    def swap_rows(self, a: int, b: int) -> None:
        """Exchanges the content of two rows."""
        lengths = self.lengths[[a, b]].tolist()
        if self.buffers and any(lengths):
            spare = self.memory.zeros((1, *self.row_shape(self.capacity)), self.dtype)
            for buffer in self.buffers:
                spare.copy_positions(0, buffer, a, lengths[0])
                buffer.copy_positions(a, buffer, b, lengths[1])
                buffer.copy_positions(b, spare, 0, lengths[0])
            spare.release()
        self.lengths[[a, b]] = lengths[::-1]

    def rewind(self, row: int, length: int) -> None:
        """Forgets everything in a row after its first `length` tokens."""
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"cannot rewind to {length} tokens: {self.lengths[row]} are cached")
        self.lengths[row] = length

    def wipe(self, row: int) -> None:
        """Empties a row and sets all of it to zero: a NaN spoils answers even where it is masked, as 0 · NaN is NaN."""
        for buffer in self.buffers:
            buffer.rows(row, row + 1).clear()
        self.lengths[row] = 0

    def append_moved(self, row: int, source: int, count: int, rotary: Rotary) -> None:
        """Appends to a row what stands `count` positions from `source` on, at or after its end, with keys rotated."""
        target = int(self.lengths[row])
        for index, buffer in enumerate(self.buffers):
            for start in range(0, count, _MOVED_AT_ONCE):
                old, new = source + start, target + start
                part = buffer.read_positions(row, old, min(_MOVED_AT_ONCE, count - start))
                buffer.write_positions(row, new, rotary.rotated(part, old, new) if index % 2 == 0 else part)
        self.lengths[row] = target + count


def bytes_per_row(spec: TextSpec, capacity: int, itemsize: int = 4) -> int:
    """Memory of one row of the cache. itemsize: bytes of a number; 2 where the cache is float16."""
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * capacity * itemsize


def capacity_for(spec: TextSpec, tokens: int) -> int:
    """The capacity to make for so many tokens in all; ContextLengthError beyond the model's positions."""
    limit = spec.max_position_embeddings
    if tokens > limit:
        raise ContextLengthError(
            f"{tokens} tokens do not fit the model's context of {limit}: use fewer frames (max_frames), "
            "a higher pruning threshold, or a smaller max_new_tokens."
        )
    return min(limit, -(-tokens // CAPACITY_STEP) * CAPACITY_STEP)


def rungs(spec: TextSpec) -> list[int]:
    """The few capacities to make where each costs something once, as a captured CUDA graph does: they double from
    1,024 on, and the last is the model's context."""
    limit = spec.max_position_embeddings
    return [*takewhile(lambda rung: rung < limit, (FIRST_RUNG << doublings for doublings in range(32))), limit]


def rung_for(spec: TextSpec, tokens: int) -> int:
    """The smallest of `rungs` for so many tokens in all; ContextLengthError beyond the model's positions."""
    least = capacity_for(spec, tokens)
    return next(rung for rung in rungs(spec) if rung >= least)
