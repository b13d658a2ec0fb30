"""What counts as a change: cuts and movement, once each; not noise, not what moves in the distance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vl3edge.models.demo.render import HELD_OUT_SEED, random_scene, source_frames
from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.errors import ConfigError
from vl3edge.runtime.live.change import ChangeDetector
from vl3edge.runtime.media.video import read_video


@pytest.mark.parametrize("fps", [1.0, 2.0])
def test_the_cuts_of_a_real_clip(media: Path, fps: float) -> None:
    clip = read_video(media / "nasa_13013.mp4", SamplingPlan(fps=fps))
    detector = ChangeDetector()
    changes = [t for t, frame in zip(clip.timestamps_s, clip.frames, strict=True) if detector.push(frame, t)]
    assert len(changes) == 2  # a dissolve that takes half a second, and a cut to a camera that pans
    assert 4.5 <= changes[0] <= 5.0
    assert 7.5 <= changes[1] <= 8.0


@pytest.mark.parametrize("sigma", [1.0, 4.0, 8.0])
def test_noise_is_no_change(sigma: float) -> None:
    rng = np.random.default_rng(0)
    ground = rng.uniform(20, 235, (180, 320, 3))
    frames = np.clip(ground + rng.normal(0, sigma, (20, 180, 320, 3)), 0, 255).astype(np.uint8)
    detector = ChangeDetector()
    assert not any(detector.push(frame, t) for t, frame in enumerate(frames))


def test_a_movement_is_one_change() -> None:
    scene = random_scene(HELD_OUT_SEED + 702)
    assert (scene.wait_s, scene.legs, scene.rest_s) == (1, (("up", 3), ("right", 3)), 1)
    frames = source_frames(scene, noise=2.0)[scene.fps - 1 :: scene.fps]
    detector = ChangeDetector()
    assert [t for t, frame in enumerate(frames) if detector.push(frame, t)] == [2]  # the first frame on its way


def test_calm_between_changes() -> None:
    black, white = np.zeros((56, 56, 3), np.uint8), np.full((56, 56, 3), 255, np.uint8)
    shown = [black, white, white, black, black, black, white]
    detector = ChangeDetector(calm_s=2.0)
    assert [t for t, frame in enumerate(shown) if detector.push(frame, t)] == [1, 6]  # 3 follows 1 too soon


def test_another_size_is_a_change() -> None:
    detector = ChangeDetector()
    assert not detector.push(np.zeros((56, 56, 3), np.uint8), 0.0)
    assert detector.push(np.zeros((84, 56, 3), np.uint8), 1.0)


def test_frames_smaller_than_a_block() -> None:
    detector = ChangeDetector()
    assert not detector.push(np.zeros((10, 20, 3), np.uint8), 0.0)
    assert detector.push(np.full((10, 20, 3), 90, np.uint8), 1.0)


@pytest.mark.parametrize("share", [-0.1, 1.0, float("nan")])
def test_bad_share(share: float) -> None:
    with pytest.raises(ConfigError, match="from 0 to 1"):
        ChangeDetector(share)
