"""The decoder graph for NVIDIA GPUs, made from the one for CPUs: products and attention in float16, no branches.

ONNX Runtime's CUDA kernels have `GroupQueryAttention` in 16 bits only, and a CUDA graph cannot be captured from a graph
with an `If`. So here both prefills and steps are `GroupQueryAttention` over a float16 cache. Products, what stands
between them inside the attention and inside the MLP, and the head take and give float16; the residual stream and its
norms stay float32, because single channels of such models grow beyond what float16 adds exactly, or holds at all.
Logits are cast to float32 before the greedy token is taken.

No weight is written again: the graph names the bytes of `decoder.onnx.data` and of the embeddings' file. Quantized
products read their float16 scales as stored. Weights that are stored in float32, of a decoder that was not quantized,
and the rotary tables are cast in the graph, which ONNX Runtime does once, at load: a bundle grows by the graph alone,
and the GPU holds float16.

Inputs and outputs are those of `decoder.onnx` (`decoder.py`), but that the cache is float16. accuracy_level is left
out: CUDA's MatMulNBits computes in its input's type, whatever it says.

A node without a CUDA kernel would run on the CPU, and forbid CUDA graphs. CUDA's kernels are registered for versions of
operators: those that opset 21 renewed (Cast, Squeeze, Identity) came late and not together, so the graph is of opset
17; and `ArgMax` has none beyond opset 11, so the greedy token is a `TopK`, whose ties break in the same way.
Source: ONNX Runtime's cuda/reduction/reduction_ops.cc, its docs/OperatorKernels.md and its pull requests 26075, 27728.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from vl3edge.runtime.bundle.manifest import DECODER_GRAPH, HALF_DECODER_GRAPH

from ..errors import ExportError

OPSET = 17
_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
_IN_HALF = {"MatMulNBits", "MatMul", "Gemm", "GroupQueryAttention", "Add", "QuickGelu", "Mul", "Concat"}
_IN_FLOAT = {"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}
_AS_GIVEN = {"Gather", "Squeeze", "Identity"}
_SUFFIX: dict[int, str] = {_FLOAT: "float", _HALF: "half"}


def write_half_decoder(folder: Path) -> Path:
    """Writes the GPU's decoder graph beside `decoder.onnx`, whose data it shares; returns its path."""
    model = onnx.load(folder / DECODER_GRAPH, load_external_data=False)
    _HalfGraph(model.graph).convert()
    for opset in model.opset_import:
        if not opset.domain:
            opset.version = OPSET
    path = folder / HALF_DECODER_GRAPH
    path.write_bytes(model.SerializeToString())
    return path


class _HalfGraph:
    """Rewrites one graph in place, node by node; casts are put where the types of two neighbours differ."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._nodes: list[onnx.NodeProto] = []
        self._forms: dict[str, dict[int, str]] = {}  # the names under which a value exists, by type
        self._results = {output.name for output in graph.output if not output.name.startswith("present.")}
        for tensor in graph.initializer:
            if tensor.data_type in _SUFFIX:
                self._forms[tensor.name] = {tensor.data_type: tensor.name}

    def convert(self) -> None:
        """Does all of it."""
        graph = self._graph
        for value in (*graph.input, *graph.output):
            if value.name.startswith(("past_key_values.", "present.")):
                value.type.tensor_type.elem_type = _HALF
        for value in graph.input:
            if (dtype := value.type.tensor_type.elem_type) in _SUFFIX:
                self._forms[value.name] = {dtype: value.name}
        for node in graph.node:
            if node.op_type == "If":
                self._emit(_prefill(node))
            elif node.op_type == "Cast" and node.input[0] in self._forms:  # of a weight that is stored in half
                self._forms[node.output[0]] = self._forms[node.input[0]]
            elif node.op_type == "ArgMax":
                self._emit_greedy(node)
            elif not node.name.startswith("attention."):  # those are for the branch that is left out
                self._emit(node)
        used = {name for node in self._nodes for name in node.input}
        kept = [tensor for tensor in graph.initializer if tensor.name in used]
        for field, values in ((graph.node, self._nodes), (graph.initializer, kept)):
            del field[:]
            field.extend(values)

    def _emit(self, source: onnx.NodeProto) -> None:
        """Appends a copy of a node, in its type."""
        node = onnx.NodeProto()
        node.CopyFrom(source)
        dtype = self._dtype(node)
        node.input[:] = [self._in(name, dtype) for name in source.input]
        if node.op_type == "MatMulNBits":
            attributes = [attribute for attribute in source.attribute if attribute.name != "accuracy_level"]
            del node.attribute[:]
            node.attribute.extend(attributes)
        self._nodes.append(node)
        for place, name in enumerate(source.output):
            if not name:  # an output that is left out
                continue
            if name in self._results and dtype == _HALF:
                node.output[place] = f"{name}.half"
                self._nodes.append(helper.make_node("Cast", [f"{name}.half"], [name], f"{name}.cast", to=_FLOAT))
                self._forms[name] = {_FLOAT: name}
            else:
                self._forms[name] = {dtype: name}

    def _emit_greedy(self, argmax: onnx.NodeProto) -> None:
        """The place of the largest logit, as ArgMax over the last axis gives it."""
        name = argmax.output[0]
        one = f"{name}.one"  # how many, and the axis that they stand along
        self._graph.initializer.append(helper.make_tensor(one, TensorProto.INT64, [1], [1]))
        logits = self._in(argmax.input[0], _FLOAT)
        outputs = [f"{name}.value", f"{name}.best"]
        self._nodes.append(helper.make_node("TopK", [logits, one], outputs, f"{name}.topk"))
        self._nodes.append(helper.make_node("Squeeze", [f"{name}.best", one], [name], name))

    def _dtype(self, node: onnx.NodeProto) -> int:
        if node.op_type in _AS_GIVEN:
            return next(iter(self._forms[node.input[0]]))
        if node.op_type not in _IN_HALF | _IN_FLOAT:
            raise ExportError(
                f"{DECODER_GRAPH} has a node {node.op_type} that this version does not know; export again."
            )
        return _HALF if node.op_type in _IN_HALF else _FLOAT

    def _in(self, name: str, dtype: int) -> str:
        """The name of a value in this type, cast where it does not exist in it; whole numbers stay as they are."""
        forms = self._forms.get(name)
        if forms is None:
            return name
        if dtype not in forms:
            (given,) = forms.values()
            cast = f"{name}.as.{_SUFFIX[dtype]}"
            self._nodes.append(helper.make_node("Cast", [given], [cast], cast, to=dtype))
            forms[dtype] = cast
        return forms[dtype]


def _prefill(node: onnx.NodeProto) -> onnx.NodeProto:
    """The GroupQueryAttention of a layer, which takes steps as well, with the outputs of its `If`."""
    (branch,) = (attribute.g for attribute in node.attribute if attribute.name == "else_branch")
    (attention,) = branch.node
    result = onnx.NodeProto()
    result.CopyFrom(attention)
    result.name = node.name
    result.output[:] = node.output
    return result
