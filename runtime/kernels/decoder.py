"""The decoder on kernels of our own: prompts part by part, then steps that are captured for each number of rows.

The host has the books: lengths and tokens are written to the device before a run, 12 bytes a row, and the greedy token
is read after it, 8 bytes. Logits come down where they are asked for, as when tokens are drawn.

**Running ahead.** Who appends the token that the decoder chose, without a look at the logits, will most likely do so
again. So the step after is launched at once, from the token as it is on the device, and the host reads and shows the
one before meanwhile. What runs ahead is in no book: if something else is appended, or nothing any more, as after an end
token, it is forgotten, and what it wrote lies behind the end of each row. Steps write their choices into two places in
turn, so that logits and tokens of the last one stay there while the next runs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..config import MAX_DRAFTS
from ..decode.cached_decoder import CachedDecoder, unchecked
from ..decode.kv_cache import KvCache
from ..decode.rope import Rotary
from ..prompt.splice import EmbeddingTable
from .network import Network
from .scratch import CacheTable, Choices, Vectors
from .weights import strands

_NO_TOKEN = -1  # its embedding is what stands there


class KernelDecoder(CachedDecoder):
    """A cache of its own over the weights of a network, which several decoders may share, one at a time."""

    def __init__(self, network: Network, prompts: Vectors, check: Callable[[int], None] = unchecked) -> None:
        """prompts: memory for a chunk of a prompt, whose length is that of its chunks."""
        memory = network.launcher.memory
        super().__init__(KvCache(network.text, memory, np.float16), check, network.head)
        self._network, self._memory, self._prompts = network, memory, prompts
        self._cache_table = CacheTable(memory, network.text)
        self._prompted = network.choices(1)  # arrays of a launch begin at aligned addresses, as rows of others do not
        self._room = self._last = 0  # rows there is memory for; which of the choices are those of the last step
        self._captures: dict[tuple[int, int], Callable[[], None]] = {}  # by the number of rows, and where they begin
        self._prompt_row: int | None = None  # the last run was of a prompt in this row
        self._checked: Choices | None = None  # where drafts are checked
        self._num_checked = 0  # tokens that the last run checked
        self._ahead: np.ndarray | None = None  # lengths before the step that runs ahead
        self._tokens: Callable[[], np.ndarray] | None = None  # of the last step, on their way
        self._coming: Callable[[], np.ndarray] | None = None  # of the step launched last
        self._widen(1)

    @property
    def prefill_chunk(self) -> int:
        return self._prompts.x.shape[0]

    @property
    def verifies_drafts(self) -> bool:
        return True

    def advance(self, ids: np.ndarray, table: EmbeddingTable) -> None:
        rows = self._head_rows(ids)
        if rows is None or not self._network.looks_up:
            super().advance(ids, table)
            return
        said = self._results.get("tokens")
        followed = said is not None and "logits" not in self._results and np.array_equal(ids, said[: len(ids)])
        self._begin_step(len(ids))
        self._run_step(rows, followed)

    def _step(self, embeddings: np.ndarray) -> None:
        count = len(embeddings)
        self._settle()
        self._vectors.x.rows(0, count).write(strands(embeddings) if self._network.in_step_order(count) else embeddings)
        self._run_step(np.full(count, _NO_TOKEN))

    def _run_step(self, ids: np.ndarray, followed: bool = False) -> None:
        """ids: rows of the head, or _NO_TOKEN. followed: they are what was chosen, as it stands on the device."""
        count = len(ids)
        if not (followed and self._ahead is not None and np.array_equal(self._ahead, self.cache.lengths[:count])):
            self._settle()
            self._given.tokens.rows(0, count).write(ids)
            self._given.lengths.rows(0, count).write(self.cache.lengths[:count])
            self._launch(count)
        self._ahead, self._tokens = None, self._coming
        self._last = 1 - self._last
        self.cache.lengths[:count] += 1
        self._prompt_row, self._num_checked = None, 0
        if followed and self._network.launcher.captures and self.cache.lengths[:count].max() < self.capacity:
            self._launch(count)
            self._ahead = self.cache.lengths[:count].copy()
        else:
            self._memory.synchronize()

    @property
    def _given(self) -> Choices:
        """Of the last step, and so where the next one begins."""
        return self._choices[self._last]

    def _launch(self, count: int) -> None:
        """Starts a step from the tokens and lengths on the device; its own tokens are on their way when it ends."""
        given, chosen = self._given, self._choices[1 - self._last]
        key = (count, self._last)
        if key not in self._captures:
            vectors, table = self._vectors, self._cache_table.address
            work = self._network.launcher.capture(lambda: self._network.step(count, vectors, given, chosen, table))
            self._captures[key] = work
        self._captures[key]()
        self._coming = chosen.tokens.rows(0, self.cache.rows).fetch()

    def _settle(self) -> None:
        """Forgets the step that runs ahead, once it is done: what it was given may change then."""
        if self._ahead is not None:
            self._ahead = None
            self._memory.synchronize()

    def _prefill(self, embeddings: np.ndarray, logits: bool, row: int) -> None:
        self._append(embeddings, row, self._prompted if logits else None)

    def _verify_drafts(self, embeddings: np.ndarray) -> None:
        self._checked = self._checked or self._network.choices(1 + MAX_DRAFTS)
        self._append(embeddings, 0, self._checked, len(embeddings))

    def _append(self, embeddings: np.ndarray, row: int, chosen: Choices | None, checked: int = 0) -> None:
        """Runs embeddings [S, hidden_size] as a prompt. checked: how many of the last have a choice after them."""
        count = len(embeddings)
        self._settle()
        self._prompts.x.rows(0, count).write(embeddings)
        self._given.lengths.rows(0, self.cache.rows).write(self.cache.lengths)
        lengths, table = self._given.lengths.address, self._cache_table.address
        self._network.prompt(count, self._prompts, lengths, table, row, chosen, checked or 1)
        self._memory.synchronize()
        self.cache.lengths[row] += count
        self._prompt_row, self._num_checked = row, checked

    def _append_moved(self, source: int, count: int, rotary: Rotary) -> None:
        self._settle()
        target = int(self.cache.lengths[0])
        self._network.move(self._cache_table.address, 0, source, target, count)
        self._memory.synchronize()
        self.cache.lengths[0] = target + count

    def _resize(self, rows: int, capacity: int) -> None:
        self._settle()
        if rows != self.cache.rows:
            self._prompt_row = self._tokens = None
        self.cache.resize(rows, capacity)
        self._widen(rows)
        if rows:
            self._cache_table.write(self.cache)

    def _widen(self, rows: int) -> None:
        """Makes memory for steps of so many rows, if there is less."""
        if rows <= self._room:
            return
        self._captures.clear()  # they work in the memory that is about to go
        self._vectors = self._network.vectors(rows, steps=True)
        first = self._network.choices(rows)
        self._choices, self._last = (first, self._network.choices(rows, first)), 0
        self._room = rows

    def _read(self, name: str) -> np.ndarray:
        if self._num_checked and self._checked is not None:
            checked: np.ndarray = getattr(self._checked, name).rows(0, self._num_checked).read()
            return checked
        if self._prompt_row is None:
            if name == "tokens" and self._tokens is not None:
                return self._tokens()
            found: np.ndarray = getattr(self._given, name).rows(0, self.cache.rows).read()
            return found
        (value,) = getattr(self._prompted, name).read()
        if self.cache.rows == 1:
            return np.array([value])
        results = np.zeros((self.cache.rows, *np.shape(value)), np.asarray(value).dtype)
        results[self._prompt_row] = value
        return results
