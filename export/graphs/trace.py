"""Traces a torch module into an ONNX file without ever holding its weights.

The module is traced with weights that take no memory. Each weight then streams from the checkpoint into the file's side
file (`<name>.onnx.data`), one at a time. Nothing about this machine gets into the file: the tracer's notes (stack
traces with paths) are removed. The result is opset 20, IR 10, loadable by ONNX Runtime 1.23.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import nn

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.weight_map import WeightSource

from ..errors import ExportError
from .vision_int8 import quantize_products

OPSET = 20
IR_VERSION = 10
Precision = Literal["fp32", "fp16"]
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
_LARGEST_FP16 = 65504.0


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a traced graph, in order; dynamic sizes are names, fixed ones numbers.

    examples: inputs to trace with; a named size may not be 0 or 1 there. sizes: for each input, its axes that vary.
    outputs: shape of each output in the file.
    """

    examples: Mapping[str, torch.Tensor]
    sizes: Mapping[str, Mapping[int, Any]]
    inputs: Mapping[str, Sequence[str | int]]
    outputs: Mapping[str, Sequence[str | int]]


def microsoft_op(op: str, inputs: Sequence[torch.Tensor], like: torch.Tensor, **attributes: Any) -> torch.Tensor:
    """A com.microsoft operator in a traced graph, whose output has the shape and type of `like`.

    Outside a trace it only returns zeros.
    """
    result: torch.Tensor = torch.onnx.ops.symbolic(
        f"com.microsoft::{op}", inputs, attributes, dtype=like.dtype, shape=like.shape, version=1
    )
    return result


def trace_to_file(
    module: nn.Module,
    sources: Mapping[str, WeightSource],
    checkpoint: Checkpoint,
    signature: Signature,
    path: Path,
    precision: Precision = "fp32",
    progress: Callable[[int, int], None] = lambda done, total: None,
    eight_bit: Sequence[str] = (),
) -> None:
    """Writes `path` and `path`.data.

    module: with parameters on the meta device; they are replaced. sources: where each parameter comes from.
    precision: "fp16" stores weights as float16 and casts them to float32 in the graph, so the arithmetic is that of
        float32 with rounded weights.
    progress: called with (weights written, weights in all).
    eight_bit: names of weights whose products are computed in 8 bits, see `vision_int8.py`.

    Raises ExportError if precision is unknown, or a weight is too large for float16.
    """
    if precision not in _DTYPES:
        raise ExportError(f"precision must be one of {', '.join(_DTYPES)}, not {precision!r}")
    whole = {name: source for name, source in sources.items() if name not in eight_bit}
    if precision == "fp16":
        _check_range(whole, checkpoint)
    _drop_weights(module)
    program = torch.onnx.export(
        module.eval(),
        tuple(signature.examples.values()),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(signature.examples),
        output_names=list(signature.outputs),
        dynamic_shapes=tuple(dict(axes) for axes in signature.sizes.values()),
        verbose=False,
    )
    if program is None:
        raise ExportError(f"{path.name}: torch could not trace the module")
    model = program.model
    _clean(model, signature)
    seen: set[str] = set()

    def read(name: str, dtype: torch.dtype = _DTYPES[precision]) -> torch.Tensor:
        if name not in seen:  # small weights are read more than once
            seen.add(name)
            progress(len(seen), len(sources))
        return sources[name].read(checkpoint, dtype)

    quantize_products(model, eight_bit, lambda name: read(name, torch.float32).numpy())
    _attach_weights(model, whole, read, precision)
    ir.save(model, path, external_data=f"{path.name}.data")


def _drop_weights(module: nn.Module) -> None:
    """Parameters of one number each, expanded to full shape. All differ, or the tracer would merge them."""
    for i, (name, parameter) in enumerate(list(module.named_parameters())):
        owner, _, leaf = name.rpartition(".")
        stand_in = torch.full((), float(i)).expand(parameter.shape)
        setattr(module.get_submodule(owner), leaf, nn.Parameter(stand_in, requires_grad=False))


def _clean(model: ir.Model, signature: Signature) -> None:
    """Removes the tracer's notes and names the dynamic sizes."""
    model.ir_version = IR_VERSION
    model.producer_name, model.producer_version, model.doc_string = "vl3edge", None, None
    model.metadata_props.clear()
    graph = model.graph
    graph.metadata_props.clear()
    graph.doc_string = None
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        value.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
            if not output.is_graph_output():
                output.shape = None  # ONNX Runtime and TensorRT infer these themselves
    shapes = {**signature.inputs, **signature.outputs}
    for value in (*graph.inputs, *graph.outputs):
        value.shape = ir.Shape(shapes[str(value.name)])


def _check_range(sources: Mapping[str, WeightSource], checkpoint: Checkpoint) -> None:
    large = {}
    for source in sources.values():
        low, high = torch.aminmax(checkpoint.tensor(source.name))
        if (largest := max(-low.item(), high.item())) > _LARGEST_FP16:
            large[source.name] = largest
    if large:
        listed = ", ".join(f"{name} (up to {value:.3g})" for name, value in sorted(large.items()))
        raise ExportError(f"too large for fp16, use fp32: {listed}")


def _attach_weights(
    model: ir.Model,
    sources: Mapping[str, WeightSource],
    read: Callable[[str], torch.Tensor],
    precision: Precision,
) -> None:
    """Replaces each placeholder with a tensor that `read` provides when the file is written."""
    graph = model.graph
    if absent := set(sources) - set(graph.initializers):
        raise ExportError(f"the traced graph has lost {', '.join(sorted(absent))}")
    casts = []
    for name in sources:
        value = graph.initializers[name]
        if value.const_value is None:
            raise ExportError(f"the traced graph gives {name} no shape")
        shape = ir.Shape(value.const_value.shape)
        if precision == "fp16":
            del graph.initializers[name]
            stored = ir.Value(name=name, shape=shape, type=ir.TensorType(ir.DataType.FLOAT16))
            stored.const_value = _lazy(name, read, ir.DataType.FLOAT16, shape)
            cast = ir.node("Cast", [stored], {"to": ir.DataType.FLOAT})
            cast.name, cast.outputs[0].name = f"{name}/Cast", f"{name}/float32"
            value.replace_all_uses_with(cast.outputs[0])
            graph.register_initializer(stored)
            casts.append(cast)
        else:
            value.const_value = _lazy(name, read, ir.DataType.FLOAT, shape)
    if casts:
        graph.insert_before(graph[0], casts)


def _lazy(name: str, read: Callable[[str], torch.Tensor], dtype: ir.DataType, shape: ir.Shape) -> ir.LazyTensor:
    return ir.LazyTensor(lambda: ir.tensor(read(name).numpy(), name=name), dtype, shape, name=name)
