"""Memory that a decoder's tensors live in: numpy arrays on the host, or a GPU's own memory behind a `Device`.

A buffer is one contiguous array at a fixed address, which ONNX Runtime is given to read and write in place. The KV
cache and the decoder are written in terms of `Memory` and `Buffer` alone, so they are the same on both, and tested with
a stand-in for the GPU.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np

from ..host import available_bytes
from .cuda import Device


class Buffer(Protocol):
    """An array of fixed shape and dtype. Methods with positions are for [rows, heads, positions, channels]."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def address(self) -> int: ...

    def rows(self, start: int, stop: int) -> Buffer:
        """A part along the first axis, in the same memory."""
        ...

    def read(self) -> np.ndarray:
        """The content, on the host; on a GPU a copy."""
        ...

    def fetch(self) -> Callable[[], np.ndarray]:
        """`read` in two halves: the content of now is what the result gives, which waits for it and nothing later.

        On a GPU the buffer must be staged, and what was fetched is void after the next `fetch` or `read`.
        """
        ...

    def write(self, values: np.ndarray) -> None:
        """Sets all of it; values are cast to its dtype."""
        ...

    def clear(self) -> None:
        """Sets all of it to zero."""
        ...

    def read_positions(self, row: int, start: int, count: int) -> np.ndarray:
        """A view (host) or copy (GPU) of one row: [heads, count, channels] from a position on."""
        ...

    def write_positions(self, row: int, start: int, values: np.ndarray) -> None:
        """Sets [heads, n, channels] of one row from a position on."""
        ...

    def copy_positions(self, row: int, source: Buffer, source_row: int, count: int) -> None:
        """Copies the first `count` positions from a row of a buffer in the same kind of memory."""
        ...

    def release(self) -> None:
        """Frees the memory now; otherwise it is freed with the buffer."""
        ...


class Memory(Protocol):
    """Where buffers are made.

    kind: the device type of ONNX Runtime's io_binding. exclusive: to be held while nothing else may reach the device.
    """

    @property
    def kind(self) -> str: ...

    @property
    def exclusive(self) -> AbstractContextManager[Any]: ...

    def zeros(self, shape: tuple[int, ...], dtype: Any, staged: bool = False) -> Buffer:
        """A new buffer; MemoryError or BackendError when there is no room.

        staged: it is read or written as a whole in every step: on a GPU it gets pinned host memory for that.
        """
        ...

    def available_bytes(self) -> int | None:
        """Free memory in bytes; None where it is not known."""
        ...

    def synchronize(self) -> None:
        """Waits until everything asked for is done."""
        ...


