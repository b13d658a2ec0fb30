"""The process behind `isolated.py`: answers requests over a socket until its other end is closed.

    python -m vl3edge.runtime.media.isolated_worker SOCKET MEMORY_BYTES

A request is acknowledged with ("begun", None). An answer is ("more", value), ("last", value) or ("error", message).
"""

from __future__ import annotations

import resource
import sys
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..errors import MediaError, unexpected
from .contents import media_kind
from .photographs import why_photographs
from .video import open_source

QUESTIONS: dict[str, Callable[..., Any]] = {
    "kind": media_kind,
    "open": open_source,
    "photographs": why_photographs,
}


def answers(request: tuple[Any, ...]) -> Iterator[Any]:
    """What is sent back, the last one marking the end."""
    kind, subject, *rest = request
    if kind in QUESTIONS:
        yield QUESTIONS[kind](subject, *rest)
    else:
        yield from subject.frames(*rest)
        yield subject


def reply(connection: Connection, request: tuple[Any, ...], memory_bytes: int) -> None:
    try:
        last: list[Any] = []
        for answer in answers(request):
            for held in last:
                connection.send(("more", held))
            last = [answer]
        connection.send(("last", last[0]))
    except MediaError as e:
        connection.send(("error", str(e)))
    except MemoryError:
        gigabytes = memory_bytes / 1e9
        connection.send(
            ("error", f"{_name(request)}: reading it takes more than {gigabytes:.1f} GB (max_isolated_bytes)")
        )
    except ConnectionError:  # whoever asked has gone
        raise
    except Exception as e:
        connection.send(("error", str(unexpected(_name(request), e))))


def _name(request: tuple[Any, ...]) -> str:
    """Of the clip that a request is about."""
    subject = request[1]
    return str(subject) if isinstance(subject, str | Path) else str(getattr(subject, "name", "the folder"))


def main() -> None:
    connection, memory_bytes = Connection(int(sys.argv[1])), int(sys.argv[2])
    # Of data, not of addresses: threads and libraries reserve far more of these than they use.
    resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")  # what a reader warns of is in its notes
    while True:
        try:
            request = connection.recv()
        except EOFError:
            return
        connection.send(("begun", None))
        reply(connection, request, memory_bytes)


if __name__ == "__main__":
    main()
