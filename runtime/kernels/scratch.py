"""Memory that kernels work in: vectors of a run, how tokens are chosen from their logits, where the cache lies."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends.buffers import Buffer, Memory
from ..bundle.specs import TextSpec
from ..decode.kv_cache import KvCache
from ..decode.prefill_chunk import PREFILL_CHUNK, gpu_chunk
from .launcher import Launcher


class Vectors:
    """Of `count` tokens at once.

    x: float32 [count, hidden], the residual stream. normed, qkv, attended, hidden: float16, what products take or give.
    last: float32 [1, hidden], that of a prompt's last token. sums, peaks: parts of attention, where there are `splits`.
    dense: float16, a matrix of weights unpacked; None without. shared: of programs that share rows of weights, sums
    float32 `parts` and counters int32 `arrived`; empty without.
    """

    def __init__(self, memory: Memory, text: TextSpec, count: int, splits: int = 0, dense: int = 0) -> None:
        heads = text.num_heads
        width = (heads + 2 * text.num_kv_heads) * text.head_dim
        self.x = memory.zeros((count, text.hidden_size), np.float32, staged=True)
        self.normed = memory.zeros((count, text.hidden_size), np.float16)
        self.qkv = memory.zeros((count, width), np.float16)
        self.attended = memory.zeros((count, heads * text.rotary_dim), np.float16)
        self.hidden = memory.zeros((count, text.intermediate_size), np.float16)
        self.last = memory.zeros((1, text.hidden_size), np.float32)
        self.sums = memory.zeros((count, heads, splits, text.head_dim), np.float32)
        self.peaks = memory.zeros((count, heads, splits, 2), np.float32)
        self.dense = memory.zeros((dense,), np.float16) if dense else None
        self.shared: dict[str, Buffer] = {}

    def share(self, memory: Memory, parts: int, counters: int) -> None:
        """Makes memory for programs that share rows of weights."""
        self.shared = {
            "parts": memory.zeros((max(1, parts),), np.float32),
            "arrived": memory.zeros((max(1, counters),), np.int32),
        }

    @staticmethod
    def bytes_of(text: TextSpec, splits: int = 0) -> int:
        """Memory of one token; x is staged on the host, too, which on a Jetson is the same memory."""
        width = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
        halves = text.hidden_size + width + text.num_heads * text.rotary_dim + text.intermediate_size
        return 2 * 4 * text.hidden_size + 2 * halves + 4 * text.num_heads * splits * (text.head_dim + 2)


def prompt_chunk(text: TextSpec, launcher: Launcher) -> int:
    """Tokens of a prompt in one run, at most: what the memory of a GPU takes now, but no more than a context."""
    if launcher.tuned_for is None:  # no GPU
        return PREFILL_CHUNK
    chunk = gpu_chunk(text, launcher.memory.available_bytes(), Vectors.bytes_of(text))
    return min(chunk, text.max_position_embeddings)


class Choices:
    """The next token of each of `rows`, greedy: temperatures and top_k are 0; who draws reads the logits.

    logits: float32 [rows, rows of the head]. tokens: int64 [rows], rows of the head. lengths: int32 [rows]. blocks: of
    logits; the best of each are values and ids. trail, draws: [rows, trail]: of what the kernels can do beside, not
    used.
    """

    def __init__(
        self, memory: Memory, text: TextSpec, rows: int, blocks: int, trail: int, before: Choices | None = None
    ) -> None:
        """before: choices of the same rows, a step earlier, whose lengths these go on from."""

        def zeros(*shape: int, dtype: Any, staged: bool = False) -> Buffer:
            return memory.zeros((rows, *shape), dtype, staged)

        self.blocks = blocks
        self.logits = zeros(text.num_logits, dtype=np.float32, staged=True)
        self.tokens = zeros(dtype=np.int64, staged=True)
        self.lengths: Buffer = before.lengths if before else zeros(dtype=np.int32, staged=True)
        self.values, self.ids = zeros(blocks, dtype=np.float32), zeros(blocks, dtype=np.int32)
        self.temperatures, self.top_k = zeros(dtype=np.float32), zeros(dtype=np.int32)
        self.trail, self.draws = zeros(trail, dtype=np.int64), zeros(trail, dtype=np.float32)


class CacheTable:
    """Where a KV cache lies, for kernels: int64 [1 + 2 · layers], its capacity and the addresses of its buffers."""

    def __init__(self, memory: Memory, text: TextSpec) -> None:
        self._memory = memory
        self._table = memory.zeros((1 + 2 * text.num_layers,), np.int64, staged=True)

    @property
    def address(self) -> int:
        return self._table.address

    def write(self, cache: KvCache) -> None:
        """Names the cache's buffers, of which there must be some."""
        self._table.write(np.array([cache.capacity, *(buffer.address for buffer in cache.buffers)], np.int64))
        self._memory.synchronize()
