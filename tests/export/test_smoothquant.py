"""Smoothing moves loudness between tensors and changes no value that comes out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vl3edge.export.calibrate.smoothquant import find_smoothquant
from vl3edge.export.calibrate.vision import calibrate_vision
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.demo.twin import write_outlier_twin
from vl3edge.models.vision import VisionEncoder
from vl3edge.models.weight_map import load

FRAMES = np.random.default_rng(0).integers(0, 256, (2, 56, 84, 3), dtype=np.uint8)


@pytest.mark.parametrize("layout", ["transformers", "authors"])
@torch.inference_mode()
def test_the_smoothed_encoder_is_the_same_function(
    checkpoints: Callable[..., Path], tmp_path: Path, layout: str
) -> None:
    source = Checkpoint.open(checkpoints("tiny", layout))
    twin = Checkpoint.open(write_outlier_twin(source, tmp_path / "twin", part="vision"))
    plain = VisionEncoder.from_checkpoint(twin)
    smoothing = calibrate_vision(twin, [FRAMES]).smoothing
    with torch.device("meta"):
        encoder = VisionEncoder(twin.config)
    load(encoder, smoothing.sources(plain.sources()), twin)
    frames = torch.from_numpy(FRAMES)
    expected, found = plain(frames), encoder(frames)
    difference = (found - expected).abs()
    assert difference.max() < 1e-6 * expected.abs().max(), f"max {difference.max():.2e}, mean {difference.mean():.2e}"
    changed = [
        name for name, weight in encoder.named_parameters() if not torch.equal(weight, plain.get_parameter(name))
    ]
    assert len(changed) == 2 * (2 + 2 + 2 + 3 + 1), changed  # norms, value weights and biases, q, k and fc1, output
    ratios = torch.cat([(encoder.get_parameter(name) / plain.get_parameter(name)).flatten() for name in changed])
    assert torch.equal(ratios.log2(), ratios.log2().round())  # powers of two, so no weight was rounded


@torch.inference_mode()
def test_loud_channels_are_evened_out(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    twin = Checkpoint.open(write_outlier_twin(Checkpoint.open(checkpoints("tiny")), tmp_path / "twin", part="vision"))
    calibration = calibrate_vision(twin, [FRAMES])
    before = calibration.largest
    with torch.device("meta"):
        encoder = VisionEncoder(twin.config)
    load(encoder, calibration.smoothing.sources(encoder.sources()), twin)
    after: dict[str, np.ndarray] = {}
    for name in before:

        def look(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            after[name] = inputs[0].abs().flatten(0, -2).amax(dim=0).numpy()

        encoder.get_submodule(name).register_forward_pre_hook(look)
    encoder(torch.from_numpy(FRAMES))
    expected = calibration.smoothing.inputs(before)
    for name in before:
        np.testing.assert_allclose(after[name], expected[name], rtol=1e-5)
        if not name.endswith(("fc2", "patch_embedding")):
            loudness = [values.max() / np.median(values) for values in (before[name], after[name])]
            assert loudness[0] > 15 > 8 > loudness[1], (name, loudness)


def test_a_channel_that_is_never_heard_keeps_its_scale(checkpoints: Callable[..., Path]) -> None:
    encoder = VisionEncoder.from_checkpoint(Checkpoint.open(checkpoints("tiny")))
    widths = {name: weight.shape[0] for name, weight in encoder.named_parameters() if weight.ndim == 2}
    silent = {name.removesuffix(".weight"): np.zeros(width, np.float32) for name, width in widths.items()}
    for name, factors in find_smoothquant(encoder, silent).read.items():
        assert np.array_equal(factors, np.ones(80, np.float32)), name


def test_tensors_as_stored_are_scaled_alike(checkpoints: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(checkpoints("tiny"))
    smoothing = calibrate_vision(checkpoint, [FRAMES]).smoothing
    with torch.device("meta"):
        sources = VisionEncoder(checkpoint.config).sources()
    for name, source in smoothing.sources(sources).items():
        stored = smoothing.stored(source.name, checkpoint.tensor(source.name, torch.float32).numpy())
        turned = sources[name].transform(torch.from_numpy(stored)).numpy()
        assert np.array_equal(turned, source.read(checkpoint).numpy()), name
