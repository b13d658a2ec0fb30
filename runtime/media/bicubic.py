"""Antialiased bicubic resampling of 8-bit pixels, bit for bit as torchvision does it (transformers' processor).

torch resamples uint8 with whole numbers: each axis in turn, columns first, with weights rounded to 16 bits and the
result of each axis rounded to 8 bits. Pillow rounds its weights to 22 bits, so about one value in a thousand differs
by a level or two: too little to see, enough to flip a token of DiffFP now and then. Here the same sums are computed
by matrix products of floating-point numbers, which are exact as long as all partial sums are whole numbers below 2²⁴
(float32) or 2⁵³ (float64). An axis is cut into bands, as each output needs few inputs; this takes about as long as
Pillow, without a compiled extension.

Source: aten/src/ATen/native/cpu/UpSampleKernel.cpp of PyTorch 2.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

BAND_OUTPUTS = 16
STRIP_ROWS = 64
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
    """The resampling of one axis: output = (weights · (input − 128) + offset) >> shift."""

    bands: tuple[_Band, ...]
    offset: npt.NDArray[np.int32]
    shift: int
    dtype: npt.DTypeLike


def resample_bicubic(frame: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """`frame` uint8 [H, W, C] as uint8 [height, width, C] for `size` = (height, width)."""
    height, width = size
    rows, columns, channels = frame.shape
    pixels = frame.reshape(rows, columns * channels)
    if width != columns:
        axis = _axis(columns, width, channels)
        narrow = np.empty((rows, width * channels), np.uint8)
        for top in range(0, rows, STRIP_ROWS):
            centred = np.subtract(pixels[top : top + STRIP_ROWS], 128, dtype=axis.dtype)
            sums = np.empty((len(centred), width * channels), axis.dtype)
            for band in axis.bands:
                np.matmul(centred[:, band.first : band.last], band.weights, out=sums[:, band.start : band.stop])
            narrow[top : top + STRIP_ROWS] = _levels(sums, axis.offset, axis.shift)
        pixels = narrow
    if height != rows:
        axis = _axis(rows, height, 1)
        short = np.empty((height, width * channels), np.uint8)
        for band in axis.bands:
            centred = np.subtract(pixels[band.first : band.last], 128, dtype=axis.dtype)
            offset = axis.offset[band.start : band.stop, None]
            short[band.start : band.stop] = _levels(band.weights.T @ centred, offset, axis.shift)
        pixels = short
    return pixels.reshape(height, width, channels)


def _levels(sums: npt.NDArray[Any], offset: npt.NDArray[np.int32], shift: int) -> npt.NDArray[np.int32]:
    levels = sums.astype(np.int32)
    levels += offset
    levels >>= shift
    return np.clip(levels, 0, 255, out=levels)


@lru_cache(maxsize=16)
def _axis(num_inputs: int, num_outputs: int, channels: int) -> _Axis:
    """`channels` interleaved values per position are resampled alike."""
    first, weights, shift = _weights(num_inputs, num_outputs)
    # Subtracting 128 from the input halves the largest sum, and so doubles the sizes that float32 is enough for.
    dtype = np.float32 if 128 * int(np.abs(weights).sum(axis=1).max()) < 2**24 else np.float64
    offset = 128 * weights.sum(axis=1) + (1 << (shift - 1))
    taps = np.arange(weights.shape[1])
    bands = []
    for start in range(0, num_outputs, BAND_OUTPUTS):
        stop = min(start + BAND_OUTPUTS, num_outputs)
        low, high = int(first[start]), int(min(first[stop - 1] + len(taps), num_inputs))
        matrix = np.zeros((high - low + len(taps), stop - start), dtype)
        positions = first[start:stop, None] - low + taps
        matrix[positions, np.arange(stop - start)[:, None]] = weights[start:stop]
        matrix = np.kron(matrix[: high - low], np.eye(channels, dtype=dtype))
        bands.append(_Band(low * channels, high * channels, start * channels, stop * channels, matrix))
    return _Axis(tuple(bands), np.repeat(offset, channels).astype(np.int32), shift, dtype)


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
