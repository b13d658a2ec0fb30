"""The decoder graph for NVIDIA GPUs, derived from the CPU graph: products and attention in float16, no branches.

ONNX Runtime's CUDA kernels have `GroupQueryAttention` in 16 bits only, and a CUDA graph cannot be captured from a graph
with an `If`. So here both prefills and steps are `GroupQueryAttention` over a float16 cache. Products, the operators
between them inside the attention and the MLP, and the head read and write float16; the residual stream and its norms
stay float32, because single channels of such models outgrow what float16 can add exactly, or hold at all. Logits are
cast to float32 before the greedy token is chosen.

No weight is stored twice (`fp16_graph.py`): the graph refers to the bytes of `decoder.onnx.data` and of the embeddings'
file. Quantized products read their float16 scales as stored.

Inputs and outputs are those of `decoder.onnx` (`decoder.py`), except that the cache is float16. If the head is tied to
the embeddings (`token_lookup.py`) there are two more:
  tokens int64 [B, 1]: their embeddings replace inputs_embeds, except where they are negative
  next_seqlens_k int32 [B · K]: seqlens_k of the next step
so that a step can read what the one before wrote, in the same buffers: everything that reads them runs before the token
is known, and both are written after. accuracy_level is omitted: CUDA's MatMulNBits computes in its input's type
regardless.

Four casts per layer remain, two on either side of each norm. `SkipSimplifiedLayerNormalization` has one type for all
inputs and outputs; the one CUDA norm that maps float32 to float16 does not add, so it would need an `Add` for the cast
it saves.

CUDA has no `ArgMax` beyond opset 11, so the greedy token is a `TopK`, whose ties break in the same way: the lowest id
wins. For a row of more than 256 values CUDA's kernel uses one block of threads, which reads it seven times; rows of up
to 256 take one block each and one pass. So the vocabulary is cut into such rows, and their maxima are compared. How NaN
compares differs between kernels, so it counts as minus infinity here: if all logits are NaN the token is 0, which is
what the runtime checks for (`decode/sequence.py`).
Source: ONNX Runtime's cuda/reduction/reduction_ops.cc, cuda/math/topk_impl.cuh and contrib_ops/cuda/bert.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper

from vl3edge.runtime.bundle.file_names import DECODER_GRAPH, FP16_DECODER_GRAPH
from vl3edge.runtime.decode.graph import NEXT_LENGTHS, TOKENS_INPUT

from .fp16_graph import FLOAT, HALF, Fp16Graph
from .token_lookup import emit_lookup, tied_table

_IN_HALF = {"MatMulNBits", "MatMul", "Gemm", "GroupQueryAttention", "Add", "QuickGelu", "Mul", "Concat"}
_IN_FLOAT = {"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization"}
_AS_GIVEN = {"Gather", "Slice", "Squeeze", "Reshape"}
_WIDEST_ROW, _NARROWEST_ROW = 256, 64  # of a vocabulary: what one block of threads takes; what is worth a second stage


def write_fp16_decoder(folder: Path) -> Path:
    """Writes the GPU's decoder graph beside `decoder.onnx`, whose data it shares; returns its path."""
    return _Fp16Decoder(folder / DECODER_GRAPH).write(folder / FP16_DECODER_GRAPH)


