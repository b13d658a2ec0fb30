"""Scenes of the demo world and their pixels.

A scene is one coloured shape on a textured ground. It may wait, move, turn once and stop. All of it follows from a
seed. Training uses seeds from `TRAIN_SEED` on; everything held out (evaluation, tests, demo clips) uses the seeds
`HELD_OUT_SEED` + n, which training never uses.

Two clocks. A clip of F seconds is sampled at 1 frame per second: the frame labelled n is the *last* source frame before
n + 1 seconds (FFmpeg's fps filter, rounding down). Scenes are defined on these labels: `Scene.centres[n]` is where the
shape is on the sampled frame n, every event happens exactly at a label, and a moving shape travels at least 12 pixels
(0.43 of a 28-pixel token) between two labels. So each question about time has one right answer that the sampled frames
show. Between two labels the shape moves evenly.

The ground is lit by two coloured lights: red grows from left to right, green from top to bottom. The encoder's
positions are only relative, so without such a cue a flat ground would not tell where a patch is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

MAX_FRAMES = 9  # of a clip, at 1 per second: times have one digit
SIZE_PX = 112  # 8 x 8 patches of 14 pixels, 4 x 4 video tokens of 28
TRAIN_SEED = 0
HELD_OUT_SEED = 1_000_000_000

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "green": (25, 165, 45),
    "blue": (35, 60, 215),
    "yellow": (240, 215, 30),
    "purple": (150, 40, 170),
    "white": (245, 245, 245),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
GROUNDS = ("plain", "striped", "checkered", "dotted")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}

_MARGIN_PX = 24  # the centre keeps this distance from every edge
_MIN_STEP_PX, _MAX_STEP_PX = 12.0, 16.0


@dataclass(frozen=True)
class Scene:
    """What a clip shows. Times are seconds on the sampled frames' labels.

    wait_s: seconds at rest before the first move. legs: (direction, seconds) of each straight move, none to two.
    rest_s: seconds at rest after the last move; 0: it moves to the end. frames: sampled frames, at 1 per second.
    start_px: (x, y) of the centre on frame 0. step_px: distance per second while it moves. fps: of the source.
    texture_seed: of the ground's details.
    """

    shape: str
    colour: str
    ground: str
    wait_s: int
    legs: tuple[tuple[str, int], ...]
    rest_s: int
    start_px: tuple[float, float]
    step_px: float
    radius_px: float
    fps: int
    texture_seed: int

    @property
    def frames(self) -> int:
        return self.wait_s + sum(seconds for _, seconds in self.legs) + self.rest_s + 1

    @property
    def turn_time(self) -> int | None:
        """The last frame before it changes direction; None: it never turns."""
        return self.wait_s + self.legs[0][1] if len(self.legs) == 2 else None

    @property
    def stop_time(self) -> int | None:
        """The first frame after which it stays; None: it never moves, or moves to the end."""
        return self.frames - 1 - self.rest_s if self.legs and self.rest_s else None

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """[frames, 2]: (x, y) of the centre in pixels on each sampled frame."""
        steps = [(0, 0)] * self.wait_s
        for direction, seconds in self.legs:
            steps += [DIRECTIONS[direction]] * seconds
        steps += [(0, 0)] * self.rest_s
        moved = np.array([(0, 0), *steps], dtype=np.float64).cumsum(axis=0) * self.step_px
        return moved + np.array(self.start_px)


def random_scene(seed: int) -> Scene:
    """The scene of a seed: 5 to 9 frames; an eighth never move, a half turn, about six in ten of the movers stop."""
    rng = np.random.default_rng([seed, 1])
    wait_s = rest_s = 0
    legs: list[tuple[str, int]] = []
    if rng.random() < 0.125:
        wait_s = int(rng.integers(4, 9))
    else:
        wait_s = int(rng.choice([0, 0, 1, 2, 3]))
        rest_s = int(rng.choice([0, 0, 1, 2, 3]))
        legs.append((str(rng.choice(list(DIRECTIONS))), int(rng.integers(2, 5))))
        if rng.random() < 0.5:
            others = [name for name in DIRECTIONS if name != legs[0][0]]
            legs.append((str(rng.choice(others)), int(rng.integers(2, 4))))
        total = wait_s + rest_s + sum(seconds for _, seconds in legs)
        while total > MAX_FRAMES - 1:  # shorten the rests, never a rest to nothing
            if wait_s > 1 and wait_s >= rest_s:
                wait_s -= 1
            elif rest_s > 1:
                rest_s -= 1
            else:
                longest = max(range(len(legs)), key=lambda i: legs[i][1])
                legs[longest] = (legs[longest][0], legs[longest][1] - 1)
            total -= 1
        if total < 4:
            legs[-1] = (legs[-1][0], legs[-1][1] + 4 - total)
    # Where the path may begin, given its extent in each direction.
    path = np.array([(0, 0)] + [d for name, s in legs for d in [DIRECTIONS[name]] * s], dtype=np.float64).cumsum(axis=0)
    low, high = path.min(axis=0), path.max(axis=0)
    room = SIZE_PX - 2 * _MARGIN_PX
    step = float(rng.uniform(_MIN_STEP_PX, min(_MAX_STEP_PX, room / max(1.0, float((high - low).max())))))
    start = [float(rng.uniform(_MARGIN_PX - low[i] * step, SIZE_PX - _MARGIN_PX - high[i] * step)) for i in range(2)]
    return Scene(
        shape=str(rng.choice(SHAPES)),
        colour=str(rng.choice(list(COLOURS))),
        ground=str(rng.choice(GROUNDS)),
        wait_s=wait_s,
        legs=tuple(legs),
        rest_s=rest_s,
        start_px=(start[0], start[1]),
        step_px=step,
        radius_px=float(rng.uniform(18.0, 22.0)),
        fps=int(rng.choice([4, 5, 6, 8])),
        texture_seed=int(rng.integers(2**31)),
    )


_Y, _X = np.mgrid[0:SIZE_PX, 0:SIZE_PX].astype(np.float32) + 0.5


def draw_ground(scene: Scene) -> NDArray[np.float32]:
    """The ground alone, [112, 112, 3] float32 in 8-bit levels."""
    rng = np.random.default_rng([scene.texture_seed, 2])
    base, contrast = rng.uniform(85, 145), rng.uniform(16, 28) * rng.choice([-1, 1])
    phase = rng.uniform(0, 40, size=2)
    x, y = _X + phase[0], _Y + phase[1]
    if scene.ground == "plain":
        texture = np.zeros_like(x)
    elif scene.ground == "striped":
        angle = rng.uniform(0, np.pi)
        period = rng.uniform(12, 20)
        texture = np.clip(4 * np.sin((x * np.cos(angle) + y * np.sin(angle)) * (2 * np.pi / period)), -1, 1)
    elif scene.ground == "checkered":
        cell = rng.uniform(8, 14)
        texture = ((np.floor(x / cell) + np.floor(y / cell)) % 2) * 2 - 1
    else:
        period = rng.uniform(12, 18)
        distance = np.hypot((x % period) - period / 2, (y % period) - period / 2)
        texture = np.clip((period * 0.27 - distance), -1, 1)
    grey = base + contrast * texture
    red = (_X / SIZE_PX - 0.5) * 60
    green = (_Y / SIZE_PX - 0.5) * 60
    return np.stack([grey + red, grey + green, grey - red * 0.5 - green * 0.5], axis=-1).astype(np.float32)


def coverage(scene: Scene, centre: NDArray[np.float64]) -> NDArray[np.float32]:
    """How much of each pixel the shape covers, [112, 112] float32 from 0 to 1."""
    x, y, r = _X - np.float32(centre[0]), _Y - np.float32(centre[1]), np.float32(scene.radius_px)
    if scene.shape in ("circle", "ring"):
        distance = np.hypot(x, y) - r
        if scene.shape == "ring":
            distance = np.maximum(distance, r * 0.5 - np.hypot(x, y))
    elif scene.shape == "square":
        distance = np.maximum(np.abs(x), np.abs(y)) - r * 0.85
    elif scene.shape == "triangle":
        distance = np.maximum(0.873 * np.abs(x) - 0.488 * (y + r), y - 0.7 * r)
    else:
        arm = r * 0.34
        distance = np.minimum(np.maximum(np.abs(x) - r, np.abs(y) - arm), np.maximum(np.abs(x) - arm, np.abs(y) - r))
    return np.clip(0.5 - distance, 0, 1)


def draw(scene: Scene, ground: NDArray[np.float32], centre: NDArray[np.float64]) -> NDArray[np.float32]:
    """One picture of the scene, [112, 112, 3] float32 in 8-bit levels, not yet rounded."""
    mask = coverage(scene, centre)[..., None]
    return ground + mask * (np.array(COLOURS[scene.colour], dtype=np.float32) - ground)


def source_frames(scene: Scene, noise: float = 0.0, seed: int = 0) -> NDArray[np.uint8]:
    """All source frames at `scene.fps`, [frames * fps, 112, 112, 3] uint8.

    noise: standard deviation of the sensor's noise in 8-bit levels, drawn anew for every frame from `seed`.
    """
    ground = draw_ground(scene)
    count = scene.frames * scene.fps
    # Source frame i is at i / fps seconds; the one sampled for label n is (n + 1) * fps - 1.
    label_time = (np.arange(count) + 1) / scene.fps - 1
    labels = np.arange(scene.frames)
    centres = np.stack([np.interp(label_time, labels, scene.centres[:, i]) for i in range(2)], axis=1)
    rng = np.random.default_rng([seed, 3])
    frames = np.empty((count, SIZE_PX, SIZE_PX, 3), np.uint8)
    picture = None
    for i, centre in enumerate(centres):
        if picture is None or (centre != centres[i - 1]).any():
            picture = draw(scene, ground, centre)
        noisy = picture if noise == 0 else picture + rng.standard_normal(picture.shape, np.float32) * np.float32(noise)
        frames[i] = np.clip(np.rint(noisy), 0, 255)
    return frames
