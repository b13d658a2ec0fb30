"""What every decoder has: rows of a KV cache, with the books of what is in them. What computes is a subclass's.

`decode/decoder.py` runs ONNX graphs, `kernels/decoder.py` kernels of our own; who generates sees this class alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np

from ..bundle.head_tokens import HeadTokens
from ..errors import BackendError, ContextLengthError
from ..prompt.splice import EmbeddingTable
from .kv_cache import KvCache, capacity_for
from .rope import Rotary


def unchecked(tokens: int) -> None:
    """The check of a decoder that nothing limits."""


class CachedDecoder(ABC):
    """Decodes sequences side by side, one in each row of its cache. Not thread-safe.

    A single row grows as it is needed; several have the capacity that `resize` gave them.
    """

    def __init__(
        self, cache: KvCache, check: Callable[[int], None] = unchecked, head: HeadTokens | None = None
    ) -> None:
        """cache: without rows.

        check: is told how many tokens there will be before a single row grows; it raises if they are too many.
        head: the tokens that what computes makes logits of, row by row; None where the rows are ids.
        """
        self.spec = cache.spec
        self.cache = cache
        self._check = check
        self._head = head
        self._results: dict[str, np.ndarray] = {}  # of the last run, as far as they were read
        self._answered = True  # whether the last run was one for logits

    @property
    @abstractmethod
    def prefill_chunk(self) -> int:
        """Tokens of a prompt in one run, at most."""

    @property
    @abstractmethod
    def verifies_drafts(self) -> bool:
        """Whether `verify` can be called."""

    @property
    def logits(self) -> np.ndarray:
        """Float32 [rows, vocab_size], of the token after the last one appended to each row; void after the next call.

        Minus infinity are those of tokens that the head does not have.
        On a GPU they are brought to the host when they are asked for.
        """
        return self._result("logits")

    @property
    def tokens(self) -> np.ndarray:
        """Int64 [rows], the greedy choice among `logits`; void after the next call."""
        return self._result("tokens")

    @property
    def token(self) -> int:
        """The first of `tokens`."""
        return int(self.tokens[0])

    @property
    def length(self) -> int:
        """Tokens in the first row."""
        return int(self.cache.lengths[0]) if self.cache.rows else 0

    @property
    def capacity(self) -> int:
        """Tokens that each row has room for."""
        return self.cache.capacity

    def available_bytes(self) -> int | None:
        """What caches may still take; None where it is not known."""
        return self.cache.memory.available_bytes()

    def resize(self, rows: int, capacity: int) -> None:
        """Makes room for so many sequences and tokens a sequence, keeping the content of the rows that remain.

        `logits` and `tokens` are lost when the number of rows changes. MemoryError and BackendError leave no rows.
        """
        if rows != self.cache.rows:
            self._results.clear()
        try:
            self._resize(rows, capacity)
        except (MemoryError, BackendError, KeyboardInterrupt):
            self.cache.clear()  # what stands beside it may be of another size
            raise

    def reserve(self, tokens: int) -> None:
        """Makes one row with room for `tokens`, keeping what is cached.

        Raises ContextLengthError beyond the model's positions, and what `check` raises.
        """
        if tokens > self.capacity:
            least, best = capacity_for(self.spec, tokens), self.roomiest(tokens)
            self._check(least)
            self.resize(1, best if best == least or self._has_room(best) else least)

    def roomiest(self, tokens: int) -> int:
        """The capacity for so many tokens where memory is no matter."""
        return capacity_for(self.spec, tokens)

    def prefill(self, embeddings: np.ndarray, logits: bool = True, row: int = 0) -> None:
        """Appends embeddings float32 [S, hidden_size], S >= 1, to one row.

        They are run in chunks of `prefill_chunk`, beginning with the first; where chunks begin is in the bits of the
        result (`prefill_chunk.py`), and nothing else of them is.
        logits: False where the answer does not begin yet; to read `logits` or `tokens` is then a RuntimeError.
        """
        self._make_room(row, len(embeddings))
        self._answered = logits
        self._results.clear()
        for start in range(0, len(embeddings), self.prefill_chunk):
            end = start + self.prefill_chunk
            self._prefill(embeddings[start:end], logits and end >= len(embeddings), row)

    def step(self, embeddings: np.ndarray) -> None:
        """Appends one token to each of the first n rows; embeddings float32 [n, hidden_size]."""
        self._begin_step(len(embeddings))
        self._step(embeddings)

    def advance(self, ids: np.ndarray, table: EmbeddingTable) -> None:
        """Appends a token to each of the first n rows by their ids int64 [n]; table: what embeddings they have."""
        self.step(table.rows(ids))

    def verify(self, ids: np.ndarray, table: EmbeddingTable) -> None:
        """Appends tokens int64 [n], 2 to 1 + MAX_DRAFTS, to the only row.

        `logits` [n, vocab_size] and `tokens` [n] are then of what comes after each of them.
        """
        self._make_room(0, len(ids))
        self._answered = True
        self._results.clear()
        self._verify_drafts(table.rows(ids))

    def rewind(self, length: int) -> None:
        """Forgets everything of the first row after its first `length` tokens."""
        if length != self.length:
            self.cache.rewind(0, length)

    def wipe(self) -> None:
        """Forgets everything of the first row, and what the memory held."""
        self.cache.wipe(0)

    def discard(self, start: int, count: int) -> None:
        """Drops `count` tokens of the first row from `start` on; what follows moves up, its keys rotated.

        BundleError if the bundle does not say how keys are rotated.
        """
        self.replace(start, count, np.zeros((0, self.spec.hidden_size), np.float32))

    def replace(self, start: int, count: int, embeddings: np.ndarray) -> None:
        """`discard`, with embeddings float32 [n, hidden_size], n <= count, in the place of what is dropped.

        If it fails, the cache holds the first `start` tokens at least. `logits` and `tokens` are void afterwards.
        """
        end, length = start + count, self.length
        if not 0 <= start <= end <= length or len(embeddings) > count:
            raise ValueError(f"cannot put {len(embeddings)} tokens for {start} to {end} of the {length} cached")
        rotary = Rotary.of(self.spec)
        self.rewind(start)
        if len(embeddings):
            self.prefill(embeddings, logits=False)  # what is cached from `end` on is out of its reach
        self._append_moved(end, length - end, rotary)

    @abstractmethod
    def _resize(self, rows: int, capacity: int) -> None:
        """`resize`, where results of the last run that are not lost have to outlive the buffers that they are in."""

    @abstractmethod
    def _prefill(self, embeddings: np.ndarray, logits: bool, row: int) -> None:
        """`prefill` of one chunk where there is room; sets the cache's length."""

    @abstractmethod
    def _step(self, embeddings: np.ndarray) -> None:
        """`step` where there is room; sets the cache's lengths."""

    @abstractmethod
    def _verify_drafts(self, embeddings: np.ndarray) -> None:
        """`verify` where there is room; sets the cache's length."""

    @abstractmethod
    def _read(self, name: str) -> np.ndarray:
        """Brings "logits" or "tokens" of the last run to the host, by rows of the head."""

    def _append_moved(self, source: int, count: int, rotary: Rotary) -> None:
        """Appends to the first row what stands `count` positions from `source` on; keys are rotated with it."""
        self.cache.append_moved(0, source, count, rotary)

    def _begin_step(self, rows: int) -> None:
        self._make_room(0, 1, rows)
        self._answered = True
        self._results.clear()

    def _make_room(self, row: int, tokens: int, rows: int = 1) -> None:
        """Sees to it that each of `rows` rows has room for so many tokens more: beyond it would be written."""
        wanted = int(self.cache.lengths[row : row + rows].max(initial=0)) + tokens
        if wanted > self.capacity:
            if self.cache.rows > 1:
                raise ValueError(f"{wanted} tokens do not fit the cache's capacity of {self.capacity}: resize it")
            self.reserve(wanted)

    def _has_room(self, capacity: int) -> bool:
        """Whether one row of this capacity is within what `check` takes, and within the memory."""
        try:
            self._check(capacity)
        except ContextLengthError:
            return False
        return True

    def _result(self, name: str) -> np.ndarray:
        if not self._answered:
            raise RuntimeError("there are no logits after a prefill without them")
        if name not in self._results:
            found = self._read(name)
            if self._head is not None:
                found = self._head.tokens(found) if name == "tokens" else self._head.logits(found)
            self._results[name] = found
        return self._results[name]

    def _head_rows(self, ids: np.ndarray) -> np.ndarray | None:
        """Rows of the head int64 [n] for tokens, which a device that looks them up has; None where it lacks one."""
        return ids if self._head is None else self._head.rows(ids)
