"""Every buffer that a step of the decoder reads or writes: the KV cache, and what goes in and comes out beside it.

Where steps are captured as CUDA graphs, all of them are one set of the graph's `KeptBuffers` while the capacity is a
rung (`kv_cache.py`): whoever comes back to a rung with as many rows gets buffers that a capture has seen. A capacity
that is none is for memory too small for a rung; its steps run kernel by kernel.
"""

from __future__ import annotations

import weakref

import numpy as np

from ..backends.buffers import Buffer
from ..backends.kept_buffers import BufferKind, BufferSet
from ..bundle.specs import TextSpec
from .graph import DecoderGraph
from .kv_cache import KvCache, capacity_for, rung_for, rungs


class KnownBuffer:
    """A buffer of one number a row, and what the host knows to be in it: what is there already is not sent again."""

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer
        self._values = np.zeros(buffer.shape, buffer.dtype)
        self._known = np.zeros(buffer.shape, np.bool_)

    def holds(self, rows: slice, values: np.ndarray) -> bool:
        """Whether these rows are known to hold these values."""
        return bool(self._known[rows].all()) and np.array_equal(self._values[rows], values)

    def write(self, rows: slice, values: np.ndarray) -> None:
        """Sets rows from `rows.start` to `rows.stop`; see `Buffer.write`."""
        self.buffer.rows(rows.start, rows.stop).write(values)
        self.note(rows, values)

    def note(self, rows: slice, values: np.ndarray) -> None:
        """Takes down what a run has put into rows."""
        self._values[rows], self._known[rows] = values, True

    def forget(self, rows: slice) -> None:
        """Takes down that a run puts into rows what the host does not know."""
        self._known[rows] = False

    def read(self) -> np.ndarray:
        """The content; see `Buffer.read`."""
        values = self.buffer.read()
        self.note(slice(0, len(values)), values)
        return values


class StepBuffers:
    """Rows of one decoder; none at first.

    inputs: float32 [rows, hidden_size]. seqlens: int32 [rows]. logits: float32 [rows, num_logits]. tokens: int64
    [rows], rows of the head.
    """

    def __init__(self, graph: DecoderGraph, spec: TextSpec) -> None:
        self.cache = KvCache(spec, graph.memory, graph.cache_dtype)
        self._graph = graph
        self._spec = spec
        self._held: list[BufferSet] = []  # of the graph's, while the rows are on a rung; at most one
        if graph.kept is not None:
            weakref.finalize(self, graph.kept.give, self._held).atexit = False
        self._make(0)

    @property
    def captured(self) -> bool:
        """Whether steps of these rows may be captured: their buffers come back."""
        return bool(self._held)

    def resize(self, rows: int, capacity: int) -> None:
        """As `KvCache.resize`; inputs, logits and tokens are new, but where rows alone are what there was."""
        if self._held and (rows, capacity) == (self.cache.rows, self.cache.capacity):
            return
        fresh = self._taken(rows, capacity)
        if fresh is not None:
            self._move(fresh, rows, capacity)
        elif self._held:
            self._leave(rows, capacity)
        else:
            self.cache.resize(rows, capacity)
            if rows != self.tokens.buffer.shape[0]:
                self._make(rows)

    def roomiest(self, tokens: int) -> int:
        """The capacity for so many tokens where memory is no matter: a rung if steps are captured."""
        return capacity_for(self._spec, tokens) if self._graph.kept is None else rung_for(self._spec, tokens)

    def has_room(self, rung: int) -> bool:
        """Whether the memory has room for one row of a rung."""
        return self._graph.kept is None or self._graph.kept.has_room(1, self._kinds(rung))

    def _taken(self, rows: int, capacity: int) -> BufferSet | None:
        """The buffers of a rung; None for another capacity, without captures, or where there is no room for them."""
        if self._graph.kept is None or rows == 0 or capacity not in rungs(self._spec):
            return None
        return self._graph.kept.take(rows, self._kinds(capacity))

    def _move(self, fresh: BufferSet, rows: int, capacity: int) -> None:
        """`resize`, to the buffers of a rung."""
        assert self._graph.kept is not None  # it gave them
        buffers = fresh.rows(rows)
        count = len(self._beside())
        former = [] if self._held else self.cache.buffers
        self.cache.adopt(buffers[count:], capacity)
        self._use(buffers[:count])
        for buffer in former:
            buffer.release()
        self._graph.kept.give(self._held)
        self._held[:] = [fresh]

    def _leave(self, rows: int, capacity: int) -> None:
        """`resize`, from a rung to what is none."""
        assert self._graph.kept is not None  # it gave what is held
        if rows == 0:
            self._graph.kept.give(self._held)
        self._held.clear()  # otherwise the memory of each buffer is free as soon as it is copied
        self._make(rows)
        self.cache.resize(rows, capacity)

    def _make(self, rows: int) -> None:
        zeros = self._graph.memory.zeros
        self._use([zeros((rows, *kind.row), kind.dtype, staged=kind.staged) for kind in self._beside()])

    def _use(self, buffers: list[Buffer]) -> None:
        self.inputs, seqlens, self.logits, tokens = buffers
        self.seqlens, self.tokens = KnownBuffer(seqlens), KnownBuffer(tokens)

    def _beside(self) -> list[BufferKind]:
        """What there is beside the cache."""
        kinds = [((self._spec.hidden_size,), "float32"), ((), "int32"), ((self._spec.num_logits,), "float32")]
        return [BufferKind(row, dtype, staged=True) for row, dtype in [*kinds, ((), "int64")]]

    def _kinds(self, capacity: int) -> list[BufferKind]:
        cache = BufferKind(self.cache.row_shape(capacity), self.cache.dtype.name)
        return [*self._beside(), *[cache] * (2 * self._spec.num_layers)]
