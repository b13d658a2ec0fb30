"""Launches of the kernels in Triton's interpreter, on numpy arrays, with every access to memory looked at.

`tests/conftest.py` sets TRITON_INTERPRET before anything can import Triton. A pointer is an array of numpy; what a
launch reads or writes outside the arrays it was given, or those that it can reach through addresses in memory, is an
OutOfBounds. What a flag of a kernel switches off is None, a null pointer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import triton.language as tl

from vl3edge.export.kernels.interpreter import POINTED, bounds_checked, pointer
from vl3edge.export.kernels.interpreter import OutOfBounds as OutOfBounds

_NAMES = {"float16": "fp16", "float32": "fp32", "int32": "i32", "int64": "i64", "uint8": "u8"}


def launch(
    kernel: Any, grid: Sequence[int], *arguments: Any, reach: Sequence[np.ndarray] = (), **constants: Any
) -> None:
    """Runs every program of a grid. reach: arrays that the kernel finds by addresses in its arguments."""
    arrays = [argument for argument in arguments if isinstance(argument, np.ndarray)]
    with bounds_checked([*arrays, *reach]):
        kernel[tuple(grid)](*map(_argument, arguments), **constants)


def _argument(value: Any) -> Any:
    if value is None:
        return pointer(0, tl.int8)
    if isinstance(value, np.ndarray):
        return pointer(value.ctypes.data, POINTED[_NAMES[value.dtype.name]])
    return value
