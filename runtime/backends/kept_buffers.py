"""Sets of buffers that keep their addresses: what one decoder gives back is there for the next that needs the same.

A captured CUDA graph has the addresses of its run baked in, and its capture takes half a second: it is of use for as
long as the same buffers come back. Sets that nobody uses never take more memory than is left free, and make way for
sets that are asked for.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import BackendError
from .buffers import Buffer, Memory

_USABLE_SHARE = 0.9  # of the memory that is free: kernels want some, too


@dataclass(frozen=True)
class BufferKind:
    """A buffer but for its number of rows. row: the shape of one. staged: see `Memory.zeros`."""

    row: tuple[int, ...]
    dtype: str
    staged: bool = False

    @property
    def row_bytes(self) -> int:
        return math.prod(self.row) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class BufferSet:
    """A buffer of each kind, [num_rows, *row]."""

    kinds: tuple[BufferKind, ...]
    num_rows: int
    buffers: tuple[Buffer, ...]

    @property
    def num_bytes(self) -> int:
        return _bytes_of(self.num_rows, self.kinds)

    def rows(self, count: int) -> list[Buffer]:
        """The first rows of each; to release them does nothing."""
        return [buffer.rows(0, count) for buffer in self.buffers]


class KeptBuffers:
    """The sets that nobody uses now, and where new ones come from. `give` may be called from any thread."""

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._given: deque[BufferSet] = deque()  # finalizers give in the midst of anything
        self._idle: list[BufferSet] = []  # the one given first stands first

    @property
    def idle_bytes(self) -> int:
        """Memory that is kept and not used."""
        self._settle()
        return sum(kept.num_bytes for kept in self._idle)

    def has_room(self, rows: int, kinds: Sequence[BufferKind]) -> bool:
        """Whether such a set is there, or the memory has plenty for one."""
        available = self._memory.available_bytes()
        if available is None or self._found(rows, kinds) is not None:
            return True
        return _bytes_of(rows, kinds) <= _USABLE_SHARE * (available + self.idle_bytes)

    def take(self, rows: int, kinds: Sequence[BufferKind]) -> BufferSet | None:
        """A set of so many rows or more, whose first `rows` are zeros; None if the memory has no room for one."""
        found = self._found(rows, kinds)
        if found is None:
            return self._made(rows, tuple(kinds))
        self._idle.remove(found)
        for buffer in found.rows(rows):
            buffer.clear()
        return found

    def give(self, sets: Iterable[BufferSet]) -> None:
        """Gives sets back; whoever had them must not use them any more."""
        self._given.extend(sets)

    def drop(self) -> None:
        """Gives the memory of all idle sets back."""
        self._settle()
        while self._idle:
            self._release_oldest()

    def _found(self, rows: int, kinds: Sequence[BufferKind]) -> BufferSet | None:
        self._settle()
        fitting = [kept for kept in self._idle if kept.kinds == tuple(kinds) and kept.num_rows >= rows]
        return min(fitting, key=lambda kept: kept.num_rows, default=None)

    def _settle(self) -> None:
        """Takes up what was given, as far as that much memory stays free."""
        while self._given:
            self._idle.append(self._given.popleft())
        while self._idle and sum(kept.num_bytes for kept in self._idle) > (self._memory.available_bytes() or 0):
            self._release_oldest()

    def _made(self, rows: int, kinds: tuple[BufferKind, ...]) -> BufferSet | None:
        wanted = _bytes_of(rows, kinds)
        while self._idle and wanted > (self._memory.available_bytes() or 0):
            self._release_oldest()
        buffers: list[Buffer] = []
        try:
            for kind in kinds:
                buffers.append(self._memory.zeros((rows, *kind.row), kind.dtype, kind.staged))
        except (MemoryError, BackendError):
            return None  # what was made of it goes with the list
        return BufferSet(kinds, rows, tuple(buffers))

    def _release_oldest(self) -> None:
        for buffer in self._idle.pop(0).buffers:
            buffer.release()


def _bytes_of(rows: int, kinds: Iterable[BufferKind]) -> int:
    return rows * sum(kind.row_bytes for kind in kinds)
