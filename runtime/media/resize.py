"""How large a frame is made before it is encoded, and the resizing itself.

Both checkpoint layouts round the sides to multiples of patch × merge and then fit the area into a budget; they differ
in how a budget is shared, in which limit wins, and in who resamples: torchvision in transformers' port, Pillow in the
authors' processor. Both are antialiased bicubic; single values differ by a level or two.

Source: `smart_resize` of transformers' video_llama_3 and the image processor of the authors' release. The copy of the
latter in the release's inference code swaps the sides of pictures that it opens by path; the copy that trained the
weights does not, and neither does this module.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from PIL import Image

from ..errors import ConfigError, MediaError
from .bicubic import resample_bicubic

BudgetRule = Literal["transformers", "authors"]

MAX_ASPECT_RATIO = 200
"""Longer side over shorter side; both reference processors refuse more."""


@dataclass(frozen=True)
class PixelBudget:
    """The area a resized image or video may have.

    patch_size: side of a patch of the vision encoder, in pixels.
    merge_size: side of a merge block, in patches; a visual token covers (patch_size × merge_size)² pixels.
    min_pixels, max_pixels: limits of height × width after resizing. max_pixels is for everything that shares the
        budget: it is divided by `num_frames_sharing` in `target_size`, min_pixels is not.
    rule: "transformers": `size.shortest_edge` and `size.longest_edge` of the processor files, which hold pixels; a size
        too large is not tested against min_pixels again. "authors": see `from_tokens`; min_pixels is applied last, and
        so wins.
    """

    patch_size: int
    merge_size: int
    min_pixels: int
    max_pixels: int
    rule: BudgetRule = "transformers"

    def __post_init__(self) -> None:
        for name in ("patch_size", "merge_size", "min_pixels", "max_pixels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.rule not in ("transformers", "authors"):
            raise ConfigError(f"the rule of a pixel budget must be 'transformers' or 'authors', not {self.rule!r}")

    @classmethod
    def from_tokens(cls, patch_size: int, merge_size: int, min_tokens: int, max_tokens: int) -> PixelBudget:
        """The authors' budget: `min_tokens` and `max_tokens` of preprocessor_config.json, in merged tokens."""
        factor = patch_size * merge_size
        return cls(patch_size, merge_size, min_tokens * factor**2, max_tokens * factor**2, rule="authors")

    @property
    def factor(self) -> int:
        """Both sides of a resized frame are multiples of this many pixels."""
        return self.patch_size * self.merge_size

    @property
    def max_tokens(self) -> int:
        """The visual tokens that max_pixels make."""
        return self.max_pixels // self.factor**2


def target_size(height: int, width: int, budget: PixelBudget, num_frames_sharing: int = 1) -> tuple[int, int]:
    """The (height, width) a frame of height × width pixels is resized to.

    num_frames_sharing: how many images and frames share `budget.max_pixels`. "transformers": 1 for an image, the number
        of frames of this video for a video; "authors": images plus video frames of the whole conversation.

    Raises MediaError for an empty frame, or one more than MAX_ASPECT_RATIO times as long as wide (or the reverse).
    """
    _check_shape(height, width)
    if num_frames_sharing < 1:
        raise ConfigError(f"num_frames_sharing must be at least 1, not {num_frames_sharing}")
    factor = budget.factor
    max_pixels = budget.max_pixels // num_frames_sharing
    if max_pixels < 1:
        raise ConfigError(f"{num_frames_sharing} frames cannot share {budget.max_pixels} pixels: lower max_frames")
    new_height, new_width = round(height / factor) * factor, round(width / factor) * factor
    too_large = new_height * new_width > max_pixels
    if too_large:
        scale = math.sqrt(height * width / max_pixels)
        new_height = math.floor(height / scale / factor) * factor
        new_width = math.floor(width / scale / factor) * factor
        if budget.rule == "transformers":
            new_height, new_width = max(factor, new_height), max(factor, new_width)
    may_enlarge = budget.rule == "authors" or not too_large
    if may_enlarge and new_height * new_width < budget.min_pixels:
        scale = math.sqrt(budget.min_pixels / (height * width))
        new_height = math.ceil(height * scale / factor) * factor
        new_width = math.ceil(width * scale / factor) * factor
    return new_height, new_width


@dataclass(frozen=True)
class MediaShape:
    """An image (one frame) or a video before resizing; height and width in pixels."""

    num_frames: int
    height: int
    width: int
    budget: PixelBudget


def size_in_conversation(media: MediaShape, conversation: Sequence[MediaShape]) -> tuple[int, int]:
    """The (height, width) to which the frames of media are resized beside all others of a conversation.

    "transformers": each has a budget of its own, which the frames of a video share. "authors": one budget is divided
    evenly among all images and frames; but where merge sizes differ, as those of images and videos do, the sides of all
    are divided by one number, so that they make max_tokens together, and min_pixels does not hold.
    conversation: `media` among them. Raises what `target_size` raises.
    """
    budget = media.budget
    if budget.rule == "transformers":
        return target_size(media.height, media.width, budget, media.num_frames)
    if all(other.budget.merge_size == budget.merge_size for other in conversation):
        return target_size(media.height, media.width, budget, sum(other.num_frames for other in conversation))
    _check_shape(media.height, media.width)
    tokens = sum(
        other.num_frames * math.ceil(other.height / other.budget.factor) * math.ceil(other.width / other.budget.factor)
        for other in conversation
    )
    excess = tokens / budget.max_tokens
    scale, whole = (math.sqrt(excess), math.floor) if excess > 1 else (1.0, round)
    # At least one token a side: the authors' processor fails where nothing is left of one.
    height, width = (max(1, whole(side / scale / budget.factor)) for side in (media.height, media.width))
    return height * budget.factor, width * budget.factor


def _check_shape(height: int, width: int) -> None:
    if height < 1 or width < 1:
        raise MediaError(f"a frame of {width}×{height} pixels is empty")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise MediaError(
            f"a frame of {width}×{height} pixels has an aspect ratio over {MAX_ASPECT_RATIO}, "
            "which the model cannot take: crop it first"
        )


def resize_rgb(
    frame: npt.NDArray[np.uint8], size: tuple[int, int], rule: BudgetRule = "transformers"
) -> npt.NDArray[np.uint8]:
    """`frame` uint8 [H, W, 3] resampled to `size` = (height, width): uint8 [height, width, 3].

    rule: whose processor to agree with, to the last bit. The frame itself is returned when it has that size already.
    """
    height, width = size
    if frame.shape[:2] == (height, width):
        return frame
    if rule == "transformers":
        return resample_bicubic(frame, size)
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
