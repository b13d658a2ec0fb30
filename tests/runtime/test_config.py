"""What one call wants: values of the wrong kind are refused by name where they are given."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan
from vl3edge.runtime.errors import ConfigError

WRONG: list[tuple[type, str, Any]] = [
    (SamplingPlan, "fps", "1"),
    (SamplingPlan, "fps", True),
    (SamplingPlan, "fps", [1.0]),
    (SamplingPlan, "fps", 1 + 0j),
    (SamplingPlan, "fps", float("nan")),
    (SamplingPlan, "max_frames", 2.5),
    (SamplingPlan, "max_frames", "many"),
    (SamplingPlan, "max_frames", np.zeros(2)),
    (SamplingPlan, "start_s", "0:10"),
    (SamplingPlan, "end_s", b"1"),
    (SamplingPlan, "end_s", 10**400),
    (SamplingPlan, "start_s", Fraction(10**400, 3)),
    (PruningConfig, "threshold", 10**400),
    (GenerationConfig, "temperature", 10**400),
    (GenerationConfig, "repetition_penalty", 10**400),
    (SamplingPlan, "rule", None),
    (PruningConfig, "threshold", None),
    (PruningConfig, "threshold", "high"),
    (PruningConfig, "threshold", np.ones(3)),
    (PruningConfig, "enabled", 1),
    (PruningConfig, "enabled", "no"),
    (PruningConfig, "max_visual_tokens", 10.0),
    (GenerationConfig, "max_new_tokens", "many"),
    (GenerationConfig, "max_new_tokens", 1e3),
    (GenerationConfig, "temperature", "0"),
    (GenerationConfig, "top_p", "all"),
    (GenerationConfig, "top_k", 1.5),
    (GenerationConfig, "repetition_penalty", "1.1"),
    (GenerationConfig, "seed", "today"),
    (GenerationConfig, "seed", 1.0),
]


@pytest.mark.parametrize(("kind", "name", "value"), WRONG, ids=[f"{n}-{v!r:.12}" for _, n, v in WRONG])
def test_values_of_another_kind_are_refused_by_name(kind: type, name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be"):
        kind(**{name: value})


def test_numbers_of_numpy_are_numbers() -> None:
    plan = SamplingPlan(fps=np.float32(2), max_frames=np.int64(3), start_s=1)  # type: ignore[arg-type]
    assert (plan.fps, plan.max_frames, plan.start_s) == (2.0, 3, 1)
    assert PruningConfig(threshold=np.float64(0.2), enabled=None).threshold == 0.2
    assert PruningConfig(threshold="auto").threshold == "auto"
    assert GenerationConfig(max_new_tokens=np.int32(4), temperature=1, seed=None).max_new_tokens == 4
