"""Launches of the kernels in Triton's interpreter, on numpy arrays, with every access to memory looked at.

`tests/conftest.py` sets TRITON_INTERPRET before anything can import Triton. A pointer is an array of numpy; what a
launch reads or writes outside the arrays it was given, or those that it can reach through addresses in memory, is an
OutOfBounds. What a flag of a kernel switches off is None, a null pointer.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_TYPES: dict[Any, Any] = {
    np.dtype(np.float16): tl.float16,
    np.dtype(np.float32): tl.float32,
    np.dtype(np.int32): tl.int32,
    np.dtype(np.int64): tl.int64,
    np.dtype(np.uint8): tl.uint8,
}
_native = interpreter._interpreter
_patch_lang = interpreter._patch_lang
_patched: dict[int, Any] = {}
# Its checks of overflows say nothing outside debugging and take a third of the time.
interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)


class OutOfBounds(AssertionError):
    """A kernel touched memory that is not its own."""


class _Memory:
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
    """Stands for the patches of Triton's language that a launch makes and takes back: they are made once and kept."""

    def restore(self) -> None: ...


def _patch_once(function: Any) -> _Scope:
    # Triton patches its language again at every call of a helper, which takes most of the time of small kernels.
    module = id(function.__globals__)
    if module not in _patched:
        _patched[module] = _patch_lang(function)
    return _Scope()


def launch(
    kernel: Any, grid: Sequence[int], *arguments: Any, reach: Sequence[np.ndarray] = (), **constants: Any
) -> None:
    """Runs every program of a grid. reach: arrays that the kernel finds by addresses in its arguments."""
    arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
    interpreter._interpreter, interpreter._patch_lang = _Memory([*arrays, *reach]), _patch_once
    try:
        kernel[tuple(grid)](*map(_argument, arguments), **constants)
    except interpreter.InterpreterError as e:
        cause: BaseException = e
        while isinstance(cause, interpreter.InterpreterError) and cause.__cause__:
            cause = cause.__cause__
        raise cause from None
    finally:
        interpreter._interpreter, interpreter._patch_lang = _native, _patch_lang


def _argument(value: Any) -> Any:
    if value is not None and not isinstance(value, np.ndarray):
        return value
    dtype = tl.pointer_type(tl.int8 if value is None else _TYPES[value.dtype])
    address = 0 if value is None else value.ctypes.data
    return tl.tensor(interpreter.TensorHandle(np.array([address], np.uint64), dtype), dtype)
