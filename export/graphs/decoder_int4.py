"""The decoder graph with quantized products: `MatMulNBits` for every quantized linear layer.

Layers that read the same input are stacked into one product if their settings agree. Scales are stored as float16 and
cast in the graph, which ONNX Runtime does once, at load. A quantized output head that is tied to the embeddings is
stored once, in the embeddings' file, and both read it there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from vl3edge.models.config import TextConfig
from vl3edge.models.safetensors_writer import header
from vl3edge.models.tensor_names import LM_HEAD
from vl3edge.quant.dequantized import Linears
from vl3edge.quant.linear import QuantizedLinear, concatenated
from vl3edge.quant.packing import MatMulNBitsTensors, to_matmul_nbits

from ..onnx_writer import GraphWriter
from ..tensor_source import TensorSource, pad_heads
from .attention import MS
from .decoder import DecoderBuilder, StoredMatrix
from .embeddings import FILE_NAME

HEAD = LM_HEAD.removesuffix(".weight")
_DTYPE_NAMES = {np.dtype(np.uint8): "U8", np.dtype(np.float16): "F16"}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor is stored in the embeddings' file."""

    offset_bytes: int
    shape: tuple[int, ...]
    dtype: np.dtype


class QuantizedDecoderBuilder(DecoderBuilder):
    """A DecoderBuilder whose products are quantized where `linears` has their layers.

    shared_head: the head's tensors in the embeddings' file, by their names there, when the two are tied.
    accuracy_level: of MatMulNBits; 4 rounds activations to 8 bits, 0 does not round them.
    """

    def __init__(
        self,
        graph: GraphWriter,
        config: TextConfig,
        source: TensorSource,
        precision: str,
        linears: Linears,
        shared_head: dict[str, StoredTensor] | None,
        accuracy_level: int,
        head_ids: np.ndarray | None = None,
    ) -> None:
        super().__init__(graph, config, source, precision, head_ids)
        self._linears = linears
        self._names = frozenset(linears.names)
        self._shared_head = shared_head
        self._accuracy_level = accuracy_level

    def linear(self, x: str, name: str, parts: list[str]) -> str:
        if not self._names.intersection(parts):
            return super().linear(x, name, parts)
        is_qkv = parts[0].endswith("q_proj")
        layers = [self._linears.linear(part) for part in parts if part in self._names]
        try:
            merged = (
                concatenated([replace(layer, bias=None) for layer in layers]) if len(layers) == len(parts) else None
            )
        except ValueError:  # settings differ, as they may with mixed precision
            merged = None
        if merged is None:
            products = [self._part(x, f"{name}.{k}", part) for k, part in enumerate(parts)]
            product = str(self.graph.node("Concat", products, f"{name}.joined", axis=-1))
        else:
            product = self.product(x, name, _padded(merged, self.config.head_dim) if is_qkv else merged)
        if not is_qkv:
            return product
        return self.biased(product, name, np.concatenate([self._bias(part) for part in parts]))

    def _part(self, x: str, name: str, part: str) -> str:
        """One linear layer's product, without its bias."""
        if part not in self._names:
            return self.float_product(x, name, [part])
        layer = self._linears.linear(part)
        is_qkv = part.endswith(("q_proj", "k_proj", "v_proj"))
        return self.product(x, name, _padded(layer, self.config.head_dim) if is_qkv else layer)

    def _bias(self, part: str) -> np.ndarray:
        bias = self._linears.linear(part).bias if part in self._names else None
        return self.source.array(f"{part}.bias") if bias is None else bias

    def product(self, x: str, name: str, layer: QuantizedLinear) -> str:
        """x · Wᵀ of one quantized layer."""
        tensors = to_matmul_nbits(layer)
        weight = self.graph.weight(f"{name}.codes", tensors.packed)
        scales = self.graph.weight(f"{name}.scales.half", tensors.scales)
        zeros = "" if tensors.zero_points is None else self.graph.weight(f"{name}.zeros", tensors.zero_points)
        return self._matmul(x, name, tensors, layer.in_features, weight, scales, zeros)

    def _matmul(
        self, x: str, name: str, tensors: MatMulNBitsTensors, inputs: int, weight: str, scales: str, zeros: str
    ) -> str:
        if tensors.order is not None:
            order = self.graph.weight(f"{name}.order", tensors.order)
            x = self.graph.node("Gather", [x, order], f"{name}.ordered", axis=-1)
        cast = self.graph.node("Cast", [scales], f"{name}.scales", to=TensorProto.FLOAT)
        return str(
            self.graph.node(
                "MatMulNBits",
                [x, weight, cast, zeros] if zeros else [x, weight, cast],
                f"{name}.matmul",
                domain=MS,
                K=inputs,
                N=int(tensors.packed.shape[0]),
                bits=tensors.bits,
                block_size=tensors.block_size,
                accuracy_level=self._accuracy_level,
            )
        )

    def head(self, x: str, embeddings: StoredMatrix | None) -> str:
        if HEAD not in self._names:
            return super().head(x, embeddings)
        flat = self.flat(x)
        layer = self._linears.linear(HEAD)
        if self.head_ids is not None:
            layer = layer.chosen(self.head_ids)
        if self._shared_head is None:
            product = self.product(flat, "lm_head", layer)
        else:
            tensors = to_matmul_nbits(layer)
            weight = self._external("lm_head.codes", self._shared_head["codes"], tensors.packed.shape)
            scales = self._external("lm_head.scales.half", self._shared_head["scales"])
            zeros = self._shared_head.get("zero_points")
            named = "" if zeros is None else self._external("lm_head.zeros", zeros)
            product = self._matmul(flat, "lm_head", tensors, layer.in_features, weight, scales, named)
        return str(self.graph.node("Identity", [product], "logits"))

    def _external(self, name: str, stored: StoredTensor, shape: tuple[int, ...] | None = None) -> str:
        num_bytes = int(np.prod(stored.shape)) * stored.dtype.itemsize
        dtype = helper.np_dtype_to_tensor_dtype(stored.dtype)
        return self.graph.external(name, shape or stored.shape, dtype, FILE_NAME, stored.offset_bytes, num_bytes)


