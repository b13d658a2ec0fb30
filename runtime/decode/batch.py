"""Answers to many prompts, several at a time: every step of the decoder appends a token to each of them.

Sequences have lengths of their own and stop by themselves; a row that is free takes the next prompt at once, so the
batch stays full until the prompts run out. Then the last sequences move together: there are no idle rows. Each answer
is the one its prompt gets alone, but for rounding: the engine's kernels sum in another order for several rows, as they
do for a token that is prefilled instead of stepped, and by as much (`benchmarks/batch.py`).

All rows of the KV cache have one capacity, what the longest of them needs. How many rows fit the memory is reckoned
before each prompt is taken; a batch that does not fit is made smaller, with a warning, instead of failing.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..bundle.manifest import GREEDY, GenerationSpec
from ..config import GenerationConfig
from ..errors import BackendError, BatchWarning, ContextLengthError
from ..prompt.splice import EmbeddingTable, SplicedPrompt
from ..prompt.tokenizer import Detokenizer, Tokenizer
from .cached_decoder import CachedDecoder
from .generate import Answer, GenerationStats
from .kv_cache import capacity_for
from .sequence import FinishReason, SequenceState

_USABLE_SHARE = 0.9  # of the memory available: other processes want some, too
Outcome = tuple[Any, Answer | Exception]


@dataclass(frozen=True)
class BatchRequest:
    """A prompt to be answered; key is what its answer is known by."""

    key: Any
    prompt: SplicedPrompt
    config: GenerationConfig


class BatchGenerator:
    """Answers prompts `rows` at a time. Not thread-safe: one `answers` at a time.

    memory_bytes: what the cache and the prompts may take; None is most of what the machine, or the GPU, has available
        when `answers` begins, but for reserve_bytes: what encoding and prefilling take.
    check: is told the capacity that each sequence needs; it raises ContextLengthError if that is too much for one.
    defaults: the model's own settings, for what a GenerationConfig leaves open.
    """

    def __init__(
        self,
        decoder: CachedDecoder,
        table: EmbeddingTable,
        tokenizer: Tokenizer,
        eos_ids: tuple[int, ...],
        rows: int,
        memory_bytes: int | None = None,
        reserve_bytes: int = 0,
        check: Callable[[int], None] | None = None,
        defaults: GenerationSpec = GREEDY,
    ) -> None:
        self._decoder = decoder
        self._table = table
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        self._wanted_rows = rows
        self._memory_bytes = memory_bytes
        self._reserve_bytes = reserve_bytes
        self._check = check
        self._defaults = defaults
        self._waiting: deque[BatchRequest] = deque()
        self._rows: list[_Sequence | None] = []  # None is free; the last one is not

    def answers(self, requests: Iterable[BatchRequest]) -> Iterator[Outcome]:
        """Yields (key, answer) for every request in the order they finish, or (key, error) for one that fails.

        A request is taken when there is a row for it, not before. Errors: ContextLengthError for a prompt that leaves
        no room for an answer, or is too long for the memory; BackendError or MemoryError for one that fails though it
        is alone, BackendError for one whose logits are no numbers.
        """
        self._max_rows = self._told_rows = self._wanted_rows
        self._budget = self._usable_bytes() if self._memory_bytes is None else self._memory_bytes
        source = iter(requests)
        try:
            while True:
                yield from self._admit(source)
                if not self._rows:
                    return
                yield from self._step()
        finally:
            self._waiting.clear()
            self._rows = []
            self._decoder.resize(0, 0)

    def _admit(self, source: Iterator[BatchRequest]) -> Iterator[Outcome]:
        """Fills the free rows, as long as there are requests and memory; leaves no gaps."""
        while self._active < self._max_rows:
            request = self._waiting.popleft() if self._waiting else next(source, None)
            if request is None:
                break
            try:
                limit = self._decoder.spec.max_position_embeddings
                answer = SequenceState(request.prompt, request.config, self._eos_ids, limit, self._defaults)
                if not self._make_room(answer.max_length):
                    self._waiting.appendleft(request)
                    break
                row = self._start(request, answer)
            except ContextLengthError as e:
                yield request.key, e
            except (BackendError, MemoryError) as e:
                yield from self._retreat(e, request)
            else:
                yield from self._choose(row)
        self._close_gaps()

    def _start(self, request: BatchRequest, answer: SequenceState) -> int:
        """Prefills a prompt into a free row; returns the row."""
        row = next((i for i, other in enumerate(self._rows) if other is None), len(self._rows))
        sequence = _Sequence(request, answer)
        self._decoder.prefill(request.prompt.embeddings(self._table), row=row)
        sequence.prefilled()
        self._rows[row : row + 1] = [sequence]
        return row

    def _step(self) -> Iterator[Outcome]:
        """One more token for every sequence; there are no gaps."""
        last = np.array([sequence.answer.last for sequence in self._rows if sequence is not None])
        try:
            self._decoder.advance(last, self._table)
        except (BackendError, MemoryError) as e:
            yield from self._retreat(e)
            return
        for row in range(len(self._rows)):
            yield from self._choose(row)

    def _choose(self, row: int) -> Iterator[Outcome]:
        """Takes the next token of a row; the answer if that ends it, or the error if there is no token to take."""
        sequence = self._rows[row]
        assert sequence is not None
        outcome: Answer | Exception
        try:
            sequence.answer.append_choice(int(self._decoder.tokens[row]), lambda: self._decoder.logits[row])
        except BackendError as e:
            outcome = e
            self._decoder.cache.wipe(row)
        else:
            reason = sequence.answer.finish_reason
            if reason is None:
                return
            outcome = sequence.finished(self._tokenizer, reason)
            self._decoder.cache.rewind(row, 0)
        self._rows[row] = None
        yield sequence.request.key, outcome

    @property
    def _active(self) -> int:
        return sum(sequence is not None for sequence in self._rows)

    def _make_room(self, capacity: int) -> bool:
        """A free row of this capacity, if the memory has it; there is always room for one sequence alone.

        Raises ContextLengthError if `check` does.
        """
        if self._check is not None:
            self._check(capacity_for(self._decoder.spec, capacity))
        longest = max([capacity, *(s.answer.max_length for s in self._rows if s is not None)])
        # A capacity whose steps are captured once for all, unless more rows fit with the smallest.
        capacity, least = self._decoder.roomiest(longest), capacity_for(self._decoder.spec, longest)
        if self._affordable(capacity, longest) < max(1, self._affordable(least, longest)):
            capacity = least
        rows = max(1, self._affordable(capacity, longest))
        if self._active + 1 > rows:
            if rows < self._told_rows:
                self._told_rows = rows
                _warn(
                    f"not enough memory for a batch of {self._wanted_rows}: continuing with {rows} at a time "
                    f"({_gigabytes(self._row_bytes(capacity, longest))} each, of {_gigabytes(self._budget)})"
                )
            return False
        cache = self._decoder.cache
        if cache.capacity < capacity or cache.rows < self._active + 1:
            self._close_gaps()
            self._decoder.resize(rows, capacity)
        return True

    def _affordable(self, capacity: int, tokens: int) -> int:
        """How many rows of a capacity fit the memory, of the rows wanted."""
        return min(self._max_rows, self._budget // self._row_bytes(capacity, tokens))

    def _row_bytes(self, capacity: int, tokens: int) -> int:
        """The cache of one row, and the prompt's own embeddings, which are kept beside it until it is answered."""
        rounded = capacity_for(self._decoder.spec, tokens)
        return self._decoder.cache.bytes_per_row(capacity) + rounded * self._decoder.spec.hidden_size * 4

    def _usable_bytes(self) -> int:
        available = self._decoder.available_bytes()
        return sys.maxsize if available is None else int(_USABLE_SHARE * available) - self._reserve_bytes

    def _close_gaps(self) -> None:
        """Moves the last sequences into free rows."""
        while None in self._rows:
            last = self._rows.pop()
            if last is not None:
                row = self._rows.index(None)
                self._decoder.cache.move_row(len(self._rows), row)
                self._rows[row] = last

    def _retreat(self, error: Exception, newest: BatchRequest | None = None) -> Iterator[Outcome]:
        """After a failure, most likely of memory: everything in work begins again, half as much at a time."""
        requests = [sequence.request for sequence in self._rows if sequence is not None]
        requests += [newest] if newest is not None else []
        self._rows = []
        self._decoder.resize(0, 0)
        if len(requests) == 1:
            yield requests[0].key, error
            return
        self._max_rows = self._told_rows = len(requests) // 2
        self._waiting.extendleft(reversed(requests))
        _warn(f"{len(requests)} at a time failed ({str(error) or 'out of memory'}): continuing with {self._max_rows}")


class _Sequence:
    """One request in a row of the batch."""

    def __init__(self, request: BatchRequest, answer: SequenceState) -> None:
        self.request = request
        self.answer = answer
        self._begin = self._first = time.perf_counter()

    def prefilled(self) -> None:
        """Notes the time at which the first token is known."""
        self._first = time.perf_counter()

    def finished(self, tokenizer: Tokenizer, reason: FinishReason) -> Answer:
        detokenizer = Detokenizer(tokenizer)
        tokens = self.answer.tokens
        shown = tokens[:-1] if reason == "stop" else tokens
        text = "".join([detokenizer.push(token) for token in shown]) + detokenizer.flush()
        prefill_s, decode_s = self._first - self._begin, time.perf_counter() - self._first
        stats = GenerationStats(self.answer.prompt_length, 0, len(tokens), prefill_s, decode_s)
        return Answer(text, reason, stats, tuple(shown))


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2g} GB"


def _warn(message: str) -> None:
    warnings.warn(message, BatchWarning, stacklevel=2)
