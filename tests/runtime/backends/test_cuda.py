"""The calls that `CudaDevice` makes, against a stand-in for cuda-python; argument orders are those of its 13.5."""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from vl3edge.runtime.backends.cuda import CudaDevice
from vl3edge.runtime.errors import BackendError


class Status(enum.Enum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


class FakeRuntime:
    """Notes every call and answers it with success, or with `status`."""

    cudaError_t = Status
    cudaHostAllocDefault = 0
    cudaEventDisableTiming = 2

    class cudaMemcpyKind:
        cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDefault = 1, 2, 4

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.status = Status.cudaSuccess
        self.results: tuple[Any, ...] = ()
        self.held: list[bool] = []
        self.device: Any = None

    def cudaGetErrorString(self, status: Status) -> tuple[Status, bytes]:
        return Status.cudaSuccess, b"out of memory"

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> tuple[Any, ...]:
            self.calls.append((name, *arguments))
            self.held.append(self.device.lock._is_owned())
            return (self.status, *self.results)

        return call


@pytest.fixture
def device() -> CudaDevice:
    runtime = FakeRuntime()
    runtime.device = CudaDevice(runtime, "Fake", (8, 9), 7)
    return runtime.device


def test_an_event_marks_a_place_in_the_stream(device: CudaDevice) -> None:
    device.runtime.results = ("event",)
    event = device.event()
    device.record(event)
    device.wait(event)
    device.drop_event(event)
    assert device.runtime.calls == [
        ("cudaEventCreateWithFlags", 2),
        ("cudaEventRecord", "event", 7),
        ("cudaEventSynchronize", "event"),
        ("cudaEventDestroy", "event"),
    ]
    assert all(device.runtime.held)


def test_copies_are_in_the_stream_and_hold_the_lock(device: CudaDevice) -> None:
    array = np.zeros(6, np.float32)
    address = array.ctypes.data
    device.upload(100, array)
    device.download(array, 200)
    device.copy_2d(1, 20, 3, 40, 16, 2)
    device.copy_2d(1, 20, 3, 40, 0, 2)  # nothing to copy
    device.clear(5, 64)
    device.synchronize()
    assert device.runtime.calls == [
        ("cudaMemcpyAsync", 100, address, 24, 1, 7),
        ("cudaMemcpyAsync", address, 200, 24, 2, 7),
        ("cudaMemcpy2DAsync", 1, 20, 3, 40, 16, 2, 4, 7),
        ("cudaMemsetAsync", 5, 0, 64, 7),
        ("cudaStreamSynchronize", 7),
    ]
    assert all(device.runtime.held)


def test_free_memory_is_the_first_number(device: CudaDevice) -> None:
    device.runtime.results = (11, 99)
    assert device.free_bytes() == 11


def test_a_failed_call_says_why(device: CudaDevice) -> None:
    device.runtime.status = Status.cudaErrorMemoryAllocation
    with pytest.raises(BackendError, match=r"CUDA: out of memory \(cudaErrorMemoryAllocation\)"):
        device.allocate(1 << 40)
