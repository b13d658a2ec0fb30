"""How many rows of a KV cache the memory has room for."""

from __future__ import annotations

import sys

from .cached_decoder import CachedDecoder
from .kv_cache import capacity_for

_USABLE_SHARE = 0.9  # of the memory available: other processes want some, too


class RowBudget:
    """memory_bytes: what rows and their prompts may take; None is most of what is available now, but for
    reserve_bytes."""

    def __init__(self, decoder: CachedDecoder, memory_bytes: int | None, reserve_bytes: int) -> None:
        self._decoder = decoder
        if memory_bytes is None:
            available = decoder.available_bytes()
            memory_bytes = sys.maxsize if available is None else int(_USABLE_SHARE * available) - reserve_bytes
        self.num_bytes = memory_bytes

    def row_bytes(self, capacity: int, tokens: int) -> int:
        """The cache of one row, and the prompt's own embeddings, which are kept beside it until it is answered."""
        rounded = capacity_for(self._decoder.spec, tokens)
        return self._decoder.cache.bytes_per_row(capacity) + rounded * self._decoder.spec.hidden_size * 4

    def capacity(self, tokens: int, most_rows: int) -> int:
        """The capacity to make for rows of so many tokens.

        One whose steps are captured once for all, unless more rows fit with the smallest.
        """
        roomiest, least = self._decoder.roomiest(tokens), capacity_for(self._decoder.spec, tokens)
        fitting = self.num_bytes // self.row_bytes(roomiest, tokens)
        return least if fitting < max(1, min(most_rows, self.num_bytes // self.row_bytes(least, tokens))) else roomiest

    def rows(self, capacity: int, tokens: int, most_rows: int) -> int:
        """How many rows of a capacity fit, of those wanted; one always does."""
        return max(1, min(most_rows, self.num_bytes // self.row_bytes(capacity, tokens)))
