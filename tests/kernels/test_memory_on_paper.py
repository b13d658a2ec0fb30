"""The table of a GPU's memory in docs/gpu.md: its sums are the script's, and those of the decoder what a card took."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch")

from memory_gpu import RESULTS, SIZES, decoder_terms, released, terms
from tables.gpu import gpu_memory_table
from tables.markdown import load


@pytest.mark.parametrize("size", SIZES)
def test_the_file_is_what_the_script_makes(size: str) -> None:
    known = json.loads(RESULTS.read_text(encoding="utf-8"))
    assert known[size] == terms(size)
    assert f"{sum(known[size].values()) / 1e6:,.0f} |" in gpu_memory_table()


def test_the_decoders_sums_are_what_a_card_took() -> None:
    """An H200, 1,000 tokens of a prompt and 64 of an answer; within a hundredth."""
    measured = load("gpu_h200")["figures"]
    found = decoder_terms(released("2b"), 1064, dense=True)
    held = measured["decoder_weights_and_cache_mb"]["vl3edge"]
    assert (found["decoder"] + found["cache"]) / 1e6 == pytest.approx(held, rel=1e-2)
    assert sum(found.values()) / 1e6 == pytest.approx(measured["decoder_gpu_memory_mb"]["vl3edge"], rel=1e-2)
