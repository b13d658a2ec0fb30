"""What is on each video token of a clip: the labels that the auxiliary heads learn."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..clips import TOKEN_PX
from ..render import COLOURS
from .glyphs import GLYPHS
from .world import GROUNDS, SHAPES, SIZE_PX, Shot, Thing, World

SIDE = SIZE_PX // TOKEN_PX  # tokens per row and column
UNKNOWN = -100
EDGES = 21  # where a thing's edges may be along an axis: multiples of 7 pixels
SEEN = 0.2  # a token shows a thing that covers more than this share of it; with less it need not know


@dataclass(frozen=True)
class TokenLabels:
    """What lies on each token of frames, int64 [F, 5, 5], -100 where a head has nothing to learn.

    kind: 0 nothing, 1 to 5 a shape, 6 a sign. colour: of a shape. glyph: of a sign. left, top, right, bottom: edges of
    the thing's box, in steps of 7 pixels, 0 to 20. owner: whether the thing's middle is on this token, 0 or 1. row,
    column: of the token. ground: of the frame.
    """

    kind: Tensor
    colour: Tensor
    glyph: Tensor
    left: Tensor
    top: Tensor
    right: Tensor
    bottom: Tensor
    owner: Tensor
    row: Tensor
    column: Tensor
    ground: Tensor


def covered(shot: Shot, thing: Thing, label: int) -> NDArray[np.float64]:
    """The share of each token that a thing's box covers, [5, 5]."""
    lows = np.arange(SIDE) * TOKEN_PX
    middle, half = shot.screen(thing, label)
    wide, high = (np.clip(np.minimum(lows + TOKEN_PX, c + half) - np.maximum(lows, c - half), 0, None) for c in middle)
    return np.outer(high, wide) / TOKEN_PX**2


def token_labels(moments: list[tuple[World, int]]) -> TokenLabels:
    """Labels of the sampled frames (world, label)."""
    arrays = [_frame_labels(world, label) for world, label in moments]
    return TokenLabels(*(torch.from_numpy(np.stack(parts)) for parts in zip(*arrays, strict=True)))


def _frame_labels(world: World, label: int) -> list[NDArray[np.int64]]:
    shot = world.shot(label)
    names = [field.name for field in fields(TokenLabels)]
    found = {name: np.full((SIDE, SIDE), UNKNOWN) for name in names}
    found["kind"][:] = found["owner"][:] = 0
    found["ground"][:] = GROUNDS.index(shot.ground)
    found["row"][:], found["column"][:] = np.mgrid[:SIDE, :SIDE]
    for thing in shot.seen(label):
        (cx, cy), _ = shot.screen(thing, label)
        share = covered(shot, thing, label)
        shows = share > SEEN
        found["kind"][(share > 0) & ~shows] = UNKNOWN
        found["kind"][shows] = 1 + SHAPES.index(thing.shape) if thing.colour else len(SHAPES) + 1
        if thing.colour:
            found["colour"][shows] = list(COLOURS).index(thing.colour)
        else:
            found["glyph"][shows] = GLYPHS.index(thing.glyph(label))
        for name, edge in zip(("left", "top", "right", "bottom"), shot.box(thing, label), strict=True):
            found[name][shows] = edge * (EDGES - 1) // 1000
        found["owner"][int(cy // TOKEN_PX), int(cx // TOKEN_PX)] = 1
    return [found[name] for name in names]


def news(world: World) -> NDArray[np.int64]:
    """[F, 5, 5]: 1 where the thing on a token, or the glyph on it, was not there on the label before, 0 where it was,
    -100 where there is none."""
    found = np.full((world.frames, SIDE, SIDE), UNKNOWN)
    for label in range(world.frames):
        shot = world.shot(label)
        for thing in shot.seen(label):
            new = thing.first == label or (thing.glyphs != () and thing.glyph(label) != thing.glyph(label - 1))
            found[label][covered(shot, thing, label) > SEEN] = int(new)
    return found
