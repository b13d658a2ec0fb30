"""Launches on a GPU, by cuda-python's binding of the CUDA driver, in the one stream of the device.

Memory is the device's own (`backends/cuda.py`), in the same primary context. A kernel is loaded when it is needed:
machine code where the bundle has it for this GPU, else PTX, which the driver compiles.
"""

from __future__ import annotations

import ctypes
import importlib
import threading
import weakref
import zipfile
from collections.abc import Callable, Sequence
from typing import Any

from ..backends.buffers import DeviceMemory
from ..backends.cuda import Device
from ..bundle.kernel_set import FOLDER, PORTABLE, KernelSet, KernelSpec
from ..bundle.tuning import TunedFor
from ..errors import BackendError, BundleError

_FREE_SHARED_BYTES = 48 << 10  # of a block; more has to be asked for
_WARP = 32
_HOPPER = (9, 0)
_C_TYPES: dict[str, Any] = {"i32": ctypes.c_int32, "i64": ctypes.c_int64}  # pointers apart


class CudaLauncher:
    """Kernels of one bundle on one device. Not thread-safe but for the device's lock."""

    captures = True

    def __init__(self, device: Device, kernels: KernelSet) -> None:
        """Raises BackendError for a GPU that no form of the kernels is for, or without cuda-python."""
        self.memory = DeviceMemory(device)
        self._device = device
        self._form = kernels.manifest.archive_for(device.capability)
        self._archive = kernels.folder / FOLDER / f"{self._form}.zip"
        self._driver = _import_driver()
        self._modules: list[Any] = []
        self._functions: dict[str, Any] = {}
        self._loads_only = False
        self._threads = threading.local()
        self._call(self._driver.cuInit, 0)
        self._context = self._call(self._driver.cuDevicePrimaryCtxRetain, self._call(self._driver.cuDeviceGet, 0))
        driver = int(self._call(self._driver.cuDriverGetVersion))
        self.prefers_dense = device.capability == _HOPPER  # whose tensor cores read shared memory
        self.tuned_for = TunedFor(device.name, "{}.{}".format(*device.capability), driver, kernels.digest)
        finalizer = weakref.finalize(self, _unload, self._driver, device.stream, self._modules)
        finalizer.atexit = False  # the process gives everything back

    @property
    def description(self) -> str:
        kind = "PTX compiled by the driver" if self._form == PORTABLE else f"machine code for {self._form[6:]}"
        return f"kernels on {self._device.name}, {kind}"

    def launch(self, kernel: KernelSpec, grid: Sequence[int], arguments: Sequence[int]) -> None:
        with self._device.lock:
            self._enter()
            function = self._functions.get(kernel.name) or self._load(kernel)
            if self._loads_only:
                return
            values = _packed(kernel, arguments)
            pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
            sizes = [*grid, *[1] * (3 - len(grid)), kernel.num_warps * _WARP, 1, 1]
            binary = kernel.binaries[self._form]
            if binary.overlaps:
                config = self._overlapping(sizes, binary.shared_bytes)
                self._call(self._driver.cuLaunchKernelEx, config, function, ctypes.addressof(pointers), 0)
            else:
                last = (binary.shared_bytes, self._device.stream, ctypes.addressof(pointers), 0)
                self._call(self._driver.cuLaunchKernel, function, *sizes, *last)

    def _overlapping(self, sizes: Sequence[int], shared_bytes: int) -> Any:
        """The driver's settings of a launch that may begin before the kernel in front of it has ended."""
        driver = self._driver
        config, attribute = driver.CUlaunchConfig(), driver.CUlaunchAttribute()
        config.gridDimX, config.gridDimY, config.gridDimZ = sizes[:3]
        config.blockDimX, config.blockDimY, config.blockDimZ = sizes[3:]
        config.sharedMemBytes, config.hStream = shared_bytes, self._device.stream
        attribute.id = driver.CUlaunchAttributeID.CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION
        attribute.value.programmaticStreamSerializationAllowed = 1
        config.attrs, config.numAttrs = [attribute], 1
        return config

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        driver, stream = self._driver, self._device.stream
        with self._device.lock:  # nothing else may reach the device meanwhile
            self._enter()
            self._loads_only = True  # a module cannot be loaded while a graph is captured
            try:
                work()
            finally:
                self._loads_only = False
            # Relaxed: memory that the garbage collector gives back meanwhile does not spoil it.
            mode = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
            self._call(driver.cuStreamBeginCapture, stream, mode)
            try:
                work()
            except BaseException:
                driver.cuStreamEndCapture(stream)
                raise
            graph = self._call(driver.cuStreamEndCapture, stream)
            try:
                return _CapturedGraph(self, self._call(driver.cuGraphInstantiate, graph, 0))
            finally:
                self._call(driver.cuGraphDestroy, graph)

    def replay(self, graph: Any) -> None:
        """Launches an instantiated graph."""
        with self._device.lock:
            self._enter()
            self._call(self._driver.cuGraphLaunch, graph, self._device.stream)

    def forget(self, graph: Any) -> None:
        """Gives the memory of an instantiated graph back."""
        with self._device.lock:
            self._enter()
            self._call(self._driver.cuGraphExecDestroy, graph)

    def _enter(self) -> None:
        """Makes the device's context that of this thread."""
        if not getattr(self._threads, "entered", False):
            self._call(self._driver.cuCtxSetCurrent, self._context)
            self._threads.entered = True

    def _load(self, kernel: KernelSpec) -> Any:
        if self._form not in kernel.binaries:
            raise BundleError(f"{self._archive.name} has no {kernel.name}. Export the bundle again.")
        try:
            with zipfile.ZipFile(self._archive) as archive:
                content = archive.read(kernel.name)
        except (OSError, KeyError, zipfile.BadZipFile) as e:
            raise BundleError(f"{self._archive} cannot be read ({e}). Copy or export the bundle again.") from e
        content += b"\0" if self._form == PORTABLE else b""  # PTX is a string of C
        module = self._call(self._driver.cuModuleLoadData, content)
        self._modules.append(module)
        function = self._call(self._driver.cuModuleGetFunction, module, kernel.function.encode())
        shared = kernel.binaries[self._form].shared_bytes
        if shared > _FREE_SHARED_BYTES:
            attribute = self._driver.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._call(self._driver.cuFuncSetAttribute, function, attribute, shared)
        self._functions[kernel.name] = function
        return function

    def _call(self, function: Any, *arguments: Any) -> Any:
        """The result of a driver's call, which returns (status, result…); BackendError for any status but success."""
        status, *results = function(*arguments)
        if status != self._driver.CUresult.CUDA_SUCCESS:
            text = self._driver.cuGetErrorString(status)[1]
            message = text.decode() if isinstance(text, bytes) else str(text)
            raise BackendError(f"CUDA: {message} ({status.name}) from {getattr(function, '__name__', function)}")
        return results[0] if results else None


class _CapturedGraph:
    """A CUDA graph; calling it launches it. It is given back with the last that holds it."""

    def __init__(self, launcher: CudaLauncher, graph: Any) -> None:
        self._launcher, self._graph = launcher, graph
        weakref.finalize(self, launcher.forget, graph).atexit = False

    def __call__(self) -> None:
        self._launcher.replay(self._graph)


def _packed(kernel: KernelSpec, arguments: Sequence[int]) -> list[Any]:
    """The arguments as C has them, and the null pointers that Triton's kernels have at the end."""
    kinds = [_C_TYPES.get(kind, ctypes.c_void_p) for _, kind in kernel.arguments]
    values = [kind(argument) for kind, argument in zip(kinds, arguments, strict=True)]
    return values + [ctypes.c_void_p() for _ in range(kernel.scratch)]


def _unload(driver: Any, stream: int, modules: list[Any]) -> None:
    driver.cuStreamSynchronize(stream)  # a step that ran ahead may be in it yet
    for module in modules:
        driver.cuModuleUnload(module)


def _import_driver() -> Any:
    try:
        return importlib.import_module("cuda.bindings.driver")
    except ImportError as e:
        raise BackendError(f"the kernels need cuda-python 12.6 or later ({e}): pip install cuda-python") from e
