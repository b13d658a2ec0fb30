"""Reads media in a separate process, so that a crash or a hang inside a codec costs one clip and not the program.

The process is another Python that runs `isolated_worker.py`. It is kept for the next clip, and restarted after it died,
at work or idle, or had to be killed. It isolates crashes, endless loops and excessive memory use; it is not a sandbox:
the process may do whatever its user may. Frames come through a socket at full size.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import MediaError
from .limits import MediaLimits, ReadingClock
from .one_pass import FrameSource

Frame = npt.NDArray[np.uint8]
_WORKER = "vl3edge.runtime.media.isolated_worker"
GRACE_S = 2.0
"""The process checks the clock itself, between packets; it is killed if it does not."""


def _folder() -> str | None:
    """The current folder, None if it is gone."""
    try:
        return os.getcwd()
    except FileNotFoundError:
        return None


class _Gone(MediaError):
    """The process ended before it began a request, so the clip is not the cause."""


class ReaderProcess:
    """A process that reads media, one request after the other.

    settings: the memory it may take, and the folder in which it looks for relative names. is_ready: it waits for the
    next request.
    """

    def __init__(self, memory_bytes: int) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", _WORKER, str(theirs.fileno()), str(memory_bytes)]
        # It must find this package, however the program found it.
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        with theirs:
            self._process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL
            )
        self._connection = Connection(ours.detach())
        self.pid = self._process.pid
        self.settings = memory_bytes, _folder()
        self.is_ready = True

    def ask(self, clock: ReadingClock, name: str, request: tuple[Any, ...]) -> Generator[Any]:
        """The answers to a request about the clip `name`.

        Raises MediaError for what the process refuses, and when it dies or takes longer than the clock allows.
        """
        self.is_ready = has_begun = False
        try:
            self._connection.send(request)
            while True:
                if not self._connection.poll(max(0.0, clock.left_s()) + GRACE_S):
                    clock.check()
                kind, answer = self._connection.recv()
                if kind == "begun":
                    has_begun = True
                    continue
                self.is_ready = kind != "more"
                if kind == "error":
                    raise MediaError(answer)
                yield answer
                if self.is_ready:
                    return
        except MediaError:
            raise
        except (EOFError, OSError) as e:
            status = self._process.wait()
            how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
            if not has_begun:
                raise _Gone(f"{name}: the process that was to read it {how}") from e
            raise MediaError(f"{name}: the process that read it {how}: the file is corrupt or malicious") from e

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()


class _Idle:
    """At most one process that waits for the next clip."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: ReaderProcess | None = None

    def take(self, memory_bytes: int) -> ReaderProcess:
        with self._lock:
            process, self._process = self._process, None
        if process is not None and process.settings != (memory_bytes, _folder()):
            process.kill()  # it would look for relative names in the folder that was current when it began
            process = None
        return process or ReaderProcess(memory_bytes)

    def give(self, process: ReaderProcess) -> None:
        """Keeps it for the next clip if it is ready for one, and no other waits already."""
        with self._lock:
            if self._process is None and process.is_ready:
                self._process = process
                return
        process.kill()


_idle = _Idle()


def ask(name: str, limits: MediaLimits, request: tuple[Any, ...]) -> Generator[Any]:
    """A process's answer to a request about the clip `name`; see `ReaderProcess.ask`.

    A process that was ended while idle (for its memory, say) is replaced, once.
    """
    clock = ReadingClock(name, limits)
    process = _idle.take(limits.max_isolated_bytes)
    try:
        try:
            yield from clock.timed(process.ask(clock, name, request))
        except _Gone:
            process.kill()
            process = ReaderProcess(limits.max_isolated_bytes)
            yield from clock.timed(process.ask(clock, name, request))
    finally:
        _idle.give(process)


class IsolatedSource:
    """A media file that another process reads: what `video.open_source` gives, with the same frames."""

    def __init__(self, opened: FrameSource, limits: MediaLimits) -> None:
        """opened: what the process made of the file."""
        self._limits = limits
        self._source = opened
        self.name = opened.name
        self.height, self.width = opened.height, opened.width
        self.timeline = opened.timeline
        self.num_lost = 0

    @property
    def notes(self) -> tuple[str, ...]:
        return self._source.notes

    def frames(self, indices: Sequence[int]) -> Generator[Frame]:
        """The frames with these numbers of the timeline, ascending: uint8 [H, W, 3] each."""
        with closing(ask(self.name, self._limits, ("frames", self._source, list(indices)))) as found:
            for _ in indices:
                yield next(found)
            self._source = next(found)  # it knows now how many were lost
            self.num_lost = self._source.num_lost


def ask_worker(question: str, name: str, subject: Any, limits: MediaLimits, *rest: Any) -> Any:
    """What another process answers to one of `isolated_worker.QUESTIONS`; name: for messages. Raises MediaError."""
    with closing(ask(name, limits, (question, subject, replace(limits, isolate=False), *rest))) as found:
        return next(found)
