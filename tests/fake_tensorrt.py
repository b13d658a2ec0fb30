"""TensorRT and a GPU as far as the runtime uses them, on the CPU: plans are paths of ONNX files, run by ONNX Runtime.

"Device" memory is host memory at its real address, so an engine that forgets a copy, mixes up addresses or overruns a
buffer shows here as it would there. Contexts refuse what a real one refuses: shapes outside the chosen profile.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from vl3edge.runtime.bundle.profiles import Profile


class FakeLock:
    """A lock that says whether it is held."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.held = False

    def __enter__(self) -> None:
        self._lock.acquire()
        self.held = True

    def __exit__(self, *_: object) -> None:
        self.held = False
        self._lock.release()


class FakeDevice:
    """A `Device` that counts what is allocated."""

    name = "Fake GPU"
    capability = (8, 9)
    stream = 7

    def __init__(self) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.pins: dict[int, np.ndarray] = {}
        self.uploaded: list[int] = []
        self.downloaded: list[int] = []
        self.pending = 0
        self.events: set[int] = set()
        self.lock = FakeLock()

    def allocate(self, num_bytes: int) -> int:
        array = np.full(max(num_bytes, 1), 0xA5, np.uint8)
        self.memory[array.ctypes.data] = array
        return int(array.ctypes.data)

    def free(self, address: int) -> None:
        del self.memory[address]

    def pinned(self, num_bytes: int) -> np.ndarray:
        array = np.full(num_bytes, 0x5A, np.uint8)
        self.pins[array.ctypes.data] = array
        return array

    def unpin(self, array: np.ndarray) -> None:
        del self.pins[array.ctypes.data]

    def upload(self, address: int, source: np.ndarray) -> None:
        assert source.flags.c_contiguous
        self._check(address, source.nbytes)
        ctypes.memmove(address, source.ctypes.data, source.nbytes)
        self.uploaded.append(source.nbytes)
        self.pending += 1

    def download(self, target: np.ndarray, address: int) -> None:
        assert target.flags.c_contiguous
        self._check(address, target.nbytes)
        ctypes.memmove(target.ctypes.data, address, target.nbytes)
        self.downloaded.append(target.nbytes)
        self.pending += 1

    def copy_2d(self, target: int, target_pitch: int, source: int, source_pitch: int, width: int, height: int) -> None:
        assert width <= min(target_pitch, source_pitch)
        for start, pitch in ((target, target_pitch), (source, source_pitch)):
            if any(begin <= start < begin + array.nbytes for begin, array in self.memory.items()):
                self._check(start, pitch * (height - 1) + width)
        for row in range(height):
            ctypes.memmove(target + row * target_pitch, source + row * source_pitch, width)
        self.pending += 1

    def clear(self, address: int, num_bytes: int) -> None:
        self._check(address, num_bytes)
        ctypes.memset(address, 0, num_bytes)
        self.pending += 1

    def free_bytes(self) -> int:
        return 1 << 30

    def _check(self, address: int, num_bytes: int) -> None:
        """Within one allocation."""
        assert any(
            begin <= address and address + num_bytes <= begin + array.nbytes for begin, array in self.memory.items()
        )

    def synchronize(self) -> None:
        self.pending = 0

    def event(self) -> int:
        self.events.add(max(self.events, default=0) + 1)
        return max(self.events)

    def drop_event(self, event: int) -> None:
        self.events.remove(event)

    def record(self, event: int) -> None:
        assert event in self.events

    def wait(self, event: int) -> None:
        assert event in self.events


class _Severity(enum.IntEnum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2


class _ILogger:
    Severity = _Severity

    def __init__(self) -> None: ...

    def log(self, severity: _Severity, message: str) -> None: ...


class _Strategy(enum.Enum):
    STATIC = 0
    ON_PROFILE_CHANGE = 1


class _Cache:
    def __init__(self) -> None:
        self.content = b""

    def deserialize(self, content: bytes) -> bool:
        self.content = content
        return True

    def serialize(self) -> bytes:
        return self.content + b"+"


class _RuntimeConfig:
    def create_runtime_cache(self) -> _Cache:
        return _Cache()

    def set_runtime_cache(self, cache: _Cache) -> bool:
        self.cache = cache
        return True

    def set_execution_context_allocation_strategy(self, strategy: _Strategy) -> None:
        assert strategy is _Strategy.ON_PROFILE_CHANGE


class _Context:
    def __init__(self, session: onnxruntime.InferenceSession, profiles: tuple[Profile, ...]) -> None:
        self._session = session
        self._profiles = profiles
        self.used: list[int] = []
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        assert stream == FakeDevice.stream
        self.used.append(index)
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._shapes[name] = tuple(shape)
        return bool(self._profiles[self.used[-1]].inputs[name].holds(shape))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        sizes = {
            axis: size
            for tensor in self._session.get_inputs()
            for axis, size in zip(tensor.shape, self._shapes[tensor.name], strict=True)
        }
        (output,) = (tensor for tensor in self._session.get_outputs() if tensor.name == name)
        return tuple(sizes.get(axis, axis) for axis in output.shape)

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == FakeDevice.stream
        dtypes = {"tensor(uint8)": np.uint8, "tensor(int32)": np.int32, "tensor(float)": np.float32}
        inputs = {}
        for tensor in self._session.get_inputs():
            shape = self._shapes[tensor.name]
            flat = (ctypes.c_uint8 * (int(np.prod(shape)) * np.dtype(dtypes[tensor.type]).itemsize)).from_address(
                self._addresses[tensor.name]
            )
            inputs[tensor.name] = np.frombuffer(flat, dtypes[tensor.type]).reshape(shape)
        results = self._session.run(None, inputs)
        for tensor, result in zip(self._session.get_outputs(), results, strict=True):
            assert result.shape == self.get_tensor_shape(tensor.name)
            ctypes.memmove(self._addresses[tensor.name], np.ascontiguousarray(result).ctypes.data, result.nbytes)
        return True


class _Engine:
    def __init__(self, path: Path, library: FakeTensorRt) -> None:
        self._session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._library = library
        self._profiles = library.profiles[path.stem]

    def create_runtime_config(self) -> _RuntimeConfig:
        return _RuntimeConfig()

    def create_execution_context(self, how: Any) -> _Context:
        assert isinstance(how, _RuntimeConfig) or how is _Strategy.ON_PROFILE_CHANGE
        context = _Context(self._session, self._profiles)
        self._library.contexts.append(context)
        return context


class FakeTensorRt:
    """The module. A plan is the path of an ONNX file; anything else "cannot be loaded".

    profiles: of each plan, by the ONNX file's stem.
    """

    __name__ = "tensorrt_rtx"
    __version__ = "1.2.3"
    ILogger = _ILogger
    ExecutionContextAllocationStrategy = _Strategy

    def __init__(self, profiles: dict[str, tuple[Profile, ...]]) -> None:
        self.profiles = profiles
        self.contexts: list[_Context] = []
        library = self

        class Runtime:
            def __init__(self, logger: Any) -> None:
                self._logger = logger

            def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
                if not plan.endswith(b".onnx"):
                    self._logger.log(_Severity.ERROR, "the engine plan is\nincompatible")
                    return None
                return _Engine(Path(plan.decode()), library)

        self.Runtime = Runtime
