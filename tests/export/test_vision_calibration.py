"""What the encoder is calibrated on: real frames of the user's media or scenes, small, and some of them held out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from vl3edge.export.calibrate.vision import calibrate_vision, calibration_clips
from vl3edge.export.manifest import make_manifest
from vl3edge.export.options import ExportOptions
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.synthetic.random import preset
from vl3edge.models.vision import VisionEncoder
from vl3edge.runtime.bundle.manifest import Manifest
from vl3edge.runtime.errors import MediaError


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    """With the released models' pixel budgets."""
    return make_manifest(preset("2b"), ExportOptions(), None)


def test_scenes_are_taken_when_there_are_no_media(manifest: Manifest) -> None:
    clips = calibration_clips(manifest)
    assert 25 <= sum(len(frames) for frames in clips) <= 32
    assert len({frames.shape for frames in clips}) > 3
    for frames in clips:
        assert frames.dtype == np.uint8
        assert frames.shape[1] % 28 == frames.shape[2] % 28 == 0


def test_one_video_gives_many_clips_of_two_frames(manifest: Manifest, media: Path) -> None:
    clips = calibration_clips(manifest, [str(media / "nasa_13013.mp4")])
    assert len(clips) > 4
    assert {len(frames) for frames in clips[:-1]} == {2}
    assert all(frames.shape[1] * frames.shape[2] <= 1024 * 14 * 14 for frames in clips)
    assert not np.array_equal(clips[0][0], clips[-1][-1])


def test_frames_are_no_larger_than_the_model_takes(media: Path) -> None:
    manifest = make_manifest(preset("tiny"), ExportOptions(), None)
    for source in ([], [str(media / "nasa_13013.mp4")]):
        for frames in calibration_clips(manifest, source):
            assert frames.shape[1] * frames.shape[2] <= manifest.processor.video.max_pixels


def test_what_cannot_be_read_is_skipped(manifest: Manifest, media: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    clip = str(media / "nasa_13013.mp4")
    both, one = calibration_clips(manifest, [str(broken), clip]), calibration_clips(manifest, [clip])
    assert both[0].shape == one[0].shape
    with pytest.raises(MediaError, match=r"none of the calibration media can be used: .*broken\.mp4"):
        calibration_clips(manifest, [str(broken)])
    with pytest.raises(MediaError, match="nowhere"):
        calibration_clips(manifest, [str(tmp_path / "nowhere.mp4")])


@torch.inference_mode()
def test_the_largest_inputs_are_seen_and_the_held_out_are_not(checkpoints: Callable[..., Path]) -> None:
    checkpoint = Checkpoint.open(checkpoints("tiny"))
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (1 + k % 2, 28, 42, 3), dtype=np.uint8) for k in range(3)]
    found = calibrate_vision(checkpoint, clips)
    encoder = VisionEncoder.from_checkpoint(checkpoint)
    seen: list[torch.Tensor] = []
    encoder.layers[1].mlp["fc2"].register_forward_pre_hook(lambda _, args: seen.append(args[0].abs().amax((0, 1))))
    for index in (0, 2):
        encoder(torch.from_numpy(clips[index]))
    np.testing.assert_allclose(found.largest["layers.1.mlp.fc2"], torch.stack(seen).amax(0).numpy(), rtol=1e-6)
    assert found.num_frames == 2
    assert set(found.products) == set(found.largest) - {"patch_embedding"}
    (held_out,) = found.held_out
    assert np.array_equal(held_out.frames, clips[1])
    np.testing.assert_allclose(held_out.features, encoder(torch.from_numpy(clips[1])).numpy(), atol=1e-5)
    alone = calibrate_vision(checkpoint, clips[:1])
    assert np.array_equal(alone.held_out[0].frames, clips[0])
    assert alone.num_frames == 1
