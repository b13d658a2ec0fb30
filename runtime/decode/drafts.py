"""Prompt lookup: what may come next is looked up in what was said before, and the decoder checks several tokens at once.

A step of the decoder reads all weights for one token. Answers repeat themselves: words of the question, of earlier
answers (a watch says nearly the same every few seconds), of their own beginning. So where the last tokens stood before,
those that followed them then are drafted, and one pass tells what the model chooses after each. What it chooses is what
counts: drafts that differ are dropped, so the answer is the one without drafts, greedy or drawn (a draft stays with the
probability that the model gives it, which is rejection sampling for a draft without a distribution of its own).

Source: prompt lookup decoding, as transformers' `prompt_lookup_num_tokens`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

MAX_DRAFTS = 8
"""Drafts in one pass, at most: products of nine rows still read the weights once."""

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
