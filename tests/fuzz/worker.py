"""Reads the media files named on stdin as the runtime does before its encoder, and answers a line of JSON for each.

Runs in a process of its own, because what is looked for may kill it: crashes inside codecs, memory without end, hangs.
"""

from __future__ import annotations

import json
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av  # noqa: F401  (loaded before memory is limited)
import numpy as np

from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.errors import MediaError
from vl3edge.runtime.host import current_bytes, peak_bytes, reset_peak
from vl3edge.runtime.media.contents import PICTURE_SUFFIXES
from vl3edge.runtime.media.image import load_image
from vl3edge.runtime.media.limits import MediaLimits
from vl3edge.runtime.media.resize import PixelBudget, resize_rgb, target_size
from vl3edge.runtime.media.video import open_video
from vl3edge.runtime.vision.difffp import FramePruner

PLAN = SamplingPlan(fps=2.0, max_frames=6)
BUDGET = PixelBudget(14, 2, 56 * 56, 6 * 112 * 112)
LIMITS = MediaLimits(max_pixels=4096 * 4096, max_source_frames=100_000, max_read_s=8)
ANIMATED_SUFFIXES = {".gif", ".webp", ".png", ".apng", ".avif"}
ADDRESS_SPACE_BYTES = 6 << 30


def read_clip(path: Path) -> str:
    """Opens, samples, resizes and prunes; checks what comes out; says what it was."""
    reader = open_video(path, PLAN, limits=LIMITS)
    size = target_size(reader.height, reader.width, BUDGET, reader.num_frames)
    pruner = FramePruner(14, 2)
    times = []
    for frame in reader.frames(size):
        check(frame.pixels.shape == (*size, 3), f"a frame of {frame.pixels.shape}, not {size}")
        check(frame.pixels.dtype == np.uint8, f"pixels of {frame.pixels.dtype}")
        keep = pruner.push(frame.pixels)
        check(keep.shape == (size[0] * size[1] // 28**2,), f"a mask of {keep.shape} for {size}")
        check(bool(keep.any()), "no token of a frame is kept")
        times.append(frame.timestamp_s)
    check(len(times) == reader.num_frames, f"{len(times)} frames, not the {reader.num_frames} stated")
    check(1 <= len(times) <= 6, f"{len(times)} frames, but at most 6 were asked for")
    check(times == sorted(times), f"times go back: {times}")
    check(bool(np.isfinite(times).all()), f"times are not finite: {times}")
    return f"{len(times)} frames"


def read_image(path: Path) -> str:
    pixels = load_image(path, LIMITS)
    check(pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3, f"an image of {pixels.shape}")
    size = target_size(*pixels.shape[:2], BUDGET)
    check(resize_rgb(pixels, size).shape == (*size, 3), "an image of another size")
    return "image"


class PropertyError(Exception):
    """What was read is not what was promised."""


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise PropertyError(otherwise)


def examine(path: Path) -> dict[str, Any]:
    """Reads one file; the outcome is "read", "refused" (a MediaError of one line) or "failed"."""
    reset_peak()
    before = current_bytes() or 0
    begin = time.perf_counter()
    ends = [attempt(read, path) for read in readers(path)]
    worst = max(ends, key=lambda end: ("read", "refused", "failed").index(end[0]))
    return {
        "outcome": worst[0],
        "detail": worst[1],
        "seconds": round(time.perf_counter() - begin, 3),
        "grown_bytes": (peak_bytes() or 0) - before,
    }


def readers(path: Path) -> list[Callable[[Path], str]]:
    """A picture whose type may be animated is read as an image and as a clip."""
    readers: list[Callable[[Path], str]] = [read_image] if path.suffix in PICTURE_SUFFIXES else []
    return readers + ([read_clip] if path.suffix in ANIMATED_SUFFIXES or not readers else [])


def attempt(read: Callable[[Path], str], path: Path) -> tuple[str, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return "read", read(path)
    except MediaError as e:
        detail = str(e)
        return ("refused" if "\n" not in detail and len(detail) < 2000 else "failed"), detail
    except Exception as e:
        return "failed", f"{type(e).__name__}: {e}"


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        print(json.dumps(examine(Path(line.rstrip("\n")))), flush=True)


if __name__ == "__main__":
    main()
