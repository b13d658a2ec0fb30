"""Attention over the KV cache: one operator for prefills, a few products for steps.

`GroupQueryAttention` computes prefills well. For a single token it multiplies head by head and reads keys and values
once per query head; on a CPU that costs more than reading all weights once the context has a few thousand tokens. In a
step, the query heads that share a key and value head are therefore one matrix, and keys and values are read once: with
the heads of the 2B model on two cores, 2.3 times as fast at 1,000 tokens of context, 3.8 times at 10,000.

Both write the new keys and values into the cache in place: present shares the buffer of past.
"""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from vl3edge.models.config import TextConfig

from ..onnx_writer import GraphWriter

MS = "com.microsoft"


class PromptAttention:
    """Emits the attention of every layer for prefills only, without a branch.

    head_dim: of the cache, which may be wider than the model's. cos, sin: names of the rotary tables.
    """

    def __init__(self, graph: GraphWriter, config: TextConfig, head_dim: int, cos: str, sin: str) -> None:
        self._graph = graph
        self._config = config
        self._head_dim = head_dim
        self._tables = [cos, sin]
        self._scale = config.head_dim**-0.5

    def layer(self, qkv: str, layer: int) -> str:
        """The attention output [B, S, heads · head_dim] of qkv [B, S, (heads + 2 · kv_heads) · head_dim]."""
        name = f"layers.{layer}.attention"
        past = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        present = [f"present.{layer}.key", f"present.{layer}.value"]
        self._emit(qkv, past, name, [name, *present])
        return name

    def _emit(self, qkv: str, past: list[str], name: str, outputs: list[str]) -> None:
        """outputs: names for the attention output, keys and values."""
        self._graph.node(
            "GroupQueryAttention",
            [qkv, "", "", *past, "seqlens_k", "total_sequence_length", *self._tables],
            name,
            outputs=outputs,
            domain=MS,
            num_heads=self._config.num_heads,
            kv_num_heads=self._config.num_kv_heads,
            scale=self._scale,
            do_rotary=1,
            rotary_interleaved=0,
        )


