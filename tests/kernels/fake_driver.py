"""A stand-in for `cuda.bindings.driver` that checks every call and runs launches in Triton's interpreter.

Memory is that of `FakeDevice`: the host's, at real addresses. Handles are objects of kinds of their own, so that one in
the place of another is noticed. What is launched while a stream is captured runs when its graph is launched.
"""

from __future__ import annotations

import ctypes
import enum
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from fake_tensorrt import FakeDevice

from vl3edge.export.kernels.interpreter import POINTED, bounds_checked, pointer
from vl3edge.runtime.bundle.kernel_set import KernelSpec

Status = enum.IntEnum("Status", ["CUDA_SUCCESS", "CUDA_ERROR_LAUNCH_FAILED", "CUDA_ERROR_OUT_OF_MEMORY"], start=0)
_LARGEST_GRID = (2**31 - 1, 65535, 65535)
_C_TYPES: dict[str, Any] = {"i32": ctypes.c_int32}


@dataclass(eq=False)
class Handle:
    """kind: "device", "context", "module", "function", "graph" or "executable"."""

    kind: str
    content: Any = None


class CapturingDevice(FakeDevice):
    """A FakeDevice whose memory may not be touched while a graph is captured."""

    capturing = False

    def _check(self, address: int, num_bytes: int) -> None:
        assert not self.capturing, "memory is copied or set while a graph is captured"
        super()._check(address, num_bytes)


