"""Free memory that the allocator keeps goes back to the system during a long run."""

from __future__ import annotations

import platform

import numpy as np
import pytest

from vl3edge.runtime.host import current_bytes, trimmed


def test_the_results_come_through_as_they_are() -> None:
    taken = []

    def results() -> list[int]:
        return [taken.append(number) or number for number in range(120)]

    assert list(trimmed(results())) == taken == list(range(120))
    assert list(trimmed([])) == []


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep less, and have no malloc_trim")
def test_memory_that_is_free_between_what_is_used_is_given_back() -> None:
    blocks = [np.ones(10_000, np.uint8) for _ in range(10_000)]
    last = blocks[-1]
    full = current_bytes()
    blocks.clear()  # the last block lies above the others, so that the heap cannot shrink by itself
    kept = current_bytes()
    assert full is not None
    assert kept is not None
    assert full - kept < 20e6
    results = trimmed(range(60))
    for _ in range(50):
        next(results)
    assert (current_bytes() or full) > kept - 20e6  # not yet: it is done after the fiftieth is taken up
    next(results)
    assert full - (current_bytes() or full) > 80e6
    assert last.sum() == 10_000
