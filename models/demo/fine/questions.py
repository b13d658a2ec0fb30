"""What can be asked about a world, and the one right answer to each question.

Most kinds name a time and a thing: their answers are in one place on one sampled frame. Every answer follows from the
world alone. A kind that does not apply to a clip (say, nothing appears in it) is not asked.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..questions import VIDEO_PROMPT, Question
from ..render import COLOURS
from .glyphs import GLYPHS
from .world import GRID_PX, SHAPES, Shot, Thing, World

Pair = tuple[str, str]


def choices(world: World) -> dict[str, list[Question]]:
    """All questions that the clip allows, by kind; kinds without any are omitted."""
    found = {kind: [Question(kind, text, answer) for text, answer in pairs(world)] for kind, pairs in _KINDS.items()}
    return {kind: questions for kind, questions in found.items() if questions}


def ask_all(world: World, seed: int) -> list[Question]:
    """One question of each kind that the clip allows."""
    rng = np.random.default_rng([seed, 15])
    return [questions[int(rng.integers(len(questions)))] for questions in choices(world).values()]


def sentences() -> list[str]:
    """Texts in which every word and form of the questions and answers occurs, for the tokenizer."""
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
    texts = ["Left.", "Right.", "Above.", "Below.", "It never changes.", _CUT, VIDEO_PROMPT] * len(names)
    for k, name in enumerate(names):
        other, time, glyph = names[k * 7 % len(names)], k % 6, GLYPHS[k % len(GLYPHS)]
        colour, shape = name.split()
        texts += [_sign_at(time), f"{glyph}.", _first_says(glyph), _at(time), _count_at(time), f"{k % 5}."]
        texts += [_box_at(name, time), _box(name, (100, 300, 450, 800)), _box("sign", (0, 50, 250, 950))]
        texts += [_appears(name), _vanishes(name), _which_at(time), f"A {name}."]
        texts += [_colour_at(shape, time), f"{colour.capitalize()}.", _side_at(name, other, time)]
        texts.append(f"It begins with a {name}, a sign with {glyph} and a {other}.")
    return texts


def _at(time: int) -> str:
    return f"At {time}.0s."


def _box(name: str, edges: tuple[int, int, int, int]) -> str:
    """The released model's own form, in thousandths of the frame."""
    return f"<ref>the {name}</ref>[[{','.join(map(str, edges))}]]"


def _sign_at(time: int) -> str:
    return f"What does the sign say at {time}.0s?"


def _first_says(glyph: str) -> str:
    return f"When does the sign first say {glyph}?"


def _count_at(time: int) -> str:
    return f"How many shapes are there at {time}.0s?"


def _box_at(name: str, time: int) -> str:
    return f"Where is the {name} at {time}.0s?"


def _appears(name: str) -> str:
    return f"When does the {name} appear?"


def _vanishes(name: str) -> str:
    return f"When does the {name} vanish?"


def _which_at(time: int) -> str:
    return f"What appears at {time}.0s?"


def _colour_at(shape: str, time: int) -> str:
    return f"What colour is the {shape} at {time}.0s?"


def _side_at(name: str, other: str, time: int) -> str:
    return f"On which side of the {other} is the {name} at {time}.0s?"


_CUT = "When does the scene change?"


def _moments(world: World) -> list[tuple[int, Shot, list[Thing]]]:
    """(label, its shot, the things seen then) of every sampled frame."""
    shots = [world.shot(label) for label in range(world.frames)]
    return [(label, shot, shot.seen(label)) for label, shot in enumerate(shots)]


def _caption(world: World) -> list[Pair]:
    names = [f"a sign with {thing.glyph(0)}" if thing.glyphs else f"a {thing.name}" for thing in world.shots[0].seen(0)]
    listed = f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else names[0]
    return [(VIDEO_PROMPT, f"It begins with {listed}.")]


def _sign(world: World) -> list[Pair]:
    return [(_sign_at(n), f"{thing.glyph(n)}.") for n, _, seen in _moments(world) for thing in seen if thing.glyphs]


def _says(world: World) -> list[Pair]:
    signs = [thing for shot in world.shots for thing in shot.things if thing.glyphs]
    first = {glyph: sign.first + sign.glyphs.index(glyph) for sign in signs for glyph in sign.glyphs}
    return [(_first_says(glyph), _at(label)) for glyph, label in first.items()]


def _count(world: World) -> list[Pair]:
    return [(_count_at(n), f"{sum(not thing.glyphs for thing in seen)}.") for n, _, seen in _moments(world)]


def _where(world: World) -> list[Pair]:
    return [
        (_box_at(thing.name, n), _box(thing.name, shot.box(thing, n)))
        for n, shot, seen in _moments(world)
        for thing in seen
    ]


def _arrivals(world: World) -> list[Thing]:
    """Things that appear within their shot."""
    return [thing for shot in world.shots for thing in shot.things if thing.first > shot.start]


def _appear(world: World) -> list[Pair]:
    return [(_appears(thing.name), _at(thing.first)) for thing in _arrivals(world)]


def _vanish(world: World) -> list[Pair]:
    things = [thing for shot in world.shots for thing in shot.things if thing.last < shot.end - 1]
    return [(_vanishes(thing.name), _at(thing.last + 1)) for thing in things]


def _which(world: World) -> list[Pair]:
    firsts = [thing.first for thing in _arrivals(world)]
    return [
        (_which_at(thing.first), f"A {thing.name}.") for thing in _arrivals(world) if firsts.count(thing.first) == 1
    ]


def _colour(world: World) -> list[Pair]:
    pairs = []
    for n, _, seen in _moments(world):
        shapes = [thing.shape for thing in seen]
        single = [thing for thing in seen if thing.colour and shapes.count(thing.shape) == 1]
        pairs += [(_colour_at(thing.shape, n), f"{thing.colour.capitalize()}.") for thing in single]
    return pairs


def _side(world: World) -> list[Pair]:
    """Of pairs of which one axis tells clearly: middles are further apart along it by half a token or more."""
    pairs = []
    for n, shot, seen in _moments(world):
        for thing in seen:
            for other in seen:
                x, y = shot.screen(thing, n)[0] - shot.screen(other, n)[0]
                if abs(abs(x) - abs(y)) >= GRID_PX:
                    side = ("Left." if x < 0 else "Right.") if abs(x) > abs(y) else "Above." if y < 0 else "Below."
                    pairs.append((_side_at(thing.name, other.name, n), side))
    return pairs


def _cut(world: World) -> list[Pair]:
    return [(_CUT, "It never changes." if world.cut is None else _at(world.cut))]


_KINDS: dict[str, Callable[[World], list[Pair]]] = {
    "caption": _caption,
    "sign": _sign,
    "says": _says,
    "count": _count,
    "where": _where,
    "appear": _appear,
    "vanish": _vanish,
    "which": _which,
    "colour": _colour,
    "side": _side,
    "cut": _cut,
}
KINDS = tuple(_KINDS)
