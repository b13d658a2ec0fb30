"""The clock of a session: times that never go back, whatever the source says."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigError


@dataclass(frozen=True)
class SessionClock:
    """Where a session's time is; `follow` gives its next state.

    last_s: the time of the last frame, None before the first. interval_s: between the last two. offset_s: what is added
    to the source's times. jumped: whether the last one had jumped backwards.
    """

    last_s: float | None = None
    interval_s: float = 0.0
    offset_s: float = 0.0
    jumped: bool = False

    def follow(self, timestamp_s: float) -> SessionClock:
        """The clock at the source's next time stamp; one before the last is counted on from there, at the last pace.

        Times below 0 at the start are counted from 0. Raises ConfigError for what is no time.
        """
        if not math.isfinite(timestamp_s):
            raise ConfigError(f"the time of a frame must be a number of seconds, not {timestamp_s}")
        now = timestamp_s + self.offset_s
        if self.last_s is None:
            return SessionClock(max(now, 0.0), 0.0, max(-timestamp_s, 0.0))
        if now < self.last_s:
            now = self.last_s + self.interval_s
            return SessionClock(now, self.interval_s, now - timestamp_s, jumped=True)
        return SessionClock(now, now - self.last_s, self.offset_s)
