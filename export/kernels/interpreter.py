"""Runs the kernels on a CPU in Triton's interpreter, as a slow and exact substitute for a GPU.

`vl3edge … --backend cpu --decoder kernels` comes here by name, with TRITON_INTERPRET=1 set before Triton is imported.
Every memory access is checked: a launch that reads or writes outside its arrays raises OutOfBounds, and so does an
array not aligned to 16 bytes, which compiled kernels assume. The tiles are its own large ones, as a program in the
interpreter costs the same whatever its size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton
import triton.language as tl
from triton.runtime import interpreter

from vl3edge.runtime.backends.buffers import HostBuffer, HostMemory
from vl3edge.runtime.bundle.bundle import Bundle
from vl3edge.runtime.bundle.file_names import DECODER_GRAPH
from vl3edge.runtime.bundle.kernel_set import KernelManifest, KernelSet, KernelSpec, checked_set, weights_from_json
from vl3edge.runtime.errors import BackendError

from ..errors import ExportError
from .few import few_product
from .shape import read_shape
from .variants import FEW_WORDS, TILES, Kernel, variants
from .weights import decoder_weights

POINTED: dict[str, Any] = {
    "fp16": tl.float16,
    "fp32": tl.float32,
    "i32": tl.int32,
    "i64": tl.int64,
    "u8": tl.uint8,
}
_ALIGNED = 16
_LARGE = {"BM": 128, "BN": 512, "BK": 64, "BT": 64, "C": 64, "PARTS": 2, "SPLITS": 2, "TALL": 2}
_native = interpreter._interpreter
_patch_lang = interpreter._patch_lang
_patched: dict[int, Any] = {}
# Its overflow checks only matter for debugging and take a third of the time.
interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


class OutOfBounds(AssertionError):
    """A kernel touched memory that is not its own."""


class _BoundsChecked:
    """Triton's own loads and stores, each address of which must lie in one of the given arrays."""

    def __init__(self, arrays: Iterable[np.ndarray]) -> None:
        spans = sorted({(array.ctypes.data, array.ctypes.data + array.nbytes) for array in arrays})
        self._starts = np.array([start for start, _ in spans], np.uint64)
        self._ends = np.array([end for _, end in spans], np.uint64)

    def __getattr__(self, name: str) -> Any:
        return getattr(_native, name)

    def load(self, addresses: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: np.dtype) -> np.ndarray:
        mask = mask.astype(np.bool_)  # a scalar's comparison, spread out, has the type of what was compared
        self._check(addresses, mask, dtype.itemsize, "reads")
        return np.asarray(_native.load(addresses, mask, other, dtype))

    def store(self, addresses: np.ndarray, values: np.ndarray, mask: np.ndarray) -> None:
        mask = mask.astype(np.bool_)
        self._check(addresses, mask, values.dtype.itemsize, "writes")
        _native.store(addresses, values, mask)

    def _check(self, addresses: np.ndarray, mask: np.ndarray, itemsize: int, does: str) -> None:
        touched = addresses[np.broadcast_to(mask, addresses.shape)]
        if not touched.size:
            return
        span = np.searchsorted(self._starts, touched, side="right").astype(np.int64) - 1
        fits = (span >= 0) & (touched + np.uint64(itemsize) <= self._ends[span]) & (touched % np.uint64(itemsize) == 0)
        if not fits.all():
            raise OutOfBounds(f"{does} {(~fits).sum()} of {fits.size} values outside its arrays")


class _Scope:
    """Replaces the patches of Triton's language that each launch makes and reverts: they are made once and kept."""

    def restore(self) -> None: ...


def _patch_once(function: Any) -> _Scope:
    # Triton patches its language again at every call of a helper, which takes most of the time of small kernels.
    module = id(function.__globals__)
    if module not in _patched:
        _patched[module] = _patch_lang(function)
    return _Scope()


