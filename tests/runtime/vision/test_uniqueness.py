"""The choice of unique tokens against its definition written out, and what it leaves of a clip."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.errors import ConfigError, MediaError
from vl3edge.runtime.vision.engines import VisionEngines
from vl3edge.runtime.vision.uniqueness import unique_tokens

CLIP = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
# Of two tokens alone, both are as unique.
PER_FRAME = st.lists(st.integers(1, 6), min_size=1, max_size=6).filter(lambda counts: sum(counts) > 2)


def cosine(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))


def mean(rows: list[list[float]]) -> list[float]:
    """Of the rows' directions."""
    units = [[x / math.hypot(*row) for x in row] for row in rows]
    return [sum(column) / len(rows) for column in zip(*units, strict=True)]


def written_out(tokens: np.ndarray, per_frame: list[int], count: int) -> list[bool]:
    """Frame by frame and token by token, in Python's own numbers."""
    rows = tokens.astype(float).tolist()
    starts = [sum(per_frame[:n]) for n in range(len(per_frame) + 1)]
    frames = [rows[a:b] for a, b in pairwise(starts)]
    clip = mean(rows)
    in_clip = [[-cosine(row, clip) for row in frame] for frame in frames]
    uniqueness = [sum(scores) / len(scores) for scores in in_clip]
    weights = [math.exp((u - max(uniqueness)) / 0.01) for u in uniqueness]
    shares = [n * (1 + w / sum(weights) - 1 / len(frames)) for n, w in zip(per_frame, weights, strict=True)]
    counts = [1] * len(frames)
    for _ in range(min(count, len(rows)) - len(frames)):
        # The next token goes to the frame that has the fewest for its share.
        open_frames = [n for n in range(len(frames)) if counts[n] < per_frame[n]]
        counts[max(open_frames, key=lambda n: (shares[n] / (counts[n] + 0.5), -n))] += 1
    kept = []
    for frame, known, few in zip(frames, in_clip, counts, strict=True):
        scores = [a - cosine(row, mean(frame)) for a, row in zip(known, frame, strict=True)]
        best = sorted(range(len(frame)), key=lambda n: (-scores[n], n))[:few]
        kept += [n in best for n in range(len(frame))]
    return kept


