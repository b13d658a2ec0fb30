"""Embedding rows and choices of tokens against the runtime's own table and sampler."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton")

from interpreted import launch
from weights import random_weights, strands

from vl3edge.export.kernels.tokens import best_of_block, choose, embed
from vl3edge.runtime.config import GenerationConfig
from vl3edge.runtime.decode.sampler import filtered_probabilities
from vl3edge.runtime.prompt.splice import EmbeddingTable

VOCABULARY, TRAIL = 53, 8


def table_file(path: Path, parts: dict[str, np.ndarray]) -> EmbeddingTable:
    """The runtime's table of these tensors, written as safetensors."""
    names = {np.dtype(np.uint8): "U8", np.dtype(np.float16): "F16", np.dtype(np.float32): "F32"}
    entries, offset = {}, 0
    for name, array in parts.items():
        spans = [offset, offset + array.nbytes]
        entries[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": spans}
        offset += array.nbytes
    header = json.dumps(entries).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"".join(a.tobytes() for a in parts.values()))
    hidden = 96
    return EmbeddingTable(path, VOCABULARY, hidden)


@pytest.mark.parametrize(("bits", "zeros"), [(4, False), (4, True), (8, False), (8, True), (16, False), (32, False)])
@pytest.mark.parametrize("in_step_order", [False, True])
def test_rows_are_those_of_the_runtimes_table(bits: int, zeros: bool, in_step_order: bool, tmp_path: Path) -> None:
    rng = np.random.default_rng(bits)
    parts: dict[str, np.ndarray]
    if bits >= 16:
        parts = {"embeddings": rng.standard_normal((VOCABULARY, 96)).astype(np.float16 if bits == 16 else np.float32)}
        tensors = (parts["embeddings"], None, None)
    else:
        weights = random_weights(rng, VOCABULARY, 96, bits, 32, zeros)
        assert weights.scales is not None
        parts = {"codes": weights.codes.view(np.uint8), "scales": weights.scales}
        if weights.zeros is not None:
            parts["zero_points"] = weights.zeros
        tensors = (parts["codes"], weights.scales, weights.zeros)
    tokens = np.array([0, 52, -1, 7, 53, 1 << 40], np.int64)
    x = np.full((6, 96), 5.0, np.float32)
    launch(
        embed, (6,), tokens, *tensors, x, VOCABULARY,
        K=96, BITS=bits, GROUP=32, ZEROS=zeros, BLOCK=128, STRANDS=in_step_order,
    )  # fmt: skip
    wanted = np.full((6, 96), 5.0, np.float32)
    rows = table_file(tmp_path / "embeddings.safetensors", parts).rows(tokens[[0, 1, 3]])
    wanted[[0, 1, 3]] = strands(rows) if in_step_order else rows
    assert (x == wanted).all()


