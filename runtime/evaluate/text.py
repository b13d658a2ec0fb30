"""A report and a comparison in words: for the terminal, and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..terminal import one_line
from .paired import PairedDifference
from .report import MeanScore, RunComparison, RunReport
from .results import EvalResult

_WIDTH = 28


def report_lines(name: str, report: RunReport, differs: Sequence[str] = ()) -> Iterator[str]:
    """What a run comes to. name: of what answered. differs: what the scores are not."""
    yield one_line(name)
    if report.score is None:
        yield "  no score: no right answer is known of any question that was answered"
    else:
        yield f"  {report.name:{_WIDTH}} {score_words(report.score)}"
    for overlap, share in report.recalls.items():
        yield f"  {overlap:{_WIDTH}} {100 * share:6.2f} %"
    for group, score in report.groups.items():
        yield f"    {one_line(group)[:_WIDTH]:{_WIDTH - 2}} {score_words(score)}"
    if report.group_mean is not None:
        yield f"  {'mean of the groups':{_WIDTH}} {100 * report.group_mean:6.2f} %"
    if report.failed or report.unscored:
        rest = f"{report.failed} failed" if report.failed else ""
        unknown = f"{report.unscored} without a known answer" if report.unscored else ""
        yield f"  {', '.join(filter(None, [rest, unknown]))}: not in the score"
    for note in differs:
        yield f"  {note}"


def score_words(score: MeanScore) -> str:
    return (
        f"{100 * score.value:6.2f} %  (95 %: {100 * score.low:.1f} to {100 * score.high:.1f}) of "
        f"{score.count:,} question{'s' if score.count != 1 else ''}"
    )


def comparison_lines(compared: RunComparison) -> Iterator[str]:
    """What differs, and whether that could be chance."""
    yield f"  {'difference':{_WIDTH}} {difference_words(compared.difference)}"
    for overlap, difference in compared.recalls.items():
        yield f"  {overlap:{_WIDTH}} {difference_words(difference)}"
    for group, difference in compared.groups.items():
        yield f"    {one_line(group)[:_WIDTH]:{_WIDTH - 2}} {difference_words(difference)}"
    yield f"  {compared.same_text:,} of {compared.difference.count:,} answers are the same, word for word"
    yield f"  {verdict(compared.difference)}"


def difference_words(difference: PairedDifference) -> str:
    d = difference
    return (
        f"{100 * d.value:+6.2f} points  (95 %: {100 * d.low:+.2f} to {100 * d.high:+.2f}, p {d.p:.2g}; {d.lost} lost, "
        f"{d.gained} gained)"
    )


def verdict(difference: PairedDifference) -> str:
    """In one sentence."""
    if difference.p < 0.05:
        return f"it is {'better' if difference.value > 0 else 'worse'} than the other, beyond chance"
    return "the difference could be chance"


def result_words(result: EvalResult) -> str:
    """What became of one question, for a line of progress."""
    if result.error is not None:
        return f"error: {result.error}"
    if result.score is None:
        return f"answered {one_line(result.answer or '')[:60]!r}"
    if result.score in (0.0, 1.0):
        return "right" if result.score else "wrong"
    return f"score {result.score:.2f}"
