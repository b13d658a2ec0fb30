"""Every kernel that a decoder of a given shape needs, each with several tile sizes for a device to choose from.

Which tiles are fast is only known after a device has tried them: variants that compute the same differ in TILES and the
number of warps. A runtime selects by the other constants, and launches with all of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from . import attention, few, products, prompt, rotary, tokens
from .shape import DecoderShape, MatrixKind

TILES = ("BM", "BN", "BK", "BT", "C", "PARTS", "SPLITS", "TALL")
OVERLAPS = "PDL"  # the constant that says so: see `words.after_previous`
TRAIL = 1024  # choices of a row that the device keeps
TALL = 8
_STEP_TILES = ((4, 64, 1), (4, 128, 1), (2, 256, 2), (4, 256, 2), (4, 512, 4))  # BN, C, warps
FEW_WORDS = 16  # of a tile of `few_product`, the fewest that `tl.dot` takes
_FEW_TILES: dict[int, tuple[tuple[int, int, tuple[int, ...]], ...]] = {  # by BM: BN, warps, parts of a row of weights
    8: ((64, 2, (1, 6)), (32, 1, (3,))),
    16: ((64, 2, (1, 6)), (16, 1, (4,))),
    32: ((64, 2, (1, 4)),),
}
_MORE_PARTS, _LONG_ROW = 2, 32  # times as many where a row has so many tiles
_FEW_HEAD_TILES = {8: ((64, 2), (32, 1)), 16: ((64, 2), (16, 1)), 32: ((64, 2),)}
_DENSE_TILES = ((128, 64, 64, 4, 4), (128, 128, 64, 8, 4), (128, 256, 64, 8, 3))  # BM, BN, BK, warps, stages
_MANY_ROWS_TILE = (16, 64, 128, 4)  # BM, BN, BK, warps, for steps
_PROMPT_TILES = (_MANY_ROWS_TILE, (64, 64, 64, 4), (64, 128, 64, 8), (128, 64, 64, 8))
_LARGEST_TILE = (128, 128, 64, 8)  # where nothing else is read at the end, for which there are no registers left
_SPLITS = ((8, 32), (32, 32), (64, 64))  # parts, positions at once
_PROMPT_ATTENTION = ((64, 32, 4), (64, 64, 4), (128, 32, 8))  # BM, BT, warps

_WITH_TENSOR_CORES = (
    attention.attend, attention.attend_prompt, few.few_product, prompt.prompt_product, prompt.dense_product
)  # fmt: skip
_POINTERS = {
    "arrived_ptr": "*i32", "bias_ptr": "*fp16", "cache_ptr": "*i64", "codes_ptr": "*i32", "cos_ptr": "*fp32",
    "dense_ptr": "*fp16", "draws_ptr": "*fp32", "parts_ptr": "*fp32",
    "gate_ptr": "*fp16", "ids_ptr": "*i32", "lengths_ptr": "*i32", "logits_ptr": "*fp32", "norm_ptr": "*fp32",
    "order_ptr": "*i32", "peaks_ptr": "*fp32", "qkv_ptr": "*fp16", "scales_ptr": "*fp16", "sin_ptr": "*fp32",
    "sums_ptr": "*fp32", "temperatures_ptr": "*fp32", "tokens_ptr": "*i64", "top_k_ptr": "*i32", "trail_ptr": "*i64",
    "up_codes_ptr": "*i32", "up_order_ptr": "*i32", "up_scales_ptr": "*fp16", "up_zeros_ptr": "*u8",
    "values_ptr": "*fp32", "x_ptr": "*fp16", "y_ptr": "*fp16", "zeros_ptr": "*u8",
}  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """One kernel to compile: a function, the types of its arguments, its constants, how many threads run it.

    tensor_cores: whether it multiplies by `tl.dot`, whose instructions differ between generations of GPUs.
    for_dense: whether only GPUs that read long prompts with weights unpacked once have a use for it.
    """

    function: Any
    arguments: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    num_warps: int
    num_stages: int = 3
    tensor_cores: bool = False
    for_dense: bool = False

    @property
    def purpose(self) -> tuple[Any, ...]:
        """What it computes; variants of one purpose differ in their tiles."""
        settings = tuple((name, value) for name, value in self.constants if name not in TILES)
        return self.function.__name__, self.arguments, settings

    @property
    def name(self) -> str:
        """The function's name, and a digest of everything that defines this variant."""
        facts = repr((self.arguments, self.constants, self.num_warps, self.num_stages))
        return f"{self.function.__name__}-{hashlib.sha256(facts.encode()).hexdigest()[:12]}"


def variants(shape: DecoderShape) -> list[Kernel]:
    """All kernels of a decoder, each once, in a fixed order."""
    found = [
        *_products(shape),
        *_few_products(shape),
        *_prompt_products(shape),
        *_dense_products(shape),
        *_attention(shape),
        *_rotary(shape),
        *_tokens(shape),
    ]
    return sorted(set(found), key=lambda kernel: kernel.name)


