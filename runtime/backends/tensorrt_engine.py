"""A TensorRT plan that runs: one context, one stream, buffers on the device and pinned ones on the host.

One context serves all profiles, and its memory is reallocated when the profile changes: on the devices this is for,
memory is scarcer than the moment that takes, once per clip. Buffers only grow. The choice of a profile, the buffers and
the errors are plain Python; TensorRT and the device are handed in, so all of it is tested without a GPU.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.plans import PlanSpec, TensorSpec
from ..bundle.profiles import profile_for
from ..errors import BackendError
from ..files import written_whole
from .buffers import DeviceBuffer
from .cuda import Device
from .tensorrt_library import make_logger


@dataclass
class _Buffer:
    """A tensor's memory: on the device, and pinned on the host on the way there or back."""

    address: int
    host: np.ndarray


class TensorRtEngine:
    """A plan as an `Engine`. Not thread-safe; `close` frees what it holds.

    trt: TensorRT's module. runtime_cache: where kernels that TensorRT for RTX compiles when they first run are kept;
    None for TensorRT proper, which has compiled everything.
    Raises BackendError when the plan cannot be loaded.
    """

    def __init__(self, trt: Any, device: Device, plan: Path, spec: PlanSpec, runtime_cache: Path | None = None) -> None:
        self._device = device
        self._spec = spec
        self._path = plan
        self._cache_path = runtime_cache
        self._cache: Any = None
        self._logger, self._errors = make_logger(trt)
        self._runtime = trt.Runtime(self._logger)  # must outlive what it makes
        self._engine = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if self._engine is None:
            raise self._failure("cannot be loaded")
        self._context = self._make_context(trt)
        if self._context is None:
            raise self._failure("ran out of memory")
        self._profile = -1
        self._profiles_run: set[int] = set()
        self._buffers: dict[str, _Buffer] = {}

    def run(
        self, inputs: Mapping[str, np.ndarray | DeviceBuffer], into: Mapping[str, DeviceBuffer] | None = None
    ) -> list[np.ndarray]:
        """Runs the plan; returns its outputs, in new arrays.

        inputs: those that are buffers on the device are read where they lie. into: buffers for outputs that are to stay
        there; they are not among those returned.
        Raises BackendError for shapes outside every profile, for other inputs than the plan's, and when it fails.
        """
        with self._device.lock:
            return self._run(inputs, into or {})

    def _run(
        self, inputs: Mapping[str, np.ndarray | DeviceBuffer], into: Mapping[str, DeviceBuffer]
    ) -> list[np.ndarray]:
        arrays = [self._checked(tensor, inputs) for tensor in self._spec.inputs]
        self._set_profile({tensor.name: array.shape for tensor, array in zip(self._spec.inputs, arrays, strict=True)})
        for tensor, array in zip(self._spec.inputs, arrays, strict=True):
            address = array.address if isinstance(array, DeviceBuffer) else self._uploaded(tensor.name, array)
            self._demand(self._context.set_input_shape(tensor.name, array.shape))
            self._demand(self._context.set_tensor_address(tensor.name, address))
        wanted = [tensor for tensor in self._spec.outputs if tensor.name not in into]
        for tensor in self._spec.outputs:
            if tensor.name in into:
                self._place_output(tensor, into[tensor.name])
        staged = [self._prepare_output(tensor) for tensor in wanted]
        self._demand(self._context.execute_async_v3(self._device.stream))
        for tensor, target in zip(wanted, staged, strict=True):
            self._device.download(target, self._buffers[tensor.name].address)
        self._device.synchronize()
        if self._profile not in self._profiles_run:
            self._profiles_run.add(self._profile)
            self._save_cache()
        return [target.copy() for target in staged]  # the buffers belong to the next call

    def close(self) -> None:
        """Frees all memory; the engine cannot run afterwards."""
        self._save_cache()
        for buffer in self._buffers.values():
            self._device.free(buffer.address)
            self._device.unpin(buffer.host)
        self._buffers.clear()
        self._context = self._cache = self._engine = None

    def _make_context(self, trt: Any) -> Any:
        strategy = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        if self._cache_path is None:
            return self._engine.create_execution_context(strategy)
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(strategy)
        self._cache = config.create_runtime_cache()
        if self._cache_path.is_file() and not self._cache_path.is_symlink():
            self._cache.deserialize(self._cache_path.read_bytes())  # of another GPU or version: it stays empty
        config.set_runtime_cache(self._cache)
        return self._engine.create_execution_context(config)

    def _uploaded(self, name: str, array: np.ndarray) -> int:
        """The address of an array's copy on the device."""
        buffer = self._buffer(name, array.nbytes)
        staging = buffer.host[: array.nbytes]
        staging.view(array.dtype).reshape(array.shape)[...] = array
        self._device.upload(buffer.address, staging)
        return buffer.address

    def _place_output(self, tensor: TensorSpec, buffer: DeviceBuffer) -> None:
        """Has an output written to a buffer. Input shapes are set."""
        shape = tuple(int(size) for size in self._context.get_tensor_shape(tensor.name))
        if (shape, np.dtype(tensor.dtype)) != (buffer.shape, buffer.dtype):
            raise BackendError(
                f"{self._path.name}: output {tensor.name} is {tensor.dtype} {list(shape)}, its buffer is for "
                f"{buffer.dtype} {list(buffer.shape)}"
            )
        self._demand(self._context.set_tensor_address(tensor.name, buffer.address))

    def _checked(
        self, tensor: TensorSpec, inputs: Mapping[str, np.ndarray | DeviceBuffer]
    ) -> np.ndarray | DeviceBuffer:
        array = inputs.get(tensor.name)
        if array is None or array.dtype != np.dtype(tensor.dtype):
            got = "nothing" if array is None else str(array.dtype)
            raise BackendError(f"{self._path.name}: input {tensor.name} must be {tensor.dtype}, not {got}")
        return array

    def _set_profile(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        index = profile_for(self._spec.profiles, shapes)
        if index is None:
            limits = "; ".join(
                f"{profile.name}: " + ", ".join(f"{name} {list(sizes.max)}" for name, sizes in profile.inputs.items())
                for profile in self._spec.profiles
            )
            asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
            raise BackendError(f"{self._path.name}: {asked} fits no profile (at most {limits})")
        if index != self._profile:
            self._demand(self._context.set_optimization_profile_async(index, self._device.stream))
            self._profile = index

    def _prepare_output(self, tensor: TensorSpec) -> np.ndarray:
        """Gives an output its buffer; returns the pinned array it will come back in. Input shapes are set."""
        shape = tuple(int(size) for size in self._context.get_tensor_shape(tensor.name))
        dtype = np.dtype(tensor.dtype)
        num_bytes = math.prod(shape) * dtype.itemsize
        buffer = self._buffer(tensor.name, num_bytes)
        self._demand(self._context.set_tensor_address(tensor.name, buffer.address))
        target: np.ndarray = buffer.host[:num_bytes].view(dtype).reshape(shape)
        return target

    def _buffer(self, name: str, num_bytes: int) -> _Buffer:
        """The buffer of a tensor, at least so large; what was in it is lost when it grows."""
        old = self._buffers.get(name)
        if old is not None and old.host.nbytes >= num_bytes:
            return old
        if old is not None:
            del self._buffers[name]
            self._device.free(old.address)
            self._device.unpin(old.host)
        self._buffers[name] = _Buffer(self._device.allocate(num_bytes), self._device.pinned(num_bytes))
        return self._buffers[name]

    def _save_cache(self) -> None:
        """Keeps what was compiled at run time. A bundle that cannot be written to costs time, not answers."""
        if self._cache is None or self._cache_path is None:
            return
        with contextlib.suppress(OSError), written_whole(self._cache_path) as temporary:
            temporary.write_bytes(memoryview(self._cache.serialize()))

    def _demand(self, done: bool) -> None:
        if not done:
            raise self._failure("failed to run")

    def _failure(self, what: str) -> BackendError:
        reason = " ".join(self._errors[-1].split()) if self._errors else "TensorRT gave no reason"
        return BackendError(f"{self._path} {what}: {reason}")
