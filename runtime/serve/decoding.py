"""The decoder's thread: a batch that takes requests as they come and goes on while there are any."""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import closing

from ..config import GenerationConfig
from ..decode.batch_sequence import BatchRequest
from ..decode.sequence import Constraint
from ..prompt.splice import SplicedPrompt
from .api_error import TimeLimitError
from .running_answer import RunningAnswer
from .served_model import ServedModel

_END = object()


class Decoding:
    """Answers prompts in the order in which they are submitted, several at a time. Thread-safe.

    idle_s: without a request, after which the KV cache is given back.
    """

    def __init__(self, model: ServedModel, rows: int, idle_s: float) -> None:
        self._model = model
        self._batch = model.batch(rows)
        self._idle_s = idle_s
        self._waiting: deque[BatchRequest] = deque()
        self._answering: set[RunningAnswer] = set()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="vl3edge-decode", daemon=True)
        self._thread.start()

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_active(self) -> int:
        return len(self._answering)

    def submit(
        self, answer: RunningAnswer, prompt: SplicedPrompt, config: GenerationConfig, constraint: Constraint | None
    ) -> None:
        with self._changed:
            self._waiting.append(BatchRequest(answer, prompt, config, answer.hear, constraint))
            self._changed.notify()

    def close(self) -> None:
        """Ends at the next token; answers under way stay unfinished."""
        with self._changed:
            self._is_closed = True
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while self._wait(None):
            try:
                self._answer()
            except Exception as e:  # a fault of ours: those under way hear of it, and the server goes on
                traceback.print_exc(file=sys.stderr)
                for answer in self._answering:
                    answer.finish(e)
                self._answering.clear()

    def _answer(self) -> None:
        """Answers until there has been nothing to do for a while."""
        with closing(self._batch.steps(self._arriving())) as steps:
            while not self._is_closed:
                with self._model.decoder_turns:
                    outcome = next(steps, _END)
                if isinstance(outcome, tuple):
                    answer, found = outcome
                    self._answering.discard(answer)
                    answer.finish(found)
                if not self._answering and not self._wait(self._idle_s):
                    return

    def _arriving(self) -> Iterator[BatchRequest | None]:
        """The next request that somebody still waits for; None while there is none."""
        while True:
            request = None
            while self._waiting and request is None:
                request = self._waiting.popleft()
                if not request.key.is_wanted:
                    request.key.finish(TimeLimitError(request.key.limit_s))
                    request = None
            if request is not None:
                self._answering.add(request.key)
            yield request

    def _wait(self, seconds: float | None) -> bool:
        """Waits for a request; False if none comes in time, or the server ends."""
        until = None if seconds is None else time.monotonic() + seconds
        with self._changed:
            while not self._waiting and not self._is_closed:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return False
                self._changed.wait(left)
            return not self._is_closed
