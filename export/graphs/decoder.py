"""The decoder as an ONNX graph, built operator by operator.

It is not traced, because no tracer emits the fused operators that matter. Queries, keys and values are one product;
`attention.py` rotates, appends to the KV cache in place (input and output share one buffer) and masks;
`SkipSimplifiedLayerNormalization` also adds the residual; everything after the last layer's attention runs for the last
position only, so that a prefill of a thousand tokens computes one row of logits, or for the last few when drafts are
checked.

Inputs  inputs_embeds float32 [B, S, H]; seqlens_k int32 [B] (tokens in the cache after this call, minus one);
        total_sequence_length int32 [] (the largest of them plus one);
        logits_from int64 [1], the first of the K positions that have logits, counted from the end: -K;
        past_key_values.{i}.{key,value} float32 [B, kv_heads, capacity, head_dim]
Outputs logits float32 [B · K, rows of the head]; token int64 [B · K], their argmax;
        present.{i}.{key,value}: bind the buffers of past_key_values here
With S > 1, B must be 1 (a limit of GroupQueryAttention); batches are prefilled one row at a time into one cache.

GroupQueryAttention requires head sizes that are multiples of 16. Others are padded with zeros between the two halves
that rotate against each other, which changes no product; a Gather extracts the real columns again.

Where the head has not all of the vocabulary's rows, all of these, and what the fp16 graph looks up, are counted in its
own rows; the runtime knows their ids (`runtime/bundle/head_tokens.py`).

Precision "fp16" stores weights as float16 and computes in float32: half the bytes on disk, the same arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import TensorProto

from vl3edge.models.config import TextConfig
from vl3edge.runtime.bundle.specs import TextSpec
from vl3edge.runtime.decode.graph import LOGITS_FROM
from vl3edge.runtime.decode.rope import rotary_frequencies

from ..onnx_writer import GraphWriter
from ..tensor_source import TensorSource, pad_heads, padded_head_dim
from .attention import MS, CachedAttention, PromptAttention

PREFIX = "model.language_model."


@dataclass(frozen=True)
class StoredMatrix:
    """Where a [rows, cols] matrix is already stored on disk, for weights shared between files."""

    file: str
    offset_bytes: int
    shape: tuple[int, int]
    dtype: np.dtype


def rotary_tables(head_dim: int, theta: float, positions: int) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin of the rotary angles, float32 [positions, padded_head_dim // 2] each."""
    angles = np.arange(positions, dtype=np.float32)[:, None] * rotary_frequencies(theta, head_dim)
    missing = (padded_head_dim(head_dim) - head_dim) // 2
    angles = np.pad(angles, ((0, 0), (0, missing)))
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def text_spec(config: TextConfig, head_ids: np.ndarray | None = None) -> TextSpec:
    """What the runtime needs to know about the decoder graph; head_dim is the cache's. head_ids: None is all."""
    return TextSpec(
        hidden_size=config.hidden_size,
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        num_kv_heads=config.num_kv_heads,
        head_dim=padded_head_dim(config.head_dim),
        intermediate_size=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_position_embeddings=config.max_position_embeddings,
        rope_theta=config.rope_theta,
        rotary_dim=config.head_dim,
        head_rows=0 if head_ids is None else len(head_ids),
    )