def write_quantized_embeddings(
    head: QuantizedLinear, folder: Path, head_ids: np.ndarray | None = None
) -> dict[str, StoredTensor]:
    """Replaces the embeddings' file with the rows of a quantized head tied to them; returns what the head reads.

    Tensors: `codes` uint8 [vocab, hidden · bits / 8] and `zero_points` (unless all are the middle code), packed as for
        MatMulNBits; `scales` float16 [vocab, blocks].
    head_ids: int64 [n], of a head that has not all rows: those it has are `head.codes` and so on, too.
    """
    packed = to_matmul_nbits(head)
    arrays: dict[str, np.ndarray] = {"codes": packed.packed.reshape(len(packed.packed), -1), "scales": packed.scales}
    if packed.zero_points is not None:
        arrays["zero_points"] = packed.zero_points.reshape(len(packed.packed), -1)
    prefix, names = "", list(arrays)
    if head_ids is not None:
        prefix = "head."
        arrays |= {prefix + name: arrays[name][head_ids] for name in names}
    begin, starts = header({name: (_DTYPE_NAMES[x.dtype], x.shape, x.nbytes) for name, x in arrays.items()})
    with (folder / FILE_NAME).open("wb") as file:
        file.write(begin)
        for array in arrays.values():
            file.write(np.ascontiguousarray(array).data)
    stored = {name: StoredTensor(starts[name], array.shape, array.dtype) for name, array in arrays.items()}
    return {name: stored[prefix + name] for name in names}


def _padded(layer: QuantizedLinear, head_dim: int) -> QuantizedLinear:
    """The rows of query, key or value heads padded as by `pad_heads`; the added rows are exactly zero."""
    middle = 2 ** (layer.bits - 1)
    real = pad_heads(np.ones(layer.out_features, np.bool_), head_dim)
    codes = pad_heads(layer.codes, head_dim)
    zeros = pad_heads(layer.zeros, head_dim)
    codes[~real], zeros[~real] = middle, middle
    return replace(layer, codes=codes, zeros=zeros, scales=pad_heads(layer.scales, head_dim), error=None)
