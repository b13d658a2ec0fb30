"""Thresholds chosen for a clip: a budget is met with the smallest threshold, noise is told from motion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vl3edge.models.demo.clips import write_clip
from vl3edge.runtime import PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.errors import ConfigError, MediaError
from vl3edge.runtime.vision.difffp import keep_mask, token_differences
from vl3edge.runtime.vision.difffp_threshold import (
    NOISE_LIMIT,
    budget_threshold,
    choose_threshold,
    fewest_tokens,
    noise_threshold,
)
from vl3edge.runtime.vision.engines import VisionEngines

CLIP = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 7))
# Few different values, so that ties are common.
DIFFERENCES = SHAPES.flatmap(lambda shape: arrays(np.float64, shape, elements=st.sampled_from([0, 0.05, 0.1, 1, 2, 9])))


def kept(differences: np.ndarray, threshold: float) -> int:
    """Tokens kept of a clip, by DiffFP's rule written out."""
    first, *others = differences.tolist()
    return len(first) + sum(max(1, sum(value > threshold for value in frame)) for frame in others)


def first_whole(differences: np.ndarray) -> np.ndarray:
    differences[0] = np.inf
    return differences


@settings(max_examples=300, deadline=None)
@given(DIFFERENCES.map(first_whole), st.integers(0, 40))
def test_budget_is_met_by_the_smallest_threshold(differences: np.ndarray, spare: int) -> None:
    budget = fewest_tokens(*differences.shape) + spare
    threshold = budget_threshold(differences, budget)
    assert threshold >= 0
    assert kept(differences, threshold) <= budget
    if threshold > 0:
        assert kept(differences, np.nextafter(threshold, 0)) > budget
    highest = kept(differences, np.inf)
    assert fewest_tokens(*differences.shape) == highest
    with pytest.raises(ValueError, match=f"fewer than the {highest}"):
        budget_threshold(differences, highest - 1)


def test_without_ties_every_budget_is_used_up() -> None:
    differences = first_whole(np.random.default_rng(0).random((5, 8)))
    for budget in range(12, 41):
        assert kept(differences, budget_threshold(differences, budget)) == budget


def test_a_budget_comes_on_top_of_a_threshold() -> None:
    differences = first_whole(np.arange(12.0).reshape(3, 4))
    assert choose_threshold(differences, PruningConfig(7.5)) == 7.5
    assert choose_threshold(differences, PruningConfig(7.5, max_visual_tokens=12)) == 7.5
    assert choose_threshold(differences, PruningConfig(7.5, max_visual_tokens=6)) == 10
    auto = choose_threshold(differences, PruningConfig("auto"))
    assert auto == noise_threshold(differences)
    assert choose_threshold(differences, PruningConfig("auto", max_visual_tokens=12)) == auto


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


CHOICES = {
    "auto": PruningConfig("auto"),
    "budget": PruningConfig(max_visual_tokens=60),
    "fewest": PruningConfig(max_visual_tokens=24),
    "ample": PruningConfig(max_visual_tokens=10_000),
    "both": PruningConfig("auto", max_visual_tokens=70),
    "on top": PruningConfig(5.0, max_visual_tokens=130),
}


@pytest.mark.parametrize("beside", [False, True], ids=["alternating", "beside"])
@pytest.mark.parametrize("name", CHOICES)
def test_a_chosen_threshold_gives_the_tokens_of_that_threshold(
    model: VideoLlama3, monkeypatch: pytest.MonkeyPatch, name: str, beside: bool
) -> None:
    monkeypatch.setattr(VisionEngines, "runs_beside_decoder", beside)
    monkeypatch.setattr(VisionEngines, "frames_per_call", lambda *_: 4)  # chunks with pairs across their borders
    pruning = CHOICES[name]
    clip = model.encode(CLIP, pruning=pruning)
    assert clip.threshold is not None
    same = model.encode(CLIP, pruning=PruningConfig(clip.threshold))
    assert (same.tokens_per_frame, same.num_pruned, same.threshold) == (
        clip.tokens_per_frame,
        clip.num_pruned,
        clip.threshold,
    )
    np.testing.assert_array_equal(same.visual.tokens, clip.visual.tokens)
    if pruning.max_visual_tokens is not None:
        assert clip.num_tokens <= pruning.max_visual_tokens
    if name == "fewest":
        assert clip.tokens_per_frame == (16, 1, 1, 1, 1, 1, 1, 1, 1)
    if name in ("ample", "on top"):
        assert clip.threshold == (0.1 if name == "ample" else 5.0)


def test_real_clips_meet_budgets(model: VideoLlama3, media: Path) -> None:
    plan = SamplingPlan(fps=2.0, max_frames=12)
    whole = model.encode(media / "nasa_13013.mp4", plan, PruningConfig(enabled=False))
    assert whole.threshold is None
    for share in (0.75, 0.5, 0.25):
        budget = int(share * whole.num_tokens)
        clip = model.encode(media / "nasa_13013.mp4", plan, PruningConfig(max_visual_tokens=budget))
        assert 0.98 * budget <= clip.num_tokens <= budget


def test_what_cannot_be_pruned(model: VideoLlama3, media: Path) -> None:
    tight = PruningConfig(max_visual_tokens=23)
    with pytest.raises(MediaError, match=r"demo_clip\.mp4: pruning leaves at least 24 .* but 23 are allowed"):
        model.begin(CLIP, pruning=tight)  # before anything is read
    picture = model.encode(media / "cat.jpg", pruning=tight)
    assert picture.num_tokens > 23
    assert (picture.threshold, picture.num_pruned) == (None, 0)
    with pytest.raises(MediaError, match="sample fewer frames"):
        model.encode(np.zeros((3, 112, 112, 3), np.uint8), pruning=PruningConfig(max_visual_tokens=5))


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
    with pytest.raises(ConfigError, match="needs pruning"):
        PruningConfig(enabled=False, max_visual_tokens=100)
