"""A second process that makes clips ahead of the training process: rendering and H.264 keep one core busy while the
other trains. Clips come in the order of their seeds, so training does not depend on timing."""

from __future__ import annotations

import multiprocessing
import queue
from collections.abc import Callable, Iterator
from multiprocessing.queues import Queue
from typing import TypeVar

C = TypeVar("C")


def _produce(make: Callable[[int], C], first: int, output: Queue[C]) -> None:
    seed = first
    while True:
        output.put(make(seed))
        seed += 1


def produced_clips(make: Callable[[int], C], first: int, ahead: int = 64) -> Iterator[C]:
    """Results of `make` for the seeds `first`, `first` + 1, ... without end, made by a daemon process at most `ahead`
    in advance.

    Raises RuntimeError if that process dies.
    """
    context = multiprocessing.get_context("spawn")
    output: Queue[C] = context.Queue(ahead)
    process = context.Process(target=_produce, args=(make, first, output), daemon=True)
    process.start()
    try:
        while True:
            try:
                yield output.get(timeout=10)
            except queue.Empty:
                if not process.is_alive():
                    raise RuntimeError("the process that renders clips has ended") from None
    finally:
        process.terminate()
