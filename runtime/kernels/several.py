"""Products of several vectors at once: of a step's rows, or of a prompt.

Up to `few_rows` vectors of a step are multiplied together, in a step's order. Prompts have natural order; long ones
read weights that were unpacked once, where the device prefers that. What serves depends on which kernels there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..bundle.kernel_set import KernelSpec
from .launcher import Catalogue
from .scratch import Vectors
from .tiles import Tiles, largest, shared_out
from .weights import DeviceMatrix, StoredLayer

_LONG = 256
"""Tokens of a prompt from which weights are unpacked once, where the device prefers that."""


@dataclass(frozen=True)
class Several:
    """Products of `count` vectors. strands: they are in a step's order."""

    count: int
    vectors: Vectors
    strands: bool


class Products:
    """The kernels for them. few_rows: vectors of a step that are multiplied together, at most; 0 for none."""

    def __init__(self, catalogue: Catalogue, tiles: Tiles, prefers_dense: bool) -> None:
        self._catalogue, self._tiles = catalogue, tiles
        self._unpacks = prefers_dense and bool(catalogue.of("dense_product"))
        self.few_rows = max((kernel.tile["BM"] for kernel in catalogue.of("few_product")), default=0)

    def unpacked(self, layers: Sequence[StoredLayer]) -> int:
        """Weights of the largest matrix that is unpacked; 0 if none is."""
        sizes = [matrix.spec.inputs * matrix.spec.outputs for matrix in _matrices(layers)]
        return max(sizes) if self._unpacks else 0

    def shared_sizes(self, layers: Sequence[StoredLayer]) -> tuple[int, int]:
        """Numbers and counters that programs need which share a row of weights."""
        widest = max(matrix.spec.outputs for matrix in _matrices(layers))
        tiles = [kernel.tile for kernel in self._catalogue.of("few_product")]
        blocks = [-(-widest // tile["BN"]) for tile in tiles]
        numbers = [block * tile["PARTS"] * tile["BN"] * tile["BM"] for block, tile in zip(blocks, tiles, strict=True)]
        return max(numbers, default=0), max(blocks, default=0)

    def of(
        self,
        run: Several,
        matrix: DeviceMatrix,
        x: int,
        y: int,
        kind: str,
        width: int = 0,
        residual: bool = False,
        **more: int,
    ) -> None:
        """A product of several vectors. kind: the type of y, which in a step's order is `width` wide.

        more: bias, gate and pitch.
        """
        ending = {"RESIDUAL": residual, "BIAS": "bias_ptr" in more, "GATED": "gate_ptr" in more}
        more = {"pitch": matrix.spec.outputs, "N": matrix.spec.outputs, "x_ptr": x, "y_ptr": y} | more
        if run.strands:
            self._few(run, matrix, kind, ending | {"WIDTH": width}, more)
        elif run.vectors.dense is not None and run.count >= _LONG:
            self._dense(run, matrix, kind, ending, more)
        else:
            constants = {"K": matrix.spec.inputs, **matrix.spec.constants(), **ending}
            variants = self._catalogue.variants("prompt_product", constants, {"y_ptr": kind})
            kernel = self._tiles.of(variants, run.count, largest(matrix.spec.outputs))
            self._catalogue.launch(
                kernel, _tiled(kernel, run, matrix), **stored(matrix, False), count=run.count, **more
            )

    def _few(
        self, run: Several, matrix: DeviceMatrix, kind: str, ending: Mapping[str, Any], more: Mapping[str, int]
    ) -> None:
        constants = {"K": matrix.spec.inputs, **matrix.spec.constants(), **ending}
        tall = [
            k for k in self._catalogue.variants("few_product", constants, {"y_ptr": kind}) if k.tile["BM"] >= run.count
        ]
        lowest = min(kernel.tile["BM"] for kernel in tall)
        kernel = self._tiles.of([k for k in tall if k.tile["BM"] == lowest], run.count, shared_out(matrix.spec.outputs))
        grid = (-(-matrix.spec.outputs // kernel.tile["BN"]), kernel.tile["PARTS"])
        shared = {f"{name}_ptr": buffer.address for name, buffer in run.vectors.shared.items()}
        self._catalogue.launch(kernel, grid, **stored(matrix, True), **shared, rows=run.count, **more)

    def _dense(
        self, run: Several, matrix: DeviceMatrix, kind: str, ending: Mapping[str, Any], more: Mapping[str, int]
    ) -> None:
        spec, dense = matrix.spec, matrix.codes
        if spec.bits < 16:
            assert run.vectors.dense is not None
            dense = run.vectors.dense.address
            unpack = self._catalogue.variants("dequantize", {"K": spec.inputs, **spec.constants()})[0]
            words = spec.inputs * spec.bits // 32
            grid = (-(-spec.outputs // unpack.tile["BN"]), -(-words // unpack.tile["C"]))
            self._catalogue.launch(unpack, grid, **stored(matrix, False), dense_ptr=dense, N=spec.outputs)
        variants = self._catalogue.variants("dense_product", {"K": spec.inputs, **ending}, {"y_ptr": kind})
        kernel = self._tiles.of(variants, run.count, largest(spec.outputs))
        self._catalogue.launch(kernel, _tiled(kernel, run, matrix), dense_ptr=dense, count=run.count, **more)


def _matrices(layers: Sequence[StoredLayer]) -> Iterator[DeviceMatrix]:
    for layer in layers:
        yield from (*layer.qkv, layer.output, layer.gate, layer.up, layer.down)


def _tiled(kernel: KernelSpec, run: Several, matrix: DeviceMatrix) -> tuple[int]:
    return (-(-run.count // kernel.tile["BM"]) * -(-matrix.spec.outputs // kernel.tile["BN"]),)


def stored(matrix: DeviceMatrix, step: bool, prefix: str = "") -> dict[str, int]:
    """A matrix as arguments; step: for vectors in a step's order."""
    order = matrix.places if step else matrix.order
    names = {"order": order, "codes": matrix.codes, "scales": matrix.scales, "zeros": matrix.zeros}
    return {f"{prefix}{name}_ptr": address for name, address in names.items()}
