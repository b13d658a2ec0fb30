"""CUDA graphs without a GPU."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np


class _IOBinding:
    """A binding that a capture can take the total length of: its array may be gone when the capture is replayed."""

    def __init__(self, binding: Any) -> None:
        self.binding = binding
        self._total: tuple[Any, ...] = ()

    def bind_input(self, name: str, *where: Any) -> None:
        if name == "total_sequence_length":
            self._total = where
        self.binding.bind_input(name, *where)

    def bake(self) -> None:
        *kind, address = self._total
        self._baked = np.zeros((), np.int32)
        ctypes.memmove(self._baked.ctypes.data, address, self._baked.nbytes)
        self.binding.bind_input("total_sequence_length", *kind, self._baked.ctypes.data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.binding, name)


class Capturing:
    """A session that does with `gpu_graph_id` what ONNX Runtime with CUDA graphs does.

    A new id is run once more than asked for, as it is there to be captured; what is replayed has the addresses and the
    total length of when it was captured, and calls with another binding of that id would go unnoticed: here they fail.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self.captured: dict[str, Any] = {}
        self.ids: list[str] = []
        self.exclusive: list[bool] = []
        self.device: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def io_binding(self) -> _IOBinding:
        return _IOBinding(self._session.io_binding())

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        graph_id = options.get_run_config_entry("gpu_graph_id")
        self.ids.append(graph_id)
        self.exclusive.append(self.device.lock.held)
        if graph_id == "-1":
            self._session.run_with_iobinding(binding.binding)
            return
        if graph_id not in self.captured:
            self._session.run_with_iobinding(binding.binding)
            binding.bake()
            self.captured[graph_id] = binding
        self._session.run_with_iobinding(self.captured[graph_id].binding)
