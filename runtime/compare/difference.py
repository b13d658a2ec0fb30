"""What differs between two answers, word by word, and between two bundles over all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from ..evaluate.results import EvalResult
from ..media.addresses import clip_key

_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # written without spaces: each character is a word
_WORDS = re.compile(rf"\s+|[{_CJK}]|[^\W{_CJK}]+|[^\w\s]")

Marked = tuple[tuple[str, bool], ...]
"""A text in pieces, each with whether the other text has something else there."""


@dataclass(frozen=True)
class AnswerPair:
    """What two bundles say about one clip. first, second: None for one that was not asked about it.

    marked: both texts, with what differs. similarity: from 0 to 1, the share of words that both have in the same order
    (twice as many as match, by those of both); None where one has no answer.
    """

    media: str
    first: EvalResult | None
    second: EvalResult | None
    marked: tuple[Marked, Marked]
    similarity: float | None

    @property
    def is_answered(self) -> bool:
        return self.similarity is not None

    @property
    def is_equal(self) -> bool:
        """Whether both answers are the same, character by character."""
        return self.is_answered and _text(self.first) == _text(self.second)

    @property
    def question(self) -> str:
        return next((side.question for side in (self.first, self.second) if side is not None and side.question), "")

    def to_json(self) -> dict[str, Any]:
        """Its line in a file."""
        return {
            "media": self.media,
            "question": self.question,
            "equal": self.is_equal if self.is_answered else None,
            "similarity": None if self.similarity is None else round(self.similarity, 4),
            "a": _side(self.first),
            "b": _side(self.second),
        }


@dataclass(frozen=True)
class BundleSummary:
    """Of one bundle, over the clips that both answered: mean tokens of the answer, of the clip, and seconds."""

    answer_tokens: float
    visual_tokens: float
    seconds: float


@dataclass(frozen=True)
class ComparisonSummary:
    """answered: clips that both have answered. equal: of those, with the same answer. failed: the others.

    similarity: the mean. first, second: None where nothing was answered.
    """

    answered: int
    equal: int
    failed: int
    similarity: float
    first: BundleSummary | None
    second: BundleSummary | None


def pairs(media: Sequence[str], first: Mapping[str, EvalResult], second: Mapping[str, EvalResult]) -> list[AnswerPair]:
    """One for each of the media, in their order. first, second: the results, by the clip's key."""
    return [_pair(name, first.get(key), second.get(key)) for key, name in {clip_key(n): n for n in media}.items()]


def summary(found: Sequence[AnswerPair]) -> ComparisonSummary:
    """Of all pairs."""
    both = [pair for pair in found if pair.is_answered]
    return ComparisonSummary(
        answered=len(both),
        equal=sum(pair.is_equal for pair in both),
        failed=len(found) - len(both),
        similarity=_mean([pair.similarity for pair in both]),
        first=_costs([pair.first for pair in both]),
        second=_costs([pair.second for pair in both]),
    )


def marked_words(first: str, second: str) -> tuple[Marked, Marked, float]:
    """Both texts with what differs, and how similar they are."""
    a, b = _WORDS.findall(first), _WORDS.findall(second)
    sides: tuple[list[tuple[str, bool]], list[tuple[str, bool]]] = ([], [])
    for kind, start, end, other_start, other_end in SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        for side, part in ((0, a[start:end]), (1, b[other_start:other_end])):
            if part:
                sides[side].append(("".join(part), kind != "equal"))
    a, b = ([word for word in words if not word.isspace()] for words in (a, b))
    return tuple(sides[0]), tuple(sides[1]), SequenceMatcher(None, a, b, autojunk=False).ratio()


def _pair(name: str, first: EvalResult | None, second: EvalResult | None) -> AnswerPair:
    similarity: float | None
    left, right, similarity = marked_words(_text(first), _text(second))
    if first is None or second is None or first.answer is None or second.answer is None:
        left, right, similarity = (((_text(first), False),), ((_text(second), False),), None)
    return AnswerPair(name, first, second, (left, right), similarity)


def _text(result: EvalResult | None) -> str:
    return "" if result is None else result.answer or ""


def _side(result: EvalResult | None) -> dict[str, Any] | None:
    if result is None:
        return None
    known = result.to_json()
    return {
        name: known[name] for name in ("answer", "answer_tokens", "num_tokens", "seconds", "error") if name in known
    }


def _costs(results: Sequence[EvalResult | None]) -> BundleSummary | None:
    known = [result for result in results if result is not None]
    if not known:
        return None
    return BundleSummary(
        _mean([result.answer_tokens for result in known]),
        _mean([result.num_tokens for result in known]),
        _mean([result.seconds for result in known]),
    )


def _mean(values: Sequence[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else 0.0
