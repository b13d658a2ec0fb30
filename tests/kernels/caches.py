"""A KV cache as the kernels see it, full of junk where nothing is cached, and what attends to it in numpy."""

from __future__ import annotations

import numpy as np


class Cache:
    """Keys and values of every layer, NaN but for the first lengths[row] positions of each row.

    layers: [layers][2] of float16 [rows, kv_heads, capacity, dim]. table: what the kernels read of it.
    """

    def __init__(
        self, rng: np.random.Generator, lengths: list[int], kv_heads: int, capacity: int, dim: int, layers: int = 2
    ) -> None:
        shape = (len(lengths), kv_heads, capacity, dim)
        self.layers = [[np.full(shape, np.nan, np.float16) for _ in range(2)] for _ in range(layers)]
        self.lengths = np.array(lengths, np.int32)
        for row, length in enumerate(lengths):
            for buffer in self.buffers:
                filled = max(0, length)
                buffer[row, :, :filled] = rng.standard_normal((kv_heads, filled, dim))
        self.table = np.array([capacity, *(buffer.ctypes.data for buffer in self.buffers)], np.int64)

    @property
    def capacity(self) -> int:
        return self.buffers[0].shape[2]

    def moved(self, capacity: int) -> Cache:
        """The same content in buffers of another capacity, NaN behind it."""
        rows, kv_heads, _, dim = self.buffers[0].shape
        other = Cache(np.random.default_rng(0), [0] * rows, kv_heads, capacity, dim, len(self.layers))
        other.lengths[:] = self.lengths
        for new, old in zip(other.buffers, self.buffers, strict=True):
            kept = min(capacity, self.capacity)
            new[:, :, :kept] = old[:, :, :kept]
        return other

    @property
    def buffers(self) -> list[np.ndarray]:
        return [buffer for pair in self.layers for buffer in pair]

    def copies(self) -> list[np.ndarray]:
        return [buffer.copy() for buffer in self.buffers]


def attended(q: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float) -> np.ndarray:
    """softmax(q · keysᵀ · scale) · values in float64: q [dim], keys and values [positions, dim]."""
    scores = keys.astype(np.float64) @ q.astype(np.float64) * scale
    shares = np.exp(scores - scores.max())
    return np.asarray(shares / shares.sum() @ values.astype(np.float64))
