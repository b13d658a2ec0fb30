"""DiffFP's mask equals transformers' `_get_compression_mask`, whole or frame by frame."""

from __future__ import annotations

import numpy as np
import pytest

from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.errors import ConfigError
from vl3edge.runtime.media.resize import PixelBudget
from vl3edge.runtime.media.video import read_video
from vl3edge.runtime.vision.difffp import FramePruner, keep_mask, token_differences

THRESHOLDS = (0.0, 0.1, 0.33, 5.03, 25.51)


def reference_mask(frames: np.ndarray, patch: int, merge: int, threshold: float, std: float = 0.5) -> np.ndarray:
    """transformers' mask, bool [F, tokens], from its own normalization and patches."""
    import torch
    from reference import transformers_module

    transformers_module()
    from transformers import VideoLlama3VideoProcessor

    processor = VideoLlama3VideoProcessor(patch_size=patch, merge_size=merge)
    videos = torch.from_numpy(frames).permute(0, 3, 1, 2)[None]
    videos = processor.rescale_and_normalize(videos, True, 1 / 255, True, (0.5,) * 3, (std,) * 3)
    patches, t, h, w = processor.patchify(videos, patch, merge, 1)
    mask = processor._get_compression_mask(patches[0], torch.tensor([[t, h, w]]), torch.tensor([merge]), threshold)
    return mask.reshape(t, -1).numpy()


def noisy_clip(seed: int, frames: int = 7, height: int = 56, width: int = 84) -> np.ndarray:
    """Every degree of change: still frames, single levels in a few places, other pictures."""
    rng = np.random.default_rng(seed)
    clip = np.repeat(rng.integers(0, 256, (1, height, width, 3)), frames, axis=0)
    clip += (rng.random(clip.shape) < 0.06) * rng.integers(-1, 2, clip.shape)
    clip[2] = clip[1]
    clip[4] += rng.integers(-30, 31, clip[4].shape)
    clip[5:, :28] = rng.integers(0, 256, (28, width, 3))
    return np.clip(clip, 0, 255).astype(np.uint8)


@pytest.mark.torch
@pytest.mark.parametrize("threshold", THRESHOLDS)
@pytest.mark.parametrize(("patch", "merge"), [(14, 2), (14, 1), (7, 2)])
def test_mask_equals_transformers_on_made_up_clips(patch: int, merge: int, threshold: float) -> None:
    for seed in range(5):
        frames = noisy_clip(seed)
        np.testing.assert_array_equal(
            keep_mask(frames, patch, merge, threshold=threshold), reference_mask(frames, patch, merge, threshold)
        )


@pytest.mark.torch
def test_other_standard_deviations_equal_transformers() -> None:
    frames = noisy_clip(3)
    np.testing.assert_array_equal(
        keep_mask(frames, 14, 2, std=(0.26,) * 3, threshold=0.1), reference_mask(frames, 14, 2, 0.1, std=0.26)
    )


def test_other_standard_deviations_scale_the_difference() -> None:
    frames = noisy_clip(3)
    halves = token_differences(frames, 14, 2, std=(0.5, 0.5, 0.5))[1:]
    np.testing.assert_allclose(token_differences(frames, 14, 2, std=(0.25, 0.25, 0.25))[1:], 2 * halves)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["nasa_13013.mp4", "h265_video.mp4", "video_90.mov", "corrupted.mp4"])
def test_mask_equals_transformers_on_real_clips(media, name: str) -> None:
    frames = read_video(media / name, SamplingPlan(fps=3.0, max_frames=12), PixelBudget(14, 2, 3136, 2_000_000)).frames
    for threshold in THRESHOLDS:
        np.testing.assert_array_equal(
            keep_mask(frames, 14, 2, threshold=threshold), reference_mask(frames, 14, 2, threshold)
        )


