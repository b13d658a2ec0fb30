"""The pixels of a world: a textured ground under the camera, things on it, the sensor's noise and exposure.

As in the demo world the ground is lit by two coloured lights that stay with the camera (red grows from left to right,
green from top to bottom): the encoder's positions are only relative, and a token must know its own place.
"""

from __future__ import annotations

from functools import lru_cache
from math import cos, pi, sin

import numpy as np
from numpy.typing import NDArray

from ..render import COLOURS
from .glyphs import DOTS
from .world import HALF_PX, SIZE_PX, Shot, Thing, World

_Y, _X = np.mgrid[0:SIZE_PX, 0:SIZE_PX].astype(np.float32) + 0.5
_LIGHT = 60.0  # levels from one side of the frame to the other
_PLATE, _INK = 15.0, 250.0  # levels of a sign
_DOT_PX = 3.0


def source_frames(world: World, seed: int = 0) -> NDArray[np.uint8]:
    """All source frames at `world.fps`, [frames * fps, 140, 140, 3] uint8. seed: of the noise."""
    rng = np.random.default_rng([seed, 12])
    count = world.frames * world.fps
    frames = np.empty((count, SIZE_PX, SIZE_PX, 3), np.uint8)
    for i in range(count):
        # Source frame i is at i / fps seconds; the one sampled for label n is (n + 1) * fps - 1.
        time = max(0.0, (i + 1) / world.fps - 1)
        picture = draw(world, time)
        if world.noise:
            picture = picture + rng.standard_normal(picture.shape, np.float32) * np.float32(world.noise)
        frames[i] = np.clip(np.rint(picture), 0, 255)
    return frames


def draw(world: World, time: float) -> NDArray[np.float32]:
    """The picture at a time on the labels' clock, [140, 140, 3] float32 in 8-bit levels, not yet rounded."""
    label = min(int(np.floor(time + 0.5)), world.frames - 1)
    shot = world.shot(label)
    camera, zoom = shot.camera(time)
    picture = draw_ground(shot, (float(camera[0]), float(camera[1])), zoom).copy()
    for thing in shot.things:
        if thing.seen(label):
            _draw_thing(picture, shot, thing, label, time)
    gain = np.interp(time, [0, world.frames - 1], world.exposure)
    return picture * np.float32(gain)


@lru_cache(maxsize=2)
def draw_ground(shot: Shot, camera: tuple[float, float], zoom: float) -> NDArray[np.float32]:
    """The ground alone, as `draw` gives it before exposure."""
    rng = np.random.default_rng([shot.texture_seed, 13])
    base, contrast = rng.uniform(85, 145), rng.uniform(10, 20)
    phase, angle, period = rng.uniform(0, 40, size=2), rng.uniform(0, pi), rng.uniform(12, 18)
    x = (_X - SIZE_PX / 2) / np.float32(zoom) + np.float32(camera[0] + phase[0])
    y = (_Y - SIZE_PX / 2) / np.float32(zoom) + np.float32(camera[1] + phase[1])
    if shot.ground == "striped":
        texture = np.clip(4 * np.sin((x * cos(angle) + y * sin(angle)) * (2 * pi / period)), -1, 1)
    elif shot.ground == "checkered":
        texture = ((np.floor(x / period * 1.5) + np.floor(y / period * 1.5)) % 2) * 2 - 1
    elif shot.ground == "dotted":
        distance = np.hypot((x % period) - period / 2, (y % period) - period / 2)
        texture = np.clip(period * 0.27 - distance, -1, 1)
    else:
        waves = rng.uniform(-0.35, 0.35, size=(3, 2)).tolist()
        texture = sum((np.sin(x * a + y * b) for a, b in waves), np.zeros_like(x)) / 2
    grey = base + contrast * texture
    red, green = (_X / SIZE_PX - 0.5) * _LIGHT, (_Y / SIZE_PX - 0.5) * _LIGHT
    return np.stack([grey + red, grey + green, grey - red * 0.5 - green * 0.5], axis=-1).astype(np.float32)


def shape_mask(shape: str, x: NDArray[np.float32], y: NDArray[np.float32], half: float) -> NDArray[np.float32]:
    """How much of each pixel a shape covers, from 0 to 1, that fills the square of half side `half` about (0, 0)."""
    square = np.maximum(np.abs(x), np.abs(y)) - half
    if shape in ("circle", "ring"):
        distance = np.hypot(x, y) - half
        if shape == "ring":
            distance = np.maximum(distance, half * 0.5 - np.hypot(x, y))
    elif shape == "triangle":  # its sides rise 2 for 1, so the distance is by 2 / sqrt(5)
        distance = np.maximum((2 * np.abs(x) - (y + half)) / np.sqrt(5.0), y - half)
    elif shape == "cross":
        distance = np.maximum(square, np.minimum(np.abs(x), np.abs(y)) - half * 0.36)
    else:
        distance = square
    return np.clip(0.5 - distance, 0, 1).astype(np.float32)


def _draw_thing(picture: NDArray[np.float32], shot: Shot, thing: Thing, label: int, time: float) -> None:
    """Draws a thing into a picture."""
    (cx, cy), half = shot.screen(thing, time)
    top, left = max(0, int(cy - half) - 1), max(0, int(cx - half) - 1)
    window = np.s_[top : int(cy + half) + 2, left : int(cx + half) + 2]
    x, y = _X[window] - np.float32(cx), _Y[window] - np.float32(cy)
    mask = shape_mask(thing.shape, x, y, half)[..., None]
    paint = _sign_paint(thing.glyph(label), x, y, half) if thing.glyphs else np.array(COLOURS[thing.colour], np.float32)
    picture[window] += mask * (paint - picture[window])


def _sign_paint(glyph: str, x: NDArray[np.float32], y: NDArray[np.float32], half: float) -> NDArray[np.float32]:
    """Levels [h, w, 1] of a sign at (x, y) from its middle."""
    dots = DOTS[glyph]
    scale = half / HALF_PX * _DOT_PX
    column = np.floor(x / scale + dots.shape[1] / 2).astype(int)
    row = np.floor(y / scale + dots.shape[0] / 2).astype(int)
    inside = (row >= 0) & (row < dots.shape[0]) & (column >= 0) & (column < dots.shape[1])
    inked = inside & dots[row.clip(0, dots.shape[0] - 1), column.clip(0, dots.shape[1] - 1)]
    return np.where(inked, _INK, _PLATE)[..., None].astype(np.float32)