class DecoderBuilder:
    """Emits the graph for one TextConfig. `linear` may be overridden to emit quantized products.

    head_ids: int64 [n], the rows that the output head has, in order; None is the whole vocabulary.
    """

    def __init__(
        self,
        graph: GraphWriter,
        config: TextConfig,
        source: TensorSource,
        precision: str,
        head_ids: np.ndarray | None = None,
    ) -> None:
        self.graph = graph
        self.head_ids = head_ids
        self.config = config
        self.source = source
        self.cache_head_dim = padded_head_dim(config.head_dim)
        self.storage = np.dtype(np.float16 if precision == "fp16" else np.float32)

    def stored(self, name: str, value: np.ndarray) -> str:
        """Writes a weight in the storage type; returns a float32 value in the graph."""
        if self.storage == np.float32:
            return self.graph.weight(name, value.astype(np.float32, copy=False))
        half = self.graph.weight(name + ".half", value.astype(self.storage))
        return str(self.graph.node("Cast", [half], name, to=TensorProto.FLOAT))

    def linear(self, x: str, name: str, parts: list[str]) -> str:
        """x · Wᵀ (+ bias) for the linears `parts` side by side: one product, outputs concatenated.

        parts: stems of tensor names such as `…layers.0.self_attn.q_proj`, with a bias where the architecture has one.
        """
        product = self.float_product(x, name, parts)
        if not parts[0].endswith("q_proj"):
            return product
        return self.biased(product, name, np.concatenate([self.source.array(f"{part}.bias") for part in parts]))

    def float_product(self, x: str, name: str, parts: list[str]) -> str:
        """x · Wᵀ of the linears `parts` side by side, query, key and value heads padded, without bias."""
        weight = np.concatenate([self.source.array(f"{part}.weight") for part in parts])
        if parts[0].endswith(("q_proj", "k_proj", "v_proj")):
            weight = pad_heads(weight, self.config.head_dim)
        return str(self.graph.node("MatMul", [x, self.stored(f"{name}.weight", weight.T)], f"{name}.matmul"))

    def biased(self, product: str, name: str, bias: np.ndarray) -> str:
        """A product of heads plus their bias."""
        bias = pad_heads(bias, self.config.head_dim)
        return str(self.graph.node("Add", [product, self.stored(f"{name}.bias", bias)], f"{name}.biased"))

    def norm_weight(self, name: str) -> str:
        return self.graph.weight(name, self.source.array(name).astype(np.float32))

    def add_and_norm(self, residual: str, update: str, weight: str, name: str) -> tuple[str, str]:
        """RMSNorm(residual + update) and the sum itself."""
        normed, summed = f"{name}.normed", f"{name}.sum"
        self.graph.node(
            "SkipSimplifiedLayerNormalization",
            [residual, update, self.norm_weight(weight)],
            name,
            outputs=[normed, "", "", summed],
            domain=MS,
            epsilon=self.config.rms_norm_eps,
        )
        return normed, summed

    def attention(self, x: str, layer: int, cached: PromptAttention) -> str:
        stem = f"{PREFIX}layers.{layer}.self_attn."
        qkv = self.linear(x, f"layers.{layer}.qkv", [stem + "q_proj", stem + "k_proj", stem + "v_proj"])
        out = cached.layer(qkv, layer)
        if self.cache_head_dim == self.config.head_dim:
            return out
        columns = np.arange(self.config.num_heads * self.config.head_dim)
        padded_columns = pad_heads(columns + 1, self.config.head_dim).nonzero()[0]
        index = self.graph.weight(f"{out}.columns", padded_columns.astype(np.int64))
        return str(self.graph.node("Gather", [out, index], f"{out}.unpadded", axis=-1))

    def mlp(self, x: str, layer: int) -> str:
        stem = f"{PREFIX}layers.{layer}.mlp."
        # Two products: splitting the result of one would copy it, which costs a prefill 2 %.
        gate = self.linear(x, f"layers.{layer}.gate", [stem + "gate_proj"])
        up = self.linear(x, f"layers.{layer}.up", [stem + "up_proj"])
        active = self.graph.node("QuickGelu", [gate], f"layers.{layer}.silu", domain=MS, alpha=1.0)
        gated = self.graph.node("Mul", [active, up], f"layers.{layer}.gated")
        return self.linear(gated, f"layers.{layer}.down", [stem + "down_proj"])

    def last_positions(self, x: str, name: str) -> str:
        """[B, S, H] -> [B, K, H]: the positions that have logits."""
        end = self.graph.weight(f"{name}.end", np.array([np.iinfo(np.int64).max], np.int64))
        axis = self.graph.weight(f"{name}.axis", np.array([1], np.int64))
        return str(self.graph.node("Slice", [x, LOGITS_FROM, end, axis], name))

    def flat(self, x: str) -> str:
        """[B, K, H] -> [B · K, H]."""
        shape = self.graph.weight("head.shape", np.array([-1, self.config.hidden_size], np.int64))
        return str(self.graph.node("Reshape", [x, shape], "head.input"))

    def head(self, x: str, embeddings: StoredMatrix | None) -> str:
        """Logits [B · K, rows of the head] of x [B, K, H]; a tied matrix is read from the embeddings' own file."""
        flat = self.flat(x)
        if embeddings is None:
            whole = self.source.array("lm_head.weight")
            weight = self.stored("lm_head.weight", whole if self.head_ids is None else whole[self.head_ids])
        else:
            weight = self._shared(embeddings)
        return str(self.graph.node("Gemm", [flat, weight], "logits", transB=1))

    def _shared(self, matrix: StoredMatrix) -> str:
        fp16 = matrix.dtype == np.float16
        name = "lm_head.weight.half" if fp16 else "lm_head.weight"
        self.graph.external(
            name,
            matrix.shape,
            TensorProto.FLOAT16 if fp16 else TensorProto.FLOAT,
            matrix.file,
            matrix.offset_bytes,
            matrix.shape[0] * matrix.shape[1] * matrix.dtype.itemsize,
        )
        if fp16:
            return str(self.graph.node("Cast", [name], "lm_head.weight", to=TensorProto.FLOAT))
        return name

    def inputs(self) -> str:
        """Declares the graph's inputs; returns the hidden states that go into the first layer."""
        config, graph = self.config, self.graph
        hidden = graph.input("inputs_embeds", TensorProto.FLOAT, ["batch", "sequence", config.hidden_size])
        graph.input("seqlens_k", TensorProto.INT32, ["batch"])
        graph.input("total_sequence_length", TensorProto.INT32, [])
        for name in self._cache_names("past_key_values"):
            graph.input(name, TensorProto.FLOAT, self._cache_shape)
        return hidden

    def rotary_tables(self) -> tuple[str, str]:
        """Writes cos and sin; returns their names."""
        config = self.config
        cos, sin = rotary_tables(config.head_dim, config.rope_theta, config.max_position_embeddings)
        return self.graph.weight("rotary.cos", cos), self.graph.weight("rotary.sin", sin)

    def layers(self) -> Iterator[int]:
        """Declares the inputs, then emits one layer at each step, then the last norm."""
        hidden, update = self.inputs(), ""
        self.graph.input(LOGITS_FROM, TensorProto.INT64, [1])
        cached = CachedAttention(self.graph, self.config, self.cache_head_dim, *self.rotary_tables())
        for layer in range(self.config.num_layers):
            attended, hidden = self.attended(hidden, update, layer, cached)
            if layer == self.config.num_layers - 1:
                attended = self.last_positions(attended, "last.attended")
                hidden = self.last_positions(hidden, "last.hidden")
            update, hidden = self.transformed(hidden, attended, layer)
            yield layer
        self._last = self.add_and_norm(hidden, update, PREFIX + "norm.weight", "final_norm")[0]

    def attended(self, hidden: str, update: str, layer: int, cached: PromptAttention) -> tuple[str, str]:
        """A layer's norm and attention: the heads' output, and the residual stream including the previous layer's
        update.

        update: what the previous layer adds; None for the first.
        """
        name, weight = f"layers.{layer}.input_norm", f"{PREFIX}layers.{layer}.input_layernorm.weight"
        if layer == 0:
            normed = self.graph.node(
                "SimplifiedLayerNormalization",
                [hidden, self.norm_weight(weight)],
                name,
                axis=-1,
                epsilon=self.config.rms_norm_eps,
                stash_type=1,
            )
        else:
            normed, hidden = self.add_and_norm(hidden, update, weight, name)
        return self.attention(normed, layer, cached), hidden

    def transformed(self, hidden: str, attended: str, layer: int) -> tuple[str, str]:
        """A layer's output projection and MLP: its update, and the residual stream to add it to."""
        stem = f"{PREFIX}layers.{layer}."
        output = self.linear(attended, f"layers.{layer}.output", [stem + "self_attn.o_proj"])
        weight = stem + "post_attention_layernorm.weight"
        normed, hidden = self.add_and_norm(hidden, output, weight, f"layers.{layer}.mlp_norm")
        return self.mlp(normed, layer), hidden

    def finish(self, embeddings: StoredMatrix | None) -> None:
        """Emits the output head and declares the outputs; after the last layer."""
        config, graph = self.config, self.graph
        logits = self.head(self._last, embeddings)
        graph.node("ArgMax", [logits], "token", axis=-1, keepdims=0)
        rows = config.vocab_size if self.head_ids is None else len(self.head_ids)
        graph.output("logits", TensorProto.FLOAT, ["results", rows])
        graph.output("token", TensorProto.INT64, ["results"])
        self.outputs()

    def outputs(self) -> None:
        """Declares the keys and values that the layers have appended to."""
        for name in self._cache_names("present"):
            self.graph.output(name, TensorProto.FLOAT, self._cache_shape)

    @property
    def _cache_shape(self) -> list[int | str]:
        return ["batch", self.config.num_kv_heads, "capacity", self.cache_head_dim]

    def _cache_names(self, stem: str) -> list[str]:
        return [f"{stem}.{layer}.{kind}" for layer in range(self.config.num_layers) for kind in ("key", "value")]


def export_decoder(
    make_builder: Callable[[GraphWriter], DecoderBuilder],
    folder: Path,
    embeddings: StoredMatrix | None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Writes `decoder.onnx` and its data into folder; returns the files written.

    embeddings: where a head that is tied to the embeddings is stored, if it is not quantized; else None.
    progress: called with (layers done, layers in all).
    """
    with GraphWriter(folder / "decoder.onnx") as graph:
        builder = make_builder(graph)
        for layer in builder.layers():
            progress(layer + 1, builder.config.num_layers)
        builder.finish(embeddings)
        return graph.save()
