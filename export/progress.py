"""Progress of an export: called with (stage, steps done, steps in all)."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

Progress = Callable[[str, int, int], None]
INTERVAL_S = 5.0


class ProgressLines:
    """Lines on stderr: each stage when it ends, and every few seconds while it lasts."""

    def __init__(self) -> None:
        self._begin = self._last = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if done == total or now - self._last > INTERVAL_S:
            self._last = now
            print(f"vl3edge: {stage} {done}/{total}, {now - self._begin:.1f} s", file=sys.stderr, flush=True)