class CachedAttention(PromptAttention):
    """Emits the attention of every layer for prefills and steps; the nodes that layers share are emitted on
    construction.

    head_dim, cos, sin: as for `PromptAttention`.
    """

    def __init__(self, graph: GraphWriter, config: TextConfig, head_dim: int, cos: str, sin: str) -> None:
        super().__init__(graph, config, head_dim, cos, sin)
        self._emit_shared()

    def _emit(self, qkv: str, past: list[str], name: str, outputs: list[str]) -> None:
        def prefill() -> list[str]:
            stem = f"{name}.prefill"
            results = [stem, f"{stem}.key", f"{stem}.value"]
            super(CachedAttention, self)._emit(qkv, past, stem, results)
            return results

        branches = {
            "then_branch": self._graph.branch(f"{name}.step", lambda: self._step(qkv, past, f"{name}.step")),
            "else_branch": self._graph.branch(f"{name}.prefill", prefill),
        }
        self._graph.node("If", ["attention.is_step"], name, outputs=outputs, **branches)

    def _step(self, qkv: str, past: list[str], name: str) -> list[str]:
        node = self._graph.node
        heads, kv_heads = self._config.num_heads, self._config.num_kv_heads
        query, key, value = node("Split", [qkv, "attention.widths"], f"{name}.split", outputs=3, axis=-1)
        query = self._rotated(query, heads, f"{name}.query")
        key = self._rotated(key, kv_heads, f"{name}.key")
        keys = self._appended(past[0], key, f"{name}.keys")
        values = self._appended(past[1], value, f"{name}.values")
        grouped = node("Reshape", [query, "attention.grouped"], f"{name}.grouped")
        # Keys on the left are read in place; on the right the product would copy them first.
        by_key = node("FusedMatMul", [keys, grouped], f"{name}.scores.by.key", domain=MS, transB=1, alpha=self._scale)
        scores = node("Transpose", [by_key], f"{name}.scores", perm=[0, 1, 3, 2])
        masked = node("Add", [scores, "attention.bias"], f"{name}.masked")
        probabilities = node("Softmax", [masked], f"{name}.shares", axis=-1)
        attended = node("MatMul", [probabilities, values], f"{name}.mixed")
        return [node("Reshape", [attended, "attention.joined"], name), keys, values]

    def _rotated(self, x: str, heads: int, name: str) -> str:
        inputs = [x, "attention.positions", *self._tables]
        return str(self._graph.node("RotaryEmbedding", inputs, f"{name}.rotated", domain=MS, num_heads=heads))

    def _appended(self, past: str, x: str, name: str) -> str:
        new = self._graph.node("Reshape", [x, "attention.one"], f"{name}.new")
        return str(self._graph.node("ScatterND", [past, "attention.slots", new], name))

    def _emit_shared(self) -> None:
        """Shared by the steps of all layers: the position of a row's new token, and the positions it attends to."""
        graph, heads, kv_heads, head_dim = (
            self._graph,
            self._config.num_heads,
            self._config.num_kv_heads,
            self._head_dim,
        )
        node = graph.node

        def integers(name: str, *values: int, shape: tuple[int, ...] = (-1,)) -> str:
            return graph.weight(f"attention.{name}", np.array(values, np.int64).reshape(shape))

        integers("widths", heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)
        integers("grouped", 0, kv_heads, heads // kv_heads, head_dim)
        integers("one", 0, kv_heads, 1, head_dim)
        integers("joined", 0, 1, heads * head_dim)
        zero, one = integers("zero", 0, shape=()), integers("unit", 1, shape=())
        axis_1, axis_2, middle = integers("axis.1", 1), integers("axis.2", 2), integers("axes.1.2", 1, 2)

        length = node("Squeeze", [node("Shape", ["inputs_embeds"], "attention.length", start=1, end=2)], "attention.s")
        node("Equal", [length, one], "attention.is_step")
        # seqlens_k is the number of tokens after this call minus one: the position of a step's token.
        last = node("Cast", ["seqlens_k"], "attention.last", to=TensorProto.INT64)
        positions = node("Unsqueeze", [last, axis_1], "attention.positions")

        size = node("Shape", ["past_key_values.0.key"], "attention.size", start=2, end=3)
        places = node("Range", [zero, node("Squeeze", [size], "attention.capacity"), one], "attention.places")
        seen = node("LessOrEqual", [places, positions], "attention.seen")
        # Not minus infinity: the smallest float vanishes in the softmax too, and cannot produce a NaN.
        hidden = graph.weight("attention.hidden", np.array(np.finfo(np.float32).min, np.float32))
        plain = graph.weight("attention.plain", np.array(0, np.float32))
        bias = node("Where", [seen, plain, hidden], "attention.bias.flat")
        node("Unsqueeze", [bias, middle], "attention.bias")

        # (row, head, position) of every new key and value: int64 [B, kv_heads, 1, 3].
        batch = node("Squeeze", [node("Shape", ["seqlens_k"], "attention.rows.shape")], "attention.batch")
        rows = node("Unsqueeze", [node("Range", [zero, batch, one], "attention.rows"), axis_1], "attention.rows.column")
        every_head = integers("heads.none", *[0] * kv_heads, shape=(1, kv_heads))
        head_numbers = integers("heads", *range(kv_heads), shape=(1, kv_heads))
        none = node("Mul", [rows, zero], "attention.rows.none")
        parts = [
            node("Unsqueeze", [node("Add", [left, right], f"attention.slot.{k}.flat"), axis_2], f"attention.slot.{k}")
            for k, (left, right) in enumerate([(rows, every_head), (none, head_numbers), (positions, every_head)])
        ]
        node("Unsqueeze", [node("Concat", parts, "attention.slots.flat", axis=-1), axis_2], "attention.slots")
