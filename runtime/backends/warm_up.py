"""What is done in a thread of its own before somebody needs it, because a GPU's first calls take seconds."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable


class WarmUp:
    """Tasks that have begun, one after the other. What fails is left to whoever needs it: it will fail again there."""

    def __init__(self, *tasks: Callable[[], object]) -> None:
        self._tasks = tasks
        self._thread = threading.Thread(target=self._run, name="warm-up")
        self._thread.start()

    def wait(self) -> None:
        """Returns when all is done; at once in the tasks themselves."""
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        with contextlib.suppress(Exception):
            for task in self._tasks:
                task()