@contextmanager
def bounds_checked(arrays: Iterable[np.ndarray]) -> Iterator[None]:
    """Kernels run inside may access only these arrays; their own errors are passed on."""
    interpreter._interpreter, interpreter._patch_lang = _BoundsChecked(arrays), _patch_once
    try:
        yield
    except interpreter.InterpreterError as e:
        cause: BaseException = e
        while isinstance(cause, interpreter.InterpreterError) and cause.__cause__:
            cause = cause.__cause__
        raise cause from None
    finally:
        interpreter._interpreter, interpreter._patch_lang = _native, _patch_lang


def pointer(address: int, pointed: Any) -> Any:
    """An address as a kernel takes it; pointed: the type it points to."""
    dtype = tl.pointer_type(pointed)
    return tl.tensor(interpreter.TensorHandle(np.array([address], np.uint64), dtype), dtype)


class InterpreterMemory(HostMemory):
    """Memory of the process, every array of which is known."""

    def __init__(self) -> None:
        self._known: list[weakref.ref[np.ndarray]] = []

    def zeros(self, shape: tuple[int, ...], dtype: Any, staged: bool = False) -> HostBuffer:
        buffer = super().zeros(shape, dtype, staged)
        self._known = [known for known in self._known if known() is not None] + [weakref.ref(buffer.array)]
        return buffer

    @property
    def arrays(self) -> list[np.ndarray]:
        return [array for known in self._known if (array := known()) is not None]


class InterpreterLauncher:
    """Runs the kernels' sources, one program of a grid after another."""

    captures = False
    description = "kernels in Triton's interpreter on the CPU"
    tuned_for = None
    prefers_dense = False

    def __init__(self, functions: dict[str, Any]) -> None:
        """functions: by the names of the kernels."""
        self.memory = InterpreterMemory()
        self._functions = functions

    def launch(self, kernel: KernelSpec, grid: Sequence[int], arguments: Sequence[int]) -> None:
        values = dict(kernel.constants) | kernel.tile
        for (name, kind), argument in zip(kernel.arguments, arguments, strict=True):
            if kind[0] == "*" and argument % _ALIGNED:
                raise OutOfBounds(f"{name} of {kernel.function} is not aligned to {_ALIGNED} bytes")
            values[name] = pointer(argument, POINTED[kind[1:]]) if kind[0] == "*" else argument
        with bounds_checked(self.memory.arrays):
            self._functions[kernel.name][tuple(grid)](**values)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        return work


def open_interpreter(bundle: Bundle) -> tuple[KernelSet, InterpreterLauncher]:
    """The kernels of a bundle's decoder, whether or not it has any compiled, and what runs them here.

    Raises BackendError where Triton compiles instead, or the kernels do not know the decoder.
    """
    if not triton.knobs.runtime.interpret:
        raise BackendError(
            "on a CPU the kernels run in Triton's interpreter, for tests alone: set TRITON_INTERPRET=1, "
            "or use --decoder onnxruntime"
        )
    bundle.path(DECODER_GRAPH)  # it may have been slimmed
    try:
        shape = read_shape(bundle.folder, bundle.manifest.text)
        weights = weights_from_json(decoder_weights(bundle.folder, shape))
    except ExportError as e:
        raise BackendError(f"{bundle.folder}: {e}") from e
    found = {kernel.purpose: kernel for kernel in variants(shape)}
    specs = [_large(kernel) for kernel in found.values()]
    functions = {spec.name: kernel.function for spec, kernel in zip(specs, found.values(), strict=True)}
    return checked_set(bundle, KernelManifest(tuple(specs)), weights), InterpreterLauncher(functions)


def _large(kernel: Kernel) -> KernelSpec:
    """A kernel with tiles for the interpreter."""
    constants = dict(kernel.constants)
    tile = {name: _LARGE[name] for name in constants.keys() & _LARGE.keys()}
    if "BK" in constants and "GROUP" in constants:  # within a group
        tile["BK"] = min(64, constants["GROUP"]) if constants["BITS"] == 16 else constants["GROUP"]
    if kernel.function is few_product:  # likewise
        tile["C"] = FEW_WORDS
    rest = {name: value for name, value in constants.items() if name not in TILES}
    return KernelSpec(kernel.name, kernel.function.__name__, kernel.arguments, rest, tile, kernel.num_warps)
