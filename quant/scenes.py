"""Synthetic clips for calibration without any media at hand.

They do not look like the real world, but they exercise what the vision path reacts to: textures at all scales with the
1/f spectrum of natural images, edges, moving and resting objects, panning and static cameras, changing light, sensor
noise. DiffFP prunes most with a static camera without noise, so some clips have one.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

Frames = npt.NDArray[np.uint8]

_SIZES = ((224, 336), (336, 224), (252, 252), (196, 364), (280, 280))


def render_scene(seed: int, num_frames: int = 8) -> Frames:
    """uint8 [F, H, W, 3] RGB, as if sampled once a second; the same for the same seed."""
    rng = np.random.default_rng([seed, 1])
    height, width = _SIZES[int(rng.integers(len(_SIZES)))]
    moving_camera = rng.random() < 0.4
    reach = 8 * num_frames if moving_camera else 0
    ground = _texture(rng, height + reach, width + reach)
    pan = rng.integers(-8, 9, size=2) if moving_camera else np.zeros(2, int)
    objects = [_Object(rng, height, width) for _ in range(int(rng.integers(1, 4)))]
    flicker = rng.normal(0, 6, num_frames) if rng.random() < 0.3 else np.zeros(num_frames)
    noise = float(rng.uniform(0.5, 3)) if rng.random() < 0.4 else 0.0
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for n in range(num_frames):
        top, left = np.where(pan < 0, reach + pan * n, pan * n)
        picture = ground[top : top + height, left : left + width].copy()
        for item in objects:
            item.paint(picture, n)
        picture += flicker[n]
        if noise:
            picture += rng.normal(0, noise, picture.shape)
        frames[n] = picture.clip(0, 255)
    return frames


class _Object:
    """An ellipse or a box with its own texture, moving in a straight line."""

    def __init__(self, rng: np.random.Generator, height: int, width: int) -> None:
        self._size = rng.integers(24, min(height, width) // 2, size=2)
        self._start = rng.uniform(0, 1, 2) * (np.array([height, width]) - self._size)
        self._step = rng.uniform(-14, 14, 2) if rng.random() < 0.7 else np.zeros(2)
        self._texture = _texture(rng, *self._size.tolist())
        self._round = bool(rng.random() < 0.5)

    def paint(self, picture: npt.NDArray[np.float32], n: int) -> None:
        height, width = picture.shape[:2]
        rows, columns = np.ogrid[:height, :width]
        top, left = self._start + n * self._step
        r, c = (rows - top) / self._size[0], (columns - left) / self._size[1]
        inside = (r >= 0) & (r < 1) & (c >= 0) & (c < 1)
        if self._round:
            inside &= (r - 0.5) ** 2 + (c - 0.5) ** 2 < 0.25
        y, x = np.nonzero(inside)
        picture[y, x] = self._texture[(y - top).astype(int), (x - left).astype(int)]


def _texture(rng: np.random.Generator, height: int, width: int) -> npt.NDArray[np.float32]:
    """float32 [H, W, 3] around a random colour: noise of every scale, the coarse louder than the fine."""
    colour, contrast = rng.uniform(40, 215, 3), rng.uniform(15, 60)
    result = np.broadcast_to(colour.astype(np.float32), (height, width, 3)).copy()
    tint = rng.uniform(0.5, 1.0, 3).astype(np.float32)
    cells = 2
    while cells < max(height, width) // 2:
        coarse = Image.fromarray(rng.standard_normal((cells, cells)).astype(np.float32))
        layer = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
        result += layer[..., None] * tint * np.float32(contrast * (2 / cells) ** 0.7)
        cells *= 2
    return result
