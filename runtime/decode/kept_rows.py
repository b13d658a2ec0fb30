"""What rows of a KV cache still hold when their answers have ended: the beginnings of prompts to come."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..prompt.splice import SplicedPrompt, common_prefix
from .kv_cache import KvCache

_NOTHING = np.zeros(0, np.int64)
_WORTH = 0.5  # of a prompt: a row is taken for what it holds from this share on


class KeptRows:
    """The books of a cache's rows: which content stands in each, and when it was used last.

    The first rows are those of the batch; a prompt gets one of the others, or the beginning of one of any.
    """

    def __init__(self, cache: KvCache) -> None:
        self._cache = cache
        self._keys: list[np.ndarray] = []  # of each row; its first `lengths` are valid
        self._used: list[int] = []
        self._clock = 0

    def resize(self, rows: int, capacity: int) -> None:
        """To be told before the cache is."""
        for row in range(min(rows, self._cache.rows)):
            if self._cache.lengths[row] > capacity:
                self._cache.rewind(row, capacity)
        self._keys = [*self._keys[:rows], *[_NOTHING] * (rows - len(self._keys))]
        self._used = [*self._used[:rows], *[0] * (rows - len(self._used))]

    def note(self, row: int, keys: np.ndarray) -> None:
        """keys: int64 [n], what the row holds, and perhaps more that it was to hold."""
        self._clock += 1
        self._keys[row], self._used[row] = keys, self._clock

    def exchange(self, a: int, b: int) -> None:
        """Two rows change places."""
        self._cache.swap_rows(a, b)
        self._keys[a], self._keys[b] = self._keys[b], self._keys[a]
        self._used[a], self._used[b] = self._used[b], self._used[a]

    def prepare(self, row: int, free: Sequence[int], prompt: SplicedPrompt) -> int:
        """Makes a free row hold as much of a prompt's beginning as any row has; returns how many tokens.

        free: rows that no sequence is using, `row` among them.
        """
        shared = [self._shared(other, prompt) for other in range(len(self._keys))]
        best = max(range(len(shared)), key=lambda other: shared[other])
        if best in free and shared[best] >= _WORTH * len(prompt):
            chosen = best
        else:
            chosen = min(free, key=lambda other: (self._cache.lengths[other] > 0, self._used[other]))
        length = shared[best]
        if shared[chosen] < length:
            self._cache.copy_row(best, chosen, length)
        self._cache.rewind(chosen, length)
        self.note(chosen, prompt.keys)
        if chosen != row:
            self.exchange(chosen, row)
        return length

    def _shared(self, row: int, prompt: SplicedPrompt) -> int:
        """How many tokens of a prompt a row begins with; the last one is always run, for its logits."""
        held = self._keys[row][: self._cache.lengths[row]]
        return min(common_prefix(held, prompt.keys), len(prompt) - 1)
