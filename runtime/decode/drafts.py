"""Prompt lookup: what may come next is looked up in what was said before, and several tokens are checked at once.

A step of the decoder reads all weights for one token. Answers repeat themselves: words of the question, of earlier
answers (a watch says nearly the same every few seconds), of their own beginning. So where the last tokens stood before,
those that followed them then are drafted, and one pass tells what the model chooses after each. What it chooses is what
counts: drafts that differ are dropped, so the answer is the one without drafts, greedy or drawn (a draft stays with the
probability that the model gives it, which is rejection sampling for a draft without a distribution of its own).

Source: prompt lookup decoding, as transformers' `prompt_lookup_num_tokens`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import numpy as np

from ..prompt.splice import EmbeddingTable
from .cached_decoder import CachedDecoder

_LONGEST, _SHORTEST = 4, 2  # n-grams that are looked up, the longest first
_REMEMBERED = 64  # earlier answers
_ALLOWANCE = 0.02  # of the time spent on steps, what drafts that were wrong may cost
_HEAD_START = 2.0  # steps that they may cost before anything was gained


class Corpus:
    """Token sequences in which continuations are looked up: earlier answers, the oldest forgotten, and a current text.

    Later occurrences are preferred to earlier ones, and the current text to earlier answers.
    """

    def __init__(self) -> None:
        self._earlier: deque[_Text] = deque(maxlen=_REMEMBERED)
        self._text = _Text([])

    def begin(self, prompt: Sequence[int]) -> None:
        """A new text, which begins with a prompt's ids; what was said in the one before is remembered."""
        answer = self._text.answer()
        if len(answer) > _LONGEST:
            self._earlier.append(_Text(answer))
        self._text = _Text(prompt)

    def append(self, token: int) -> None:
        """The current text goes on."""
        self._text.append(token)

    def continuation(self, limit: int) -> list[int]:
        """What followed the end of the current text where it stood before: at most `limit` tokens, perhaps none."""
        tail = self._text.tokens[-_LONGEST:]
        for length in range(len(tail), _SHORTEST - 1, -1):
            gram = tuple(tail[-length:])
            for text in (self._text, *reversed(self._earlier)):
                if found := text.after(gram, limit):
                    return found
        return []


class _Text:
    """A sequence, and where its n-grams end."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self._prompt_length = len(tokens)
        self._ends: dict[tuple[int, ...], int] = {}
        for token in tokens:
            self.append(token)

    def append(self, token: int) -> None:
        """Indexes what ended before this token: an n-gram at the very end has no continuation yet."""
        end = len(self.tokens)
        for length in range(_SHORTEST, min(_LONGEST, end) + 1):
            self._ends[tuple(self.tokens[end - length :])] = end
        self.tokens.append(token)

    def answer(self) -> list[int]:
        """What was appended, after the last few tokens of what it began with."""
        return self.tokens[max(0, self._prompt_length - _LONGEST) :]

    def after(self, gram: tuple[int, ...], limit: int) -> list[int]:
        end = self._ends.get(gram)
        return [] if end is None else self.tokens[end : end + limit]


class DraftAccount:
    """Whether drafts pay: what wrong ones cost may not exceed a small share of the time that decoding takes.

    Times are in seconds; only which tokens are drafted depends on them, never which are chosen.
    """

    def __init__(self) -> None:
        self._step_s: float | None = None  # of a plain step, lately
        self._balance_s = 0.0  # allowed and gained, less what was lost

    @property
    def open(self) -> bool:
        """Whether a draft may be tried."""
        return self._step_s is not None and self._balance_s > -_HEAD_START * self._step_s

    def stepped(self, seconds: float) -> None:
        """A step without drafts took so long."""
        self._step_s = seconds if self._step_s is None else 0.8 * self._step_s + 0.2 * seconds
        self._balance_s += _ALLOWANCE * seconds

    def checked(self, seconds: float, tokens: int) -> None:
        """A pass with drafts took so long, and gave so many tokens."""
        assert self._step_s is not None  # the account is closed before
        gain = tokens * self._step_s - seconds
        self._balance_s = min(self._balance_s + gain, 4 * _HEAD_START * self._step_s)


class DraftedSteps:
    """Steps of a decoder's only row, some of them of several tokens; what was chosen after each is read one by one."""

    def __init__(self, decoder: CachedDecoder, table: EmbeddingTable) -> None:
        self._decoder = decoder
        self._table = table
        self._corpus = Corpus()
        self._account = DraftAccount()
        self._most = 0
        self._drafts: list[int] = []  # checked by the last pass
        self._place = 0  # as many of them were chosen
        self._seconds = 0.0  # of the last pass

    def begin(self, prompt: np.ndarray, most: int) -> None:
        """After a prompt's prefill: ids int64 [S]. most: drafts in one pass, at most MAX_DRAFTS."""
        self._most = most if self._decoder.verifies_drafts else 0
        self._drafts, self._place = [], 0
        if self._most:
            placeholders = np.append(False, prompt[1:] == prompt[:-1])  # of thousands of visual tokens one is enough
            self._corpus.begin(prompt[~placeholders].tolist())

    @property
    def token(self) -> int:
        """The decoder's greedy choice of the next token."""
        return int(self._decoder.tokens[self._place])

    @property
    def logits(self) -> np.ndarray:
        """Of the next token: float32 [vocab_size]."""
        logits: np.ndarray = self._decoder.logits[self._place]
        return logits

    def advance(self, token: int, room: int) -> list[int]:
        """Takes the token that was chosen. room: how many more the answer may have after it, at least 1.

        Returns what the cache holds now that it did not: the token and drafts after it, or nothing, if it was drafted.
        """
        if self._most:
            self._corpus.append(token)
        if self._place < len(self._drafts) and self._drafts[self._place] == token:
            self._place += 1
            return []
        self.settle()
        if not self._most:
            self._decoder.advance(np.array([token]), self._table)
            return [token]
        begin = time.perf_counter()
        if self._account.open and room > 1:
            self._drafts = self._corpus.continuation(min(self._most, room - 1))
        if self._drafts:
            self._decoder.verify(np.array([token, *self._drafts]), self._table)
        else:
            self._decoder.advance(np.array([token]), self._table)
        _ = self._decoder.tokens  # waits for a GPU
        self._seconds = time.perf_counter() - begin
        if not self._drafts:
            self._account.stepped(self._seconds)
        return [token, *self._drafts]

    def settle(self) -> None:
        """Takes drafts that were not chosen out of the cache."""
        if self._drafts:
            self._account.checked(self._seconds, self._place + 1)
            self._decoder.rewind(self._decoder.length - len(self._drafts) + self._place)
        self._drafts, self._place = [], 0
