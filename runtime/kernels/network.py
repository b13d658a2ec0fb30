"""The decoder as launches of kernels: a step of several rows, a part of a prompt, cached positions moved.

A step changes nothing but device memory, and its launches depend on the number of rows alone: tokens and lengths are
arrays, and the cache is a table of addresses. So one capture serves every step of so many rows. Up to three rows are
products of a vector each, with norms and activations in the same launch, on vectors in a step's order; from four on
they are those of prompts. The arguments and constants are those of `export/kernels/`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..bundle.kernel_set import KernelSet, KernelSpec
from ..errors import BundleError
from .launcher import Catalogue, Launcher
from .scratch import Choices, Vectors
from .tiles import MANY_ROWS, Tiles, most_split, tallest, widest
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
        self._catalogue = Catalogue(kernels.manifest.kernels, launcher)
        self._launch = self._catalogue.launch
        text = self.text
        self._heads = {"HEADS": text.num_heads, "KV_HEADS": text.num_kv_heads, "DIM": text.head_dim}
        self._rotary = {"KV_HEADS": text.num_kv_heads, "HALF": text.head_dim // 2}
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
        return Vectors(self.launcher.memory, self.text, count, self._splits if steps else 0)

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

        Chooses the next tokens. x is then in a step's order up to three rows, in natural order from four on.
        """
        many = rows >= MANY_ROWS
        if self.weights.embeddings is not None:
            self._embed(rows, vectors, given, self.weights.embeddings, strands=not many)
        for number, layer in enumerate(self.weights.layers):
            if many:
                self._normalize(rows, vectors, layer.input_norm)
                self._qkv_of_many(rows, vectors, layer)
            else:
                self._qkv(rows, vectors, layer)
            self._rotate(rows, vectors, chosen.lengths.address, cache, number)
            self._attend(rows, vectors, chosen.lengths.address, cache, number, strands=not many)
            if many:
                self._rest_of_many(rows, vectors, layer, vectors.x.address, vectors.attended.address)
            else:
                self._rest(rows, vectors, layer)
        if many:
            self._normalize(rows, vectors, self.weights.norm)
            self._of_many(self.weights.head, rows, vectors.normed.address, chosen.logits.address, "*fp32")
        else:
            self._head(rows, vectors.x.address, chosen)
        self._pick(rows, chosen)

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
            self._normalize(results, vectors, self.weights.norm, x)
            self._of_many(self.weights.head, results, vectors.normed.address, chosen.logits.address, "*fp32")
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
        tables = {"cos_ptr": self.weights.cos, "sin_ptr": self.weights.sin}
        self._launch(kernel, grid, **tables, cache_ptr=cache, **where)

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
        kernel = self._tiles.of(self._find("gated_product", constants), rows, widest)
        grid = (-(-gate.spec.outputs // kernel.tile["BN"]) * rows,)
        ends = {"x_ptr": x, "norm_ptr": layer.mlp_norm.strands, "y_ptr": wide}
        self._launch(kernel, grid, **ends, **_stored(gate, True), **_stored(up, True, "up_"), rows=rows)
        self._product(layer.down, rows, settings, x_ptr=wide, y_ptr=x, pitch=width)

    def _head(self, rows: int, x: int, chosen: Choices) -> None:
        settings = {"NORM": True, "BIAS": False, "RESIDUAL": False, "WIDTH": 0}
        ends = {"x_ptr": x, "norm_ptr": self.weights.norm.strands, "y_ptr": chosen.logits.address}
        self._product(self.weights.head, rows, settings, **ends, pitch=self.text.num_logits)

    def _product(self, matrix: DeviceMatrix, rows: int, settings: Mapping[str, Any], **ends: int) -> None:
        constants = {"K": matrix.spec.inputs, **matrix.spec.constants(), **settings}
        kernel = self._tiles.of(self._find("product", constants), rows, widest)
        grid = (-(-matrix.spec.outputs // kernel.tile["BN"]) * rows,)
        self._launch(kernel, grid, **_stored(matrix, True), **ends, rows=rows, N=matrix.spec.outputs)

    def _normalize(self, count: int, vectors: Vectors, norm: StoredNorm, x: int | None = None) -> None:
        kernel = self._find("normalize")[0]
        ends = {"x_ptr": vectors.x.address if x is None else x, "y_ptr": vectors.normed.address}
        self._launch(kernel, (count,), **ends, norm_ptr=norm.natural)

    def _qkv_of_many(self, count: int, vectors: Vectors, layer: StoredLayer) -> None:
        for start, part in _starts(layer.qkv):
            y, bias = vectors.qkv.address + 2 * start, layer.bias + 2 * start
            self._of_many(part, count, vectors.normed.address, y, "*fp16", pitch=self._pitch, bias_ptr=bias)

    def _rest_of_many(self, count: int, vectors: Vectors, layer: StoredLayer, x: int, attended: int) -> None:
        """A layer after its attention, vectors in natural order."""
        normed, wide = vectors.normed.address, vectors.hidden.address
        self._of_many(layer.output, count, attended, x, "*fp32", residual=True)
        self._normalize(count, vectors, layer.mlp_norm, x)
        self._of_many(layer.gate, count, normed, wide, "*fp16")
        self._of_many(layer.up, count, normed, wide, "*fp16", gate_ptr=wide)
        self._of_many(layer.down, count, wide, x, "*fp32", residual=True)

    def _of_many(
        self, matrix: DeviceMatrix, count: int, x: int, y: int, kind: str, residual: bool = False, **more: int
    ) -> None:
        """A product of `count` vectors in natural order; kind: the type of y. more: bias, gate and pitch."""
        constants = {"K": matrix.spec.inputs, **matrix.spec.constants(), "RESIDUAL": residual}
        constants |= {"BIAS": "bias_ptr" in more, "GATED": "gate_ptr" in more}
        kernel = self._tiles.of(self._find("prompt_product", constants, y_ptr=kind), count, tallest)
        grid = (-(-count // kernel.tile["BM"]) * -(-matrix.spec.outputs // kernel.tile["BN"]),)
        more = {"pitch": matrix.spec.outputs} | more
        sizes = {"count": count, "N": matrix.spec.outputs}
        self._launch(kernel, grid, x_ptr=x, y_ptr=y, **_stored(matrix, False), **sizes, **more)

    def _rotate(
        self, count: int, vectors: Vectors, lengths: int, cache: int, layer: int, row: int | None = None
    ) -> None:
        """row: of a prompt; None is a step, a token in each row."""
        constants = {**self._rotary, "HEADS": self.text.num_heads, "PROMPT": row is not None}
        kernel = self._find("rotate_and_cache", constants)[0]
        grid = (-(-count // kernel.tile["BT"]), self.text.num_heads + 2 * self.text.num_kv_heads)
        tables = {"cos_ptr": self.weights.cos, "sin_ptr": self.weights.sin, "cache_ptr": cache, "lengths_ptr": lengths}
        where = {"layer": layer, "row": row or 0, "count": count}
        self._launch(kernel, grid, qkv_ptr=vectors.qkv.address, **tables, **where)

    def _attend(self, rows: int, vectors: Vectors, lengths: int, cache: int, layer: int, strands: bool) -> None:
        constants = {"HEADS": self.text.num_heads, "DIM": self.text.head_dim, "STRANDS": strands}
        kernel = self._tiles.of(self._find("attend", self._heads), rows, most_split)
        splits = kernel.tile["SPLITS"]
        (combine,) = [found for found in self._find("combine", constants) if found.tile["SPLITS"] == splits]
        parts = {"sums_ptr": vectors.sums.address, "peaks_ptr": vectors.peaks.address}
        where = {"lengths_ptr": lengths, "cache_ptr": cache, "layer": layer}
        self._launch(kernel, (rows, self.text.num_kv_heads, splits), qkv_ptr=vectors.qkv.address, **parts, **where)
        self._launch(combine, (rows, self.text.num_heads), **parts, y_ptr=vectors.attended.address)

    def _attend_prompt(self, count: int, vectors: Vectors, lengths: int, cache: int, layer: int, row: int) -> None:
        kernel = self._tiles.of(self._find("attend_prompt", self._heads), count, tallest)
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


def _stored(matrix: DeviceMatrix, step: bool, prefix: str = "") -> dict[str, int]:
    """A matrix as arguments; step: for vectors in a step's order."""
    order = matrix.places if step else matrix.order
    names = {"order": order, "codes": matrix.codes, "scales": matrix.scales, "zeros": matrix.zeros}
    return {f"{prefix}{name}_ptr": address for name, address in names.items()}


def _starts(parts: Sequence[DeviceMatrix]) -> list[tuple[int, DeviceMatrix]]:
    """Matrices with the column at which the outputs of each begin."""
    starts = [sum(part.spec.outputs for part in parts[:number]) for number in range(len(parts))]
    return list(zip(starts, parts, strict=True))
