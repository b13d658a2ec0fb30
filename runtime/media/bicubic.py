"""Antialiased bicubic resampling of 8-bit pixels, bit for bit as torchvision does it (transformers' processor).

torch resamples uint8 with whole numbers: each axis in turn, columns first, with weights rounded to 16 bits and the
result of each axis rounded to 8 bits. Pillow rounds its weights to 22 bits, so about one value in a thousand differs
by a level or two: too little to see, enough to flip a token of DiffFP now and then. Here the same sums are computed
by matrix products of floating-point numbers, which are exact as long as all partial sums are whole numbers below 2²⁴
(float32) or 2⁵³ (float64), times a power of two. An axis is cut into bands, as each output needs few inputs, and the
colours are taken apart first: this takes about as long as Pillow, without a compiled extension.

Source: aten/src/ATen/native/cpu/UpSampleKernel.cpp of PyTorch 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

BAND_OUTPUTS = 16
STRIP_ROWS = 32
"""Rows resampled at a time: bounds the memory in floating point, and keeps it in the cache."""


@dataclass(frozen=True, eq=False)
class _Band:
    """Outputs `start` to `stop` of an axis from its inputs `first` to `last`: weights [last − first, stop − start]."""

    first: int
    last: int
    start: int
    stop: int
    weights: npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class _Axis:
    """The resampling of one axis, in levels: output = weights · (input − 128) + offset [outputs], rounded down."""

    bands: tuple[_Band, ...]
    offset: npt.NDArray[Any]
    dtype: npt.DTypeLike


def resample_bicubic(frame: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """`frame` uint8 [H, W, C] as uint8 [height, width, C] for `size` = (height, width)."""
    height, width = size
    rows, columns, _ = frame.shape
    planes = frame.transpose(2, 0, 1)
    if width != columns:
        planes = _resample_columns(planes, _axis(columns, width))
    if height != rows:
        planes = _resample_rows(planes, _axis(rows, height))
    return np.ascontiguousarray(planes.transpose(1, 2, 0))


def _resample_columns(planes: npt.NDArray[np.uint8], axis: _Axis) -> npt.NDArray[np.uint8]:
    """uint8 [C, H, W] as uint8 [C, H, width]."""
    channels, rows, columns = planes.shape
    width = len(axis.offset)
    narrow = np.empty((channels, rows, width), np.uint8)
    # Used for all strips: memory that is new must first be mapped, which takes longer than filling it.
    held_pixels = np.empty(channels * STRIP_ROWS * columns, np.uint8)
    held_inputs = np.empty(held_pixels.shape, axis.dtype)
    held_sums = np.empty(channels * STRIP_ROWS * width, axis.dtype)
    for top in range(0, rows, STRIP_ROWS):
        count = channels * min(STRIP_ROWS, rows - top)
        # Laid out plane by plane while these are bytes, a quarter of what they are as numbers.
        pixels = held_pixels[: count * columns].reshape(channels, -1, columns)
        pixels[...] = planes[:, top : top + STRIP_ROWS]
        centred = held_inputs[: count * columns].reshape(count, columns)
        np.subtract(pixels.reshape(count, columns), 128, dtype=axis.dtype, out=centred)
        sums = held_sums[: count * width].reshape(count, width)
        for band in axis.bands:
            np.matmul(centred[:, band.first : band.last], band.weights, out=sums[:, band.start : band.stop])
        narrow[:, top : top + STRIP_ROWS] = _levels(sums, axis.offset).reshape(channels, -1, width)
    return narrow


def _resample_rows(planes: npt.NDArray[np.uint8], axis: _Axis) -> npt.NDArray[np.uint8]:
    """uint8 [C, H, W] as uint8 [C, height, W]."""
    channels, _, columns = planes.shape
    planes = np.ascontiguousarray(planes)
    short = np.empty((channels, len(axis.offset), columns), np.uint8)
    for band in axis.bands:
        centred = np.subtract(planes[:, band.first : band.last], 128, dtype=axis.dtype)
        offset = axis.offset[band.start : band.stop, None]
        short[:, band.start : band.stop] = _levels(band.weights.T @ centred, offset)
    return short


def _levels(sums: npt.NDArray[Any], offset: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Levels from 0 to 255, to be rounded down. Adding the offset is exact up to 256, and what is above is 255."""
    sums += offset
    return np.clip(sums, 0, 255, out=sums)


@lru_cache(maxsize=16)
def _axis(num_inputs: int, num_outputs: int) -> _Axis:
    first, weights, shift = _weights(num_inputs, num_outputs)
    # Subtracting 128 from the input halves the largest sum, and so doubles the sizes that float32 is enough for. With
    # the offset only what is above 255 may be rounded.
    largest = max(128 * int(np.abs(weights).sum(axis=1).max()), (256 << shift) - 1)
    dtype = np.float32 if largest < 2**24 else np.float64
    offset = 128 * weights.sum(axis=1) + (1 << (shift - 1))
    taps = np.arange(weights.shape[1])
    bands = []
    for start in range(0, num_outputs, BAND_OUTPUTS):
        stop = min(start + BAND_OUTPUTS, num_outputs)
        low, high = int(first[start]), int(min(first[stop - 1] + len(taps), num_inputs))
        matrix = np.zeros((high - low + len(taps), stop - start), dtype)
        positions = first[start:stop, None] - low + taps
        # Divided by a power of two, the numbers are as exact as they were.
        matrix[positions, np.arange(stop - start)[:, None]] = weights[start:stop] / (1 << shift)
        bands.append(_Band(low, high, start, stop, np.ascontiguousarray(matrix[: high - low])))
    return _Axis(tuple(bands), (offset / (1 << shift)).astype(dtype), dtype)


def _weights(num_inputs: int, num_outputs: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Per output: its first input int64 [N], its weights int64 [N, taps] (0 where unused), and their binary point."""
    scale = num_inputs / num_outputs
    stretch = max(scale, 1.0)
    centre = scale * (np.arange(num_outputs) + 0.5)
    first = np.maximum((centre - 2 * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + 2 * stretch + 0.5).astype(np.int64), num_inputs)
    taps = np.arange((last - first).max())
    weights = _cubic((taps + first[:, None] - centre[:, None] + 0.5) / stretch)
    weights *= taps < (last - first)[:, None]
    weights /= weights.sum(axis=1, keepdims=True)
    # As many binary places as the largest weight leaves in 16 bits, at most 22.
    shift = 0
    while shift < 22 and int(0.5 + weights.max() * (1 << (shift + 1))) < 1 << 15:
        shift += 1
    scaled = weights * (1 << shift)
    return first, np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int64), shift


def _cubic(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = −0.5."""
    x, a = np.abs(x), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
