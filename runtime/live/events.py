"""Events of a live source, with repeats held back: a broken stream must not flood a log that nobody reads."""

from __future__ import annotations

import math
import time
from collections import deque
from dataclasses import dataclass, replace

MAX_EVENTS = 100
REPEAT_S = {"damage": 10.0, "jump": 10.0}
"""Shortest time between two events of these kinds, in seconds; 1 for others."""


@dataclass(frozen=True)
class LiveEvent:
    """Something that happened to a source. time_s: the session's time then."""

    time_s: float
    message: str


class EventLog:
    """Events waiting to be read, added by one thread and taken by another; the latest MAX_EVENTS are kept."""

    def __init__(self) -> None:
        self._events: deque[LiveEvent] = deque(maxlen=MAX_EVENTS)
        self._told: dict[str, tuple[float, int]] = {}

    def add(self, kind: str, event: LiveEvent) -> None:
        """Keeps an event, unless one of its kind was just reported; the next then says how many were held back."""
        now_s = time.monotonic()
        last_s, untold = self._told.get(kind, (-math.inf, 0))
        if now_s - last_s < REPEAT_S.get(kind, 1.0):
            self._told[kind] = (last_s, untold + 1)
            return
        self._told[kind] = (now_s, 0)
        more = f" ({untold} more times since last reported)" if untold else ""
        self._events.append(replace(event, message=event.message + more))

    def take(self) -> list[LiveEvent]:
        taken = []
        while self._events:
            taken.append(self._events.popleft())
        return taken
