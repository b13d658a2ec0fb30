"""Clips of the fine world as a camera would deliver them: H.264 in MP4, sampled at 1 frame per second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..clips import decode_sampled, encode_mp4
from ..render import HELD_OUT_SEED
from .layout import random_world, training_world
from .picture import source_frames
from .world import World


@dataclass(frozen=True)
class WorldClip:
    """A world and its sampled frames after the round trip, uint8 [F, 140, 140, 3]; frame n is at n seconds."""

    world: World
    frames: NDArray[np.uint8]


def make_clip(seed: int) -> WorldClip:
    """The training clip of a seed; its quality is also drawn. Raises ValueError for a held-out seed."""
    return _through_h264(training_world(seed), seed)


def held_out_clip(number: int) -> WorldClip:
    """The held-out clip of a number from 0, as `make_clip` makes those for training."""
    return _through_h264(random_world(HELD_OUT_SEED + number), HELD_OUT_SEED + number)


def write_clip(path: str | Path, number: int) -> World:
    """Writes the held-out clip of a number as MP4, the same bytes every time, and returns what it shows."""
    seed = HELD_OUT_SEED + number
    world = random_world(seed)
    crf, _ = _quality(seed)
    Path(path).write_bytes(encode_mp4(source_frames(world, seed), world.fps, crf, "veryfast", repeatable=True))
    return world


def _through_h264(world: World, seed: int) -> WorldClip:
    mp4 = encode_mp4(source_frames(world, seed), world.fps, *_quality(seed))
    return WorldClip(world, decode_sampled(mp4, world.fps))


def _quality(seed: int) -> tuple[int, str]:
    """crf 18 to 26 and a preset of x264."""
    rng = np.random.default_rng([seed, 14])
    return int(rng.integers(18, 27)), str(rng.choice(["ultrafast", "veryfast", "medium"], p=[0.4, 0.4, 0.2]))
