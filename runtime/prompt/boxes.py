"""Boxes in answers and in questions: text in thousandths of the picture, in pixels everywhere else.

Asked "Where is the white car? Answer in [[x0,y0,x1,y1]] format.", the released models answer
`<ref>the white car</ref>[[56, 42, 390, 484]]`: left, top, right and bottom edge in thousandths of the whole picture's
width and height. Pixels here are those of the upright original: the picture or frame as its file stores it, turned by
its EXIF orientation or display matrix, before it is resized for the model. The sample aspect ratio of an anamorphic
video is not applied, as the model does not see it either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import ceil, floor
from typing import Any

from ..errors import ConfigError
from ..terminal import one_line

Size = tuple[int, int]
"""Height and width in pixels."""
ANSWER_FORM = "Answer in [[x0,y0,x1,y1]] format."
PLACE = "{box}"
"""Where a box belongs in a question."""
_WHOLE = 1000
_FORM_ASKED = re.compile(r"\[\s*\[\s*x0\s*,\s*y0\s*,\s*x1\s*,\s*y1\s*\]\s*\]", re.IGNORECASE)
# A label, if there is one, and a list of boxes, which may have been cut off.
_LIST = re.compile(
    r"(?:<ref>(?P<label>(?:(?!</?ref>).)*)</ref>\s*)?"
    r"\[\s*\[(?P<boxes>[^][<]*(?:\]\s*,\s*\[[^][<]*)*)(?P<end>\]\s*\])?",
    re.DOTALL,
)
_EDGES = re.compile(r"\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*,\s*([0-9]{1,4})\s*")
_SHOWN = 40  # characters of what is no box


@dataclass(frozen=True)
class Box:
    """A part of a picture, or of a video's frames, in pixels of the upright original.

    label: what the model says is there; None if it does not say.
    x0, y0: left and top edge. x1, y1: right and bottom edge, at least a pixel further: `array[y0:y1, x0:x1]` is inside.
    """

    label: str | None
    x0: int
    y0: int
    x1: int
    y1: int


@dataclass(frozen=True)
class BoxReading:
    """The boxes of a text, in order, and in words why others of it cannot be used; None if all can."""

    boxes: tuple[Box, ...]
    note: str | None

    def to_json(self) -> dict[str, Any]:
        """`boxes`, and `boxes_note` if there is one."""
        noted = {} if self.note is None else {"boxes_note": self.note}
        return {"boxes": [asdict(box) for box in self.boxes], **noted}


def read_boxes(text: str, sizes: Sequence[Size]) -> BoxReading:
    """The boxes that a model wrote. What is not exactly a box (four whole numbers up to 1000 in order) gives none.

    sizes: of the upright originals that the text may be about. Boxes can be placed only if all have one size.
    """
    found: list[tuple[str | None, tuple[int, ...]]] = []
    wrong: list[str] = []
    for match in _LIST.finditer(text):
        label = None if match["label"] is None else " ".join(one_line(match["label"]).split())
        items = re.split(r"\]\s*,\s*\[", match["boxes"])
        for number, item in enumerate(items, 1):
            is_cut = not match["end"] and number == len(items)
            if problem := _problem(item, is_cut):
                wrong.append(f"[{one_line(item)[:_SHOWN].strip()}{'' if is_cut else ']'} {problem}")
            else:
                found.append((label or None, tuple(map(int, item.split(",")))))
    wrong += ["a <ref> has no box after it"] * _LIST.sub("", text).count("<ref>")
    places = set(sizes)
    if found and len(places) != 1:
        why = "of which of the pictures, whose sizes differ," if places else "of what picture"
        return BoxReading((), f"the answer does not say {why} its boxes are")
    total = len(found) + len(wrong)
    note = f"{len(wrong)} of {total} {'box' if total == 1 else 'boxes'} cannot be used: {wrong[0]}" if wrong else None
    return BoxReading(tuple(_placed(label, edges, *places) for label, edges in found), note)


def box_lines(boxes: Iterable[Box]) -> list[str]:
    """Every box in the form that --box takes, after what is in it."""
    return [f"{one_line(box.label or 'box')}: {box.x0},{box.y0},{box.x1},{box.y1}" for box in boxes]


def boxes_question(question: str) -> str:
    """A question that asks for boxes as the released models were trained to give them, if it does not do so already."""
    return question if _FORM_ASKED.search(question) else f"{question.rstrip()} {ANSWER_FORM}"


def region(box: Sequence[float], size: Size, name: str = "the picture") -> str:
    """The text that stands for a part of a picture in a question: `[[x0, y0, x1, y1]]` in thousandths.

    box: left, top, right and bottom edge, in pixels of the upright original. name: of the picture, for messages.
    Raises ConfigError for a box that has nothing in it or is not within the picture.
    """
    height, width = size
    shown = ",".join(f"{edge:g}" for edge in box)
    if not all(0 <= edge <= most for edge, most in zip(box, (width, height) * 2, strict=True)):
        raise ConfigError(f"box {shown} is not within {name}: X must be 0 to {width}, Y 0 to {height}")
    x0, y0, x1, y1 = box
    if not (x0 < x1 and y0 < y1):
        raise ConfigError(f"box {shown} has nothing in it: X0 must be less than X1, and Y0 less than Y1")
    left, right = _rounded(_WHOLE * x0 / width, _WHOLE * x1 / width, _WHOLE)
    top, bottom = _rounded(_WHOLE * y0 / height, _WHOLE * y1 / height, _WHOLE)
    return f"[[{left}, {top}, {right}, {bottom}]]"


def question_with_regions(question: str, regions: Sequence[str]) -> str:
    """A question about regions: each in the place of a {box}, or all of them named after the question.

    Raises ConfigError if the question has places, but not as many as there are regions.
    """
    first, *rest = question.split(PLACE)
    if rest and len(rest) != len(regions):
        times = "once" if len(rest) == 1 else f"{len(rest)} times"
        raise ConfigError(f"the question has {PLACE} {times}: give as many boxes (--box), not {len(regions)}")
    if rest:
        return first + "".join(text + after for text, after in zip(regions, rest, strict=True))
    if not regions:
        return question
    named = "The region is" if len(regions) == 1 else "The regions are"
    return f"{question.rstrip()} {named} {' and '.join(regions)}."


def _problem(item: str, is_cut: bool) -> str | None:
    """What keeps the inside of `[…]` from being a box."""
    if is_cut:
        return "is not complete"
    match = _EDGES.fullmatch(item)
    if match is None:
        return "is not four whole numbers"
    x0, y0, x1, y1 = map(int, match.groups())
    if max(x0, y0, x1, y1) > _WHOLE:
        return f"is not within 0 to {_WHOLE}"
    return None if x0 < x1 and y0 < y1 else "has edges in the wrong order"


def _placed(label: str | None, edges: Sequence[int], size: Size) -> Box:
    height, width = size
    x0, y0, x1, y1 = edges
    left, right = _rounded(x0 * width / _WHOLE, x1 * width / _WHOLE, width)
    top, bottom = _rounded(y0 * height / _WHOLE, y1 * height / _WHOLE, height)
    return Box(label, left, top, right, bottom)


def _rounded(low: float, high: float, most: int) -> tuple[int, int]:
    """The whole numbers nearest to two edges; what they would leave nothing of lies within the ones around it."""
    nearest = floor(low + 0.5), floor(high + 0.5)
    if nearest[0] < nearest[1]:
        return nearest
    left = min(floor(low), most - 1)
    return left, max(ceil(high), left + 1)
