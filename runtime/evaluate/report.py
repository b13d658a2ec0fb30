"""The score of a run: of everything, by group, and of two runs the difference with its paired test.

Failed questions have no score and are left out, and counted. A comparison takes the questions that both runs answered.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any

import numpy as np

from .measures import OVERLAPS
from .paired import PairedDifference, paired_difference
from .results import EvalResult

_Z = 1.959963984540054  # of 95 %
_NAMES = {
    "choice": "accuracy",
    "nearest": "accuracy",
    "exact": "accuracy",
    "contains": "accuracy",
    "starts": "accuracy",
    "relaxed": "relaxed accuracy",
    "anls": "ANLS",
    "ocr": "accuracy",
    "formula": "accuracy",
    "number": "accuracy",
    "open": "accuracy",
    "grounding": "mIoU",
}


@dataclass(frozen=True)
class MeanScore:
    """The mean of some questions' scores. low, high: its 95 % interval, clips being what is drawn."""

    count: int
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class RunReport:
    """name: of the measure. groups: by the questions' group, where there are several; group_mean: of their values.

    recalls: of grounding, the share of questions whose overlap is at least the key.
    answered, failed, unscored: how many have an answer, have none, and have one of which no right one is known.
    """

    name: str
    score: MeanScore | None
    groups: dict[str, MeanScore]
    group_mean: float | None
    recalls: dict[str, float]
    answered: int
    failed: int
    unscored: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def report_on(results: Iterable[EvalResult]) -> RunReport:
    """The score of a run's results."""
    everything = list(results)
    answered = [result for result in everything if result.error is None]
    scored = [result for result in answered if result.score is not None]
    groups = _by_group(scored)
    means = {name: _score(members) for name, members in groups.items()} if len(groups) > 1 else {}
    names = list(dict.fromkeys(_NAMES.get(result.measure, result.measure) for result in scored))
    spans = [result.score or 0.0 for result in scored if result.measure == "grounding"]
    return RunReport(
        name=" and ".join(names) or "score",
        score=_score(scored) if scored else None,
        groups=means,
        group_mean=float(np.mean([mean.value for mean in means.values()])) if means else None,
        recalls={f"R@{low:g}": float(np.mean([s >= low for s in spans])) for low in OVERLAPS} if spans else {},
        answered=len(answered),
        failed=len(everything) - len(answered),
        unscored=len(answered) - len(scored),
    )


def _by_group(results: Sequence[EvalResult]) -> dict[str, list[EvalResult]]:
    groups: dict[str, list[EvalResult]] = {}
    for result in results:
        groups.setdefault(result.group, []).append(result)
    return {name or "other": groups[name] for name in sorted(groups)}


def _score(results: Sequence[EvalResult]) -> MeanScore:
    """With Agresti and Coull's two of each kind added, so that the interval is never empty, and the design effect."""
    scores = np.array([result.score for result in results], np.float64)
    count, value = scores.size, float(scores.mean())
    middle = (float(scores.sum()) + 2) / (count + 4)
    spread = (float((scores**2).sum()) + 2) / (count + 4) - middle**2
    error = _Z * sqrt(max(0.0, spread) / (count + 4) * _clustering(scores, [result.clip for result in results]))
    return MeanScore(count, value, max(0.0, min(value, middle - error)), min(1.0, max(value, middle + error)))


def _clustering(scores: np.ndarray, clips: Sequence[str]) -> float:
    """Variance of the mean over clips by that over independent answers; at least 1."""
    _, index = np.unique(np.array(clips), return_inverse=True)
    apart = scores - scores.mean()
    alone, together = float((apart**2).sum()), float((np.bincount(index, apart) ** 2).sum())
    return max(1.0, together / alone) if alone > 0 else 1.0


@dataclass(frozen=True)
class RunComparison:
    """This run against another, on the questions that both answered and have a score of.

    first, second: the other's score and this one's. difference: second minus first. groups: the same by group.
    recalls: of grounding, the same for each overlap. changed: (other, this) where the score differs.
    """

    first: MeanScore
    second: MeanScore
    difference: PairedDifference
    groups: dict[str, PairedDifference]
    recalls: dict[str, PairedDifference]
    changed: tuple[tuple[EvalResult, EvalResult], ...]
    same_text: int

    def to_json(self) -> dict[str, Any]:
        """Without the answers; ids of those that changed."""
        values = asdict(self)
        values["changed"] = [{"id": b.id, "from": a.score, "to": b.score} for a, b in self.changed]
        return values


def compare(first: Mapping[str, EvalResult], second: Mapping[str, EvalResult]) -> RunComparison | None:
    """None if they share no question that both answered, of the same words and with a score."""
    pairs = [(first[id], b) for id, b in second.items() if id in first and first[id].question == b.question]
    pairs = [(a, b) for a, b in pairs if a.score is not None and b.score is not None]
    if not pairs:
        return None
    groups: dict[str, list[tuple[EvalResult, EvalResult]]] = {}
    for a, b in pairs:
        groups.setdefault(b.group or "other", []).append((a, b))
    spans = [(a, b) for a, b in pairs if b.measure == "grounding"]
    return RunComparison(
        first=_score([a for a, _ in pairs]),
        second=_score([b for _, b in pairs]),
        difference=_difference(pairs),
        groups={name: _difference(groups[name]) for name in sorted(groups)} if len(groups) > 1 else {},
        recalls={f"R@{low:g}": _difference(spans, low) for low in OVERLAPS} if spans else {},
        changed=tuple((a, b) for a, b in pairs if a.score != b.score),
        same_text=sum(a.answer == b.answer for a, b in pairs),
    )


def _difference(pairs: Sequence[tuple[EvalResult, EvalResult]], at_least: float | None = None) -> PairedDifference:
    scores = np.array([[a.score, b.score] for a, b in pairs], np.float64)
    if at_least is not None:
        scores = (scores >= at_least).astype(np.float64)
    return paired_difference(scores[:, 0], scores[:, 1], np.array([b.clip for _, b in pairs]))