class FakeDriver:
    """failing: the name of a function that reports an error from now on.

    functions: Triton's, by the names of the kernels. content of a module: such a name.
    """

    CUresult = Status

    class CUfunction_attribute(enum.Enum):
        CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8

    class CUlaunchAttributeID(enum.Enum):
        CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION = 6

    class CUlaunchAttribute(SimpleNamespace):
        def __init__(self) -> None:
            super().__init__(id=None, value=SimpleNamespace())

    CUlaunchConfig = SimpleNamespace

    class CUstreamCaptureMode(enum.Enum):
        CU_STREAM_CAPTURE_MODE_RELAXED = 2

    def __init__(
        self, device: CapturingDevice, kernels: Mapping[str, KernelSpec], functions: Mapping[str, Any], form: str
    ) -> None:
        self.device, self._kernels, self._functions, self.form = device, kernels, functions, form
        self.failing = ""
        self.version = 12060
        self.launches: list[str] = []
        self.alive: list[Handle] = []  # modules and graphs
        self.shared: dict[Handle, int] = {}
        self._captured: list[Callable[[], None]] | None = None
        self._context = Handle("context")
        self._current = threading.local()

    def cuInit(self, flags: int) -> tuple[Status]:
        return self._result("cuInit", flags == 0)

    def cuDriverGetVersion(self) -> tuple[Any, ...]:
        return self._result("cuDriverGetVersion", True, self.version)

    def cuDeviceGet(self, ordinal: int) -> tuple[Any, ...]:
        return self._result("cuDeviceGet", ordinal == 0, Handle("device"))

    def cuDevicePrimaryCtxRetain(self, device: Handle) -> tuple[Any, ...]:
        return self._result("cuDevicePrimaryCtxRetain", device.kind == "device", self._context)

    def cuCtxSetCurrent(self, context: Handle) -> tuple[Status]:
        self._current.context = context
        return self._result("cuCtxSetCurrent", context is self._context)

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        assert isinstance(image, bytes)
        assert self._captured is None, "a module is loaded while a graph is captured"
        form, _, name = image.decode().partition(" ")
        assert name.endswith("\0") == form.startswith("ptx")
        name = name.rstrip("\0")
        return self._made("cuModuleLoadData", form == self.form and name in self._kernels, Handle("module", name))

    def cuModuleGetFunction(self, module: Handle, name: bytes) -> tuple[Any, ...]:
        kernel = self._kernels[module.content]
        function = Handle("function", kernel)
        return self._result("cuModuleGetFunction", name == kernel.function.encode() and module in self.alive, function)

    def cuFuncSetAttribute(self, function: Handle, attribute: Any, value: int) -> tuple[Status]:
        assert isinstance(attribute, self.CUfunction_attribute)
        self.shared[function] = value
        return self._result("cuFuncSetAttribute", function.kind == "function")

    def cuLaunchKernel(
        self, function: Handle, *sizes: int
    ) -> tuple[Status]:  # grid, block, shared bytes, stream, parameters, extra
        assert not function.content.binaries[self.form].overlaps
        return self._launched("cuLaunchKernel", function, *sizes)

    def cuLaunchKernelEx(self, config: Any, function: Handle, parameters: int, extra: int) -> tuple[Status]:
        """Everything runs in order here, as if each kernel waited at once."""
        assert function.content.binaries[self.form].overlaps
        (attribute,) = config.attrs
        assert config.numAttrs == attribute.value.programmaticStreamSerializationAllowed == 1
        assert isinstance(attribute.id, self.CUlaunchAttributeID)
        grid, block = ([getattr(config, f"{part}Dim{axis}") for axis in "XYZ"] for part in ("grid", "block"))
        rest = (config.sharedMemBytes, config.hStream, parameters, extra)
        return self._launched("cuLaunchKernelEx", function, *grid, *block, *rest)

    def _launched(self, name: str, function: Handle, *sizes: int) -> tuple[Status]:
        kernel: KernelSpec = function.content
        *shape, shared, stream, parameters, extra = sizes
        assert (len(shape), stream, extra) == (6, self.device.stream, 0)
        grid, block = shape[:3], shape[3:]
        assert all(1 <= size <= largest for size, largest in zip(grid, _LARGEST_GRID, strict=True))
        assert block == [32 * kernel.num_warps, 1, 1]
        assert shared == kernel.binaries[self.form].shared_bytes <= max(48 << 10, self.shared.get(function, 0))
        values = self._unpacked(kernel, parameters)
        if self._captured is None:
            self._run(kernel, grid, values)
        else:
            self._captured.append(lambda: self._run(kernel, grid, values))
        return self._result(name, getattr(self._current, "context", None) is self._context)

    def cuStreamBeginCapture(self, stream: int, mode: Any) -> tuple[Status]:
        assert isinstance(mode, self.CUstreamCaptureMode)
        self._captured, self.device.capturing = [], True
        return self._result("cuStreamBeginCapture", stream == self.device.stream)

    def cuStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        captured, self._captured, self.device.capturing = self._captured, None, False
        fits = captured is not None and stream == self.device.stream
        return self._made("cuStreamEndCapture", fits, Handle("graph", captured))

    def cuGraphInstantiate(self, graph: Handle, flags: int) -> tuple[Any, ...]:
        fits = graph.kind == "graph" and flags == 0
        return self._made("cuGraphInstantiate", fits, Handle("executable", graph.content))

    def cuGraphLaunch(self, graph: Handle, stream: int) -> tuple[Status]:
        assert graph in self.alive
        for launch in graph.content:
            launch()
        return self._result("cuGraphLaunch", graph.kind == "executable" and stream == self.device.stream)

    def cuStreamSynchronize(self, stream: int) -> tuple[Status]:
        return self._result("cuStreamSynchronize", stream == self.device.stream)

    def cuGraphDestroy(self, graph: Handle) -> tuple[Status]:
        return self._gone("cuGraphDestroy", "graph", graph)

    def cuGraphExecDestroy(self, graph: Handle) -> tuple[Status]:
        return self._gone("cuGraphExecDestroy", "executable", graph)

    def cuModuleUnload(self, module: Handle) -> tuple[Status]:
        return self._gone("cuModuleUnload", "module", module)

    def cuGetErrorString(self, status: Status) -> tuple[Status, bytes]:
        return Status.CUDA_SUCCESS, status.name.lower().replace("_", " ").encode()

    def _result(self, name: str, fits: bool, *values: Any) -> tuple[Any, ...]:
        assert fits, f"{name} has wrong arguments"
        return (Status.CUDA_ERROR_LAUNCH_FAILED if name == self.failing else Status.CUDA_SUCCESS, *values)

    def _made(self, name: str, fits: bool, handle: Handle) -> tuple[Any, ...]:
        self.alive += [handle] if name != self.failing else []
        return self._result(name, fits, handle)

    def _gone(self, name: str, kind: str, handle: Handle) -> tuple[Status]:
        self.alive.remove(handle)
        return self._result(name, handle.kind == kind)

    def _unpacked(self, kernel: KernelSpec, parameters: int) -> list[int]:
        """The values of a launch, from an array of pointers to them, as C has it."""
        count = len(kernel.arguments) + kernel.scratch
        places = (ctypes.c_void_p * count).from_address(parameters)
        kinds = [_C_TYPES.get(kind, ctypes.c_void_p) for _, kind in kernel.arguments]
        kinds += [ctypes.c_void_p] * kernel.scratch
        values = [kind.from_address(place).value or 0 for kind, place in zip(kinds, places, strict=True)]
        assert not any(values[len(kernel.arguments) :])
        return values[: len(kernel.arguments)]

    def _run(self, kernel: KernelSpec, grid: list[int], values: list[int]) -> None:
        arguments: dict[str, Any] = dict(kernel.constants) | kernel.tile
        for (name, kind), value in zip(kernel.arguments, values, strict=True):
            assert kind[0] != "*" or value % 16 == 0, f"{name} of {kernel.function} is not aligned"
            arguments[name] = pointer(value, POINTED[kind[1:]]) if kind[0] == "*" else value
        memory: list[np.ndarray] = list(self.device.memory.values())
        with bounds_checked(memory):
            self._functions[kernel.name][tuple(grid)](**arguments)
        self.launches.append(kernel.function)
