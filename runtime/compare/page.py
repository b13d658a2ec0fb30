"""Two bundles' answers side by side, as one HTML page that needs nothing else: what differs most comes first.

Made as an inspection's (`inspect/page.py`): the template escapes whatever it is given, and the page forbids itself to
load anything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from ..evaluate.results import EvalResult
from ..terminal import printable
from .difference import AnswerPair, BundleSummary, ComparisonSummary, Marked

_TEMPLATE = Path(__file__).with_name("page.html")
_SHOWN = 500
Names = tuple[str, str]


@dataclass(frozen=True)
class _Side:
    """An answer on the page. words: in pieces, each with whether it is the other's, too."""

    name: str
    words: Marked
    facts: str
    error: str


@dataclass(frozen=True)
class _Entry:
    media: str
    question: str
    picture: str
    verdict: str
    sides: tuple[_Side, _Side]


def page(names: Names, found: Sequence[AnswerPair], total: ComparisonSummary, picture: Callable[[str], str]) -> str:
    """The page. picture: of a clip, by its name, as a data URI; empty where it cannot be had."""
    chosen = sorted(found, key=lambda pair: (not pair.is_answered, pair.is_equal, pair.similarity or 0.0))[:_SHOWN]
    questions = {pair.question for pair in found if pair.question}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        names=[printable(name) for name in names],
        tiles=_tiles(total),
        costs=list(zip(names, (total.first, total.second), strict=True)) if total.first and total.second else [],
        entries=[_entry(names, pair, picture(pair.media), len(questions) > 1) for pair in chosen],
        question=printable(questions.pop()) if len(questions) == 1 else "",
        total=len(found),
        cost_words=_cost_words,
    )


def _tiles(total: ComparisonSummary) -> list[tuple[str, str]]:
    """(figure, what it is)."""
    share = f" ({total.equal / total.answered:.0%})" if total.answered else ""
    tiles = [
        (f"{total.answered:,}", "answered by both"),
        (f"{total.equal:,}{share}", "with the same answer"),
        (f"{total.similarity:.1%}" if total.answered else "–", "of words in common, on average"),
    ]
    return [*tiles, (f"{total.failed:,}", "without two answers")] if total.failed else tiles


def _cost_words(costs: BundleSummary) -> list[str]:
    return [f"{costs.answer_tokens:.1f}", f"{costs.visual_tokens:,.1f}", f"{costs.seconds:.2f} s"]


def _entry(names: Names, pair: AnswerPair, picture: str, names_question: bool) -> _Entry:
    first, second = zip(names, (pair.first, pair.second), pair.marked, strict=True)
    return _Entry(
        media=printable(pair.media),
        question=printable(pair.question) if names_question else "",
        picture=picture,
        verdict=_verdict(pair),
        sides=(_side(*first), _side(*second)),
    )


def _verdict(pair: AnswerPair) -> str:
    if pair.similarity is None:
        has_one = any(side is not None and side.answer is not None for side in (pair.first, pair.second))
        return "one answer" if has_one else "no answer"
    return "the same answer" if pair.is_equal else f"{pair.similarity:.0%} of words in common"


def _side(name: str, result: EvalResult | None, words: Marked) -> _Side:
    if result is None or result.answer is None:
        error = "it was not asked" if result is None else result.error or ""
        return _Side(printable(name), (), "", printable(error))
    facts = f"{result.answer_tokens} tokens, {result.num_tokens} of the clip, {result.seconds or 0.0:.2f} s"
    return _Side(printable(name), tuple((printable(text), changed) for text, changed in words), facts, "")