class Chooser:
    """Rows of logits, and all that a choice reads and writes."""

    def __init__(self, logits: np.ndarray) -> None:
        self.logits = np.ascontiguousarray(logits, np.float32)
        rows = len(logits)
        self.temperatures, self.top_k = np.zeros(rows, np.float32), np.zeros(rows, np.int32)
        self.draws = np.zeros((rows, TRAIL), np.float32)
        self.tokens, self.trail = np.full(rows, -7, np.int64), np.full((rows, TRAIL), -7, np.int64)
        self.lengths = np.arange(rows, dtype=np.int32) * 5 + 3

    def run(self, block: int = 16, grown: int = 1) -> np.ndarray:
        rows, vocabulary = self.logits.shape
        blocks = -(-vocabulary // block)
        values, ids = np.empty((rows, blocks), np.float32), np.empty((rows, blocks), np.int32)
        launch(best_of_block, (blocks, rows), self.logits, values, ids, vocabulary, BLOCK=block)
        launch(
            choose, (rows,), self.logits, values, ids, self.temperatures, self.top_k, self.draws, self.tokens,
            self.trail, self.lengths, vocabulary, blocks, grown,
            BLOCK=block, BLOCKS=1 << (blocks - 1).bit_length(), TRAIL=TRAIL,
        )  # fmt: skip
        return self.tokens


def test_the_greedy_choice_is_the_lowest_of_the_best() -> None:
    rng = np.random.default_rng(0)
    logits = rng.integers(-3, 3, (6, VOCABULARY)).astype(np.float32)  # many ties, within blocks and across them
    logits[5] = -np.inf
    logits[5, 40] = -1e30
    chooser = Chooser(logits)
    assert (chooser.run() == logits.argmax(1)).all()
    assert (chooser.lengths == np.arange(6) * 5 + 4).all()
    for row, length in enumerate(chooser.lengths):
        assert chooser.trail[row, length % TRAIL] == chooser.tokens[row]
        assert (chooser.trail[row] != -7).sum() == 1


@pytest.mark.parametrize("block", [16, 64])
def test_logits_of_nan_or_infinity_give_0_so_that_they_are_looked_at(block: int) -> None:
    logits = np.random.default_rng(1).standard_normal((6, VOCABULARY)).astype(np.float32)
    logits[:, 0] = -50
    logits[0] = np.nan
    logits[1, 20] = np.nan
    logits[2, 52] = np.inf
    logits[3] = -np.inf
    logits[4, 7] = -np.inf  # the best is finite
    chooser = Chooser(logits)
    chooser.temperatures[:] = 0, 0.7, 0.7, 0.7, 0, 0
    assert chooser.run(block).tolist() == [0, 0, 0, 0, int(logits[4].argmax()), int(logits[5].argmax())]


def test_a_row_that_is_switched_off_keeps_its_length_and_leaves_no_trail() -> None:
    chooser = Chooser(np.random.default_rng(2).standard_normal((2, VOCABULARY)))
    chooser.lengths[0] = -3
    chooser.run(grown=4)
    assert chooser.lengths.tolist() == [-3, 12]
    assert (chooser.trail[0] == -7).all()
    assert chooser.trail[1, 12 % TRAIL] == chooser.tokens[1]


def test_a_zero_ties_with_the_other_zero() -> None:
    logits = np.full((4, VOCABULARY), -1, np.float32)
    zeros = [3, 20, 21, 50]
    logits[:, zeros] = [0.0, -0.0, 0.0, -0.0]
    chooser = Chooser(logits)
    chooser.temperatures[:], chooser.top_k[:] = 1, 1
    chooser.draws[:] = np.array([0.1, 0.3, 0.6, 0.9])[:, None]
    assert chooser.run().tolist() == zeros


@pytest.mark.parametrize(
    ("temperature", "top_k"), [(1.0, 0), (0.6, 5), (3.0, 1), (0.05, 0), (2.0, VOCABULARY), (1.5, 17)]
)
def test_draws_fall_where_the_runtimes_sampler_has_them(temperature: float, top_k: int) -> None:
    rng = np.random.default_rng(top_k)
    rows = 5
    logits = rng.integers(-20, 20, (rows, VOCABULARY)).astype(np.float32) / 4  # ties with the k-th
    chooser = Chooser(logits)
    chooser.temperatures[:], chooser.top_k[:] = temperature, top_k
    chooser.draws[:] = rng.random((rows, TRAIL)).astype(np.float32)
    chooser.draws[3], chooser.draws[4] = 0, np.nextafter(np.float32(1), np.float32(0))
    tokens = chooser.run()
    for row in range(rows):
        config = GenerationConfig(temperature=temperature, top_k=top_k)
        probabilities = filtered_probabilities(logits[row], config)
        ends = np.cumsum(probabilities)
        draw = chooser.draws[row, chooser.lengths[row] % TRAIL]
        assert probabilities[tokens[row]] > 0
        assert ends[tokens[row]] - probabilities[tokens[row]] - 1e-6 <= draw <= ends[tokens[row]] + 1e-6
