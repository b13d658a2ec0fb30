"""One answer while it is generated: tokens come in the decoder's thread, text goes out in the event loop's."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from ..decode.generate import Answer
from ..decode.sequence import FinishReason
from ..prompt.tokenizer import Detokenizer, Tokenizer
from .api_error import TimeLimitError


@dataclass(frozen=True)
class Ended:
    """How an answer ended. tokens: generated. prompt_tokens, reused_tokens: of the prompt, and of it in the cache."""

    reason: FinishReason
    prompt_tokens: int
    reused_tokens: int
    tokens: int
    token_ids: tuple[int, ...]


class StopText:
    """Text up to the first of some stop texts; what may be the beginning of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """What of the text so far can be shown by now."""
        held = self._held + text
        places = [at for stop in self._stops if (at := held.find(stop)) >= 0]
        if places:
            self.found, self._held = True, ""
            return held[: min(places)]
        longest = max((_overlap(held, stop) for stop in self._stops), default=0)
        shown, self._held = held[: len(held) - longest], held[len(held) - longest :]
        return shown

    def flush(self) -> str:
        """What was held back, when nothing more comes."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class RunningAnswer:
    """since_s: by the monotonic clock, when it was asked for. limit_s: from then on.

    on_token: is told of each token the seconds since the request, or since the token before, and whether it is the
    first.

    `hear` and `finish` are for the decoder's thread, all else is for the event loop's.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        eos_ids: Sequence[int],
        stops: Sequence[str],
        since_s: float,
        limit_s: float,
        on_token: Callable[[float, bool], None] = lambda seconds, is_first: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[str | Ended | Exception] = asyncio.Queue()
        self._detokenizer = Detokenizer(tokenizer)
        self._eos_ids = frozenset(eos_ids)
        self._stop = StopText(stops)
        self.limit_s = limit_s
        self._last_s = since_s
        self._deadline_s = self._last_s + limit_s
        self._on_token = on_token
        self._is_first = True
        self.is_cancelled = False

    @property
    def is_wanted(self) -> bool:
        """Whether there is somebody to hear it, and time left."""
        return not self.is_cancelled and time.monotonic() < self._deadline_s

    def hear(self, token: int | None) -> bool:
        """Takes a token, or None while there is none yet; False when no more is wanted."""
        if token is None:
            return self.is_wanted
        now = time.monotonic()
        self._on_token(now - self._last_s, self._is_first)
        self._last_s, self._is_first = now, False
        if token not in self._eos_ids:
            self._tell(self._stop.push(self._detokenizer.push(token)))
        return self.is_wanted and not self._stop.found

    def finish(self, outcome: Answer | Exception) -> None:
        """Takes what became of it."""
        if isinstance(outcome, Exception):
            self._tell(outcome)
            return
        if outcome.finish_reason == "cancelled" and not self._stop.found:
            self._tell(TimeLimitError(self.limit_s))
            return
        if not self._stop.found:
            self._tell(self._stop.push(self._detokenizer.flush()))
            self._tell(self._stop.flush() if not self._stop.found else "")
        reason: FinishReason = "stop" if self._stop.found else outcome.finish_reason
        stats = outcome.stats
        ids = () if self._stop.found else outcome.token_ids
        self._tell(Ended(reason, stats.prompt_tokens, stats.reused_tokens, stats.generated_tokens, ids))

    def cancel(self) -> None:
        """Ends it at the next token."""
        self.is_cancelled = True

    async def events(self) -> AsyncIterator[str | Ended]:
        """Pieces of text, and how it ended. Raises what it failed with, TimeLimitError among it."""
        while True:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Ended):
                return

    def _tell(self, event: str | Ended | Exception) -> None:
        if event != "":
            with contextlib.suppress(RuntimeError):  # the loop is closed: so is the server
                self._loop.call_soon_threadsafe(self._events.put_nowait, event)