class HostBuffer:
    """A numpy array as a `Buffer`."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def dtype(self) -> np.dtype:
        return self.array.dtype

    @property
    def address(self) -> int:
        return int(self.array.ctypes.data)

    def rows(self, start: int, stop: int) -> HostBuffer:
        return HostBuffer(self.array[start:stop])

    def read(self) -> np.ndarray:
        return self.array

    def fetch(self) -> Callable[[], np.ndarray]:
        values = self.array.copy()
        return lambda: values

    def write(self, values: np.ndarray) -> None:
        self.array[...] = values

    def clear(self) -> None:
        self.array[...] = 0

    def read_positions(self, row: int, start: int, count: int) -> np.ndarray:
        return self.array[row, :, start : start + count]

    def write_positions(self, row: int, start: int, values: np.ndarray) -> None:
        self.array[row, :, start : start + values.shape[1]] = values

    def copy_positions(self, row: int, source: Buffer, source_row: int, count: int) -> None:
        self.write_positions(row, 0, source.read_positions(source_row, 0, count))

    def release(self) -> None:
        """Does nothing: the garbage collector frees the array."""


class HostMemory:
    """Memory of the process."""

    kind = "cpu"

    @property
    def exclusive(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def zeros(self, shape: tuple[int, ...], dtype: Any, staged: bool = False) -> HostBuffer:
        return HostBuffer(np.zeros(shape, dtype))

    def available_bytes(self) -> int | None:
        return available_bytes()

    def synchronize(self) -> None:
        """Everything is done when it returns."""


HOST = HostMemory()


class DeviceBuffer:
    """An array in a GPU's memory. All copies are in the device's stream, after what is in it already."""

    def __init__(
        self,
        device: Device,
        address: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        staging: np.ndarray | None = None,
        whole: DeviceBuffer | None = None,
    ) -> None:
        """staging: pinned, of this shape and dtype. whole: what it is a part of and owns the memory; None: itself."""
        self.shape, self.dtype, self.address = shape, dtype, address
        self._device = device
        self._staging = staging
        self._whole = whole
        self._event: Any = None
        if whole is None:
            self._finalizer = weakref.finalize(self, _free, device, address, staging)
            self._finalizer.atexit = False  # the process gives everything back

    def rows(self, start: int, stop: int) -> DeviceBuffer:
        stride = math.prod(self.shape[1:]) * self.dtype.itemsize
        staging = None if self._staging is None else self._staging[start:stop]
        shape = (stop - start, *self.shape[1:])
        whole = self._whole or self
        return DeviceBuffer(self._device, self.address + start * stride, shape, self.dtype, staging, whole)

    def reshaped(self, shape: tuple[int, ...]) -> DeviceBuffer:
        """The same memory in another shape."""
        staging = None if self._staging is None else self._staging.reshape(shape)
        return DeviceBuffer(self._device, self.address, shape, self.dtype, staging, self._whole or self)

    def read(self) -> np.ndarray:
        values = np.empty(self.shape, self.dtype) if self._staging is None else self._staging
        self._device.download(values, self.address)
        self._device.synchronize()
        return values if self._staging is None else values.copy()  # the staging is the next call's

    def fetch(self) -> Callable[[], np.ndarray]:
        staging, device, event = self._staging, self._device, (self._whole or self)._mark()
        assert staging is not None  # it has to outlive the call
        device.download(staging, self.address)
        device.record(event)

        def arrived() -> np.ndarray:
            device.wait(event)
            return staging.copy()

        return arrived

    def _mark(self) -> Any:
        if self._event is None:
            self._event = self._device.event()
            weakref.finalize(self, self._device.drop_event, self._event).atexit = False
        return self._event

    def write(self, values: np.ndarray) -> None:
        """Call `Memory.synchronize` before the next write, so that the staged data has arrived."""
        staging = np.empty(self.shape, self.dtype) if self._staging is None else self._staging
        staging[...] = values
        self._device.upload(self.address, staging)
        if self._staging is None:
            self._device.synchronize()

    def clear(self) -> None:
        self._device.clear(self.address, math.prod(self.shape) * self.dtype.itemsize)

    def read_positions(self, row: int, start: int, count: int) -> np.ndarray:
        _, heads, _, channels = self.shape
        values = np.empty((heads, count, channels), self.dtype)
        width = self._width(count)
        self._device.copy_2d(values.ctypes.data, width, *self._place(row, start), width, heads)
        self._device.synchronize()
        return values

    def write_positions(self, row: int, start: int, values: np.ndarray) -> None:
        given = np.ascontiguousarray(values, self.dtype)
        width = self._width(given.shape[1])
        self._device.copy_2d(*self._place(row, start), given.ctypes.data, width, width, self.shape[1])
        self._device.synchronize()

    def copy_positions(self, row: int, source: Buffer, source_row: int, count: int) -> None:
        assert isinstance(source, DeviceBuffer)
        self._device.copy_2d(*self._place(row, 0), *source._place(source_row, 0), self._width(count), self.shape[1])

    def like(self, shape: tuple[int, ...]) -> DeviceBuffer:
        """A new buffer of this dtype on the same device, all zeros."""
        return DeviceMemory(self._device).zeros(shape, self.dtype)

    def copy_rows(self, start: int, source: DeviceBuffer) -> None:
        """Copies all rows of a buffer of the same row shape to the rows from `start` on."""
        width = math.prod(source.shape) * self.dtype.itemsize
        target = self.rows(start, start + source.shape[0]).address
        self._device.copy_2d(target, width, source.address, width, width, 1)

    def release(self) -> None:
        if self._whole is None:
            self._finalizer()

    def _place(self, row: int, start: int) -> tuple[int, int]:
        """Address of a position of a row's first head, and the bytes from one head to the next."""
        _, heads, positions, _ = self.shape
        pitch = self._width(positions)
        return self.address + row * heads * pitch + self._width(start), pitch

    def _width(self, positions: int) -> int:
        return positions * self.shape[3] * self.dtype.itemsize


class DeviceMemory:
    """Memory of a GPU. kind: "cuda", but in tests, where the device is the host."""

    def __init__(self, device: Device, kind: str = "cuda") -> None:
        self.kind = kind
        self._device = device

    @property
    def exclusive(self) -> AbstractContextManager[Any]:
        return self._device.lock

    def zeros(self, shape: tuple[int, ...], dtype: Any, staged: bool = False) -> DeviceBuffer:
        dtype = np.dtype(dtype)
        num_bytes = max(1, math.prod(shape) * dtype.itemsize)
        address = self._device.allocate(num_bytes)
        self._device.clear(address, num_bytes)
        staging = None
        if staged:
            try:
                pinned = self._device.pinned(num_bytes)
            except BaseException:
                self._device.free(address)
                raise
            staging = pinned[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
        return DeviceBuffer(self._device, address, shape, dtype, staging)

    def available_bytes(self) -> int | None:
        return self._device.free_bytes()

    def synchronize(self) -> None:
        self._device.synchronize()


def _free(device: Device, address: int, staging: np.ndarray | None) -> None:
    device.free(address)
    if staging is not None:
        device.unpin(staging)
