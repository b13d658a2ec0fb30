"""A bundle's decoder made of the kernels alone, in the interpreter: prompts, steps of one and of several rows.

The order of launches is the one that a runtime records; between two steps it changes nothing but device memory.
"""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from caches import Cache
from interpreted import launch
from weights import Weights, strands

from vl3edge.export.kernels.attention import attend, attend_prompt, combine
from vl3edge.export.kernels.products import gated_product, product
from vl3edge.export.kernels.prompt import normalize, prompt_product, to_step_order
from vl3edge.export.kernels.rotary import rotate_and_cache
from vl3edge.export.kernels.tokens import best_of_block, choose, embed
from vl3edge.export.verify.graph_weights import GraphTensors
from vl3edge.runtime.bundle.manifest import DECODER_GRAPH, TextSpec

SPLITS, TRAIL, BLOCK = 2, 64, 256
LAYER_NORMS = ("input_layernorm", "post_attention_layernorm")


class GraphWeights:
    """What the kernels need of `decoder.onnx`, whose products are all MatMulNBits."""

    def __init__(self, folder: Path) -> None:
        path = folder / DECODER_GRAPH
        graph = onnx.load(path, load_external_data=False).graph
        self.array = GraphTensors(path, graph).array
        self._nodes = {node.name.removesuffix(".matmul"): node for node in graph.node if node.op_type == "MatMulNBits"}
        self._casts = {node.output[0]: node.input[0] for node in graph.node if node.op_type == "Cast"}
        (self.epsilon,) = {a.f for node in graph.node for a in node.attribute if a.name == "epsilon"}

    def product(self, name: str) -> Weights:
        node = self._nodes[name]
        facts = {attribute.name: attribute.i for attribute in node.attribute}
        codes, scales = self.array(node.input[1]), self.array(self._casts[node.input[2]])
        words = np.array(codes).reshape(facts["N"], -1).view(np.int32)
        zeros = np.array(self.array(node.input[3])) if len(node.input) > 3 else None
        shape = facts["N"], facts["K"]
        return Weights(shape, words, np.array(scales), zeros, None, facts["bits"], facts["block_size"], np.empty(0))

    def norm(self, name: str) -> np.ndarray:
        return np.array(self.array(f"model.language_model.{name}.weight"), np.float32)


