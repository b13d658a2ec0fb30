"""The torch modules compute what transformers computes, from checkpoints of both layouts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from reference import VisualInput, load_reference, reference_features, reference_tokens

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.config import ModelConfig
from vl3edge.models.decoder import DecoderLayer, TextDecoder, rotary
from vl3edge.models.projector import Projector
from vl3edge.models.synthetic.random import preset, write_random_checkpoint
from vl3edge.models.vision import VisionEncoder

TOLERANCE = 1e-4


def exact_gelu(config: ModelConfig) -> ModelConfig:
    vision = replace(config.vision, hidden_act="gelu", num_heads=2)
    return replace(
        config,
        vision=vision,
        image_mean=(0.48, 0.46, 0.41),
        image_std=(0.27, 0.26, 0.28),
    )


CASES = {
    "tiny": preset("tiny"),
    "tiny-authors": preset("tiny", "authors"),
    "tiny-untied": preset("tiny-untied"),
    "tiny-untied-authors": preset("tiny-untied", "authors"),
    "other-activation-mean-std": exact_gelu(preset("tiny")),
}


@pytest.fixture(scope="module", params=CASES, ids=list(CASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Any]:
    """A checkpoint, and transformers' model with its weights."""
    folder = tmp_path_factory.mktemp("checkpoint")
    shards = 1 if request.param == "tiny" else 3
    write_random_checkpoint(folder, CASES[request.param], seed=5, shards=shards)
    return Checkpoint.open(folder), load_reference(folder)


def assert_close(actual: Any, expected: Any) -> None:
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    difference = np.abs(actual - expected)
    assert difference.max() < TOLERANCE, f"max {difference.max():.2e}, mean {difference.mean():.2e}"


def random_frames(*shape: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("grid", [(1, 1), (1, 7), (5, 3), (6, 8)], ids=str)
def test_features_equal_transformers(pair: tuple[Checkpoint, Any], grid: tuple[int, int]) -> None:
    checkpoint, model = pair
    frames = random_frames(3, grid[0] * 14, grid[1] * 14, 3)
    with torch.inference_mode():
        features = VisionEncoder.from_checkpoint(checkpoint)(torch.from_numpy(frames))
    assert_close(features, reference_features(model, checkpoint.config, frames))


@pytest.mark.parametrize(("merge_size", "grid"), [(1, (3, 5)), (2, (2, 2)), (2, (6, 10)), (3, (3, 9)), (4, (4, 8))])
def test_tokens_equal_transformers(pair: tuple[Checkpoint, Any], merge_size: int, grid: tuple[int, int]) -> None:
    checkpoint, model = pair
    frames = random_frames(2, grid[0] * 14, grid[1] * 14, 3)
    merged = (2, grid[0] // merge_size, grid[1] // merge_size)
    mask = np.random.default_rng(2).random(merged) < 0.6
    mask[0] = True
    with torch.inference_mode():
        features = VisionEncoder.from_checkpoint(checkpoint)(torch.from_numpy(frames))
        keep = torch.from_numpy(np.flatnonzero(mask))
        tokens = Projector.from_checkpoint(checkpoint, merge_size)(features, keep)
    assert_close(tokens, reference_tokens(model, checkpoint.config, VisualInput(frames, merge_size, mask)))


def test_logits_equal_transformers(pair: tuple[Checkpoint, Any]) -> None:
    checkpoint, model = pair
    decoder = TextDecoder.from_checkpoint(checkpoint)
    ids = torch.randint(0, checkpoint.config.text.vocab_size, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits, _ = decoder(decoder.embed_tokens(ids))
        assert_close(logits, model(input_ids=ids).logits)


def test_cached_pieces_equal_one_pass(pair: tuple[Checkpoint, Any]) -> None:
    """A prompt in pieces of several lengths, one of them a single token, gives the logits of the whole."""
    checkpoint, _ = pair
    decoder = TextDecoder.from_checkpoint(checkpoint)
    hidden = torch.randn(2, 23, checkpoint.config.text.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole, _ = decoder(hidden)
        pieces, cache = [], None
        for piece in hidden.split([9, 1, 12, 1], dim=1):
            logits, cache = decoder(piece, cache)
            pieces.append(logits)
    assert_close(torch.cat(pieces, dim=1), whole)


def test_layer_by_layer_equals_decoder(pair: tuple[Checkpoint, Any]) -> None:
    checkpoint, _ = pair
    text = checkpoint.config.text
    decoder = TextDecoder.from_checkpoint(checkpoint)
    start = torch.randn(1, 11, text.hidden_size, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        hidden = start
        for i in range(text.num_layers):
            hidden, _ = DecoderLayer.from_checkpoint(checkpoint, i)(hidden, rotary(text, 0, 11))
        assert torch.equal(decoder.lm_head(decoder.norm(hidden)), decoder(start)[0])


def test_far_positions_equal_transformers(tmp_path: Path) -> None:
    """Positions past 16 thousand, where a frequency off by one bit would already turn the last pairs."""
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path, preset("tiny")))
    model = load_reference(tmp_path)
    positions = torch.arange(16000, 16040)[None]
    cos, sin = rotary(checkpoint.config.text, 16000, 40)
    expected_cos, expected_sin = model.model.language_model.rotary_emb(torch.zeros(1), positions)
    assert torch.equal(cos, expected_cos[0])
    assert torch.equal(sin, expected_sin[0])
