"""The vision path's float16 graphs in ONNX Runtime on a GPU: features stay in its memory, for the projector.

The memory is handed in, so the tests run these engines on the CPU with the host in the GPU's place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .buffers import DeviceBuffer, DeviceMemory
from .cuda import Device
from .features import Features
from .onnxruntime import Engine, guarded

_DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


class CudaEncoder:
    """`frames` uint8 [F, H, W, 3] -> `features` [F, h, w, C] on the device, in the graph's own type.

    session: of an encoder's graph. patch_size: in pixels.
    """

    def __init__(self, session: Any, memory: DeviceMemory, patch_size: int) -> None:
        self._session = session
        self._memory = memory
        self._patch_size = patch_size
        (features,) = session.get_outputs()
        self._channels, self._dtype = features.shape[-1], _DTYPES[features.type]

    def run(self, inputs: Mapping[str, np.ndarray]) -> list[Features]:
        """Raises BackendError when the device fails, or has no room."""
        frames = np.ascontiguousarray(inputs["frames"])
        rows, columns = (side // self._patch_size for side in frames.shape[1:3])
        features = self._memory.zeros((len(frames), rows, columns, self._channels), self._dtype)
        binding = self._session.io_binding()
        _bind_host(binding.bind_input, "frames", frames)
        _bind_device(binding.bind_output, "features", features, self._memory)
        _run(self._session, self._memory, binding)
        return [features]


class CudaProjector:
    """`features` [F, h, w, C] on the device or not, `keep` int64 [K] -> `tokens` float32 [K, D] on the host.

    session: of a projector's graph.
    """

    def __init__(self, session: Any, memory: DeviceMemory) -> None:
        self._session = session
        self._memory = memory
        (self._dtype,) = (_DTYPES[value.type] for value in session.get_inputs() if value.name == "features")
        (self._hidden_size,) = (value.shape[-1] for value in session.get_outputs())

    def run(self, inputs: Mapping[str, Any]) -> list[np.ndarray]:
        """Raises BackendError as `CudaEncoder.run`."""
        keep = np.ascontiguousarray(inputs["keep"], np.int64)
        tokens = np.empty((len(keep), self._hidden_size), np.float32)
        if len(keep) == 0:
            return [tokens]
        binding = self._session.io_binding()
        features = self._resident(inputs["features"])
        _bind_device(binding.bind_input, "features", features, self._memory)
        _bind_host(binding.bind_input, "keep", keep)
        _bind_host(binding.bind_output, "tokens", tokens)
        _run(self._session, self._memory, binding)
        return [tokens]

    def _resident(self, features: Features) -> DeviceBuffer:
        """The features on the device, in the graph's type."""
        if isinstance(features, DeviceBuffer) and features.dtype == self._dtype:
            return features
        result = self._memory.zeros(features.shape, self._dtype)
        result.write(features.read() if isinstance(features, DeviceBuffer) else features)
        return result


def cuda_engine(session: Any, device: Device, name: str, patch_size: int) -> Engine:
    """The engine of one of the vision path's graphs, by the name of the graph."""
    memory = DeviceMemory(device)
    return CudaEncoder(session, memory, patch_size) if name == "vision" else CudaProjector(session, memory)


def _bind_host(bind: Any, name: str, array: np.ndarray) -> None:
    bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def _bind_device(bind: Any, name: str, buffer: DeviceBuffer, memory: DeviceMemory) -> None:
    bind(name, memory.kind, 0, buffer.dtype.type, buffer.shape, buffer.address)


def _run(session: Any, memory: DeviceMemory, binding: Any) -> None:
    """Runs what is bound; everything is done when it returns."""
    with memory.exclusive:
        guarded(session.run_with_iobinding, binding)
        memory.synchronize()
