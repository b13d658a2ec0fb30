"""Pictures and diagrams: AI2D, GQA, RealWorldQA."""

from __future__ import annotations

from collections.abc import Iterator

from .. import prompts
from ..find import MediaFinder
from ..item import EvalItem
from ..reading import options_in
from ..table import KEY, Values
from .documents import LINES
from .format import (
    BenchmarkFormat,
    about,
    answers_of,
    fields,
    first_of,
    group_of,
    known,
    letter_of,
    letter_of_index,
    nested,
    text_of,
    texts,
)


def _ai2d(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    """With options and the right one's number; or as lines, whose question holds options and instruction."""
    question = text_of(row, "question")
    if "options" in row:
        options = texts(row["options"], "options")
        text, answers = (
            prompts.choice_dotted(question, options),
            known(row.get("answer"), lambda answer: letter_of_index(answer, options)),
        )
    else:
        options, text = options_in(question), question
        answers = known(row.get("answer"), lambda answer: letter_of(answer, len(options) or 5))
    yield EvalItem(
        id=str(row.get("question_id", number)),
        **about(find.picture(row["image"], "images"), text),
        question=question,
        measure="choice",
        options=options,
        answers=answers,
        kind="image",
    )


def _gqa(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    question = text_of(row, "question")
    yield EvalItem(
        id=str(row.get("id") or row.get(KEY) or number),
        **about(find.picture(row["imageId"], "images", "data/images"), f"{question}\n{prompts.WORD_USING}"),
        question=question,
        measure="exact",
        answers=answers_of(row, "answer"),
        group=group_of(nested(row, "types"), "structural"),
        kind="image",
    )


def _realworldqa(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    """The questions hold their own instructions, and their options where there are any."""
    question, answers = text_of(row, "question"), answers_of(row, "answer")
    options = options_in(question)
    is_choice = bool(options) and all(len(answer) == 1 for answer in answers)
    yield EvalItem(
        id=str(row.get("id", number)),
        **about(find.picture(first_of(row, "image", "image_path"), "images"), question),
        question=question,
        measure="choice" if is_choice else "exact",
        options=options if is_choice else (),
        answers=tuple(letter_of(answer, len(options)) for answer in answers) if is_choice else answers,
        kind="image",
    )


PICTURES = (
    BenchmarkFormat("ai2d", "AI2D", (fields("image", "question", "options", "answer"), LINES), _ai2d),
    BenchmarkFormat("gqa", "GQA", (fields("imageId", "question", "answer"),), _gqa),
    BenchmarkFormat(
        "realworldqa",
        "RealWorldQA",
        (fields("image", "question", "answer"),),
        _realworldqa,
        "the release also asks a judge model about answers in other words",
    ),
)
