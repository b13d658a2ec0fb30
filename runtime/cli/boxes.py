"""The options of `vl3edge ask` about boxes, and how boxes are shown: in pixels of the upright original."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from ..decode.generate import Answer
from ..errors import ConfigError
from ..inspect.boxes import FORMATS
from ..prompt.boxes import ANSWER_FORM, question_with_regions
from .output_files import check_output

FRAMES_OF_SPAN = 6
ASK_BOXES = f'ask where things are ("{ANSWER_FORM}"), show the boxes'
_NEEDS_QUESTION = {"box": "--box", "find": "--find", "output": "-o", "json": "--json"}


def add_boxes(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("boxes, in pixels of the upright original (one picture or video, with -q)")
    group.add_argument(
        "--boxes",
        action="store_true",
        help=ASK_BOXES,
    )
    group.add_argument(
        "--box",
        type=_edges,
        action="append",
        metavar="X0,Y0,X1,Y1",
        help="ask about a part of the picture: it stands for {box} in the question, or is named after it; repeatable",
    )
    group.add_argument(
        "--find",
        metavar="EVENT",
        help=f"ask about frames of a video in which EVENT happens, each by itself (at most {FRAMES_OF_SPAN} a time)",
    )
    group.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="draw the boxes on the picture, or on the frames that --find asks about: .png, .jpg; implies --boxes",
    )


def _edges(text: str) -> tuple[float, ...]:
    try:
        edges = tuple(map(float, text.split(",")))
    except ValueError:
        edges = ()
    if len(edges) != 4 or not all(map(math.isfinite, edges)):
        raise argparse.ArgumentTypeError(f"must be four numbers of pixels, X0,Y0,X1,Y1, not {text!r}")
    return edges


def check(options: argparse.Namespace, media: Sequence[str]) -> None:
    """Raises ConfigError for what cannot work, before anything is loaded."""
    if options.question is None:
        for name, option in _NEEDS_QUESTION.items():
            if getattr(options, name):
                raise ConfigError(f"{option} needs a question: give one with -q")
        return
    question_with_regions(options.question, ["" for _ in options.box or ()])
    if is_about_boxes(options) and len(media) != 1:
        raise ConfigError(f"--boxes, --box, --find and -o are about one picture or video, not {len(media)}: name one")
    if options.find is not None and not options.find.strip():
        raise ConfigError("--find needs an event to look for")
    check_output("--json", options.json, media)
    check_output("-o", options.output, media)
    if options.output is not None and options.output.suffix.lower() not in FORMATS:
        raise ConfigError(f"-o {options.output}: the name must end in {', '.join(FORMATS)}")


def is_about_boxes(options: argparse.Namespace) -> bool:
    return bool(options.boxes or options.box or options.output is not None or options.find is not None)


def boxes_problem(answer: Answer) -> str | None:
    """What to say of an answer that was to have boxes: what is wrong with those it has not."""
    note = answer.boxes_note
    if note is None:
        return None if answer.boxes else "the answer has no box"
    return f"{note}; the answer was cut off: raise --max-new-tokens" if answer.finish_reason == "length" else note
