"""From file to encoder input: frames and mask equal transformers' processors on all shared media."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from clips import every_frame
from reference import transformers_module

from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.media.frame_sampling import choose_frames
from vl3edge.runtime.media.image import load_image
from vl3edge.runtime.media.resize import PixelBudget, resize_rgb, target_size
from vl3edge.runtime.media.video import open_video
from vl3edge.runtime.media.video_file import VideoFile
from vl3edge.runtime.vision.difffp import keep_mask

BUDGETS = [(3136, 300_000), (100_352, 4_000_000), (3136, 12_845_056)]


def levels(patches: torch.Tensor, frames: int, height: int, width: int, merge: int) -> np.ndarray:
    """The processor's patches put back together: uint8 [F, H, W, 3]."""
    h, w = height // 14 // merge, width // 14 // merge
    grid = patches.reshape(frames, h, w, merge, merge, 3, 14, 14).permute(0, 1, 3, 6, 2, 4, 7, 5)
    pixels = grid.reshape(frames, height, width, 3)
    return (pixels * 127.5 + 127.5).round().numpy().astype(np.uint8)


@pytest.mark.parametrize("limits", BUDGETS)
@pytest.mark.parametrize("name", ["nasa_13013.mp4", "h265_video.mp4", "video_90.mov"])
def test_videos(media: Path, name: str, limits: tuple[int, int]) -> None:
    transformers_module()
    from transformers import VideoLlama3VideoProcessor

    plan = SamplingPlan(fps=2.0, max_frames=9, rule="index")
    reader = open_video(media / name, plan)
    # transformers' PyAV backend does not turn frames; give it the frames as they are meant to be seen.
    full = every_frame(media / name)
    if name == "video_90.mov":
        full = [np.rot90(frame, -1) for frame in full]
    processor = VideoLlama3VideoProcessor(size={"shortest_edge": limits[0], "longest_edge": limits[1]})
    indices = choose_frames(VideoFile(media / name).timeline, plan, name).indices
    expected = processor(
        videos=[torch.from_numpy(np.stack([full[i] for i in indices])).permute(0, 3, 1, 2)],
        do_sample_frames=False,
        return_tensors="pt",
    )
    size = target_size(reader.height, reader.width, PixelBudget(14, 2, *limits), reader.num_frames)
    frames = reader.read(size).frames
    assert expected["video_grid_thw"].tolist() == [[len(frames), size[0] // 14, size[1] // 14]]
    difference = np.abs(levels(expected["pixel_values_videos"], len(frames), *size, 2).astype(int) - frames)
    assert difference.max() == 0, f"max {difference.max()}, mean {difference.mean()}"
    np.testing.assert_array_equal(keep_mask(frames, 14, 2).ravel(), expected["video_compression_mask"].numpy())


@pytest.mark.parametrize("limits", BUDGETS)
@pytest.mark.parametrize("name", ["cat.jpg", "chart.jpg"])
def test_images(media: Path, name: str, limits: tuple[int, int]) -> None:
    transformers_module()
    from PIL import Image
    from transformers import VideoLlama3ImageProcessor

    processor = VideoLlama3ImageProcessor(size={"shortest_edge": limits[0], "longest_edge": limits[1]})
    expected = processor(images=[Image.open(media / name)], return_tensors="pt")
    image = load_image(media / name)
    size = target_size(*image.shape[:2], PixelBudget(14, 1, *limits))
    assert expected["image_grid_thw"].tolist() == [[1, size[0] // 14, size[1] // 14]]
    difference = np.abs(levels(expected["pixel_values"], 1, *size, 1)[0].astype(int) - resize_rgb(image, size))
    assert difference.max() == 0, f"max {difference.max()}, mean {difference.mean()}"
