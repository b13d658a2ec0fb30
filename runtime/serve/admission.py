"""Who may wait: a bounded number of requests, and a guess when the next one has a chance."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .api_error import ApiError

_SMOOTHING = 0.2
_LONGEST_S = 60


class Admission:
    """places: answers under way and requests that wait. at_once: of them under way. For one thread."""

    def __init__(self, places: int, at_once: int) -> None:
        self._places = places
        self._at_once = at_once
        self._mean_s = 1.0
        self.taken = 0
        self.refused = 0

    @property
    def places(self) -> int:
        return self._places

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place inside `with`. Raises ApiError 429 where there is none."""
        if self.taken >= self._places:
            self.refused += 1
            wait_s = min(_LONGEST_S, max(1, math.ceil(self._mean_s * self.taken / self._at_once / 2)))
            message = f"the server is busy with {self.taken} requests: try again in {wait_s} s"
            raise ApiError(429, message, "rate_limit_error", "busy", wait_s)
        self.taken += 1
        begin = time.monotonic()
        try:
            yield
        finally:
            self.taken -= 1
            self._mean_s += _SMOOTHING * (time.monotonic() - begin - self._mean_s)
