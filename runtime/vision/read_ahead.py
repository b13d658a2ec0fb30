"""An iterator that works ahead of its consumer, so that two stages of a pipeline overlap."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def read_ahead(items: Iterator[T]) -> Generator[T]:
    """The items, each made in a thread while the consumer works on the one before; one is held at most.

    An error of the iterator is raised where its item would have come. Closing the generator waits for the item that is
    being made.
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(next, items, _END)
        while (item := coming.result()) is not _END:
            coming = thread.submit(next, items, _END)
            yield item  # type: ignore[misc]
