"""Features on their way from the vision encoder to the projector: an array, or a buffer where the encoder left them.

They are [frames, rows, columns, channels]: float32, or float16 from ONNX Runtime's float16 graph. On a GPU they stay in
its memory: they are the largest thing between two stages, and nobody but the projector reads them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .buffers import DeviceBuffer

Features = np.ndarray | DeviceBuffer


def frames_of(features: Features, start: int, stop: int) -> Features:
    """Some consecutive frames, in the same memory."""
    return features.rows(start, stop) if isinstance(features, DeviceBuffer) else features[start:stop]


def flattened(features: Features) -> Features:
    """[frames · rows · columns, channels], in the same memory."""
    shape = (features.shape[0] * features.shape[1] * features.shape[2], features.shape[3])
    return features.reshaped(shape) if isinstance(features, DeviceBuffer) else features.reshape(shape)


def gathered(parts: Sequence[Features], order: np.ndarray) -> Features:
    """The frames of all parts one after the other, chosen by order int64 [n]; a copy, in the memory of the parts."""
    buffers = [part for part in parts if isinstance(part, DeviceBuffer)]
    if not buffers:
        return np.concatenate([on_host(part) for part in parts])[order]
    frames = [part.rows(frame, frame + 1) for part in buffers for frame in range(part.shape[0])]
    result = buffers[0].like((len(order), *buffers[0].shape[1:]))
    for row, index in enumerate(order):
        result.copy_rows(row, frames[index])
    return result


def on_host(features: Features) -> np.ndarray:
    """A numpy array of them."""
    return features.read() if isinstance(features, DeviceBuffer) else features
