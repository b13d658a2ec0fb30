"""The outlier twin is the same function, and as hard to quantize as it is meant to be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.decoder import TextDecoder
from vl3edge.models.demo.twin import write_outlier_twin
from vl3edge.models.vision import VisionEncoder


@pytest.mark.parametrize("layout", ["transformers", "authors"])
@torch.inference_mode()
def test_twin_is_the_same_function_with_louder_channels(
    checkpoints: Callable[..., Path], tmp_path: Path, layout: str
) -> None:
    source = Checkpoint.open(checkpoints("tiny", layout))
    twin = Checkpoint.open(write_outlier_twin(source, tmp_path / "twin", seed=1))
    decoders = [TextDecoder.from_checkpoint(checkpoint) for checkpoint in (source, twin)]
    x = torch.randn(1, 40, 96, generator=torch.Generator().manual_seed(0))
    loudest: list[list[float]] = []
    logits = []
    for decoder in decoders:
        found: list[float] = []
        for name, module in decoder.named_modules():
            if name.endswith("_proj"):
                module.register_forward_pre_hook(
                    lambda _, args, found=found: found.append(
                        float(
                            args[0].square().mean((0, 1)).sqrt().max() / args[0].square().mean((0, 1)).sqrt().median()
                        )
                    )
                )
        logits.append(decoder(x)[0])
        loudest.append(found)
    difference = (logits[0] - logits[1]).abs()
    assert difference.max() < 1e-4 * logits[0].abs().max(), f"max {difference.max():.2e}, mean {difference.mean():.2e}"
    ratio = [b / a for a, b in zip(*loudest, strict=True)]
    assert min(ratio) > 3, f"{min(ratio):.1f}"
    assert max(loudest[1]) > 20
    assert torch.equal(source.tensor("lm_head.weight"), twin.tensor("lm_head.weight"))


@torch.inference_mode()
def test_a_twin_with_a_loud_encoder(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    source = Checkpoint.open(checkpoints("tiny"))
    twin = Checkpoint.open(write_outlier_twin(source, tmp_path / "twin", part="vision"))
    frames = torch.randint(256, (2, 56, 42, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    inputs: dict[str, list[torch.Tensor]] = {}
    features = []
    for checkpoint in (source, twin):
        encoder = VisionEncoder.from_checkpoint(checkpoint)
        for name, module in encoder.named_modules():
            if name.endswith(("_proj", "fc1")):
                module.register_forward_pre_hook(
                    lambda _, args, name=name: inputs.setdefault(name, []).append(args[0].flatten(0, -2))
                )
        features.append(encoder(frames))
    difference = (features[0] - features[1]).abs()
    assert difference.max() < 1e-5 * features[0].abs().max(), f"max {difference.max():.2e}"
    for name, (plain, loud) in inputs.items():
        ratio = loud.square().mean(0).sqrt() / plain.square().mean(0).sqrt()
        assert ratio.max() > 7, name
        assert ratio.median() == pytest.approx(1, rel=1e-4), name
