"""A lock whose waiters get it in the order in which they came.

Python's own lock goes to whoever is quickest, which is the thread that has just released it: a decoder that takes it
for every step would never let a camera's frame in between.
"""

from __future__ import annotations

import threading
from collections import deque


class Turns:
    """`with turns:` holds it; not reentrant."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: deque[threading.Event] = deque()
        self._held = False

    def __enter__(self) -> None:
        turn = threading.Event()
        with self._lock:
            if not self._held:
                self._held = True
                return
            self._waiting.append(turn)
        turn.wait()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()  # it stays held, by another
            else:
                self._held = False
