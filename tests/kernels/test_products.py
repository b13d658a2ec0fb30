"""Products of a step and of a prompt against numpy, over odd sizes, every width of codes, and every ending."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

from interpreted import OutOfBounds, launch
from weights import Weights, assert_near, random_weights, strands

from vl3edge.export.kernels.products import gated_product, product
from vl3edge.export.kernels.prompt import normalize, prompt_product, to_step_order

EPS = 1e-6
# outputs, inputs, bits, group, zeros, order
WEIGHTS = [
    (37, 96, 4, 32, False, False),
    (19, 128, 4, 64, True, False),
    (64, 256, 4, 128, True, True),
    (5, 128, 4, 128, False, True),
    (33, 96, 8, 32, False, False),
    (9, 128, 8, 64, True, True),
    (7, 64, 2, 32, True, False),
    (21, 48, 4, 16, False, False),
    (23, 72, 16, 8, False, False),
]


def normed(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """RMSNorm as the checkpoint's: float32 [rows, K]."""
    return (x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + EPS) * weight).astype(np.float32)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def run_product(
    weights: Weights, x: np.ndarray, y: np.ndarray, norm: np.ndarray | None = None, bias: np.ndarray | None = None,
    residual: bool = False, pitch: int = 0, **tiles: int,
) -> None:  # fmt: skip
    """One launch of `product`; x, y (with residual) and norm in a step's order."""
    tiles = {"BN": 16, "C": 16} | tiles
    (outputs, inputs), rows = weights.shape, len(x)
    launch(
        product, (-(-outputs // tiles["BN"]) * rows,),
        x, norm, weights.places, *weights.tensors, bias, y, rows, outputs, pitch or y.shape[1],
        K=inputs, NORM=norm is not None, BIAS=bias is not None, RESIDUAL=residual, WIDTH=outputs, EPS=EPS,
        **weights.settings(), **tiles,
    )  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS, ids=str)
def test_a_product_of_one_vector_with_a_bias(case: tuple[Any, ...]) -> None:
    rng = np.random.default_rng(1)
    weights = random_weights(rng, *case)
    x = rng.standard_normal((1, case[1])).astype(np.float16)
    bias = rng.standard_normal(case[0]).astype(np.float16)
    y = np.full((1, case[0]), np.nan, np.float32)
    run_product(weights, strands(x), y, bias=bias)
    assert_near(y, x.astype(np.float32) @ weights.dense.T + bias, 2e-6)


@pytest.mark.parametrize("rows", range(1, 9))
def test_rows_have_the_bits_that_they_have_alone(rows: int) -> None:
    rng = np.random.default_rng(rows)
    weights = random_weights(rng, 24, 64, 4, 32, zeros=rows % 2 == 0)
    x = rng.standard_normal((rows, 64)).astype(np.float32)
    norm = rng.random(64).astype(np.float32)
    y = np.full((rows, 24), np.nan, np.float16)
    run_product(weights, strands(x), y, norm=strands(norm), BN=32)
    assert_near(y, normed(x, norm) @ weights.dense.T, 6e-4)
    alone = np.empty((1, 24), np.float16)
    run_product(weights, strands(x[-1:]), alone, norm=strands(norm), BN=8)
    assert (alone[0] == y[-1]).all()


@pytest.mark.parametrize(("outputs", "inputs", "tiles"), [(40, 64, {"BN": 4, "C": 8}), (8, 160, {"BN": 16, "C": 32})])
def test_a_product_is_added_to_the_residual_in_a_steps_order(outputs: int, inputs: int, tiles: dict[str, int]) -> None:
    rng = np.random.default_rng(2)
    weights = random_weights(rng, outputs, inputs, 4, 32)
    x = rng.standard_normal((2, inputs)).astype(np.float16)
    residual = (1e4 * rng.standard_normal((2, outputs))).astype(np.float32)
    y = strands(residual)
    run_product(weights, strands(x), y, residual=True, **tiles)
    assert_near(y, strands(residual + x.astype(np.float32) @ weights.dense.T), 2e-7)


@pytest.mark.parametrize(
    ("gate_case", "up_case"),
    [
        ((40, 64, 4, 32), (40, 64, 4, 32)),
        ((24, 128, 4, 128, True, True), (24, 128, 8, 64)),
        ((8, 64, 16, 16), (8, 64, 4, 32, True)),
    ],
)
def test_a_gate_and_its_product(gate_case: tuple[Any, ...], up_case: tuple[Any, ...]) -> None:
    rng = np.random.default_rng(3)
    gate, up = random_weights(rng, *gate_case), random_weights(rng, *up_case)
    outputs, inputs = gate.shape
    x = (5 * rng.standard_normal((3, inputs))).astype(np.float32)
    norm = rng.random(inputs).astype(np.float32)
    y = np.full((3, outputs), np.nan, np.float16)
    launch(
        gated_product, (-(-outputs // 16) * 3,), strands(x), strands(norm), gate.places, *gate.tensors,
        up.places, *up.tensors, y, 3, K=inputs, WIDTH=outputs, EPS=EPS, BN=16, C=16,
        **gate.settings(), **up.settings("UP_"),
    )  # fmt: skip
    given = normed(x, norm)
    assert_near(y, strands(silu(given @ gate.dense.T) * (given @ up.dense.T)), 6e-4)


def test_a_large_channel_does_not_overflow_before_the_norm() -> None:
    rng = np.random.default_rng(4)
    weights = random_weights(rng, 16, 64, 4, 32)
    x = rng.standard_normal((1, 64)).astype(np.float32)
    x[0, 5] = 3e6  # beyond float16, as single channels of such models are
    y = np.empty((1, 16), np.float16)
    norm = np.ones(64, np.float32)
    run_product(weights, strands(x), y, norm=norm)
    assert_near(y, normed(x, norm) @ weights.dense.T, 6e-4)


def run_prompt_product(
    weights: Weights, x: np.ndarray, y: np.ndarray, bias: np.ndarray | None = None, gate: np.ndarray | None = None,
    residual: bool = False, pitch: int = 0, **tiles: int,
) -> None:  # fmt: skip
    """One launch of `prompt_product`."""
    tiles = {"BM": 16, "BN": 16, "BK": min(32, weights.group), "TALL": 2} | tiles
    (outputs, inputs), count = weights.shape, len(x)
    launch(
        prompt_product, (-(-count // tiles["BM"]) * -(-outputs // tiles["BN"]),),
        x, weights.order, *weights.tensors, bias, gate, y, count, outputs, pitch or y.shape[1],
        K=inputs, BIAS=bias is not None, RESIDUAL=residual, GATED=gate is not None, **weights.settings(), **tiles,
    )  # fmt: skip


@pytest.mark.parametrize(("case", "count"), list(zip(WEIGHTS, [1, 5, 17, 33, 16, 50, 2, 3, 40], strict=True)), ids=str)
def test_a_prompts_product_with_a_bias(case: tuple[Any, ...], count: int) -> None:
    rng = np.random.default_rng(count)
    weights = random_weights(rng, *case)
    x = rng.standard_normal((count, case[1])).astype(np.float16)
    bias = rng.standard_normal(case[0]).astype(np.float16)
    y = np.full((count, case[0]), np.nan, np.float16)
    run_prompt_product(weights, x, y, bias=bias)
    assert_near(y, x.astype(np.float32) @ weights.dense.T + bias, 6e-4)


def test_tiles_of_a_prompt_cover_it_once_whatever_their_shape() -> None:
    rng = np.random.default_rng(6)
    weights = random_weights(rng, 70, 64, 4, 32, zeros=True)
    x = rng.standard_normal((45, 64)).astype(np.float16)
    wanted = x.astype(np.float32) @ weights.dense.T
    for tiles in (
        {"BM": 16, "BN": 32, "TALL": 1},
        {"BM": 16, "BN": 64, "TALL": 8},
        {"BM": 64, "BN": 16, "BK": 16, "TALL": 2},
    ):
        y = np.ones((45, 70), np.float32)
        run_prompt_product(weights, x, y, residual=True, **tiles)
        assert_near(y, wanted + 1, 2e-6)


def test_parts_of_one_row_may_be_products_of_their_own() -> None:
    """As queries, keys and values are where their settings differ."""
    rng = np.random.default_rng(5)
    parts = [random_weights(rng, 16, 64, 4, 32), random_weights(rng, 8, 64, 8, 64)]
    x = rng.standard_normal((3, 64)).astype(np.float16)
    wanted = np.concatenate([x.astype(np.float32) @ weights.dense.T for weights in parts], 1)
    for run, given in ((run_product, strands(x)), (run_prompt_product, x)):
        y = np.full((3, 24), np.nan, np.float32)
        run(parts[0], given, y)
        run(parts[1], given, y.reshape(-1)[16:].reshape(1, -1)[:, :56], pitch=24)
        assert_near(y, wanted, 6e-4)


def test_a_prompts_product_is_gated_where_the_gate_stands() -> None:
    rng = np.random.default_rng(7)
    weights = random_weights(rng, 24, 64, 8, 64)
    x = rng.standard_normal((18, 64)).astype(np.float16)
    gate = (3 * rng.standard_normal((18, 24))).astype(np.float16)
    wanted = silu(gate.astype(np.float32)) * (x.astype(np.float32) @ weights.dense.T)
    run_prompt_product(weights, x, gate, gate=gate)
    assert_near(gate, wanted, 6e-4)


@pytest.mark.parametrize("width", [24, 64, 136])
def test_a_norm_and_the_order_of_a_step(width: int) -> None:
    rng = np.random.default_rng(8)
    x = rng.standard_normal((3, width)).astype(np.float32)
    norm = rng.random(width).astype(np.float32)
    y, ordered = np.full((3, width), np.nan, np.float16), np.full((3, width), np.nan, np.float32)
    launch(normalize, (3,), x, norm, y, K=width, BLOCK=256, EPS=EPS)
    launch(to_step_order, (3,), x, ordered, K=width, BLOCK=256)
    assert_near(y, normed(x, norm), 6e-4)
    assert (ordered == strands(x)).all()


def test_accesses_outside_an_array_are_noticed() -> None:
    """The watch on memory itself: an array one element too short, for reading and for writing."""
    rng = np.random.default_rng(9)
    weights = random_weights(rng, 16, 64, 4, 32)
    x, y = np.ones((1, 64), np.float32), np.empty((1, 16), np.float32)
    run_product(weights, x, y)
    with pytest.raises(OutOfBounds, match="reads"):
        run_product(weights, x[:, :63], y)
    with pytest.raises(OutOfBounds, match="writes"):
        run_product(weights, x, y[:, :15])
