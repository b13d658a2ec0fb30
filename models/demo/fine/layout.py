"""Worlds drawn from seeds. Training uses seeds below `HELD_OUT_SEED`, and refuses others (`training_world`); held-out
clips use `HELD_OUT_SEED` + n."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..render import COLOURS, HELD_OUT_SEED
from .glyphs import GLYPHS
from .world import GRID_PX, GROUNDS, HALF_PX, MAX_FRAMES, SHAPES, SIZE_PX, ZOOM, Shot, Thing, World

_APART_PX = 3 * GRID_PX  # between centres along at least one axis, so that no video token holds two things
_FAR_PX = 4 * GRID_PX  # from what moves to where a thing appears
_TRIES = 40
_WAYS = ((1, 0), (-1, 0), (0, 1), (0, -1))


def random_world(seed: int) -> World:
    """The world of a seed: 4 to 6 frames, a cut in three of ten."""
    rng = np.random.default_rng([seed, 11])
    frames = int(rng.integers(4, MAX_FRAMES + 1))
    bounds = [0, frames]
    if rng.random() < 0.3:
        bounds.insert(1, int(rng.integers(2, frames - 1)))
    names = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    rng.shuffle(names)
    glyphs = [str(glyph) for glyph in rng.permutation(GLYPHS)]
    grounds = rng.permutation(GROUNDS)
    shots = tuple(
        _shot(start, end, str(grounds[i]), names, glyphs, rng) for i, (start, end) in enumerate(pairwise(bounds))
    )
    return World(
        shots=shots,
        fps=int(rng.choice([4, 5, 6])),
        noise=0.0 if rng.random() < 0.6 else float(rng.uniform(0.5, 4.0)),
        exposure=(1.0, 1.0) if rng.random() < 0.7 else (float(rng.uniform(0.8, 1.1)), float(rng.uniform(0.8, 1.1))),
    )


def training_world(seed: int) -> World:
    """The world of a seed that training may see. Raises ValueError for a held-out one."""
    if not 0 <= seed < HELD_OUT_SEED:
        raise ValueError(f"seed {seed} is held out: training uses 0 to {HELD_OUT_SEED - 1}")
    return random_world(seed)


def _shot(
    start: int, end: int, ground: str, names: list[tuple[str, str]], glyphs: list[str], rng: np.random.Generator
) -> Shot:
    """One shot: a sign and two to four shapes, whose names and glyphs are taken from the lists."""
    cameras = _cameras(end - start, rng)
    texture_seed = int(rng.integers(2**31))
    while True:
        crowd = _Crowd(start, cameras, rng, [])
        says = _says(end - start, glyphs, rng)
        signed = crowd.add("sign", "", start, end - 1, says)
        moves = rng.random() < 0.7
        wanted = int(rng.integers(2, 5))
        for k in range(wanted):
            colour, shape = names[k]
            first, last = (start, end - 1) if moves and k == 0 and rng.random() < 0.5 else _life(start, end, rng)
            crowd.add(shape, colour, first, last, moves=moves and k == 0)
        if signed and len(crowd.things) >= 3:
            used = {(thing.colour, thing.shape) for thing in crowd.things}
            names[:] = [name for name in names if name not in used]
            glyphs[:] = [glyph for glyph in glyphs if glyph not in says]
            return Shot(start, end, ground, texture_seed, cameras, tuple(crowd.things))


def _cameras(count: int, rng: np.random.Generator) -> tuple[tuple[float, float, float], ...]:
    """A camera that is static (half of the shots), pans evenly, or zooms in once."""
    draw = rng.random()
    if draw < 0.5:
        return ((0.0, 0.0, 1.0),) * count
    if draw < 0.85:
        x, y = (GRID_PX * step for step in _WAYS[int(rng.integers(4))])
        return tuple((float(x * n), float(y * n), 1.0) for n in range(count))
    when = int(rng.integers(1, count))
    return tuple((0.0, 0.0, 1.0 if n < when else ZOOM) for n in range(count))


def _says(count: int, glyphs: list[str], rng: np.random.Generator) -> tuple[str, ...]:
    """What a sign says on each label: usually a new glyph each second, never a repeated one."""
    changes = [0, *(int(rng.random() < 0.6) for _ in range(count - 1))]
    return tuple(glyphs[k] for k in np.cumsum(changes).tolist())


def _life(start: int, end: int, rng: np.random.Generator) -> tuple[int, int]:
    """First and last label of a shape: the whole shot, or it comes late, leaves early, or both."""
    draw = rng.random()
    first = int(rng.integers(start + 1, end)) if draw < 0.45 else start
    leaves = 0.3 < draw < 0.6 and first < end - 1
    return first, int(rng.integers(first, end - 1)) if leaves else end - 1


@dataclass
class _Crowd:
    """The things of a shot so far; each new one is fully visible, apart from the others, on each of its labels."""

    start: int
    cameras: tuple[tuple[float, float, float], ...]
    rng: np.random.Generator
    things: list[Thing]
    mover: Thing | None = None

    def add(
        self, shape: str, colour: str, first: int, last: int, glyphs: tuple[str, ...] = (), moves: bool = False
    ) -> bool:
        """Adds a thing where there is room; False if there is none."""
        reach = int(SIZE_PX / 2 - HALF_PX) // GRID_PX
        for _ in range(_TRIES):
            camera = self.cameras[first - self.start]
            x, y = (camera[i] + GRID_PX * int(self.rng.integers(-reach, reach + 1)) for i in range(2))
            step = (0.0, 0.0)
            if moves:
                way, stride = _WAYS[int(self.rng.integers(4))], GRID_PX * int(self.rng.integers(1, 3))
                step = (float(way[0] * stride), float(way[1] * stride))
            places = tuple((x + n * step[0], y + n * step[1]) for n in range(last - first + 1))
            thing = Thing(shape, colour, first, last, places, glyphs)
            if self._fits(thing):
                self.things.append(thing)
                if moves:
                    self.mover = thing
                return True
        return False

    def _fits(self, thing: Thing) -> bool:
        for n, place in enumerate(thing.places):
            label = thing.first + n
            x, y, zoom = self.cameras[label - self.start]
            if max(abs(place[0] - x), abs(place[1] - y)) + HALF_PX > SIZE_PX / 2 / zoom:
                return False
            for other in self.things:
                if not other.seen(label):
                    continue
                appears = n == 0 and thing.first > self.start and other is self.mover
                there = other.places[label - other.first]
                if max(abs(place[0] - there[0]), abs(place[1] - there[1])) < (_FAR_PX if appears else _APART_PX):
                    return False
        return True
