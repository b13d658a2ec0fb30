"""What a clip of the fine world shows: shots, and the things in them.

The clock is that of the demo world (see its render.py): a clip of F seconds is sampled at 1 frame per second, and all
is laid out on the sampled frames' labels 0 .. F - 1. Between two labels things and the camera move evenly; sudden
events (a cut, a thing that appears or vanishes, a new glyph on a sign) happen halfway before their label.

Places are pixels from the frame's middle before the camera is applied: multiples of `GRID_PX`. A camera that pans by
multiples of it and zooms by 1.5 keeps every edge of every thing on multiples of 7 pixels, which are 50 thousandths of
the frame: so boxes have one right answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SIZE_PX = 140  # 10 x 10 patches of 14 pixels, 5 x 5 video tokens of 28
GRID_PX = 14
HALF_PX = 14  # of a thing's width and height, before zooming: it is one token wide
MAX_FRAMES = 6
ZOOM = 1.5

SHAPES = ("circle", "square", "triangle", "cross", "ring")
GROUNDS = ("striped", "checkered", "dotted", "mottled")


@dataclass(frozen=True)
class Thing:
    """A coloured shape, or a sign. first, last: the labels on which it is seen. places: (x, y) on each of those.
    colour: "" for a sign. glyphs: what a sign says on each of those labels; empty for a shape."""

    shape: str
    colour: str
    first: int
    last: int
    places: tuple[tuple[float, float], ...]
    glyphs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As questions and answers name it: "red circle" or "sign"."""
        return f"{self.colour} {self.shape}" if self.colour else self.shape

    def seen(self, label: int) -> bool:
        """Whether it is there on a label."""
        return self.first <= label <= self.last

    def glyph(self, label: int) -> str:
        """What the sign says on a label on which it is seen."""
        return self.glyphs[label - self.first]

    def place(self, time: float) -> NDArray[np.float64]:
        """(x, y) at a time on the labels' clock; before and after it is visible, its first and last position."""
        labels = np.arange(self.first, self.last + 1)
        return np.array([np.interp(time, labels, [place[i] for place in self.places]) for i in range(2)])


@dataclass(frozen=True)
class Shot:
    """Labels `start` to `end` (excluded) of one camera. cameras: (x, y, zoom) on each of them. texture_seed: of the
    ground's details."""

    start: int
    end: int
    ground: str
    texture_seed: int
    cameras: tuple[tuple[float, float, float], ...]
    things: tuple[Thing, ...]

    def camera(self, time: float) -> tuple[NDArray[np.float64], float]:
        """(x, y) of its middle and its zoom, at a time on the labels' clock."""
        labels = np.arange(self.start, self.end)
        x, y, zoom = (np.interp(time, labels, [camera[i] for camera in self.cameras]) for i in range(3))
        return np.array([x, y]), float(zoom)

    def screen(self, thing: Thing, time: float) -> tuple[NDArray[np.float64], float]:
        """The pixel (x, y) of a thing's middle, and half its width in pixels."""
        camera, zoom = self.camera(time)
        return SIZE_PX / 2 + zoom * (thing.place(time) - camera), zoom * HALF_PX

    def box(self, thing: Thing, label: int) -> tuple[int, int, int, int]:
        """Left, top, right and bottom of a thing in thousandths of the frame."""
        (x, y), half = self.screen(thing, label)
        edges = np.array([x - half, y - half, x + half, y + half]) * 1000 / SIZE_PX
        left, top, right, bottom = np.rint(edges).astype(int).tolist()
        return left, top, right, bottom

    def seen(self, label: int) -> list[Thing]:
        """The things that are there on a label, from left to right; one above the other from top to bottom."""
        things = [thing for thing in self.things if thing.seen(label)]
        return sorted(things, key=lambda thing: self.screen(thing, label)[0].tolist())


@dataclass(frozen=True)
class World:
    """A clip: one shot or two. fps: of the source. noise: standard deviation of the sensor's noise in 8-bit levels.
    exposure: the gain at the first and the last label."""

    shots: tuple[Shot, ...]
    fps: int
    noise: float
    exposure: tuple[float, float]

    @property
    def frames(self) -> int:
        return self.shots[-1].end

    @property
    def cut(self) -> int | None:
        """The first label of the second shot."""
        return self.shots[1].start if len(self.shots) == 2 else None

    def shot(self, label: int) -> Shot:
        """The shot of a label. Raises IndexError if the clip has no such label."""
        if not 0 <= label < self.frames:
            raise IndexError(f"a clip of {self.frames} frames has no label {label}")
        return next(shot for shot in self.shots if label < shot.end)
