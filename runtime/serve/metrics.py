"""Figures of a running server, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ..host import current_bytes

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_BETWEEN = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
_RATE_S = 10.0


class Metrics:
    """Counted by whoever does the work. Thread-safe."""

    def __init__(self) -> None:
        disable_created_metrics()  # a second line for each figure, which nobody reads
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "HTTP requests, by path and status", ["path", "status"])
        self.tokens = self._counter("generated_tokens", "Tokens generated")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts, and of them in the cache", ["cached"])
        self.visual_tokens = self._counter("visual_tokens", "Visual tokens of the clips asked about", ["pruned"])
        self.first_token_s = self._histogram("first_token_seconds", "From a request to its first token", _SECONDS)
        self.between_tokens_s = self._histogram("between_tokens_seconds", "From one token to the next", _BETWEEN)
        self._gauge("resident_memory_bytes", "Resident memory of the server", lambda: current_bytes() or 0)
        self._gauge("tokens_per_second", f"Tokens generated a second, over about {_RATE_S:g} s", lambda: self._rate())
        self._gauge("pruned_share", "Share of all visual tokens that were pruned", self._pruned_share)
        self._begin_s, self._in_window, self._last_rate = time.monotonic(), 0, 0.0
        self._kept = self._pruned = 0

    def token(self, seconds: float, is_first: bool) -> None:
        """One more token; seconds since the request, or since the token before."""
        self.tokens.inc()
        (self.first_token_s if is_first else self.between_tokens_s).observe(seconds)
        self._rate()
        self._in_window += 1

    def clip(self, kept: int, pruned: int) -> None:
        """A clip was asked about."""
        self.visual_tokens.labels("no").inc(kept)
        self.visual_tokens.labels("yes").inc(pruned)
        self._kept, self._pruned = self._kept + kept, self._pruned + pruned

    def gauge(self, name: str, words: str, value: Callable[[], float]) -> None:
        """One more figure, asked for when it is wanted."""
        self._gauge(name, words, value)

    def text(self) -> bytes:
        return generate_latest(self.registry)

    def _rate(self) -> float:
        """Of the last full window, or of this one so far where it is ahead."""
        passed = time.monotonic() - self._begin_s
        if passed >= _RATE_S:
            self._last_rate = self._in_window / passed
            self._begin_s, self._in_window, passed = time.monotonic(), 0, 0.0
        return max(self._last_rate, self._in_window / _RATE_S)

    def _pruned_share(self) -> float:
        return self._pruned / max(1, self._kept + self._pruned)

    def _counter(self, name: str, words: str, labels: list[str] | None = None) -> Counter:
        return Counter(f"vl3edge_{name}", words, labels or [], registry=self.registry)

    def _histogram(self, name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"vl3edge_{name}", words, buckets=buckets, registry=self.registry)

    def _gauge(self, name: str, words: str, value: Callable[[], float]) -> None:
        Gauge(f"vl3edge_{name}", words, registry=self.registry).set_function(value)
