"""The choice of unique tokens against its definition written out, and what it leaves of a clip."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.errors import ConfigError
from vl3edge.runtime.inspect.inspection import Speed, inspect
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


@pytest.mark.parametrize("pruning", [{}, {"enabled": False}, {"threshold": "auto"}, {"max_visual_tokens": 60}])
def test_a_share_of_what_difffp_leaves(model: VideoLlama3, pruning: dict) -> None:
    whole = model.encode(CLIP, pruning=PruningConfig(**pruning))
    some = model.encode(CLIP, pruning=PruningConfig(**pruning, keep_ratio=0.6))
    keep = unique_tokens(whole.visual.tokens, whole.tokens_per_frame, round(0.6 * whole.num_tokens))
    assert np.array_equal(some.visual.tokens, whole.visual.tokens[keep])
    assert some.num_tokens == sum(some.tokens_per_frame) == round(0.6 * whole.num_tokens)
    assert some.num_tokens + some.num_pruned == whole.num_tokens + whole.num_pruned
    assert (some.threshold, some.timestamps_s) == (whole.threshold, whole.timestamps_s)
    assert min(some.tokens_per_frame) >= 1


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


def test_what_has_no_whole_clip_or_no_encoder_refuses(model: VideoLlama3) -> None:
    with pytest.raises(ConfigError, match="without a budget or keep_ratio"):
        model.open_session(pruning=PruningConfig(keep_ratio=0.5)).push(np.zeros((56, 56, 3), np.uint8), 0.0)
    with pytest.raises(ConfigError, match="leave it out"):
        inspect(open_bundle(DEMO_BUNDLE), CLIP, pruning=PruningConfig(keep_ratio=0.5), speed=Speed(1e9, 1e9))