def _kernel(function: Any, constants: dict[str, Any], num_warps: int, num_stages: int = 3, **types: str) -> Kernel:
    """types: of pointers where they are not the usual one."""
    names = [name for name in function.arg_names if name not in (*constants, OVERLAPS)]
    arguments = tuple((name, types.get(name) or _POINTERS.get(name, "i32")) for name in names)
    ordered = tuple((name, constants[name]) for name in function.arg_names if name in constants)
    dense = function in (prompt.dequantize, prompt.dense_product)
    return Kernel(function, arguments, ordered, num_warps, num_stages, function in _WITH_TENSOR_CORES, dense)


def _step_tiles(words: int) -> Iterable[tuple[int, int, int]]:
    """Tiles that a row of this many words does not leave half empty."""
    most = _power(words)
    return sorted({(bn, min(c, most), warps) for bn, c, warps in _STEP_TILES if c < 2 * most or c == 128})


def _products(shape: DecoderShape) -> Iterator[Kernel]:
    hidden, wide = shape.text.hidden_size, shape.text.intermediate_size
    flags: dict[str, dict[str, Any]] = {
        "qkv": {"NORM": True, "BIAS": True, "RESIDUAL": False, "WIDTH": 0},
        "output": {"NORM": False, "BIAS": False, "RESIDUAL": True, "WIDTH": hidden},
        "down": {"NORM": False, "BIAS": False, "RESIDUAL": True, "WIDTH": hidden},
        "head": {"NORM": True, "BIAS": False, "RESIDUAL": False, "WIDTH": 0},
    }
    for role, settings in flags.items():
        for matrix in [shape.head] if role == "head" else sorted(shape.matrices[role]):
            for bn, c, warps in _step_tiles(matrix.inputs * matrix.bits // 32):
                constants = {"K": matrix.inputs, **matrix.constants(), **settings, "EPS": shape.epsilon}
                yield _kernel(
                    products.product,
                    constants | {"BN": bn, "C": c},
                    warps,
                    x_ptr="*fp32" if settings["NORM"] else "*fp16",
                    y_ptr="*fp16" if role == "qkv" else "*fp32",
                )
    for gate, up in sorted(shape.gated):
        for bn, c, warps in _step_tiles(gate.inputs * gate.bits // 32):
            constants = {"K": hidden, **gate.constants(), **up.constants("UP_"), "WIDTH": wide, "EPS": shape.epsilon}
            yield _kernel(products.gated_product, constants | {"BN": bn, "C": c}, warps, x_ptr="*fp32")


_ENDINGS = {"qkv": (True, False, False), "gate": (False, False, False), "up": (False, False, True)}


def _roles(shape: DecoderShape) -> Iterator[tuple[str, MatrixKind, dict[str, Any]]]:
    """Every product, what follows it, and whether y is float32."""
    for role in ("qkv", "output", "gate", "up", "down", "head"):
        bias, residual, gated = _ENDINGS.get(role, (False, role != "head", False))
        for matrix in [shape.head] if role == "head" else sorted(shape.matrices[role]):
            yield role, matrix, {"BIAS": bias, "RESIDUAL": residual, "GATED": gated}


def _type_of_y(role: str) -> str:
    return "*fp32" if role in ("output", "down", "head") else "*fp16"


def _few_products(shape: DecoderShape) -> Iterator[Kernel]:
    """For steps of several rows; none where a matrix has groups of fewer words than a tile."""
    if not all(few_words(matrix.bits, matrix.group) for _, matrix, _ in _roles(shape)):
        return
    hidden, wide = shape.text.hidden_size, shape.text.intermediate_size
    widths = {"output": hidden, "down": hidden, "gate": wide, "up": wide}
    for role, matrix, ending in _roles(shape):
        constants = {"K": matrix.inputs, **matrix.constants(), **ending, "WIDTH": widths.get(role, 0)}
        tiles = -(-matrix.inputs * matrix.bits // (32 * FEW_WORDS))
        for rows in _FEW_TILES:
            for bn, warps, parts in _few_head(rows) if role == "head" else _few_layer(rows, tiles):
                tile = {"BM": rows, "BN": bn, "C": FEW_WORDS, "PARTS": parts}
                yield _kernel(few.few_product, constants | tile, warps, 4, y_ptr=_type_of_y(role))


def _few_layer(rows: int, tiles: int) -> Iterator[tuple[int, int, int]]:
    """BN, warps, parts; a row of weights is so many tiles, and no part of it is empty."""
    for bn, warps, wanted in _FEW_TILES[rows]:
        more = _MORE_PARTS if tiles >= _LONG_ROW else 1
        for parts in sorted({-(-tiles // -(-tiles // (more * part))) for part in wanted}):
            yield bn, warps, parts


def _few_head(rows: int) -> Iterator[tuple[int, int, int]]:
    """The head has outputs enough."""
    for bn, warps in _FEW_HEAD_TILES[rows]:
        yield bn, warps, 1


def few_words(bits: int, group: int) -> bool:
    """Whether a group has whole tiles of `few_product`; float16 weights have no groups."""
    return bits == 16 or group * bits // 32 % FEW_WORDS == 0


def _dense_products(shape: DecoderShape) -> Iterator[Kernel]:
    """Of the layers: the head is multiplied by a few vectors."""
    for role, matrix, ending in _roles(shape):
        if role == "head":
            continue
        if matrix.bits < 16:
            settings = {"K": matrix.inputs, **matrix.constants(), "BN": 4, "C": 128}
            yield _kernel(prompt.dequantize, settings, 4)
        for bm, bn, bk, warps, stages in _DENSE_TILES:
            tile = {"BM": bm, "BN": bn, "BK": bk, "TALL": TALL}
            yield _kernel(
                prompt.dense_product, {"K": matrix.inputs, **ending, **tile}, warps, stages, y_ptr=_type_of_y(role)
            )


def _prompt_products(shape: DecoderShape) -> Iterator[Kernel]:
    """Of prompts, and of steps of more rows than `few_product` takes."""
    for role, matrix, ending in _roles(shape):
        largest = [] if ending["RESIDUAL"] or ending["GATED"] else [_LARGEST_TILE]
        for bm, bn, bk, warps in [_MANY_ROWS_TILE] if role == "head" else [*_PROMPT_TILES, *largest]:
            constants = {"K": matrix.inputs, **matrix.constants(), **ending}
            tile = {"BM": bm, "BN": bn, "BK": min(bk, matrix.group), "TALL": TALL}
            yield _kernel(prompt.prompt_product, constants | tile, warps, y_ptr=_type_of_y(role))
    block = _power(shape.text.hidden_size)
    norm = {"K": shape.text.hidden_size, "BLOCK": block, "EPS": shape.epsilon}
    yield _kernel(prompt.normalize, norm, 4, x_ptr="*fp32")
    yield _kernel(prompt.to_step_order, {"K": shape.text.hidden_size, "BLOCK": block}, 4, x_ptr="*fp32", y_ptr="*fp32")


def _attention(shape: DecoderShape) -> Iterator[Kernel]:
    text = shape.text
    heads = {"HEADS": text.num_heads, "KV_HEADS": text.num_kv_heads, "DIM": text.head_dim}
    common = heads | {"SCALE": text.rotary_dim**-0.5, "BLOCK_D": _power(text.head_dim)}
    for splits, positions in _SPLITS:
        block = max(16, _power(text.num_heads // text.num_kv_heads))
        yield _kernel(attention.attend, common | {"BLOCK_H": block, "SPLITS": splits, "BT": positions}, 4)
        for strands in (False, True):
            constants = {"HEADS": text.num_heads, "DIM": text.head_dim, "REAL": text.rotary_dim}
            constants |= {"BLOCK_D": common["BLOCK_D"], "SPLITS": splits, "STRANDS": strands}
            yield _kernel(attention.combine, constants, 4 if splits > 8 else 1)
    for bm, bt, warps in _PROMPT_ATTENTION:
        yield _kernel(attention.attend_prompt, common | {"REAL": text.rotary_dim, "BM": bm, "BT": bt}, warps)


def _rotary(shape: DecoderShape) -> Iterator[Kernel]:
    half = shape.text.head_dim // 2
    heads = {"KV_HEADS": shape.text.num_kv_heads, "HALF": half, "BLOCK": _power(half)}
    yield _kernel(rotary.rotate_and_cache, heads | {"HEADS": shape.text.num_heads, "BT": 16}, 4)
    yield _kernel(rotary.move_cached, heads | {"BT": 16}, 4)


def _tokens(shape: DecoderShape) -> Iterator[Kernel]:
    block = _power(min(1024, shape.text.num_logits))
    matrix: MatrixKind = shape.embeddings
    types = {16: "*fp16", 32: "*fp32"}
    for strands in (False, True):
        constants = {"K": matrix.inputs, **matrix.constants(), "BLOCK": _power(matrix.inputs), "STRANDS": strands}
        del constants["ORDER"]
        yield _kernel(tokens.embed, constants, 4, codes_ptr=types.get(matrix.bits, "*u8"), x_ptr="*fp32")
    yield _kernel(tokens.best_of_block, {"BLOCK": block}, 4)
    blocks = _power(-(-shape.text.num_logits // block))
    yield _kernel(tokens.choose, {"BLOCK": block, "BLOCKS": blocks, "TRAIL": TRAIL}, 4)


def _power(size: int) -> int:
    """The smallest power of two from `size` on."""
    return 1 << (size - 1).bit_length()
