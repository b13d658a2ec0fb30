"""The few parts of CUDA that the runtime needs: memory on the device, pinned memory on the host, one stream.

TensorRT and ONNX Runtime work in the same stream, so what one hands to the other needs no waiting. Nothing else may
reach the device while a CUDA graph is captured from that stream: every call here holds `lock`, and so do engines while
they run, and captures.

Behind it is cuda-python, imported when a device is opened; every call's status is checked.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from ..errors import BackendError

_INSTALL = "pip install cuda-python"


class Device(Protocol):
    """What an engine needs of a GPU. Addresses and the stream are plain integers."""

    @property
    def name(self) -> str: ...

    @property
    def capability(self) -> tuple[int, int]:
        """Compute capability, major and minor."""
        ...

    @property
    def stream(self) -> int: ...

    @property
    def lock(self) -> AbstractContextManager[Any]: ...

    def allocate(self, num_bytes: int) -> int:
        """Address of new device memory."""
        ...

    def free(self, address: int) -> None: ...

    def pinned(self, num_bytes: int) -> np.ndarray:
        """New page-locked host memory, uint8 [num_bytes]; free it with `unpin`."""
        ...

    def unpin(self, array: np.ndarray) -> None: ...

    def upload(self, address: int, source: np.ndarray) -> None:
        """Copies a contiguous host array to the device, in the stream."""
        ...

    def download(self, target: np.ndarray, address: int) -> None:
        """Copies from the device into a contiguous host array, in the stream."""
        ...

    def copy_2d(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        """Copies `height` runs of `width` bytes that lie a pitch apart, in the stream; either address may be a host's.

        Host memory that is not pinned must live until `synchronize`.
        """
        ...

    def clear(self, address: int, num_bytes: int) -> None:
        """Sets device memory to zero, in the stream."""
        ...

    def free_bytes(self) -> int:
        """Free device memory in bytes."""
        ...

    def synchronize(self) -> None:
        """Waits until the stream is idle."""
        ...

    def event(self) -> Any:
        """A new mark for a place in the stream; free it with `drop_event`."""
        ...

    def drop_event(self, event: Any) -> None: ...

    def record(self, event: Any) -> None:
        """Puts the mark behind all that is in the stream now."""
        ...

    def wait(self, event: Any) -> None:
        """Waits for what is in the stream before the mark, and for nothing behind it."""
        ...


@dataclass(frozen=True)
class CudaDevice:
    """The first CUDA device, as `Device`. Make it with `open_device`."""

    runtime: Any
    name: str
    capability: tuple[int, int]
    stream: int
    lock: threading.RLock = field(default_factory=threading.RLock, compare=False)

    def allocate(self, num_bytes: int) -> int:
        return int(self._call(self.runtime.cudaMalloc, num_bytes))

    def free(self, address: int) -> None:
        self._call(self.runtime.cudaFree, address)

    def pinned(self, num_bytes: int) -> np.ndarray:
        address = int(self._call(self.runtime.cudaHostAlloc, num_bytes, self.runtime.cudaHostAllocDefault))
        return np.ctypeslib.as_array((ctypes.c_uint8 * num_bytes).from_address(address))

    def unpin(self, array: np.ndarray) -> None:
        self._call(self.runtime.cudaFreeHost, array.ctypes.data)

    def upload(self, address: int, source: np.ndarray) -> None:
        self._copy(address, source.ctypes.data, source.nbytes, self.runtime.cudaMemcpyKind.cudaMemcpyHostToDevice)

    def download(self, target: np.ndarray, address: int) -> None:
        self._copy(target.ctypes.data, address, target.nbytes, self.runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost)

    def copy_2d(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        if width == 0 or height == 0:
            return
        kind = self.runtime.cudaMemcpyKind.cudaMemcpyDefault  # the direction follows from the addresses
        copy = self.runtime.cudaMemcpy2DAsync
        self._call(copy, target, target_pitch, source, source_pitch, width, height, kind, self.stream)

    def clear(self, address: int, num_bytes: int) -> None:
        self._call(self.runtime.cudaMemsetAsync, address, 0, num_bytes, self.stream)

    def free_bytes(self) -> int:
        return int(self._call(self.runtime.cudaMemGetInfo))

    def synchronize(self) -> None:
        self._call(self.runtime.cudaStreamSynchronize, self.stream)

    def event(self) -> Any:
        return self._call(self.runtime.cudaEventCreateWithFlags, self.runtime.cudaEventDisableTiming)

    def drop_event(self, event: Any) -> None:
        self._call(self.runtime.cudaEventDestroy, event)

    def record(self, event: Any) -> None:
        self._call(self.runtime.cudaEventRecord, event, self.stream)

    def wait(self, event: Any) -> None:
        self._call(self.runtime.cudaEventSynchronize, event)

    def _copy(self, target: int, source: int, num_bytes: int, kind: Any) -> None:
        self._call(self.runtime.cudaMemcpyAsync, target, source, num_bytes, kind, self.stream)

    def _call(self, function: Any, *arguments: Any) -> Any:
        with self.lock:
            return _call(self.runtime, function, *arguments)


def open_device() -> CudaDevice:
    """The first CUDA device with a stream of its own; BackendError that says what is missing."""
    runtime = _import_runtime()
    try:
        count = int(_call(runtime, runtime.cudaGetDeviceCount))
    except BackendError as e:
        raise BackendError(f"no usable CUDA device ({e}): check the NVIDIA driver (nvidia-smi).") from e
    except RuntimeError as e:  # cuda-python raises it where there is no driver library at all
        raise BackendError(f"there is no NVIDIA driver on this machine ({e}); backend 'cpu' needs none.") from e
    if count == 0:
        raise BackendError("the NVIDIA driver sees no GPU (nvidia-smi); backend 'cpu' needs none.")
    properties = _call(runtime, runtime.cudaGetDeviceProperties, 0)
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    stream = int(_call(runtime, runtime.cudaStreamCreate))
    return CudaDevice(runtime, name.rstrip("\0"), (int(properties.major), int(properties.minor)), stream)


def _import_runtime() -> Any:
    """cuda-python's binding of the CUDA runtime; its place has changed between versions 12 and 13."""
    for name in ("cuda.bindings.runtime", "cuda.cudart"):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
        except ImportError as e:
            raise BackendError(f"cuda-python is installed but does not load ({e}).") from e
    raise BackendError(f"NVIDIA GPUs need cuda-python: {_INSTALL}.")


def _call(runtime: Any, function: Any, *arguments: Any) -> Any:
    """The first result of a CUDA call, which returns (status, results…); BackendError for any status but success."""
    status, *results = function(*arguments)
    if status != runtime.cudaError_t.cudaSuccess:
        text = runtime.cudaGetErrorString(status)[1]
        message = text.decode() if isinstance(text, bytes) else str(text)
        raise BackendError(f"CUDA: {message} ({status.name})")
    return results[0] if results else None