@settings(max_examples=200, deadline=None)
@given(PER_FRAME, st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_as_the_definition_says(per_frame: list[int], ratio: float, seed: int) -> None:
    tokens = np.random.default_rng(seed).standard_normal((sum(per_frame), 5)).astype(np.float32)
    count = round(ratio * len(tokens))
    keep = unique_tokens(tokens, per_frame, count)
    assert keep.tolist() == written_out(tokens, per_frame, count)
    assert keep.sum() == max(count, len(per_frame))


def test_what_stands_out_is_kept_and_of_equals_the_first() -> None:
    tokens = np.tile(np.array([1, 0, 0], np.float32), (12, 1))
    tokens[[2, 9]] = [0, 1, 0], [0, 0, 1]
    keep = unique_tokens(tokens, [4, 4, 4], 5)
    assert keep[[2, 9]].all()
    assert keep.reshape(3, 4).sum(axis=1).min() >= 1
    assert unique_tokens(np.ones((6, 3), np.float32), [3, 3], 2).tolist() == [True, False, False] * 2
    assert unique_tokens(np.zeros((4, 3), np.float32), [2, 2], 3).sum() == 3  # no direction at all


def test_length_of_tokens_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((40, 8)).astype(np.float32)
    longer = tokens * (2.0 ** rng.integers(-3, 4, (40, 1))).astype(np.float32)
    assert np.array_equal(unique_tokens(tokens, [10] * 4, 13), unique_tokens(longer, [10] * 4, 13))


@pytest.fixture(scope="module")
def model() -> VideoLlama3:
    return VideoLlama3.load(num_threads=1)


PRUNINGS = [{}, {"enabled": False}, {"threshold": "auto"}, {"threshold": 5.0}]


@pytest.mark.parametrize("pruning", PRUNINGS)
def test_a_share_of_what_difffp_leaves(model: VideoLlama3, pruning: dict) -> None:
    whole = model.encode(CLIP, pruning=PruningConfig(**pruning))
    some = model.encode(CLIP, pruning=PruningConfig(**pruning, keep_ratio=0.6))
    keep = unique_tokens(whole.visual.tokens, whole.tokens_per_frame, round(0.6 * whole.num_tokens))
    assert np.array_equal(some.visual.tokens, whole.visual.tokens[keep])
    assert some.num_tokens == sum(some.tokens_per_frame) == round(0.6 * whole.num_tokens)
    assert some.num_tokens + some.num_pruned == whole.num_tokens + whole.num_pruned
    assert (some.threshold, some.timestamps_s) == (whole.threshold, whole.timestamps_s)
    assert min(some.tokens_per_frame) >= 1


@pytest.mark.parametrize("beside", [False, True], ids=["alternating", "beside"])
@pytest.mark.parametrize("budget", [9, 31, 60])
@pytest.mark.parametrize("pruning", PRUNINGS)
def test_a_budget_is_met_with_the_most_unique(
    model: VideoLlama3, monkeypatch: pytest.MonkeyPatch, pruning: dict, budget: int, beside: bool
) -> None:
    """As the definition says, of what DiffFP leaves."""
    monkeypatch.setattr(VisionEngines, "runs_beside_decoder", beside)
    monkeypatch.setattr(VisionEngines, "frames_per_call", lambda *_: 4)
    whole = model.encode(CLIP, pruning=PruningConfig(**pruning))
    some = model.encode(CLIP, pruning=PruningConfig(**pruning, max_visual_tokens=budget))
    if whole.num_tokens <= budget:
        assert np.array_equal(some.visual.tokens, whole.visual.tokens)
        return
    keep = written_out(whole.visual.tokens, list(whole.tokens_per_frame), budget)
    assert np.array_equal(some.visual.tokens, whole.visual.tokens[keep])
    assert some.num_tokens == sum(some.tokens_per_frame) == budget
    assert some.num_tokens + some.num_pruned == whole.num_tokens + whole.num_pruned
    assert some.threshold == whole.threshold
    assert min(some.tokens_per_frame) >= 1


def test_a_budget_that_is_ample_changes_nothing(model: VideoLlama3) -> None:
    whole, some = (model.encode(CLIP, pruning=PruningConfig(max_visual_tokens=n)) for n in (None, 10_000))
    assert np.array_equal(some.visual.tokens, whole.visual.tokens)
    assert (some.tokens_per_frame, some.num_pruned) == (whole.tokens_per_frame, whole.num_pruned)


@pytest.mark.parametrize(("ratio", "budget"), [(0.9, 31), (0.2, 31)])
def test_with_a_share_and_a_budget_the_fewer_are_given(model: VideoLlama3, ratio: float, budget: int) -> None:
    whole = model.encode(CLIP)
    both = model.encode(CLIP, pruning=PruningConfig(keep_ratio=ratio, max_visual_tokens=budget))
    assert both.num_tokens == min(round(ratio * whole.num_tokens), budget)


def test_real_clips_meet_budgets(model: VideoLlama3, media: Path) -> None:
    plan = SamplingPlan(fps=2.0, max_frames=12)
    whole = model.encode(media / "nasa_13013.mp4", plan)
    for share in (0.75, 0.5, 0.25):
        budget = int(share * whole.num_tokens)
        clip = model.encode(media / "nasa_13013.mp4", plan, PruningConfig(max_visual_tokens=budget))
        assert clip.num_tokens == budget


def test_a_budget_below_one_token_a_frame_is_refused(model: VideoLlama3, media: Path) -> None:
    tight = PruningConfig(max_visual_tokens=8)
    for pruning in (tight, PruningConfig(enabled=False, max_visual_tokens=8)):
        with pytest.raises(MediaError, match=r"demo_clip\.mp4: pruning leaves at least 9 .* but 8 are allowed"):
            model.begin(CLIP, pruning=pruning)  # before anything is read
    picture = model.encode(media / "cat.jpg", pruning=tight)
    assert picture.num_tokens > 8
    assert (picture.threshold, picture.num_pruned) == (None, 0)
    with pytest.raises(MediaError, match="sample fewer frames"):
        model.encode(np.zeros((3, 112, 112, 3), np.uint8), pruning=PruningConfig(max_visual_tokens=2))


def test_a_budget_does_not_switch_difffp_on(model: VideoLlama3) -> None:
    """A checkpoint that does not prune is asked for its most unique tokens, of all."""
    manifest = model.bundle.manifest
    processor = replace(manifest.processor, token_compression=False)
    whole = VideoLlama3(
        replace(model.bundle, manifest=replace(manifest, processor=processor)), select_backend("cpu", 1)
    )
    clip = whole.encode(CLIP, pruning=PruningConfig(max_visual_tokens=40))
    same = model.encode(CLIP, pruning=PruningConfig(enabled=False, max_visual_tokens=40))
    assert clip.threshold is None
    assert np.array_equal(clip.visual.tokens, same.visual.tokens)


def test_all_of_them_change_nothing(model: VideoLlama3) -> None:
    some = GenerationConfig(max_new_tokens=12)
    asked = [model.ask(model.encode(CLIP, pruning=PruningConfig(keep_ratio=r)), "What?", some) for r in (None, 1.0)]
    assert asked[0].text == asked[1].text


def test_images_keep_all(model: VideoLlama3) -> None:
    image = np.random.default_rng(0).integers(0, 256, (56, 84, 3), np.uint8)
    assert model.encode(image, kind="image", pruning=PruningConfig(keep_ratio=0.1)).num_pruned == 0


def test_asked_while_it_is_encoded(model: VideoLlama3) -> None:
    pruning, short = PruningConfig(keep_ratio=0.4), GenerationConfig(max_new_tokens=8)
    pending = model.ask(model.begin(CLIP, SamplingPlan(fps=2), pruning), "What?", short)
    assert pending.text == model.ask(model.encode(CLIP, SamplingPlan(fps=2), pruning), "What?", short).text


@pytest.mark.parametrize("ratio", [0.0, -0.5, 1.5, math.nan, math.inf])
def test_a_ratio_is_a_share(ratio: float) -> None:
    with pytest.raises(ConfigError, match="keep_ratio must be above 0 and at most 1"):
        PruningConfig(keep_ratio=ratio)


def test_what_has_no_whole_clip_refuses(model: VideoLlama3) -> None:
    for pruning in (PruningConfig(keep_ratio=0.5), PruningConfig(max_visual_tokens=50)):
        with pytest.raises(ConfigError, match="without a budget or keep_ratio"):
            model.open_session(pruning=pruning).push(np.zeros((56, 56, 3), np.uint8), 0.0)
