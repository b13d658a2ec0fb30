"""What this machine can do at best: memory it can read and products it can make in a second, measured, not quoted.

They are the two floors under every stage: no arrangement of the work can go below its bytes over the one, nor below its
arithmetic over the other.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_BYTES = 1 << 28  # more than any cache holds
_SIDE = 1024


def read_bandwidth(threads: int, repeats: int = 5) -> float:
    """Bytes a second that `threads` threads read from memory together: the best of several passes."""
    data = np.ones(_BYTES // 4, np.float32)
    parts = np.array_split(data, threads)
    with ThreadPoolExecutor(threads) as pool:
        best = min(_seconds(lambda: list(pool.map(np.max, parts))) for _ in range(repeats))
    return data.nbytes / best


def multiply_rate(repeats: int = 5) -> float:
    """Floating-point operations a second of a float32 matrix product by numpy: the best of several.

    numpy's library uses the threads it likes, as a rule one per core.
    """
    a = np.random.default_rng(0).standard_normal((_SIDE, _SIDE), np.float32)
    best = min(_seconds(lambda: a @ a) for _ in range(repeats))
    return 2 * _SIDE**3 / best


def cores() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
