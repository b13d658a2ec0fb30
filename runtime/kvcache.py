"""The KV cache: keys and values of sequences side by side, one row each.

One append-only buffer per layer and kind that the decoder's graph reads and writes in place; nothing is copied between
steps. A row's first positions alone are valid, so going back is setting its length.
"""

from __future__ import annotations

import numpy as np

from .errors import ContextLengthError
from .manifest import TextSpec
from .rotary import Rotary

CAPACITY_STEP = 256


class KvCache:
    """Empty at first; `resize` makes the rows.

    buffers: key and value of layer 0, of layer 1, …: float32 [rows, kv_heads, capacity, head_dim] each.
    lengths: int32 [rows], tokens in each row.
    """

    def __init__(self, spec: TextSpec) -> None:
        self.spec = spec
        self.clear()

    def clear(self) -> None:
        """Gives the memory back."""
        self.buffers: list[np.ndarray] = []
        self.lengths = np.zeros(0, np.int32)
        self.capacity = 0

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def num_bytes(self) -> int:
        return self.rows * bytes_per_row(self.spec, self.capacity)

    def resize(self, rows: int, capacity: int) -> None:
        """Makes room for so many rows and tokens a row, keeping the content of the rows that remain.

        MemoryError leaves the cache empty.
        """
        kept = min(rows, self.rows)
        longest = int(self.lengths[:kept].max(initial=0))
        if longest > capacity:
            raise ValueError(f"a row holds {longest} tokens: they do not fit a capacity of {capacity}")
        shape = (rows, self.spec.num_kv_heads, capacity, self.spec.head_dim)
        lengths = np.zeros(rows, np.int32)
        lengths[:kept] = self.lengths[:kept]
        self.buffers = self.buffers or [np.zeros((0, *shape[1:]), np.float32)] * (2 * self.spec.num_layers)
        try:
            for index, old in enumerate(self.buffers):  # one buffer at a time: the peak is one buffer, not a cache
                new = np.zeros(shape, np.float32)
                for row in range(kept):
                    new[row, :, : lengths[row]] = old[row, :, : lengths[row]]
                self.buffers[index] = new
        except BaseException:
            self.clear()  # out of memory, or interrupted: the buffers have different sizes
            raise
        self.lengths, self.capacity = lengths, capacity

    def move_row(self, source: int, target: int) -> None:
        """Gives row `target` the content of row `source`, which is empty then."""
        length = self.lengths[source]
        for buffer in self.buffers:
            buffer[target, :, :length] = buffer[source, :, :length]
        self.lengths[target] = length
        self.lengths[source] = 0

    def rewind(self, row: int, length: int) -> None:
        """Forgets everything in a row after its first `length` tokens."""
        if not 0 <= length <= self.lengths[row]:
            raise ValueError(f"cannot rewind to {length} tokens: {self.lengths[row]} are cached")
        self.lengths[row] = length

    def append_moved(self, row: int, source: int, count: int, rotary: Rotary) -> None:
        """Appends to a row what stands `count` positions from `source` on, at or after its end; keys turn with it."""
        target = int(self.lengths[row])
        for index, buffer in enumerate(self.buffers):
            if index % 2 == 0:
                rotary.move(buffer[row], source, target, count)
            else:
                buffer[row, :, target : target + count] = buffer[row, :, source : source + count]
        self.lengths[row] = target + count


def bytes_per_row(spec: TextSpec, capacity: int) -> int:
    """Memory of one row of the cache."""
    return 2 * spec.num_layers * spec.num_kv_heads * spec.head_dim * capacity * np.dtype(np.float32).itemsize


def capacity_for(spec: TextSpec, tokens: int) -> int:
    """The capacity to make for so many tokens in all; ContextLengthError beyond the model's positions."""
    limit = spec.max_position_embeddings
    if tokens > limit:
        raise ContextLengthError(
            f"{tokens} tokens do not fit the model's context of {limit}: use fewer frames (max_frames), "
            "a higher pruning threshold, or a smaller max_new_tokens."
        )
    return min(limit, -(-tokens // CAPACITY_STEP) * CAPACITY_STEP)