class ComposedDecoder:
    """Rows of one bundle's decoder.

    tokens: int64 [rows], the choices after the last call. logits: float32 [rows, vocabulary], what they were made from.
    Every row's cache is full of NaN beyond its length; a length of −1 switches a row off.
    """

    def __init__(self, folder: Path, spec: TextSpec, rows: int, capacity: int) -> None:
        graph = GraphWeights(folder)
        self.spec, self.rows, self.epsilon = spec, rows, graph.epsilon
        self.layers = [
            {name: graph.product(f"layers.{layer}.{name}") for name in ("qkv", "output", "gate", "up", "down")}
            for layer in range(spec.num_layers)
        ]
        self.biases = [np.array(graph.array(f"layers.{layer}.qkv.bias.half")) for layer in range(spec.num_layers)]
        self.norms = [[graph.norm(f"layers.{n}.{name}") for name in LAYER_NORMS] for n in range(spec.num_layers)]
        self.last_norm, self.head = graph.norm("norm"), graph.product("lm_head")
        self.cos, self.sin = (np.array(graph.array(f"rotary.{name}")) for name in ("cos", "sin"))
        self.cache = Cache(
            np.random.default_rng(0), [0] * rows, spec.num_kv_heads, capacity, spec.head_dim, spec.num_layers
        )
        self.lengths = self.cache.lengths
        self.tokens, self.trail = np.zeros(rows, np.int64), np.full((rows, TRAIL), -1, np.int64)
        self.temperatures, self.top_k = np.zeros(rows, np.float32), np.zeros(rows, np.int32)
        self.draws = np.zeros((rows, TRAIL), np.float32)
        self.logits = np.full((rows, spec.vocab_size), np.nan, np.float32)

    def copy(self) -> ComposedDecoder:
        """The same rows in memory of their own; weights are shared."""
        other = copy(self)
        for name in ("tokens", "trail", "temperatures", "top_k", "draws", "logits"):
            setattr(other, name, getattr(self, name).copy())
        other.cache = self.cache.moved(self.cache.capacity)
        other.lengths = other.cache.lengths
        return other

    def grow(self, capacity: int) -> None:
        """Moves the cache to larger buffers; the kernels find it there."""
        larger = self.cache.moved(capacity)
        self.cache.layers, self.cache.table[:] = larger.layers, larger.table

    def prefill(self, row: int, embeddings: np.ndarray, logits: bool = True) -> None:
        """Appends embeddings float32 [n, hidden] to a row, and chooses the token after them if `logits`."""
        x, count = embeddings.astype(np.float32), len(embeddings)
        for layer in range(self.spec.num_layers):
            qkv = self._prompt_product(self._normed(x, self.norms[layer][0]), layer, "qkv", bias=self.biases[layer])
            self._rotate(qkv, layer, row)
            attended = self._attend_prompt(qkv, layer, row)
            if layer == self.spec.num_layers - 1:  # what follows is wanted of the last token alone
                x, attended = x[-1:].copy(), attended[-1:].copy()
            x = self._mlp(self._prompt_product(attended, layer, "output", onto=x), layer)
        if not logits:
            self.lengths[row] += count
            return
        last = np.empty_like(x)
        launch(to_step_order, (1,), x, last, K=x.shape[1], BLOCK=_power(x.shape[1]))
        self._head(last, slice(row, row + 1), count)

    def step(self, many: bool = False) -> None:
        """Appends every row's token and chooses the next. many: by the products that prompts have."""
        x = np.full((self.rows, self.spec.hidden_size), np.nan, np.float32)
        head = self.head
        launch(
            embed, (self.rows,), self.tokens, head.codes.view(np.uint8), head.scales, head.zeros, x,
            self.spec.vocab_size,
            K=self.spec.hidden_size, BITS=head.bits, GROUP=head.group, ZEROS=head.zeros is not None,
            BLOCK=_power(self.spec.hidden_size), STRANDS=not many,
        )  # fmt: skip
        for layer in range(self.spec.num_layers):
            x = self._layer_of_many(x, layer) if many else self._layer(x, layer)
        self._head(strands(x) if many else x, slice(0, self.rows), 1)

    def _layer(self, x: np.ndarray, layer: int) -> np.ndarray:
        spec, weights = self.spec, self.layers[layer]
        qkv = self._product(x, weights["qkv"], np.float16, norm=self.norms[layer][0], bias=self.biases[layer])
        self._rotate(qkv, layer, None)
        self._product(self._attend(qkv, layer, True), weights["output"], onto=x)
        gate, up = weights["gate"], weights["up"]
        hidden = np.full((self.rows, spec.intermediate_size), np.nan, np.float16)
        launch(
            gated_product, (-(-spec.intermediate_size // BLOCK) * self.rows,), x, strands(self.norms[layer][1]),
            gate.places, *gate.tensors, up.places, *up.tensors, hidden, self.rows,
            K=spec.hidden_size, WIDTH=spec.intermediate_size, EPS=self.epsilon, BN=BLOCK, C=_words(gate), UNROLL=1,
            **gate.settings(), **up.settings("UP_"),
        )  # fmt: skip
        return self._product(hidden, weights["down"], onto=x)

    def _layer_of_many(self, x: np.ndarray, layer: int) -> np.ndarray:
        qkv = self._prompt_product(self._normed(x, self.norms[layer][0]), layer, "qkv", bias=self.biases[layer])
        self._rotate(qkv, layer, None)
        return self._mlp(self._prompt_product(self._attend(qkv, layer, False), layer, "output", onto=x), layer)

    def _mlp(self, x: np.ndarray, layer: int) -> np.ndarray:
        normed = self._normed(x, self.norms[layer][1])
        hidden = self._prompt_product(normed, layer, "gate")
        hidden = self._prompt_product(normed, layer, "up", gate=hidden)
        return self._prompt_product(hidden, layer, "down", onto=x)

    def _head(self, x: np.ndarray, rows: slice, grown: int) -> None:
        """Logits and choices of rows from their last hidden states, in a step's order."""
        self.logits[rows] = self._product(x, self.head, np.float32, norm=self.last_norm)
        logits, count, vocabulary = self.logits[rows], len(x), self.spec.vocab_size
        blocks = -(-vocabulary // BLOCK)
        values, ids = np.empty((count, blocks), np.float32), np.empty((count, blocks), np.int32)
        launch(best_of_block, (blocks, count), logits, values, ids, vocabulary, BLOCK=BLOCK)
        launch(
            choose, (count,), logits, values, ids, self.temperatures[rows], self.top_k[rows], self.draws[rows],
            self.tokens[rows], self.trail[rows], self.lengths[rows], vocabulary, blocks, grown,
            BLOCK=BLOCK, BLOCKS=_power(blocks), TRAIL=TRAIL,
        )  # fmt: skip

    def _product(
        self, x: np.ndarray, weights: Weights, dtype: Any = None, onto: np.ndarray | None = None,
        norm: np.ndarray | None = None, bias: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        outputs, inputs = weights.shape
        y = np.full((len(x), outputs), np.nan, dtype) if onto is None else onto
        launch(
            product, (-(-outputs // BLOCK) * len(x),), x, None if norm is None else strands(norm), weights.places,
            *weights.tensors, bias, y, len(x), outputs, outputs,
            K=inputs, NORM=norm is not None, BIAS=bias is not None, RESIDUAL=onto is not None, WIDTH=outputs,
            EPS=self.epsilon, BN=BLOCK, C=_words(weights), UNROLL=1, **weights.settings(),
        )  # fmt: skip
        return y

    def _normed(self, x: np.ndarray, norm: np.ndarray) -> np.ndarray:
        y = np.full(x.shape, np.nan, np.float16)
        launch(normalize, (len(x),), x, norm, y, K=x.shape[1], BLOCK=_power(x.shape[1]), EPS=self.epsilon)
        return y

    def _prompt_product(
        self, x: np.ndarray, layer: int, name: str, bias: np.ndarray | None = None, gate: np.ndarray | None = None,
        onto: np.ndarray | None = None,
    ) -> np.ndarray:  # fmt: skip
        weights = self.layers[layer][name]
        (outputs, inputs), count = weights.shape, len(x)
        y = np.full((count, outputs), np.nan, np.float16) if onto is None else onto
        if gate is not None:
            y = gate
        launch(
            prompt_product, (-(-count // 64) * -(-outputs // 128),), x, weights.order, *weights.tensors, bias, gate, y,
            count, outputs, outputs, K=inputs, BIAS=bias is not None, RESIDUAL=onto is not None, GATED=gate is not None,
            BM=64, BN=128, BK=weights.group, TALL=2, **weights.settings(),
        )  # fmt: skip
        return y

    def _rotate(self, qkv: np.ndarray, layer: int, row: int | None) -> None:
        spec, half = self.spec, self.spec.head_dim // 2
        launch(
            rotate_and_cache, (-(-len(qkv) // 64), spec.num_heads + 2 * spec.num_kv_heads), qkv, self.cos, self.sin,
            self.lengths, self.cache.table, layer, row or 0, len(qkv), BT=64,
            HEADS=spec.num_heads, KV_HEADS=spec.num_kv_heads, HALF=half,
            BLOCK=_power(half), PROMPT=row is not None, reach=self.cache.buffers,
        )  # fmt: skip

    def _attend(self, qkv: np.ndarray, layer: int, in_step_order: bool) -> np.ndarray:
        spec, heads = self._attention()
        sums = np.empty((self.rows, heads["HEADS"], SPLITS, spec.head_dim), np.float32)
        peaks = np.empty((self.rows, heads["HEADS"], SPLITS, 2), np.float32)
        launch(
            attend, (self.rows, spec.num_kv_heads, SPLITS), qkv, self.lengths, self.cache.table, layer, sums, peaks,
            SCALE=spec.rotary_dim**-0.5, BLOCK_D=_power(spec.head_dim), BLOCK_H=16, SPLITS=SPLITS, BT=64, **heads,
            reach=self.cache.buffers,
        )  # fmt: skip
        y = np.full((self.rows, spec.num_heads * spec.rotary_dim), np.nan, np.float16)
        launch(
            combine, (self.rows, spec.num_heads), sums, peaks, y, HEADS=spec.num_heads, DIM=spec.head_dim,
            REAL=spec.rotary_dim, BLOCK_D=_power(spec.head_dim), SPLITS=SPLITS, STRANDS=in_step_order,
        )  # fmt: skip
        return y

    def _attend_prompt(self, qkv: np.ndarray, layer: int, row: int) -> np.ndarray:
        spec, heads = self._attention()
        y = np.full((len(qkv), spec.num_heads * spec.rotary_dim), np.nan, np.float16)
        launch(
            attend_prompt, (-(-len(qkv) // 64), spec.num_heads), qkv, self.lengths, self.cache.table, layer, row, y,
            len(qkv), REAL=spec.rotary_dim, SCALE=spec.rotary_dim**-0.5, BLOCK_D=_power(spec.head_dim), BM=64, BT=64,
            **heads, reach=self.cache.buffers,
        )  # fmt: skip
        return y

    def _attention(self) -> tuple[TextSpec, dict[str, int]]:
        spec = self.spec
        return spec, {"HEADS": spec.num_heads, "KV_HEADS": spec.num_kv_heads, "DIM": spec.head_dim}


def _power(size: int) -> int:
    """The smallest power of two from `size` on."""
    return 1 << (size - 1).bit_length()


def _words(weights: Weights) -> int:
    return min(64, _power(weights.shape[1] * weights.bits // 32))
