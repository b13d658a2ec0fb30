"""Keys turned to another position equal keys made there, by the graph's own tables and by the graph itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import DecoderGraph
from vl3edge.runtime.decode.rope import Rotary
from vl3edge.runtime.errors import BundleError


def rotated(keys: np.ndarray, positions: np.ndarray, theta: float, head_dim: int) -> np.ndarray:
    """Keys [heads, positions, padded head_dim] rotated as the graph does it, with its tables."""
    from vl3edge.export.graphs.decoder import rotary_tables

    cos, sin = (table[positions] for table in rotary_tables(head_dim, theta, int(positions.max()) + 1))
    first, second = np.split(keys, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@pytest.mark.torch
@pytest.mark.parametrize(("head_dim", "theta"), [(24, 1e4), (32, 1e4), (128, 1e6)])
@pytest.mark.parametrize(("source", "target", "count"), [(5, 2, 9), (30_000, 17, 2_500), (1_500, 1_499, 1_200)])
def test_moved_keys_equal_keys_made_there(head_dim: int, theta: float, source: int, target: int, count: int) -> None:
    from vl3edge.export.tensor_source import pad_heads, padded_head_dim

    random = np.random.default_rng(0)
    plain = random.standard_normal((count, 2, head_dim)).astype(np.float32)
    plain = np.stack([pad_heads(row.reshape(-1), head_dim).reshape(2, -1) for row in plain]).transpose(1, 0, 2)
    keys = np.zeros((2, source + count, padded_head_dim(head_dim)), np.float32)
    keys[:, source:] = rotated(plain, np.arange(source, source + count), theta, head_dim)
    moved = Rotary(theta, head_dim, padded_head_dim(head_dim)).rotated(keys[:, source:], source, target)
    expected = rotated(plain, np.arange(target, target + count), theta, head_dim)
    difference = np.abs(moved - expected)
    assert difference.max() < 3e-6, (difference.max(), difference.mean())


def cached(decoder: Decoder) -> tuple[np.ndarray, np.ndarray]:
    """All keys and all values of a decoder's cache: float32 [layers, heads, length, head_dim] each."""
    buffers = [buffer.read_positions(0, 0, decoder.length) for buffer in decoder.cache.buffers]
    return np.stack(buffers[::2]), np.stack(buffers[1::2])


@pytest.fixture
def one_layer(one_layer_bundle: Path) -> Callable[[], Decoder]:
    """Decoders with heads of 24, which the cache widens."""
    return lambda: decoder_of(one_layer_bundle)


def decoder_of(folder: Path) -> Decoder:
    bundle = open_bundle(folder)
    return Decoder(DecoderGraph(select_backend("cpu", 1).session(bundle.path("decoder.onnx"))), bundle.manifest.text)


@pytest.mark.torch
@pytest.mark.parametrize(("start", "count"), [(0, 3), (10, 200), (600, 1), (300, 100), (50, 0)])
def test_cache_after_discard_equals_a_prefill_of_what_stayed(
    one_layer: Callable[[], Decoder], start: int, count: int
) -> None:
    ours, truth = one_layer(), one_layer()
    embeddings = np.random.default_rng(1).standard_normal((601, ours.spec.hidden_size)).astype(np.float32)
    ours.prefill(embeddings)
    ours.discard(start, count)
    truth.prefill(np.delete(embeddings, range(start, start + count), axis=0))
    assert ours.length == truth.length == 601 - count
    for kind, got, expected in zip(("keys", "values"), cached(ours), cached(truth), strict=True):
        difference = np.abs(got - expected)
        assert difference.max() < 1e-5, (kind, difference.max(), difference.mean())
    following = embeddings[:7] * 0.5
    ours.prefill(following)
    truth.prefill(following)
    difference = np.abs(ours.logits - truth.logits)
    assert difference.max() < 1e-4, (difference.max(), difference.mean())


@pytest.mark.torch
def test_replace_puts_new_tokens_where_the_old_were(one_layer: Callable[[], Decoder]) -> None:
    ours, truth = one_layer(), one_layer()
    embeddings = np.random.default_rng(2).standard_normal((300, ours.spec.hidden_size)).astype(np.float32)
    head = embeddings[:13] + 1
    ours.prefill(embeddings)
    ours.replace(20, 100, head)
    truth.prefill(np.concatenate([embeddings[:20], head, embeddings[120:]]))
    assert ours.length == 213
    for kind, got, expected in zip(("keys", "values"), cached(ours), cached(truth), strict=True):
        difference = np.abs(got - expected)
        assert difference.max() < 1e-5, (kind, difference.max(), difference.mean())


def test_first_layer_is_exact_in_a_deep_model() -> None:
    ours, truth = decoder_of(DEMO_BUNDLE), decoder_of(DEMO_BUNDLE)
    embeddings = np.random.default_rng(3).standard_normal((400, ours.spec.hidden_size)).astype(np.float32)
    ours.prefill(embeddings)
    for _ in range(5):  # turned again and again, as in a long session
        ours.discard(7, 40)
    truth.prefill(np.delete(embeddings, range(7, 207), axis=0))
    for got, expected in zip(cached(ours), cached(truth), strict=True):
        difference = np.abs(got[0] - expected[0])
        assert difference.max() < 1e-5, (difference.max(), difference.mean())


def test_bad_ranges_are_refused() -> None:
    decoder = decoder_of(DEMO_BUNDLE)
    decoder.prefill(np.zeros((10, decoder.spec.hidden_size), np.float32))
    for start, count, new in ((8, 3, 0), (-1, 2, 0), (2, -1, 0), (2, 3, 4)):
        with pytest.raises(ValueError, match="of the 10 cached"):
            decoder.replace(start, count, np.zeros((new, decoder.spec.hidden_size), np.float32))
    assert decoder.length == 10


def test_a_bundle_without_rotary_settings_says_so() -> None:
    spec = replace(open_bundle(DEMO_BUNDLE).manifest.text, rope_theta=0.0, rotary_dim=0)
    with pytest.raises(BundleError, match="Export the bundle again"):
        Rotary.of(spec)
