"""How a checkpoint's processor files make pixels of media: sizes, normalization, sampling.

A missing key takes the default of the class that would read it. What the runtime does not do (other resampling, other
scales) is refused.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from .config import MediaProcessing
from .errors import CheckpointError
from .typed_json import Section

_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC, as processor files write it
_HALF = (0.5, 0.5, 0.5)
_OF_BOTH = ("image_mean", "image_std", "patch_size")  # what an image processor's own file says of videos as well


def transformers_media(folder: Path, patch_size: int, encoder_alone: bool = False) -> dict[str, Any]:
    """The fields of ModelConfig that say how media are prepared, from the files of transformers' processors.

    encoder_alone: where these files may be missing, as the encoder's own class does not save them; a warning says so.
    """
    processor = Section.read_if_there(folder / "processor_config.json")
    preprocessor = Section.read_if_there(folder / "preprocessor_config.json")
    # transformers 5 nests both in processor_config.json; older versions have a file each, the oldest share one.
    image = processor.section("image_processor") if "image_processor" in processor else preprocessor
    video = Section.read_if_there(folder / "video_preprocessor_config.json")
    if "video_processor" in processor:
        video = processor.section("video_processor")
    elif not video.values:
        keys = _OF_BOTH if encoder_alone else preprocessor.values.keys()
        video = Section({key: value for key, value in preprocessor.values.items() if key in keys}, preprocessor.file)
    for section in (image, video):
        if not section.values and not encoder_alone:
            raise CheckpointError(f"{section.file} is missing or empty: it says how images and videos are resized")
        _check_pixels(section, patch_size)
    mean, std = _normalization(image)
    if _normalization(video) != (mean, std):
        raise video.error("image_mean", "and image_std differ from those of images; they must be the same")
    if encoder_alone and not image.values:
        _warn_of_defaults(folder)
    return {
        "image": _pixel_budget(image, merge_size=1, minimum=56 * 56, maximum=28 * 28 * 1280),
        "video": _pixel_budget(video, merge_size=2, minimum=128 * 28 * 28, maximum=28 * 28 * 768),
        "image_mean": mean,
        "image_std": std,
        "fps": video.number("fps", 1.0),
        "max_frames": video.integer("max_frames", 180),
        "use_token_compression": video.boolean("use_token_compression", True),
    }


def authors_media(folder: Path, patch_size: int, encoder_alone: bool = False) -> dict[str, Any]:
    """The same from the files of the authors' processor, but for token compression, which is in config.json."""
    preprocessor = (Section.read_if_there if encoder_alone else Section.read)(folder / "preprocessor_config.json")
    _check_pixels(preprocessor, patch_size)
    if encoder_alone and not preprocessor.values:
        _warn_of_defaults(folder)
    mean, std = _normalization(preprocessor)
    processor = Section.read_if_there(folder / "processor_config.json")
    minimum = preprocessor.integer("min_tokens", 16)
    maximum = preprocessor.integer("max_tokens", 16384)
    return {
        "image": MediaProcessing(processor.integer("image_merge_size", 1), "authors", minimum, maximum),
        "video": MediaProcessing(processor.integer("video_merge_size", 2), "authors", minimum, maximum),
        "image_mean": mean,
        "image_std": std,
        "fps": processor.number("fps", 1.0),
        "max_frames": processor.integer("max_frames", 128),
    }


def _warn_of_defaults(folder: Path) -> None:
    warnings.warn(
        f"{folder} has no preprocessor_config.json: pictures are resized and normalized as the processor's class does "
        "where nothing is said",
        stacklevel=6,
    )


def _check_pixels(section: Section, patch_size: int) -> None:
    """Checks everything that the runtime assumes about pixels."""
    for key in ("do_resize", "do_rescale", "do_normalize"):
        section.one_of(key, (True,), True)
    section.one_of("resample", (_BICUBIC,), _BICUBIC)
    section.one_of("temporal_patch_size", (1,), 1)
    if abs(section.number("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise section.error("rescale_factor", "must be 1/255")
    if section.integer("patch_size", patch_size) != patch_size:
        raise section.error("patch_size", f"differs from the vision encoder's ({patch_size})")


def _normalization(section: Section) -> tuple[tuple[float, ...], tuple[float, ...]]:
    std = section.numbers("image_std", 3, _HALF)
    if min(std) <= 0:
        raise section.error("image_std", f"must be above zero, not {list(std)}")
    return section.numbers("image_mean", 3, _HALF), std


def _pixel_budget(section: Section, merge_size: int, minimum: int, maximum: int) -> MediaProcessing:
    """`size` in pixels; top-level `min_pixels` and `max_pixels` (older files) win, as in transformers."""
    size = section.section("size", {"shortest_edge": minimum, "longest_edge": maximum})
    low = section if "min_pixels" in section else size
    high = section if "max_pixels" in section else size
    return MediaProcessing(
        merge_size=section.integer("merge_size", merge_size),
        rule="transformers",
        minimum=low.integer("min_pixels" if low is section else "shortest_edge"),
        maximum=high.integer("max_pixels" if high is section else "longest_edge"),
    )
