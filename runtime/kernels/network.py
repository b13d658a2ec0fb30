"""The decoder as launches of kernels: a step of several rows, a part of a prompt, cached positions moved.

A step changes nothing but device memory, and its launches depend on the number of rows alone: tokens and lengths are
arrays, and the cache is a table of addresses. So one capture serves every step of so many rows. Up to three rows are
products of a vector each, with norms and activations in the same launch; from four on they are products of a few
vectors at once, and where there are none for so many rows, or for weights in small groups, those of prompts. Vectors
are in a step's order, but for prompts and their products. The arguments and constants are those of `export/kernels/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..bundle.kernel_set import KernelSet, KernelSpec
from ..errors import BundleError
from .launcher import Catalogue, Launcher
from .scratch import Choices, Vectors
from .several import Products, Several, stored
from .tiles import MANY_ROWS, Tiles, most_split, squarest, widest
from .weights import DeviceMatrix, DeviceWeights, StoredLayer, StoredNorm


class Network:
    """One bundle's decoder on one device; its weights are uploaded when it is made. Not thread-safe.

    cache: the address of int64 [1 + 2 · layers], the KV cache's capacity and the addresses of its buffers.
    lengths: that of int32 [rows], the tokens in each row.
    """

    def __init__(self, kernels: KernelSet, launcher: Launcher, tiles: Tiles | None = None) -> None:
        """tiles: None is the fixed rules."""
        self.text = kernels.text
        self.head = kernels.head
        self.launcher = launcher
        self._tiles = tiles or Tiles()
        self.weights = DeviceWeights(kernels, launcher.memory)
        self._tables = {"cos_ptr": self.weights.cos, "sin_ptr": self.weights.sin}
        self._catalogue = Catalogue(kernels.manifest.kernels, launcher)
        self._launch = self._catalogue.launch
        text = self.text
        self._heads = {"HEADS": text.num_heads, "KV_HEADS": text.num_kv_heads, "DIM": text.head_dim}
        self._rotary = {"KV_HEADS": text.num_kv_heads, "HALF": text.head_dim // 2}
        self._products = Products(self._catalogue, self._tiles, launcher.prefers_dense)
        self._best, self._choose = self._find("best_of_block")[0], self._find("choose")[0]
        self._block: int = self._best.constants["BLOCK"]
        self._pitch = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
        if self._choose.constants["BLOCK"] != self._block:
            raise BundleError("the bundle's kernels best_of_block and choose do not fit. Export the bundle again.")

    @property
    def looks_up(self) -> bool:
        """Whether the embeddings are on the device."""
        return self.weights.embeddings is not None

    def vectors(self, count: int, steps: bool = False) -> Vectors:
        """Memory for so many tokens of a prompt, or of steps."""
        memory, layers = self.launcher.memory, self.weights.layers
        dense = 0 if steps else self._products.unpacked(layers)
        vectors = Vectors(memory, self.text, count, self._splits if steps else 0, dense)
        if steps and count >= MANY_ROWS:
            vectors.share(memory, *self._products.shared_sizes(layers))
        return vectors

    @property
    def row_bytes(self) -> int:
        """Memory of one row of steps, but for its cache."""
        choice = 2 * 4 * self.text.num_logits + 12 * self._choose.constants["TRAIL"]  # logits are staged
        return Vectors.bytes_of(self.text, self._splits) + 2 * choice  # of this step and of the next

    @property
    def _splits(self) -> int:
        return max(kernel.tile["SPLITS"] for kernel in self._find("attend", self._heads))

    def choices(self, rows: int, before: Choices | None = None) -> Choices:
        blocks = -(-self.text.num_logits // self._block)
        return Choices(self.launcher.memory, self.text, rows, blocks, self._choose.constants["TRAIL"], before)

    def step(self, rows: int, vectors: Vectors, given: Choices, chosen: Choices, cache: int) -> None:
        """A token more in each of the first rows: that in `given.tokens`, or the vector in x where it is negative.

        Chooses the next tokens. x is then in the order that `in_step_order` says.
        """
        strands = self.in_step_order(rows)
        if self.weights.embeddings is not None:
            self._embed(rows, vectors, given, self.weights.embeddings, strands)
        for number, layer in enumerate(self.weights.layers):
            if rows < MANY_ROWS:
                self._qkv(rows, vectors, layer)
            else:
                self._normalize(rows, vectors, layer.input_norm, strands)
                self._qkv_of_many(rows, vectors, layer, strands)
            self._attend(rows, vectors, chosen.lengths.address, cache, number, strands)
            if rows < MANY_ROWS:
                self._rest(rows, vectors, layer)
            else:
                self._rest_of_many(rows, vectors, layer, vectors.x.address, vectors.attended.address, strands)
        if rows < MANY_ROWS:
            self._head(rows, vectors.x.address, chosen)
        else:
            self._head_of_many(rows, vectors, chosen, vectors.x.address, strands)
        self._pick(rows, chosen)

    def in_step_order(self, rows: int) -> bool:
        """Whether the vectors of a step of so many rows are in a step's order."""
        return rows < MANY_ROWS or rows <= self._products.few_rows

    def prompt(
        self,
        count: int,
        vectors: Vectors,
        lengths: int,
        cache: int,
        row: int,
        chosen: Choices | None = None,
        results: int = 1,
    ) -> None:
        """`count` tokens more in one row, their embeddings in x; chooses the token after them if `chosen` is given.

        results: the last ones after each of which a token is chosen.
        """
        x, attended = vectors.x.address, vectors.attended.address
        for number, layer in enumerate(self.weights.layers):
            self._normalize(count, vectors, layer.input_norm)
            self._qkv_of_many(count, vectors, layer)
            self._rotate(count, vectors, lengths, cache, number, row)
            last = number == len(self.weights.layers) - 1
            if last and chosen is None:  # keys and values are all that is wanted of it
                return
            self._attend_prompt(count, vectors, lengths, cache, number, row)
            if last:  # what follows is wanted of the last tokens alone
                x += (count - results) * self.text.hidden_size * 4
                attended += (count - results) * self.text.num_heads * self.text.rotary_dim * 2
                count = results
            self._rest_of_many(count, vectors, layer, x, attended)
        assert chosen is not None  # or the last layer would have returned
        if results > 1:
            self._head_of_many(results, vectors, chosen, x)
            self._pick(results, chosen)
            return
        order = self._find("to_step_order")[0]
        self._launch(order, (1,), x_ptr=x, y_ptr=vectors.last.address)
        self._head(1, vectors.last.address, chosen)
        self._pick(1, chosen)

    def move(self, cache: int, row: int, source: int, target: int, count: int) -> None:
        """Moves cached positions of a row to `target` <= `source`; keys are rotated with it."""
        kernel = self._find("move_cached", self._rotary)[0]
        grid = (self.text.num_layers, self.text.num_kv_heads, 2)
        where = {"row": row, "source": source, "target": target, "count": count}
        self._launch(kernel, grid, **self._tables, cache_ptr=cache, **where)

    def _embed(self, rows: int, vectors: Vectors, given: Choices, table: DeviceMatrix, strands: bool) -> None:
        constants = {"K": table.spec.inputs, "STRANDS": strands, **table.spec.constants()}
        del constants["ORDER"]
        kernel = self._find("embed", constants)[0]
        stored = {"codes_ptr": table.codes, "scales_ptr": table.scales, "zeros_ptr": table.zeros}
        ends = {"tokens_ptr": given.tokens.address, "x_ptr": vectors.x.address}
        self._launch(kernel, (rows,), **stored, **ends, vocabulary=table.spec.outputs)

    def _qkv(self, rows: int, vectors: Vectors, layer: StoredLayer) -> None:
        settings = {"NORM": True, "BIAS": True, "RESIDUAL": False, "WIDTH": 0}
        for start, part in _starts(layer.qkv):
            ends = {"x_ptr": vectors.x.address, "y_ptr": vectors.qkv.address + 2 * start, "pitch": self._pitch}
            ends |= {"norm_ptr": layer.input_norm.strands, "bias_ptr": layer.bias + 2 * start}
            self._product(part, rows, settings, **ends)

    def _rest(self, rows: int, vectors: Vectors, layer: StoredLayer) -> None:
        """A layer after its attention, vectors in a step's order."""
        x, wide, width = vectors.x.address, vectors.hidden.address, self.text.hidden_size
        settings = {"NORM": False, "BIAS": False, "RESIDUAL": True, "WIDTH": width}
        self._product(layer.output, rows, settings, x_ptr=vectors.attended.address, y_ptr=x, pitch=width)
        gate, up = layer.gate, layer.up
        constants = {"K": width, **gate.spec.constants(), **up.spec.constants("UP_"), "WIDTH": gate.spec.outputs}
        kernel = self._tiles.of(self._find("gated_product", constants), rows, widest(gate.spec))
        grid = (-(-gate.spec.outputs // kernel.tile["BN"]) * rows,)
        ends = {"x_ptr": x, "norm_ptr": layer.mlp_norm.strands, "y_ptr": wide}
        self._launch(kernel, grid, **ends, **stored(gate, True), **stored(up, True, "up_"), rows=rows)
        self._product(layer.down, rows, settings, x_ptr=wide, y_ptr=x, pitch=width)

    def _head(self, rows: int, x: int, chosen: Choices) -> None:
        settings = {"NORM": True, "BIAS": False, "RESIDUAL": False, "WIDTH": 0}
        ends = {"x_ptr": x, "norm_ptr": self.weights.norm.strands, "y_ptr": chosen.logits.address}
        self._product(self.weights.head, rows, settings, **ends, pitch=self.text.num_logits)

    def _product(self, matrix: DeviceMatrix, rows: int, settings: Mapping[str, Any], **ends: int) -> None:
        constants = {"K": matrix.spec.inputs, **matrix.spec.constants(), **settings}
        kernel = self._tiles.of(self._find("product", constants), rows, widest(matrix.spec))
        grid = (-(-matrix.spec.outputs // kernel.tile["BN"]) * rows,)
        self._launch(kernel, grid, **stored(matrix, True), **ends, rows=rows, N=matrix.spec.outputs)

    def _head_of_many(self, count: int, vectors: Vectors, chosen: Choices, x: int, strands: bool = False) -> None:
        self._normalize(count, vectors, self.weights.norm, strands, x)
        run = Several(count, vectors, strands)
        self._products.of(run, self.weights.head, vectors.normed.address, chosen.logits.address, "*fp32")

    def _normalize(
        self, count: int, vectors: Vectors, norm: StoredNorm, strands: bool = False, x: int | None = None
    ) -> None:
        kernel = self._find("normalize")[0]
        ends = {"x_ptr": vectors.x.address if x is None else x, "y_ptr": vectors.normed.address}
        self._launch(kernel, (count,), **ends, norm_ptr=norm.strands if strands else norm.natural)

    def _qkv_of_many(self, count: int, vectors: Vectors, layer: StoredLayer, strands: bool = False) -> None:
        run = Several(count, vectors, strands)
        for start, part in _starts(layer.qkv):
            y, bias = vectors.qkv.address + 2 * start, layer.bias + 2 * start
            self._products.of(run, part, vectors.normed.address, y, "*fp16", pitch=self._pitch, bias_ptr=bias)

    def _rest_of_many(
        self, count: int, vectors: Vectors, layer: StoredLayer, x: int, attended: int, strands: bool = False
    ) -> None:
        """A layer after its attention."""
        run, hidden, wide = Several(count, vectors, strands), self.text.hidden_size, layer.gate.spec.outputs
        normed, between = vectors.normed.address, vectors.hidden.address
        self._products.of(run, layer.output, attended, x, "*fp32", hidden, residual=True)
        self._normalize(count, vectors, layer.mlp_norm, strands, x)
        self._products.of(run, layer.gate, normed, between, "*fp16", wide)
        self._products.of(run, layer.up, normed, between, "*fp16", wide, gate_ptr=between)
        self._products.of(run, layer.down, between, x, "*fp32", hidden, residual=True)

    def _rotate(self, count: int, vectors: Vectors, lengths: int, cache: int, layer: int, row: int) -> None:
        kernel = self._find("rotate_and_cache", {**self._rotary, "HEADS": self.text.num_heads})[0]
        grid = (-(-count // kernel.tile["BT"]), self.text.num_heads + 2 * self.text.num_kv_heads)
        where = {"lengths_ptr": lengths, "cache_ptr": cache, "layer": layer, "row": row, "count": count}
        self._launch(kernel, grid, qkv_ptr=vectors.qkv.address, **self._tables, **where)

    def _attend(self, rows: int, vectors: Vectors, lengths: int, cache: int, layer: int, strands: bool) -> None:
        constants = {"HEADS": self.text.num_heads, "DIM": self.text.head_dim, "STRANDS": strands}
        kernel = self._tiles.of(self._find("attend", self._heads), rows, most_split)
        splits = kernel.tile["SPLITS"]
        (combine,) = [found for found in self._find("combine", constants) if found.tile["SPLITS"] == splits]
        parts = {"sums_ptr": vectors.sums.address, "peaks_ptr": vectors.peaks.address}
        where = {"lengths_ptr": lengths, "cache_ptr": cache, "layer": layer, **self._tables}
        self._launch(kernel, (rows, self.text.num_kv_heads, splits), qkv_ptr=vectors.qkv.address, **parts, **where)
        self._launch(combine, (rows, self.text.num_heads), **parts, y_ptr=vectors.attended.address)

    def _attend_prompt(self, count: int, vectors: Vectors, lengths: int, cache: int, layer: int, row: int) -> None:
        kernel = self._tiles.of(self._find("attend_prompt", self._heads), count, squarest)
        grid = (-(-count // kernel.tile["BM"]), self.text.num_heads)
        where = {"lengths_ptr": lengths, "cache_ptr": cache, "layer": layer, "row": row, "count": count}
        ends = {"qkv_ptr": vectors.qkv.address, "y_ptr": vectors.attended.address}
        self._launch(kernel, grid, **ends, **where)

    def _pick(self, rows: int, chosen: Choices) -> None:
        """The greedy token of each row from its logits; the row is a token longer."""
        first = {"logits_ptr": chosen.logits.address, "values_ptr": chosen.values.address}
        first |= {"ids_ptr": chosen.ids.address, "vocabulary": self.text.num_logits}
        self._launch(self._best, (chosen.blocks, rows), **first)
        names = ("temperatures", "top_k", "draws", "tokens", "trail", "lengths")
        arrays = {f"{name}_ptr": getattr(chosen, name).address for name in names}
        self._launch(self._choose, (rows,), **first, **arrays, blocks=chosen.blocks, grown=1)

    def _find(self, function: str, constants: Mapping[str, Any] | None = None, **types: str) -> list[KernelSpec]:
        return self._catalogue.variants(function, constants or {}, types)


def _starts(parts: Sequence[DeviceMatrix]) -> list[tuple[int, DeviceMatrix]]:
    """Matrices with the column at which the outputs of each begin."""
    starts = [sum(part.spec.outputs for part in parts[:number]) for number in range(len(parts))]
    return list(zip(starts, parts, strict=True))
