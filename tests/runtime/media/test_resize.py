"""Sizes equal transformers' smart_resize and a plain reading of the authors' rule; pixels torch's and Pillow's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from vl3edge.runtime.errors import ConfigError, MediaError
from vl3edge.runtime.media.resize import PixelBudget, resize_rgb, target_size

sides = st.integers(1, 5000)
budgets = st.tuples(st.integers(1, 400_000), st.integers(400, 8_000_000))


UNITS = [(14, 1), (14, 2), (16, 2), (8, 1)]


@pytest.mark.torch
def test_transformers_rule_at_many_sizes() -> None:
    rng = np.random.default_rng(0)
    for height, width, low, high, frames, unit in zip(
        np.exp(rng.uniform(0, 8.5, 20_000)).astype(int).tolist(),
        np.exp(rng.uniform(0, 8.5, 20_000)).astype(int).tolist(),
        rng.integers(1, 400_000, 20_000).tolist(),
        rng.integers(400, 8_000_000, 20_000).tolist(),
        rng.integers(1, 180, 20_000).tolist(),
        rng.integers(0, 4, 20_000).tolist(),
        strict=True,
    ):
        check_transformers_rule(height, width, (low, high), frames, UNITS[unit])


@pytest.mark.torch
@settings(max_examples=200, deadline=None)
@given(sides, sides, budgets, st.integers(1, 180), st.sampled_from(UNITS))
def test_transformers_rule(
    height: int, width: int, limits: tuple[int, int], frames: int, unit: tuple[int, int]
) -> None:
    assume(limits[1] >= frames)
    check_transformers_rule(height, width, limits, frames, unit)


def check_transformers_rule(
    height: int, width: int, limits: tuple[int, int], frames: int, unit: tuple[int, int]
) -> None:
    from reference import transformers_module

    transformers_module()
    from transformers.models.video_llama_3.video_processing_video_llama_3 import smart_resize

    budget = PixelBudget(*unit, min_pixels=limits[0], max_pixels=limits[1])
    try:
        expected = smart_resize(height, width, budget.factor, limits[0], limits[1] // frames)
    except ValueError:
        with pytest.raises(MediaError, match=f"{width}×{height} pixels has an aspect ratio over 200"):
            target_size(height, width, budget, frames)
        return
    assert target_size(height, width, budget, frames) == expected


@settings(max_examples=300, deadline=None)
@given(st.integers(20, 3000), st.integers(20, 3000), st.integers(1, 400), st.sampled_from([1, 2]))
def test_authors_rule(height: int, width: int, sharing: int, merge: int) -> None:
    f = 14 * merge
    budget = PixelBudget.from_tokens(14, merge, min_tokens=16, max_tokens=16384)
    assert (budget.min_pixels, budget.max_pixels) == (16 * f * f, 16384 * f * f)
    # REFERENCE: the largest share first, then the minimum whatever came of it.
    h, w = round(height / f) * f, round(width / f) * f
    share = 16384 * f * f // sharing
    if h * w > share:
        beta = math.sqrt(height * width / share)
        h, w = math.floor(height / beta / f) * f, math.floor(width / beta / f) * f
    if h * w < 16 * f * f:
        beta = math.sqrt(16 * f * f / (height * width))
        h, w = math.ceil(height * beta / f) * f, math.ceil(width * beta / f) * f
    assert target_size(height, width, budget, sharing) == (h, w)


def test_the_two_rules_differ_in_which_limit_wins() -> None:
    # 180 frames leave 1,456 pixels each, less than the minimum of 12,544.
    shared = {"patch_size": 14, "merge_size": 2, "min_pixels": 16 * 784, "max_pixels": 262_144}
    assert target_size(480, 640, PixelBudget(**shared), 180) == (28, 28)
    assert target_size(480, 640, PixelBudget(**shared, rule="authors"), 180) == (112, 140)


def test_bad_sizes_and_budgets_are_refused() -> None:
    budget = PixelBudget(14, 2, 1000, 100_000)
    with pytest.raises(MediaError, match="empty"):
        target_size(0, 10, budget)
    with pytest.raises(ConfigError, match="200000 frames cannot share 100000 pixels"):
        target_size(100, 100, budget, 200_000)
    with pytest.raises(ConfigError, match="num_frames_sharing"):
        target_size(100, 100, budget, 0)
    with pytest.raises(ConfigError, match="patch_size must be at least 1"):
        PixelBudget(0, 2, 1000, 100_000)
    with pytest.raises(ConfigError, match="'transformers' or 'authors', not 'theirs'"):
        PixelBudget(14, 2, 1000, 100_000, rule="theirs")  # type: ignore[arg-type]


@pytest.mark.torch
@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 260), st.integers(1, 260), st.integers(0, 9))
def test_pixels_equal_torch(height: int, width: int, new_height: int, new_width: int, seed: int) -> None:
    frame = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    difference = np.abs(_torch(frame, (new_height, new_width)) - resize_rgb(frame, (new_height, new_width)))
    assert difference.max() == 0, f"max {difference.max()}, mean {difference.mean()}"


@pytest.mark.torch
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ((1080, 1920), (280, 504)),
        ((1080, 1920), (448, 840)),
        ((2160, 3840), (168, 280)),
        ((720, 1280), (728, 1288)),
        ((3, 4000), (28, 28)),
    ],
)
def test_pixels_equal_torch_at_real_sizes(old: tuple[int, int], new: tuple[int, int]) -> None:
    # Black and white columns and rows make the sums as large as they can be.
    noise = np.random.default_rng(0).integers(0, 2, (*old, 3), dtype=np.uint8) * 255
    noise[: old[0] // 2] = np.random.default_rng(1).integers(0, 2, (1, old[1], 1), dtype=np.uint8) * 255
    difference = np.abs(_torch(noise, new) - resize_rgb(noise, new))
    assert difference.max() == 0, f"max {difference.max()}, mean {difference.mean()}"


@pytest.mark.torch
@pytest.mark.parametrize(("old", "new"), [(5, 1), (9, 2), (14, 3), (31, 7), (38, 10)])
def test_pixels_equal_torch_where_float32_is_hardly_enough(old: int, new: int) -> None:
    """Weights with a binary point of 17 places, whose sums go past 2²⁴ in one value of a million."""
    frame = np.random.default_rng(0).integers(0, 256, (old, 500_000, 3), dtype=np.uint8)
    expected = _torch(frame, (new, 500_000))
    np.testing.assert_array_equal(resize_rgb(frame, (new, 500_000)), expected)


def test_authors_pixels_are_pillows(media) -> None:
    image = Image.open(media / "cat.jpg").convert("RGB")
    expected = np.asarray(image.resize((196, 140), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(resize_rgb(np.asarray(image), (140, 196), "authors"), expected)


def test_a_frame_of_that_size_is_returned_as_it_is() -> None:
    frame = np.zeros((28, 56, 3), np.uint8)
    assert resize_rgb(frame, (28, 56)) is frame


def _torch(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    import torch

    planes = torch.from_numpy(frame).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(planes, size, mode="bicubic", antialias=True)
    return resized[0].permute(1, 2, 0).numpy().astype(int)