class _Fp16Decoder(Fp16Graph):
    """The decoder, without the branches for steps on a CPU."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, {"logits": FLOAT})
        for value in (*self.graph.input, *self.graph.output):
            if value.name.startswith(("past_key_values.", "present.")):
                value.type.tensor_type.elem_type = HALF
        self._table = tied_table(self)

    def begin(self) -> None:
        super().begin()
        if not self._table:
            return
        emit_lookup(self, self._table, TOKENS_INPUT, "inputs_embeds", "hidden")
        self.replace("inputs_embeds", "hidden")
        self.graph.input.append(helper.make_tensor_value_info(TOKENS_INPUT, TensorProto.INT64, ["batch", 1]))
        self.graph.output.append(helper.make_tensor_value_info(NEXT_LENGTHS, TensorProto.INT32, ["results"]))

    def take(self, node: onnx.NodeProto) -> None:
        if node.op_type == "If":
            self.emit(_prefill(node))
        elif node.op_type == "Identity":
            self.alias(node.output[0], node.input[0])
        elif node.op_type == "ArgMax":
            self._emit_greedy(node)
            if self._table:
                self._emit_next(node.output[0])
        elif node.op_type == "MatMulNBits":
            self.emit(_exact(node))
        elif not node.name.startswith("attention."):  # those are for the branch that is left out
            super().take(node)

    def dtype(self, node: onnx.NodeProto) -> int:
        if node.op_type == "Gather" and helper.get_attribute_value(node.attribute[0]) == -1:
            return HALF  # before products, or after heads: cast here, once for all of them
        if node.op_type in _AS_GIVEN:
            return self.given(node.input[0])
        if node.op_type not in _IN_HALF | _IN_FLOAT:
            raise self.unknown(node)
        return HALF if node.op_type in _IN_HALF else FLOAT

    def _emit_greedy(self, argmax: onnx.NodeProto) -> None:
        """The index of the largest logit, like ArgMax over the last axis, with NaN as minus infinity."""
        name, logits = argmax.output[0], self.value(argmax.input[0], FLOAT)
        (vocabulary,) = (value.type.tensor_type.shape.dim[1].dim_value for value in self.graph.output[:1])
        self.graph.initializer.append(helper.make_tensor(f"{name}.lowest", TensorProto.FLOAT, [], [-float("inf")]))
        self.append("IsNaN", [logits], [f"{name}.absent"])
        self.append("Where", [f"{name}.absent", f"{name}.lowest", logits], [f"{name}.numbers"])
        one = self.constant(f"{name}.one", [1], [1])  # how many, and the axis that they stand along
        width = _row_width(vocabulary)
        if width is None:
            self.append("TopK", [f"{name}.numbers", one], [f"{name}.value", f"{name}.best"])
            self.append("Squeeze", [f"{name}.best", one], [name])
            return
        rows = self.constant(f"{name}.rows", [0, vocabulary // width, width], [3])
        self.append("Reshape", [f"{name}.numbers", rows], [f"{name}.cut"])
        self.append("TopK", [f"{name}.cut", one], [f"{name}.bests", f"{name}.columns"])  # both [B, rows, 1]
        starts = self.constant(f"{name}.starts", list(range(0, vocabulary, width)), [vocabulary // width, 1])
        self.append("Add", [f"{name}.columns", starts], [f"{name}.ids"])
        self.append("TopK", [f"{name}.bests", one], [f"{name}.value", f"{name}.row"], axis=1)  # both [B, 1, 1]
        self.append("GatherElements", [f"{name}.ids", f"{name}.row"], [f"{name}.best"], axis=1)
        self.append("Squeeze", [f"{name}.best", self.constant(f"{name}.axes", [1, 2], [2])], [name])

    def _emit_next(self, token: str) -> None:
        """The lengths, one longer: a token is 0 or more. That makes them wait for it, and so for all that read them."""
        least, one, longer = (f"{NEXT_LENGTHS}.{what}" for what in ("least", "one", "longer"))
        self.append("GreaterOrEqual", [token, self.constant(least, [0], [1])], [one])
        self.append("Cast", [one], [longer], to=TensorProto.INT32)
        self.append("Add", ["seqlens_k", longer], [NEXT_LENGTHS])


def _row_width(vocabulary: int) -> int | None:
    """The width of the rows that a vocabulary is cut into; None if it is not cut."""
    fitting = (width for width in range(_WIDEST_ROW, _NARROWEST_ROW - 1, -1) if vocabulary % width == 0)
    return next(fitting, None) if vocabulary > _WIDEST_ROW else None


def _exact(node: onnx.NodeProto) -> onnx.NodeProto:
    """A quantized product whose activations are not rounded."""
    result = onnx.NodeProto()
    result.CopyFrom(node)
    del result.attribute[:]
    result.attribute.extend(attribute for attribute in node.attribute if attribute.name != "accuracy_level")
    return result


def _prefill(node: onnx.NodeProto) -> onnx.NodeProto:
    """A layer's GroupQueryAttention, here for steps too, with the outputs of its `If`."""
    (branch,) = (attribute.g for attribute in node.attribute if attribute.name == "else_branch")
    (attention,) = branch.node
    result = onnx.NodeProto()
    result.CopyFrom(attention)
    result.name = node.name
    result.output[:] = node.output
    return result
