"""Rewrites a CPU graph for NVIDIA GPUs: products in float16, the rest in float32, the same weights.

No weight is stored twice: the new graph refers to the bytes of the original. Weights stored in float16 are read
directly, others are cast in the graph, which ONNX Runtime does once, at load: the bundle grows only by the graph, and
the GPU holds float16.

A node without a CUDA kernel would run on the CPU and rule out CUDA graphs. CUDA kernels are registered per operator
version: those for operators updated in opset 21 (Cast, Squeeze, Identity) arrived late and one by one, so graphs use
opset 17.
Source: ONNX Runtime's docs/OperatorKernels.md and its pull requests 26075, 27728.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from ..errors import ExportError

OPSET = 17
FLOAT, HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_SUFFIX: dict[int, str] = {FLOAT: "float", HALF: "half"}


class Fp16Graph(ABC):
    """Rewrites a graph node by node, with casts where the types of two neighbours differ.

    results: types of outputs; others keep the type that their node produces. Subclasses say in which type a node
        computes, and how they rewrite nodes that are not copied (`take`).
    """

    def __init__(self, path: Path, results: Mapping[str, int]) -> None:
        self._path = path
        self._model = onnx.load(path, load_external_data=False)
        self.graph = self._model.graph
        self._nodes: list[onnx.NodeProto] = []
        self._forms: dict[str, dict[int, str]] = {}  # the names under which a value exists, by type
        self._results = results
        for tensor in self.graph.initializer:
            if tensor.data_type in _SUFFIX:
                self._forms[tensor.name] = {tensor.data_type: tensor.name}

    def write(self, path: Path) -> Path:
        """Rewrites the whole graph; returns the path of the new one, in the same folder."""
        graph = self.graph
        self.begin()
        for node in graph.node:
            self.take(node)
        nodes = self._live()
        used = {name for node in nodes for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        for field, values in ((graph.node, nodes), (graph.initializer, kept), (graph.value_info, [])):
            del field[:]
            field.extend(values)
        for opset in self._model.opset_import:
            if not opset.domain:
                opset.version = OPSET
        path.write_bytes(self._model.SerializeToString())
        return path

    def begin(self) -> None:
        """Takes up inputs and outputs."""
        for value in self.graph.input:
            if (dtype := value.type.tensor_type.elem_type) in _SUFFIX:
                self._forms[value.name] = {dtype: value.name}
        for value in self.graph.output:
            if value.name in self._results:
                value.type.tensor_type.elem_type = self._results[value.name]

    def take(self, node: onnx.NodeProto) -> None:
        """Emits the replacement of a node."""
        if node.op_type == "Cast" and self.is_float(node.input[0]):  # of a weight stored in float16
            self.alias(node.output[0], node.input[0])
        else:
            self.emit(node)

    @abstractmethod
    def dtype(self, node: onnx.NodeProto) -> int | None:
        """The type that a node computes in; None for integer nodes."""

    def unknown(self, node: onnx.NodeProto) -> ExportError:
        return ExportError(
            f"{self._path.name} has a node {node.op_type} that this version does not know; export again."
        )

    def replace(self, name: str, value: str) -> None:
        """Puts a value of the same type, made by `append`, for another in all nodes to come."""
        self._forms[name] = {self.given(name): value}

    def is_float(self, name: str) -> bool:
        """Whether a name is a weight, an input or a value in one of the two float types."""
        return name in self._forms

    def given(self, name: str) -> int:
        """The type in which a value was produced."""
        return next(iter(self._forms[name]))

    def alias(self, name: str, source: str) -> None:
        """Another name of the same value; a result is cast to its type."""
        if name in self._results:
            wanted = self._results[name]
            self.append("Cast", [self.value(source, self.given(source))], [name], to=wanted)
            self._forms[name] = {wanted: name}
        else:
            self._forms[name] = self._forms[source]

    def emit(self, source: onnx.NodeProto) -> None:
        """Appends a copy of a node in its type; integer nodes unchanged."""
        node = onnx.NodeProto()
        node.CopyFrom(source)
        dtype = self.dtype(node)
        if dtype is None:
            self._nodes.append(node)
            return
        node.input[:] = [self.value(name, dtype) for name in source.input]  # casts come before the node
        self._nodes.append(node)
        for place, name in enumerate(source.output):
            if not name:  # an omitted output
                continue
            wanted = self._results.get(name, dtype)
            if wanted != dtype:
                made = f"{name}.{_SUFFIX[dtype]}"
                node.output[place] = made
                self._nodes.append(helper.make_node("Cast", [made], [name], f"{name}.cast", to=wanted))
            self._forms[name] = {wanted: name}

    def append(self, op: str, inputs: list[str], outputs: list[str], **attributes: Any) -> None:
        """Appends a node unchanged, named after its first output."""
        self._nodes.append(helper.make_node(op, inputs, outputs, outputs[0], **attributes))

    def constant(self, name: str, values: list[int], shape: list[int]) -> str:
        """A new initializer, int64."""
        self.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, shape, values))
        return name

    def value(self, name: str, dtype: int) -> str:
        """The name of a value in this type, cast if need be; integers stay unchanged."""
        forms = self._forms.get(name)
        if forms is None:
            return name
        if dtype not in forms:
            (given,) = forms.values()
            cast = f"{name}.as.{_SUFFIX[dtype]}"
            self.append("Cast", [given], [cast], to=dtype)
            forms[dtype] = cast
        return forms[dtype]

    def _live(self) -> list[onnx.NodeProto]:
        """The nodes that an output depends on."""
        wanted = {value.name for value in self.graph.output}
        live = []
        for node in reversed(self._nodes):
            if wanted & set(node.output):
                wanted |= set(node.input)
                live.append(node)
        return live[::-1]
