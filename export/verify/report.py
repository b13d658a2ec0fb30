"""The report of `verify`: one line per stage, with figures, their bound, and a verdict.

Bounds are relative to the reference, because features and logits have no natural unit: the largest difference may be
`largest` times the reference's largest value, the mean difference `mean` times its mean absolute value. They are about
ten times what was measured for correct bundles, at the demo's, the tests' and the released sizes, and far below the
effect of a wrong weight. NaN never passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Bound:
    """Relative to the reference's largest and mean absolute value."""

    largest: float
    mean: float


FLOAT32 = Bound(largest=2e-4, mean=2e-5)
FLOAT16 = Bound(largest=3e-2, mean=5e-3)
LARGEST_STEPS = 1.5  # of a quantized layer, or a row of the table: root mean square in steps of its grid


@dataclass(frozen=True)
class StageResult:
    """One comparison. passed is None for a figure that is reported but not judged.

    compared: what, and how much of it. largest, mean: the differences; None if not numeric. bound: what was allowed, in
        words. detail: what differs, in words; empty for a stage that passed.
    """

    name: str
    compared: str
    largest: float | None
    mean: float | None
    bound: str
    passed: bool | None
    detail: str = ""


@dataclass(frozen=True)
class VerifyReport:
    """All comparisons, in the order of the data flow."""

    bundle: str
    checkpoint: str
    reference: str
    backend: str
    media: tuple[str, ...]
    stages: tuple[StageResult, ...]

    @property
    def first_failure(self) -> StageResult | None:
        """The first stage that differs; later stages were still fed the reference's values."""
        return next((stage for stage in self.stages if stage.passed is False), None)

    def to_json(self) -> dict[str, Any]:
        first = self.first_failure
        return {
            "bundle": self.bundle,
            "checkpoint": self.checkpoint,
            "reference": self.reference,
            "backend": self.backend,
            "media": list(self.media),
            "passed": first is None,
            "first_failure": None if first is None else first.name,
            "stages": [asdict(stage) for stage in self.stages],
        }

    def table(self) -> str:
        """The report as text: verdict, figures, words, so that narrow terminals cut the words first."""
        width = max(len(stage.name) for stage in self.stages)
        lines = [f"reference  {self.reference}", f"bundle     {self.bundle}, on {self.backend}"]
        lines += [f"media      {', '.join(self.media)}", ""]
        lines.append(f"{'':<5} {'stage':<{width}} {'largest':>9} {'mean':>9}   compared")
        for stage in self.stages:
            verdict = {True: "ok", False: "FAIL", None: ""}[stage.passed]
            allowed = f"; allowed: {stage.bound}" if stage.bound else ""
            figures = f"{_figure(stage.largest)} {_figure(stage.mean)}"
            lines.append(f"{verdict:<5} {stage.name:<{width}} {figures}   {stage.compared}{allowed}")
            if stage.detail:
                lines.append(f"{'':<6}{'':<{width}} {stage.detail}")
        first = self.first_failure
        lines.append("")
        if first is None:
            lines.append("The bundle computes what the checkpoint says.")
        else:
            lines.append(f"The first stage that differs is {first.name}: {first.detail or first.compared}")
        return "\n".join(lines)


def compare(
    name: str,
    compared: str,
    ours: Sequence[np.ndarray],
    reference: Sequence[np.ndarray],
    bound: Bound,
    detail: str = "",
) -> StageResult:
    """A stage of arrays, each pair of one shape; `detail` is the message if it fails."""
    for index, (a, b) in enumerate(zip(ours, reference, strict=True)):
        if a.shape != b.shape:
            words = f"clip {index + 1} gives the shape {list(a.shape)}, the reference {list(b.shape)}"
            return StageResult(name, compared, None, None, "", False, words)
    largest = mean = highest = level = 0.0
    count = sum(a.size for a in ours)
    for a, b in zip(ours, reference, strict=True):
        difference = np.abs(a.astype(np.float64) - b)
        largest = float(np.maximum(largest, difference.max(initial=0)))  # which, unlike max(), keeps NaN
        mean += float(difference.sum()) / count
        highest = max(highest, float(np.abs(b).max(initial=0)))
        level += float(np.abs(b).sum(dtype=np.float64)) / count
    passed = largest <= bound.largest * highest and mean <= bound.mean * level
    allowed = f"{bound.largest * highest:.1e}, mean {bound.mean * level:.1e}"
    return StageResult(name, compared, largest, mean, allowed, bool(passed), "" if passed else detail)


def _figure(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:>9.3g}"
