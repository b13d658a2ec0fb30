"""The decoder on kernels of our own: prompts part by part, then steps that are captured once for each number of rows.

The host has the books: lengths and tokens are written to the device before a run, 12 bytes a row, and the greedy token
is read after it, 8 bytes. Logits come down where they are asked for, as when tokens are drawn.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..decode.cached_decoder import CachedDecoder, unchecked
from ..decode.kv_cache import KvCache
from ..decode.rope import Rotary
from ..prompt.splice import EmbeddingTable
from .network import Network
from .scratch import CacheTable, Vectors
from .tiles import MANY_ROWS
from .weights import strands

_NO_TOKEN = -1  # its embedding is what stands there


class KernelDecoder(CachedDecoder):
    """A cache of its own over the weights of a network, which several decoders may share, one at a time."""

    def __init__(self, network: Network, prompts: Vectors, check: Callable[[int], None] = unchecked) -> None:
        """prompts: memory for a chunk of a prompt, whose length is that of its chunks."""
        memory = network.launcher.memory
        super().__init__(KvCache(network.text, memory, np.float16), check)
        self._network, self._memory, self._prompts = network, memory, prompts
        self._cache_table = CacheTable(memory, network.text)
        self._prompted = network.choices(1)  # arrays of a launch begin at aligned addresses, as rows of others do not
        self._room = 0
        self._captures: dict[int, Callable[[], None]] = {}  # by the number of rows
        self._prompt_row: int | None = None  # the last run was of a prompt in this row
        self._widen(1)

    @property
    def prefill_chunk(self) -> int:
        return self._prompts.x.shape[0]

    def advance(self, ids: np.ndarray, table: EmbeddingTable) -> None:
        if not self._network.looks_up:
            super().advance(ids, table)
            return
        self._begin_step(len(ids))
        self._run_step(ids)

    def _step(self, embeddings: np.ndarray) -> None:
        count = len(embeddings)
        self._vectors.x.rows(0, count).write(strands(embeddings) if count < MANY_ROWS else embeddings)
        self._run_step(np.full(count, _NO_TOKEN))

    def _run_step(self, ids: np.ndarray) -> None:
        count = len(ids)
        self._chosen.tokens.rows(0, count).write(ids)
        self._chosen.lengths.rows(0, count).write(self.cache.lengths[:count])
        if count not in self._captures:
            vectors, chosen, table = self._vectors, self._chosen, self._cache_table.address
            work = self._network.launcher.capture(lambda: self._network.step(count, vectors, chosen, table))
            self._captures[count] = work
        self._captures[count]()
        self._memory.synchronize()
        self.cache.lengths[:count] += 1
        self._prompt_row = None

    def _prefill(self, embeddings: np.ndarray, logits: bool, row: int) -> None:
        count = len(embeddings)
        self._prompts.x.rows(0, count).write(embeddings)
        self._chosen.lengths.rows(0, self.cache.rows).write(self.cache.lengths)
        lengths, table = self._chosen.lengths.address, self._cache_table.address
        self._network.prompt(count, self._prompts, lengths, table, row, self._prompted if logits else None)
        self._memory.synchronize()
        self.cache.lengths[row] += count
        self._prompt_row = row

    def _append_moved(self, source: int, count: int, rotary: Rotary) -> None:
        target = int(self.cache.lengths[0])
        self._network.move(self._cache_table.address, 0, source, target, count)
        self._memory.synchronize()
        self.cache.lengths[0] = target + count

    def _resize(self, rows: int, capacity: int) -> None:
        if rows != self.cache.rows:
            self._prompt_row = None
        self.cache.resize(rows, capacity)
        self._widen(rows)
        if rows:
            self._cache_table.write(self.cache)

    def _widen(self, rows: int) -> None:
        """Makes memory for steps of so many rows, if there is less."""
        if rows <= self._room:
            return
        self._captures.clear()  # they work in the memory that is about to go
        self._vectors, self._chosen = self._network.vectors(rows, steps=True), self._network.choices(rows)
        self._room = rows

    def _read(self, name: str) -> np.ndarray:
        if self._prompt_row is None:
            found: np.ndarray = getattr(self._chosen, name).rows(0, self.cache.rows).read()
            return found
        (value,) = getattr(self._prompted, name).read()
        if self.cache.rows == 1:
            return np.array([value])
        results = np.zeros((self.cache.rows, *np.shape(value)), np.asarray(value).dtype)
        results[self._prompt_row] = value
        return results
