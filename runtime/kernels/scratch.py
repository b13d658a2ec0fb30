"""Memory that kernels work in: the vectors of a run, and how tokens are chosen from their logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..backends.buffers import Buffer, Memory
from ..bundle.manifest import TextSpec


class Vectors:
    """Of `count` tokens at once.

    x: float32 [count, hidden], the residual stream. normed, qkv, attended, hidden: float16, what products take or give.
    last: float32 [1, hidden], that of a prompt's last token. sums, peaks: parts of attention, where there are `splits`.
    """

    def __init__(self, memory: Memory, text: TextSpec, count: int, splits: int = 0) -> None:
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


class Choices:
    """The next token of each of `rows`, greedy: temperatures and top_k are 0; who draws reads the logits.

    logits: float32 [rows, vocabulary]. tokens: int64 [rows]. lengths: int32 [rows]. blocks: of logits; the best of each
    are values and ids. trail, draws: [rows, trail]: of what the kernels can do beside, not used.
    """

    def __init__(self, memory: Memory, text: TextSpec, rows: int, blocks: int, trail: int) -> None:
        def zeros(*shape: int, dtype: Any, staged: bool = False) -> Buffer:
            return memory.zeros((rows, *shape), dtype, staged)

        self.blocks = blocks
        self.logits = zeros(text.vocab_size, dtype=np.float32, staged=True)
        self.tokens, self.lengths = zeros(dtype=np.int64, staged=True), zeros(dtype=np.int32, staged=True)
        self.values, self.ids = zeros(blocks, dtype=np.float32), zeros(blocks, dtype=np.int32)
        self.temperatures, self.top_k = zeros(dtype=np.float32), zeros(dtype=np.int32)
        self.trail, self.draws = zeros(trail, dtype=np.int64), zeros(trail, dtype=np.float32)
