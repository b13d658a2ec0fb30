"""Products of a few vectors, and of prompts with weights unpacked once, against numpy, in every form of weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("triton")

from interpreted import launch
from test_products import silu
from weights import Weights, assert_near, random_weights, strands

from vl3edge.export.kernels.few import few_product
from vl3edge.export.kernels.prompt import dense_product, dequantize

# outputs, inputs, bits, group, zeros, order
FORMS: list[tuple[Any, ...]] = [
    (40, 256, 4, 128),
    (24, 384, 4, 128, True),
    (24, 256, 4, 128, True, True),
    (16, 256, 8, 64),
    (32, 256, 8, 128, True, True),
    (24, 512, 2, 256, True),
    (24, 112, 16, 16),
]


def run_few(
    weights: Weights, x: np.ndarray, y: np.ndarray, bias: np.ndarray | None = None, gate: np.ndarray | None = None,
    residual: bool = False, ordered: bool = False, pitch: int = 0, **tiles: int,
) -> None:  # fmt: skip
    """One launch; ordered: y is in a step's order."""
    tiles = {"BM": 16, "BN": 16, "C": 16, "PARTS": 1} | tiles
    (outputs, inputs), rows = weights.shape, len(x)
    blocks = -(-outputs // tiles["BN"])
    parts = np.full((blocks, tiles["PARTS"], tiles["BN"], tiles["BM"]), np.nan, np.float32)
    arrived = np.zeros(blocks, np.int32)
    launch(
        few_product, (blocks, tiles["PARTS"]),
        x, weights.places, *weights.tensors, bias, gate, y, parts, arrived, rows, outputs, pitch or y.shape[1],
        K=inputs, BIAS=bias is not None, RESIDUAL=residual, GATED=gate is not None, WIDTH=outputs if ordered else 0,
        **weights.settings(), **tiles,
    )  # fmt: skip
    assert (arrived == 0).all()


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_few_vectors_with_a_bias(form: tuple[Any, ...], parts: int) -> None:
    rng = np.random.default_rng(parts)
    weights = random_weights(rng, *form)
    x = rng.standard_normal((5, form[1])).astype(np.float16)
    bias = rng.standard_normal(form[0]).astype(np.float16)
    y = np.full((5, form[0]), np.nan, np.float32)
    run_few(weights, strands(x), y, bias=bias, PARTS=parts)
    assert_near(y, x.astype(np.float32) @ weights.dense.T + bias, 2e-6)


@pytest.mark.parametrize(("rows", "height"), [(1, 16), (8, 16), (16, 16), (17, 32), (32, 32)])
def test_rows_are_added_to_the_residual_in_a_steps_order(rows: int, height: int) -> None:
    rng = np.random.default_rng(rows)
    weights = random_weights(rng, 72, 256, 4, 128)
    x = rng.standard_normal((rows, 256)).astype(np.float16)
    residual = (1e4 * rng.standard_normal((rows, 72))).astype(np.float32)
    y = strands(residual)
    run_few(weights, strands(x), y, residual=True, ordered=True, BM=height, BN=32, PARTS=2)
    assert_near(y, strands(residual + x.astype(np.float32) @ weights.dense.T), 2e-7)


def test_a_gate_stands_where_the_product_is_written() -> None:
    rng = np.random.default_rng(3)
    weights = random_weights(rng, 40, 128, 4, 128, True)
    x = rng.standard_normal((6, 128)).astype(np.float16)
    gate = (3 * rng.standard_normal((6, 40))).astype(np.float16)
    wanted = silu(gate.astype(np.float32)) * (x.astype(np.float32) @ weights.dense.T)
    y = strands(gate)
    run_few(weights, strands(x), y, gate=y, ordered=True, PARTS=2)
    assert_near(y, strands(wanted), 6e-4)


def test_a_part_of_wider_rows() -> None:
    rng = np.random.default_rng(4)
    weights = random_weights(rng, 8, 128, 4, 128)
    x = rng.standard_normal((3, 128)).astype(np.float16)
    y = np.full((3, 24), 7, np.float16)
    run_few(weights, strands(x), y.reshape(-1)[16:].reshape(1, -1)[:, :56], pitch=24)
    assert_near(y[:, 16:], x.astype(np.float32) @ weights.dense.T, 6e-4)
    assert (y[:, :16] == 7).all()


@pytest.mark.parametrize("form", [form for form in FORMS if form[2] < 16], ids=str)
@pytest.mark.parametrize("count", [3, 40])
def test_a_prompt_with_unpacked_weights(form: tuple[Any, ...], count: int) -> None:
    rng = np.random.default_rng(count)
    weights = random_weights(rng, *form)
    outputs, inputs = weights.shape
    dense = np.full((outputs, inputs), np.nan, np.float16)
    words = inputs * weights.bits // 32
    launch(
        dequantize, (-(-outputs // 16), -(-words // 32)), weights.order, *weights.tensors, dense, outputs,
        K=inputs, BN=16, C=32, **weights.settings(),
    )  # fmt: skip
    assert (dense == weights.dense.astype(np.float16)).all()
    x = rng.standard_normal((count, inputs)).astype(np.float16)
    bias = rng.standard_normal(outputs).astype(np.float16)
    gate = rng.standard_normal((count, outputs)).astype(np.float16)
    product = x.astype(np.float32) @ dense.astype(np.float32).T
    for flags, given, wanted in (
        ({"BIAS": True}, np.full((count, outputs), np.nan, np.float16), product + bias),
        ({"RESIDUAL": True}, np.ones((count, outputs), np.float32), product + 1),
        ({"GATED": True}, gate.copy(), silu(gate.astype(np.float32)) * product),
    ):
        settings = {"BIAS": False, "RESIDUAL": False, "GATED": False} | flags
        launch(
            dense_product, (-(-count // 16) * -(-outputs // 16),),
            x, dense, bias, given, given, count, outputs, outputs,
            K=inputs, BM=16, BN=16, BK=32, TALL=2, **settings,
        )  # fmt: skip
        assert_near(given, wanted, 6e-4)
