"""Answers to many prompts, several at a time: every step of the decoder appends a token to each of them.

Sequences have lengths of their own and stop by themselves; a row that is free takes the next prompt at once, so the
batch stays full until the prompts run out. Then the last sequences move together: there are no idle rows. Each answer
is the one its prompt gets alone, but for rounding: the engine's kernels sum in another order for several rows, as they
do for a token that is prefilled instead of stepped, and by as much (`benchmarks/batch.py`).

All rows of the KV cache have one capacity, what the longest of them needs. How many rows fit the memory is reckoned
before each prompt is taken; a batch that does not fit is made smaller, with a warning, instead of failing.

A server's batch never ends: `steps` gives back control after every step, takes requests as they come, and may keep what
ended answers leave in their rows (`kept_rows.py`), so that a second question about a clip costs its own tokens.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from typing import Any

import numpy as np

from ..bundle.specs import GREEDY, GenerationSpec
from ..errors import BackendError, BatchWarning, ContextLengthError
from ..prompt.splice import EmbeddingTable
from ..prompt.tokenizer import Tokenizer
from .answer_start import AnswerStart
from .batch_sequence import BatchRequest, BatchSequence
from .cached_decoder import CachedDecoder
from .generate import Answer
from .json_grammar import JsonGrammar
from .kept_rows import KeptRows
from .kv_cache import capacity_for
from .row_budget import RowBudget
from .sequence import SequenceState

_END = object()
Outcome = tuple[Any, Answer | Exception]


class BatchGenerator:
    """Answers prompts `rows` at a time. Not thread-safe: one `answers` at a time.

    memory_bytes: what the cache and the prompts may take; None is most of what the machine, or the GPU, has available
        when `answers` begins, but for reserve_bytes: what encoding and prefilling take.
    check: is told the capacity that each sequence needs; it raises ContextLengthError if that is too much for one.
    defaults: the model's own settings, for what a GenerationConfig leaves open.
    keep_rows: what ended answers leave in the cache is kept for prompts that begin with it, until its row is needed.
    grammar: for answers of a JSON schema.
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
        keep_rows: bool = False,
        grammar: JsonGrammar | None = None,
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
        self._grammar = grammar
        self._kept = KeptRows(decoder.cache) if keep_rows else None
        self._waiting: deque[BatchSequence] = deque()
        self._rows: list[BatchSequence | None] = []  # None is free; the last one is not

    def answers(self, requests: Iterable[BatchRequest]) -> Iterator[Outcome]:
        """Yields (key, answer) for every request in the order they finish, or (key, error) for one that fails.

        A request is taken when there is a row for it, not before. Errors: ContextLengthError for a prompt that leaves
        no room for an answer, or is too long for the memory; BackendError or MemoryError for one that fails though it
        is alone, BackendError for one whose logits are no numbers.
        """
        with closing(self.steps(requests)) as steps:
            yield from (outcome for outcome in steps if outcome is not None)

    def steps(self, requests: Iterable[BatchRequest | None]) -> Generator[Outcome | None]:
        """`answers` a step at a time: None after every step, so that the caller may let others have the device.

        requests: may give None when there is none now; it is asked again after the next step. The steps end with it.
        """
        self._max_rows = self._told_rows = self._wanted_rows
        self._budget = RowBudget(self._decoder, self._memory_bytes, self._reserve_bytes)
        source = iter(requests)
        try:
            while True:
                ended = yield from self._admit(source)
                if self._rows:
                    yield from self._step()
                elif ended:
                    return
                else:
                    self._max_rows = self._wanted_rows  # what was too much at a time need not be any more
                yield None
        finally:
            self._waiting.clear()
            self._rows = []
            self._resize(0, 0)

    @property
    def num_active(self) -> int:
        """Answers under way."""
        return sum(sequence is not None for sequence in self._rows)

    def _admit(self, source: Iterator[BatchRequest | None]) -> Generator[Outcome | None, None, bool]:
        """Fills the free rows, as long as there are requests and memory; leaves no gaps. Whether the source ended."""
        while self.num_active < self._max_rows:
            if not self._waiting:
                request = next(source, _END)
                if not isinstance(request, BatchRequest):
                    self._close_gaps()
                    return request is _END
                try:
                    self._waiting.append(self._sequence(request))
                except ContextLengthError as e:
                    yield request.key, e
                    continue
            sequence = self._waiting.popleft()
            try:
                if not self._make_room(sequence.answer.max_length):
                    self._waiting.appendleft(sequence)
                    break
                row = yield from self._start(sequence)
            except ContextLengthError as e:
                yield sequence.request.key, e
            except (BackendError, MemoryError) as e:
                yield from self._retreat(e, sequence)
            else:
                if row is not None:
                    yield from self._choose(row)
        self._close_gaps()
        return False

    def _sequence(self, request: BatchRequest) -> BatchSequence:
        limit, config = self._decoder.spec.max_position_embeddings, request.config
        start = AnswerStart(config, self._tokenizer, self._grammar, request.constraint)
        prompt = request.prompt.followed_by(start.ids)
        state = SequenceState(prompt, config, self._eos_ids, limit, self._defaults, start.constraint)
        return BatchSequence(request, state, start)

    def _start(self, sequence: BatchSequence) -> Generator[Outcome | None, None, int | None]:
        """Prefills a prompt into a free row; returns the row, None where it did not come to that."""
        if self._kept is not None:
            return (yield from self._start_beside(sequence, self._kept))
        row = next((i for i, other in enumerate(self._rows) if other is None), len(self._rows))
        self._decoder.prefill(sequence.prompt.embeddings(self._table), row=row)
        sequence.prefilled(0)
        self._rows[row : row + 1] = [sequence]
        return row

    def _start_beside(self, sequence: BatchSequence, kept: KeptRows) -> Generator[Outcome | None, None, int | None]:
        """`_start` of what no row holds yet; between the chunks of a long prompt the others have their steps."""
        self._close_gaps()
        row, prompt, chunk = len(self._rows), sequence.prompt, self._decoder.prefill_chunk
        reused = kept.prepare(row, range(row, self._decoder.cache.rows), prompt)
        embeddings = prompt.embeddings(self._table, reused)
        for start in range(0, len(embeddings), chunk):
            if start:
                if self._rows:
                    yield from self._step()
                    self._close_gaps()
                yield None
                if not self._decoder.cache.rows:  # the step failed, and with it went what was prefilled
                    self._waiting.append(sequence)
                    return None
                if row > len(self._rows):  # answers ended meanwhile
                    kept.exchange(row, len(self._rows))
                    row = len(self._rows)
                if not sequence.is_wanted:
                    yield sequence.request.key, sequence.finished(self._tokenizer, "cancelled")
                    return None
            end = start + chunk
            self._decoder.prefill(embeddings[start:end], end >= len(embeddings), row)
        sequence.prefilled(reused)
        self._rows.append(sequence)
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
            reason = sequence.choose(int(self._decoder.tokens[row]), lambda: self._decoder.logits[row])
        except Exception as e:  # of the logits, the constraint or the listener: it costs this answer alone
            outcome = e
            self._decoder.cache.wipe(row)
        else:
            if reason is None:
                return
            outcome = sequence.finished(self._tokenizer, reason)
            if self._kept is None:
                self._decoder.cache.rewind(row, 0)
            else:
                self._kept.note(row, sequence.prompt.keys)
        self._rows[row] = None
        yield sequence.request.key, outcome

    def _make_room(self, capacity: int) -> bool:
        """A free row of this capacity, if the memory has it; there is always room for one sequence alone.

        Raises ContextLengthError if `check` does.
        """
        if self._check is not None:
            self._check(capacity_for(self._decoder.spec, capacity))
        longest = max([capacity, *(s.answer.max_length for s in self._rows if s is not None)])
        capacity = self._budget.capacity(longest, self._max_rows)
        rows = self._budget.rows(capacity, longest, self._max_rows)
        if self.num_active + 1 > rows:
            if rows < self._told_rows:
                self._told_rows = rows
                row_bytes = self._budget.row_bytes(capacity, longest)
                _warn(
                    f"not enough memory for a batch of {self._wanted_rows}: continuing with {rows} at a time "
                    f"({_gigabytes(row_bytes)} each, of {_gigabytes(self._budget.num_bytes)})"
                )
            return False
        cache = self._decoder.cache
        if cache.capacity < capacity or cache.rows < self.num_active + 1:
            self._close_gaps()
            self._resize(rows, capacity)
        return True

    def _resize(self, rows: int, capacity: int) -> None:
        if self._kept is not None:
            self._kept.resize(rows, capacity)
        self._decoder.resize(rows, capacity)

    def _close_gaps(self) -> None:
        """Moves the last sequences into free rows."""
        while None in self._rows:
            last = self._rows.pop()
            if last is not None:
                row = self._rows.index(None)
                if self._kept is None:
                    self._decoder.cache.move_row(len(self._rows), row)
                else:
                    self._kept.exchange(len(self._rows), row)
                self._rows[row] = last

    def _retreat(self, error: Exception, newest: BatchSequence | None = None) -> Iterator[Outcome]:
        """After a failure, most likely of memory: all in work goes on from what was said, half as much at a time."""
        sequences = [sequence for sequence in self._rows if sequence is not None]
        sequences += [newest] if newest is not None else []
        self._rows = []
        self._resize(0, 0)
        if len(sequences) == 1:
            yield sequences[0].request.key, error
            return
        self._max_rows = self._told_rows = len(sequences) // 2
        self._waiting.extendleft(reversed(sequences))
        _warn(f"{len(sequences)} at a time failed ({str(error) or 'out of memory'}): continuing with {self._max_rows}")


def _gigabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2g} GB"


def _warn(message: str) -> None:
    warnings.warn(message, BatchWarning, stacklevel=2)
