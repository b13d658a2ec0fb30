"""A small writer of ONNX graphs whose weights stream to a side file.

The decoder is built operator by operator instead of traced, so this module only names values, appends nodes, and writes
each weight to disk as soon as it is read. With one weight in memory at a time, a 2B model exports in a few GB. The
result is ONNX opset 21 unless told otherwise, IR 10: loadable by ONNX Runtime 1.23 and later.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

OPSET = 21
IR_VERSION = 10
_INLINE_BYTES = 1024
_ALIGNMENT = 4096  # ONNX Runtime maps external data by pages

Shape = Sequence[int | str]


class GraphWriter:
    """Collects nodes in memory and writes weights to `<path>.data` as they come.

    Use as a context manager; `save()` writes the `.onnx` file. Names are unique by construction: every node's outputs
    are called `<node name>` or `<node name>.<k>`.
    """

    def __init__(self, path: Path, opset: int = OPSET, inline_bytes: int = _INLINE_BYTES) -> None:
        """inline_bytes: weights smaller than this stay in the graph."""
        self.path = path
        self._inline_bytes = inline_bytes
        self._opset = opset
        self._data_path = path.with_name(path.name + ".data")
        self._data = self._data_path.open("wb")
        self._nodes: list[onnx.NodeProto] = []
        self._initializers: dict[str, TensorProto] = {}
        self._inputs: list[onnx.ValueInfoProto] = []
        self._outputs: list[onnx.ValueInfoProto] = []

    def __enter__(self) -> GraphWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._data.close()

    def input(self, name: str, dtype: int, shape: Shape) -> str:
        """Declares a graph input; shape mixes fixed sizes and names of dynamic axes."""
        self._inputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))
        return name

    def output(self, name: str, dtype: int, shape: Shape) -> None:
        """Declares a graph output that some node has produced under this name."""
        self._outputs.append(helper.make_tensor_value_info(name, dtype, list(shape)))

    def node(
        self,
        op: str,
        inputs: Sequence[str],
        name: str,
        outputs: int | Sequence[str] = 1,
        domain: str = "",
        **attributes: Any,
    ) -> Any:
        """Appends a node; returns its output's name, or a list of names where there are several."""
        if isinstance(outputs, int):
            names = [name] if outputs == 1 else [f"{name}.{k}" for k in range(outputs)]
        else:
            names = list(outputs)
        self._nodes.append(helper.make_node(op, list(inputs), names, name=name, domain=domain, **attributes))
        return names[0] if len(names) == 1 else names

    def branch(self, name: str, emit: Callable[[], Sequence[str]]) -> onnx.GraphProto:
        """A branch of an `If`: what `emit` appends, and the names of float32 values it returns as outputs.

        It may read every value of the enclosing graph.
        """
        outside, self._nodes = self._nodes, []
        outputs = [helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in emit()]
        inside, self._nodes = self._nodes, outside
        return helper.make_graph(inside, name, [], outputs)

    def weight(self, name: str, value: np.ndarray) -> str:
        """Writes a weight to the side file (small ones stay in the graph) and returns its name."""
        array = np.ascontiguousarray(value)
        if array.nbytes < self._inline_bytes:
            self._initializers[name] = onnx.numpy_helper.from_array(array, name)
            return name
        padding = -self._data.tell() % _ALIGNMENT
        self._data.write(b"\0" * padding)
        offset = self._data.tell()
        self._data.write(array.data)
        return self.external(
            name,
            array.shape,
            helper.np_dtype_to_tensor_dtype(array.dtype),
            self._data_path.name,
            offset,
            array.nbytes,
        )

    def shared(self, name: str, tensor: TensorProto) -> str:
        """Declares a weight as another graph of the same folder has it: there, or in the file that it lies in."""
        copy = TensorProto()
        copy.CopyFrom(tensor)
        copy.name = name
        self._initializers[name] = copy
        return name

    def external(self, name: str, shape: Sequence[int], dtype: int, location: str, offset: int, num_bytes: int) -> str:
        """Declares a weight that lies in another file of the same folder; nothing is written."""
        tensor = TensorProto(name=name, data_type=dtype, dims=list(shape), data_location=TensorProto.EXTERNAL)
        for key, entry in (("location", location), ("offset", offset), ("length", num_bytes)):
            tensor.external_data.add(key=key, value=str(entry))
        self._initializers[name] = tensor
        return name

    def save(self, producer: str = "vl3edge") -> list[Path]:
        """Writes the `.onnx` file; returns the paths of all files written, just this one if there are no weights."""
        self._data.flush()
        os.fsync(self._data.fileno())
        graph = helper.make_graph(
            self._nodes, self.path.stem, self._inputs, self._outputs, list(self._initializers.values())
        )
        opsets = [helper.make_opsetid("", self._opset), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name=producer, ir_version=IR_VERSION)
        self.path.write_bytes(model.SerializeToString())
        if self._data.tell() == 0:
            self._data_path.unlink()
            return [self.path]
        return [self.path, self._data_path]
