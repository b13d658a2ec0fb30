"""Pictures that questions reason about: MMMU, whose pictures stand inside the question, and MathVista."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from .. import prompts
from ..find import MediaFinder
from ..item import EvalItem, Part, Source
from ..table import KEY, Values
from .format import (
    BenchmarkFormat,
    about,
    answers_of,
    fields,
    first_of,
    group_of,
    known,
    letter_of,
    letter_of_text,
    nested,
    text_of,
    texts,
)

_PICTURES = 7
_MARK = re.compile(r"<image ([1-7])>")
_PLACES = {1: ("one decimal place", "1.2, 1.3, 1.4"), 2: ("two decimal places", "1.23, 1.34, 1.45")}


def _mmmu(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    question, place = text_of(row, "question"), str(row.get("id") or number)
    is_choice = row["question_type"] == "multiple-choice"
    options = texts(row["options"], "options") if is_choice else ()
    text = prompts.choice_in_colons(question, options) if is_choice else f"{question}\n\n{prompts.WORD_USING}"
    media, parts = _placed(row, find, text)
    named = place.split("_")
    yield EvalItem(
        id=place,
        media=media,
        parts=parts,
        question=question,
        measure="choice" if is_choice else "open",
        options=options,
        answers=known(row.get("answer"), lambda answer: letter_of(answer, len(options)))
        if is_choice
        else answers_of(row, "answer"),
        group=group_of(row, "subject") or (" ".join(named[1:-1]) if len(named) > 2 else ""),
        kind="image",
    )


def _placed(row: Values, find: MediaFinder, text: str) -> tuple[tuple[Source, ...], tuple[Part, ...]]:
    """The pictures that the text names, each after its name, as the release has them; else all of them before it."""
    media: list[Source] = []
    parts: list[Part] = []

    def take(name: str) -> int:
        picture = find.picture(first_of(row, name), "images")
        if picture not in media:
            media.append(picture)
        return media.index(picture)

    position = 0
    for mark in _MARK.finditer(text):
        parts += [f"{text[position : mark.end()]}:", take(f"image_{mark.group(1)}")]
        position = mark.end()
    if not parts:
        there = [f"image_{n}" for n in range(1, _PICTURES + 1) if row.get(f"image_{n}") is not None]
        return tuple(find.picture(row[name], "images") for name in there), (*range(len(there)), text)
    return tuple(media), (*parts, *filter(None, [text[position:]]))


def _mathvista(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    """The authors' `query`, in the row or in `query.json` beside the file, else one made as they make it."""
    place = str(row.get("pid") or row.get(KEY) or number)
    question, choices = text_of(row, "question"), row.get("choices")
    options = texts(choices, "choices") if choices else ()
    kind = "choice" if row["question_type"] == "multi_choice" else str(row["answer_type"])
    digits = int(float(row["precision"])) if row.get("precision") is not None else 0
    query = row.get("query") or (find.beside("query.json") or {}).get(place)
    measure = {"choice": "nearest", "integer": "number", "float": "number", "list": "contains"}.get(kind, "exact")
    picture = row.get("decoded_image") or row["image"]
    yield EvalItem(
        id=place,
        **about(find.picture(picture), query or _query(question, kind, digits, options, row.get("unit"))),
        question=question,
        measure=measure,
        options=options if kind == "choice" else (),
        answers=known(row.get("answer"), lambda given: letter_of_text(given, options))
        if kind == "choice"
        else answers_of(row, "answer"),
        precision=digits if kind == "float" else 0,
        group=group_of(nested(row, "metadata"), "task"),
        kind="image",
    )


def _query(question: str, kind: str, digits: int, options: tuple[str, ...], unit: Any) -> str:
    places, examples = _PLACES.get(digits, _PLACES[1])
    wanted = {
        "choice": "and provide the correct option letter, e.g., A, B, C, D, at the end.",
        "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, 3, at the end.",
        "float": f"requiring a floating-point number with {places} and provide the final value, e.g., {examples}, "
        "at the end.",
        "list": "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4], "
        "at the end.",
    }
    asked = f"{question} (Unit: {unit})" if unit else question
    choices = f"\nChoices:\n{prompts.bracketed(options)}".rstrip() if kind == "choice" else ""
    return f"Hint: Please answer the question {wanted.get(kind, '').strip()}".rstrip() + f"\nQuestion: {asked}{choices}"


REASONING = (
    BenchmarkFormat(
        "mmmu",
        "MMMU",
        (fields("id", "question", "options", "question_type", "image_1", "answer"),),
        _mmmu,
        "an answer that names no option is wrong; the authors' evaluation draws a letter",
    ),
    BenchmarkFormat(
        "mathvista",
        "MathVista",
        (fields("question", "image", "question_type", "answer_type", "precision"),),
        _mathvista,
        "numbers and letters are read from the answer; the paper has a model extract them",
    ),
)
