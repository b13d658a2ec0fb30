"""A run as one HTML page that needs nothing else: its scores, and every question that changed, or else is wrong.

Made as an inspection's (`inspect/page.py`): the template escapes whatever it is given, and the page forbids itself to
load anything. A question has a picture of its clip, as long as there are few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from ..config import SamplingPlan
from ..inspect.frames import Rgb
from ..inspect.thumbnail import middle_frame, thumbnail
from ..media.limits import DEFAULT_LIMITS, MediaLimits
from ..terminal import printable
from .answering import kind_of, opened
from .item import Asked, EvalItem
from .paired import PairedDifference
from .report import RunComparison, RunReport
from .results import EvalResult
from .text import difference_words, score_words, verdict

_TEMPLATE = Path(__file__).with_name("page.html")
_SHOWN, _PICTURED = 500, 80


@dataclass(frozen=True)
class PageEntry:
    """A question on the page. answers: (of what, what it wrote, its score in words, a class for its colour)."""

    id: str
    group: str
    question: str
    options: tuple[str, ...]
    right: str
    clip: str
    answers: tuple[tuple[str, str, str, str], ...]
    change: str
    picture: str


def page(
    reports: Sequence[tuple[str, RunReport]],
    compared: RunComparison | None,
    results: Mapping[str, EvalResult],
    asked: Sequence[Asked],
    limits: MediaLimits = DEFAULT_LIMITS,
) -> str:
    """The page. reports: this run's, and the other's if there is one. results: this run's, by id."""
    items = {one.id: one for one in asked if isinstance(one, EvalItem)}
    names = [name for name, _ in reports]
    chosen: list[tuple[EvalResult | None, EvalResult]]
    if compared is None:
        chosen = [(None, result) for result in results.values() if result.score is not None and result.score < 1]
    else:
        chosen = [*sorted(compared.changed, key=_gain)]  # what was lost first
    shown = [
        _entry(names, first, second, items.get(second.id), limits if number < _PICTURED else None)
        for number, (first, second) in enumerate(chosen[:_SHOWN])
    ]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=names[0],
        other=names[1] if len(names) > 1 else None,
        tiles=[tile for name, report in reports for tile in _tiles(name, report)],
        difference=None if compared is None else difference_words(compared.difference),
        verdict=None if compared is None else verdict(compared.difference),
        same=None if compared is None else f"{compared.same_text:,} of {compared.difference.count:,}",
        groups=_groups(reports, compared),
        entries=shown,
        total=len(chosen),
        failures=[result for result in results.values() if result.error is not None][:_SHOWN],
    )


def _tiles(name: str, report: RunReport) -> list[tuple[str, str]]:
    """(figure, what it is)."""
    if report.score is None:
        return [("–", f"no score: {name}")]
    tiles = [(f"{100 * report.score.value:.1f} %", f"{report.name}: {name}, {report.score.count:,} questions")]
    return tiles + [(f"{100 * share:.1f} %", f"{overlap}: {name}") for overlap, share in report.recalls.items()]


def _groups(reports: Sequence[tuple[str, RunReport]], compared: RunComparison | None) -> list[tuple[str, list[str]]]:
    """(group, its score in each run and the difference)."""
    rows = []
    for group in reports[0][1].groups:
        cells = [score_words(report.groups[group]) if group in report.groups else "–" for _, report in reports]
        found: PairedDifference | None = None if compared is None else compared.groups.get(group)
        rows.append((group, [*cells, *([difference_words(found)] if found is not None else [])]))
    return rows


def _gain(pair: tuple[EvalResult, EvalResult]) -> float:
    return (pair[1].score or 0.0) - (pair[0].score or 0.0)


def _entry(
    names: Sequence[str],
    first: EvalResult | None,
    second: EvalResult,
    item: EvalItem | None,
    limits: MediaLimits | None,
) -> PageEntry:
    answers = [(names[0], second)] if first is None else [(names[1], first), (names[0], second)]
    change = "" if first is None else ("lost" if _gain((first, second)) < 0 else "gained")
    return PageEntry(
        id=second.id,
        group=second.group,
        question=printable(second.question),
        options=() if item is None else tuple(printable(option) for option in item.options),
        right=printable(second.right),
        clip=printable(second.clip),
        answers=tuple(_said(name, result) for name, result in answers),
        change=change,
        picture="" if item is None or limits is None else thumbnail(lambda: _frame(item, limits)),
    )


def _said(name: str, result: EvalResult) -> tuple[str, str, str, str]:
    score = result.score or 0.0
    words = {0.0: "wrong", 1.0: "right"}.get(score, f"{score:.2f}")
    return name, printable(result.answer or ""), words, "right" if score >= 0.5 else "wrong"


def _frame(item: EvalItem, limits: MediaLimits) -> Rgb:
    kind = kind_of(item.media[0], item.kind, limits)
    return middle_frame(opened(item.media[0]), kind, limits, SamplingPlan(start_s=item.start_s, end_s=item.end_s))