def test_one_level_around_the_released_threshold() -> None:
    # 0.1 on 28 × 28 × 3 values of std 0.5 lies between sums of 117 and 118 levels.
    frames = np.full((3, 28, 56, 3), 100, np.uint8)
    changed = frames[1].reshape(28, 2, 84)
    changed[0, 0, :84], changed[1, 0, :33] = 101, 99
    changed[0, 1, :84], changed[1, 1, :34] = 101, 99
    frames[2] = frames[1]
    assert keep_mask(frames, 14, 2).tolist() == [[True, True], [False, True], [True, False]]
    np.testing.assert_allclose(token_differences(frames, 14, 2)[1:], [[2 * 117 / 2352, 2 * 118 / 2352], [0, 0]])


def test_upright_clips_as_wide_ones() -> None:
    frames = noisy_clip(2)
    turned = keep_mask(frames.transpose(0, 2, 1, 3), 14, 2)
    np.testing.assert_array_equal(
        turned.reshape(-1, 3, 2).transpose(0, 2, 1), keep_mask(frames, 14, 2).reshape(-1, 2, 3)
    )


@pytest.mark.parametrize("block", [256, 257, 258, 300])
def test_the_greatest_change_of_large_blocks(block: int) -> None:
    # 258 changes of 255 levels do not fit 16 bits.
    frames = np.zeros((2, block, 2 * block, 3), np.uint8)
    frames[1, :, block:] = 255
    assert token_differences(frames, block, 1)[1].tolist() == [0.0, 510.0]


def test_frame_by_frame_is_the_same_as_whole() -> None:
    frames = noisy_clip(1)
    pruner = FramePruner(14, 2)
    pushed = np.stack([pruner.push(frame.copy()) for frame in frames])
    np.testing.assert_array_equal(pushed, keep_mask(frames, 14, 2))
    pruner.reset()
    assert pruner.push(frames[2]).all()


def test_one_frame_is_kept_whole() -> None:
    assert keep_mask(noisy_clip(0)[:1], 14, 2).tolist() == [[True] * 6]


def test_every_channel_has_its_own_deviation() -> None:
    frames = np.full((2, 28, 28, 3), 100, np.uint8)
    frames[1, 0, :7] += np.array([1, 2, 5], np.uint8)
    found = token_differences(frames, 14, 2, std=(0.3, 0.7, 0.9))[1]
    np.testing.assert_allclose(found, [7 * (1 / 0.3 + 2 / 0.7 + 5 / 0.9) / (3 * 28 * 28)], rtol=1e-12)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((30, 28, 3), "uint8"),
        ((28, 30, 3), "uint8"),
        ((28, 28), "uint8"),
        ((28, 28, 3, 1), "uint8"),
        ((28, 28, 3), "int8"),
        ((28, 28, 3), "uint16"),
        ((28, 28, 3), "float32"),
    ],
)
def test_what_is_no_frame_is_refused(shape: tuple[int, ...], dtype: str) -> None:
    message = rf"uint8 \[H, W, 3\] with sides that are multiples of 28, not {dtype} \[{', '.join(map(str, shape))}\]"
    with pytest.raises(ConfigError, match=message):
        FramePruner(14, 2).push(np.zeros(shape, dtype))


@pytest.mark.parametrize(("first", "second"), [((28, 28), (28, 56)), ((28, 56), (28, 28)), ((56, 28), (28, 56))])
def test_frames_of_two_sizes_are_refused(first: tuple[int, int], second: tuple[int, int]) -> None:
    pruner = FramePruner(14, 2)
    pruner.push(np.zeros((*first, 3), np.uint8))
    with pytest.raises(ConfigError, match=rf"one size, not \[{first[0]}, {first[1]}, 3\] and \[{second[0]}, "):
        pruner.push(np.zeros((*second, 3), np.uint8))


@pytest.mark.parametrize("std", [(0.5, 0.0, 0.5), (0.5, -0.5, 0.5), (0.5, 0.5), (0.5, 0.5, 0.5, 0.5)])
def test_deviations_that_are_not_three_positive_numbers_are_refused(std: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="three positive numbers"):
        FramePruner(14, 2, std=std)
