"""The threshold chosen for a clip: noise is told from motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vl3edge.models.demo.clips import write_clip
from vl3edge.runtime import PruningConfig, VideoLlama3
from vl3edge.runtime.errors import ConfigError
from vl3edge.runtime.vision.difffp import keep_mask, token_differences
from vl3edge.runtime.vision.difffp_threshold import (
    NOISE_LIMIT,
    choose_threshold,
    noise_threshold,
)
from vl3edge.runtime.vision.engines import VisionEngines

CLIP = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 7))


def first_whole(differences: np.ndarray) -> np.ndarray:
    differences[0] = np.inf
    return differences


def test_a_number_stays_as_it_is() -> None:
    differences = first_whole(np.arange(12.0).reshape(3, 4))
    assert choose_threshold(differences, PruningConfig(7.5, max_visual_tokens=6)) == 7.5
    auto = choose_threshold(differences, PruningConfig("auto", max_visual_tokens=6))
    assert auto == noise_threshold(differences)


def camera(noise: float, moving: float, frames: int = 8, size: int = 224) -> tuple[np.ndarray, np.ndarray]:
    """A textured picture whose upper part scrolls, with sensor noise: frames uint8 [F, H, W, 3], and per token whether
    it moves. moving: share of the rows that scroll."""
    rng = np.random.default_rng(1)
    texture = rng.normal(0, 1, (size // 4 + 40, size // 4, 3)).repeat(4, axis=0).repeat(4, axis=1) * 30 + 128
    rows = round(moving * size / 28) * 28
    clip = np.stack([texture[:size]] * frames)
    for n in range(frames):
        clip[n, :rows] = texture[5 * n : 5 * n + rows]
    clip += rng.normal(0, noise, clip.shape)
    truth = np.zeros((size // 28, size // 28), bool)
    truth[: rows // 28] = True
    return np.clip(np.rint(clip), 0, 255).astype(np.uint8), truth.ravel()


@pytest.mark.parametrize("noise", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("moving", [0.0, 0.25, 0.5])
def test_noise_is_told_from_motion(noise: float, moving: float) -> None:
    frames, truth = camera(noise, moving)
    threshold = noise_threshold(token_differences(frames, 14, 2))
    keep = keep_mask(frames, 14, 2, threshold=threshold)[1:]
    assert keep[:, truth].all(), "motion is dropped"
    idle = keep[:, ~truth].sum() - (0 if truth.any() else len(keep))  # of an idle frame the first token stays
    assert idle <= 0.02 * keep[:, ~truth].size, "noise is kept"
    assert keep_mask(frames, 14, 2)[1:].all(), "the released threshold prunes nothing"


def test_clips_without_noise_take_the_released_threshold() -> None:
    for moving in (0.0, 0.25, 0.5, 0.75):
        frames, _ = camera(0.0, moving)
        assert noise_threshold(token_differences(frames, 14, 2)) == pytest.approx(0.1)


def test_when_everything_moves_nothing_counts_as_noise() -> None:
    frames, _ = camera(2.0, 1.0)
    assert noise_threshold(token_differences(frames, 14, 2)) == 0.1
    # As measured on a hand-held clip: 90 % above 5, 41 % above 25.5.
    shaken = first_whole(np.exp(np.random.default_rng(0).normal(3.0, 1.08, (60, 200))))
    assert noise_threshold(shaken) == 0.1


@settings(max_examples=200, deadline=None)
@given(SHAPES.flatmap(lambda shape: arrays(np.float64, shape, elements=st.floats(0, 510))).map(first_whole))
def test_automatic_threshold_stays_between_the_released_and_the_limit(differences: np.ndarray) -> None:
    assert 0.1 <= noise_threshold(differences) <= NOISE_LIMIT


def test_h264_noise_of_a_real_clip(tmp_path: Path) -> None:
    """Sensor noise through H.264: what stays of it is pruned, and the moving shape is not."""
    scene = write_clip(tmp_path / "noisy.mp4", 26, noise=4.0, crf=18)
    write_clip(tmp_path / "clean.mp4", 26)
    model = VideoLlama3.load()
    fixed, auto = (model.encode(tmp_path / "noisy.mp4", pruning=PruningConfig(t)) for t in (0.1, "auto"))
    clean = model.encode(tmp_path / "clean.mp4")
    assert scene.frames == clean.num_frames
    assert fixed.num_pruned == 0
    assert auto.num_tokens <= clean.num_tokens
    moved = [kept for kept in clean.tokens_per_frame if kept > 1]
    assert sum(kept > 1 for kept in auto.tokens_per_frame) >= len(moved) - 1


@pytest.fixture(scope="module")
def model() -> VideoLlama3:
    return VideoLlama3.load()


@pytest.mark.parametrize("beside", [False, True], ids=["alternating", "beside"])
def test_a_chosen_threshold_gives_the_tokens_of_that_threshold(
    model: VideoLlama3, monkeypatch: pytest.MonkeyPatch, beside: bool
) -> None:
    monkeypatch.setattr(VisionEngines, "runs_beside_decoder", beside)
    monkeypatch.setattr(VisionEngines, "frames_per_call", lambda *_: 4)  # chunks with pairs across their borders
    clip = model.encode(CLIP, pruning=PruningConfig("auto"))
    assert clip.threshold is not None
    same = model.encode(CLIP, pruning=PruningConfig(clip.threshold))
    assert (same.tokens_per_frame, same.num_pruned, same.threshold) == (
        clip.tokens_per_frame,
        clip.num_pruned,
        clip.threshold,
    )
    np.testing.assert_array_equal(same.visual.tokens, clip.visual.tokens)


def test_a_stream_cannot_know_its_end(model: VideoLlama3) -> None:
    for pruning in (PruningConfig("auto"), PruningConfig(max_visual_tokens=100)):
        with pytest.raises(ConfigError, match="threshold must be a number"):
            model.open_session(pruning=pruning).push(np.zeros((112, 112, 3), np.uint8), 0.0)


def test_settings_that_cannot_work_are_refused() -> None:
    for threshold in (-1.0, float("nan"), float("inf"), "0.5", "low"):
        with pytest.raises(ConfigError, match="threshold must be a number, 0 or more, or 'auto'"):
            PruningConfig(threshold)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="max_visual_tokens must be at least 1"):
        PruningConfig(max_visual_tokens=0)
