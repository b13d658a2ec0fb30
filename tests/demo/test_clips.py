"""Clips: H.264 on disk, sampled as the runtime samples, pruned as the runtime prunes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vl3edge.models.demo.clips import (
    decode_sampled,
    diff_prune,
    encode_mp4,
    keep_above,
    make_clip,
    token_differences,
    write_clip,
)
from vl3edge.models.demo.render import HELD_OUT_SEED, random_scene, source_frames
from vl3edge.runtime.media.video import read_video
from vl3edge.runtime.vision.difffp import keep_mask

FIXTURE = Path(__file__).parent.parent / "fixtures" / "demo_clip.mp4"


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_runtime_samples_a_written_clip_as_training_does(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "clip.mp4"
    scene = write_clip(path, seed, noise=1.0)
    assert scene == random_scene(HELD_OUT_SEED + seed)
    video = read_video(path)
    assert list(video.timestamps_s) == [float(n) for n in range(scene.frames)]
    np.testing.assert_array_equal(video.frames, decode_sampled(path.read_bytes(), scene.fps))


def test_decoded_frames_are_near_the_drawn_ones() -> None:
    scene = random_scene(3)
    drawn = source_frames(scene)
    decoded = decode_sampled(encode_mp4(drawn, scene.fps, crf=20), scene.fps)
    difference = np.abs(decoded.astype(int) - drawn[scene.fps - 1 :: scene.fps]).mean(axis=(1, 2, 3))
    assert 0 < difference.max() < 8, f"H.264 changes pixels by {difference} levels on average"


@pytest.mark.parametrize("threshold", [0.1, 1.0, 8.0, 60.0])
def test_pruning_agrees_with_the_runtime(threshold: float) -> None:
    frames = make_clip(11).frames
    expected = keep_mask(frames, 14, 2, threshold=threshold).reshape(len(frames), 4, 4)
    np.testing.assert_array_equal(diff_prune(frames, threshold), expected)
    np.testing.assert_array_equal(keep_above(token_differences(frames), threshold), expected)


def test_without_a_threshold_every_token_is_kept() -> None:
    frames = make_clip(11).frames
    assert diff_prune(frames, None).all()
    assert keep_above(token_differences(frames), None).all()
    assert diff_prune(frames[:1], 0.1).all()


def test_committed_clip_is_what_its_command_writes(tmp_path: Path) -> None:
    """Encoders of other FFmpeg versions may write other bytes, so the pictures are compared, not the files."""
    scene = write_clip(tmp_path / "again.mp4", 26)
    ours = decode_sampled(FIXTURE.read_bytes(), scene.fps).astype(int)
    again = decode_sampled((tmp_path / "again.mp4").read_bytes(), scene.fps)
    difference = np.abs(ours - again)
    assert difference.mean() < 2, f"max {difference.max()}, mean {difference.mean()}"
