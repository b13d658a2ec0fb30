"""Our own form: JSON lines, one question each. docs/evaluation.md describes it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from ...config import MediaKind
from .. import prompts
from ..find import MediaFinder
from ..item import LETTERS, EvalItem
from ..measures import MEASURES
from ..table import Values
from .format import BenchmarkFormat, answers_of, fields, text_of, texts

_FIELDS = {
    *("media", "question", "options", "answer", "answers", "measure", "id", "group"),
    *("start", "end", "kind", "prompt", "precision"),
}


def _own(row: Values, find: MediaFinder, number: str) -> Iterator[EvalItem]:
    if unknown := sorted(set(row) - _FIELDS):
        raise ValueError(f"unknown field {unknown[0]!r}; fields are {', '.join(sorted(_FIELDS))}")
    names = row["media"] if isinstance(row["media"], list) else [row["media"]]
    if not names:
        raise ValueError("it names no video or picture")
    kind = _kind(row)
    media = tuple(find.picture(name) if kind == "image" else find.video(name) for name in names)
    question = text_of(row, "question")
    options = texts(row["options"], "options") if row.get("options") else ()
    measure = row.get("measure") or ("choice" if options else "exact")
    if measure not in MEASURES:
        raise ValueError(f"no measure is called {measure!r}; there are {', '.join(MEASURES)}")
    span, answers = None, answers_of(row, "answers", "answer")
    if measure == "grounding":
        span, answers = _span(row), ()
    elif measure in ("choice", "nearest"):
        answers = tuple(_letter(answer, options) for answer in answers)
    yield EvalItem(
        id=str(row.get("id", number)),
        media=media,
        parts=prompts.placed(_asked(row, question, options, measure), len(media)),
        question=question,
        measure=measure,
        answers=answers,
        options=options,
        span=span,
        precision=_number(row, "precision", int),
        group=str(row.get("group", "")),
        start_s=_number(row, "start", float),
        end_s=_number(row, "end", float),
        kind=kind,
    )


def _asked(row: Values, question: str, options: tuple[str, ...], measure: str) -> str:
    if row.get("prompt"):
        return text_of(row, "prompt")
    if measure == "grounding":
        return prompts.grounding(question)
    return prompts.choice(question, options) if options else question


def _kind(row: Values) -> MediaKind | None:
    kind: MediaKind | None = row.get("kind")
    if kind not in (None, *get_args(MediaKind)):
        raise ValueError(f"'kind' must be image or video, not {kind!r}")
    return kind


def _span(row: Values) -> tuple[float, float] | None:
    value = row.get("answer", row.get("answers"))
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 2 or not all(_is_number(part) for part in value):
        raise ValueError("'answer' must be [start, end] in seconds")
    return float(value[0]), float(value[1])


def _letter(answer: str, options: tuple[str, ...]) -> str:
    if answer in options:
        return LETTERS[options.index(answer)]
    if len(answer) == 1 and answer in LETTERS[: len(options) or 5]:
        return answer
    raise ValueError(f"its answer {answer!r} is neither the letter nor the text of an option")


def _number(row: Values, name: str, kind: type) -> Any:
    value = row.get(name)
    if value is None:
        return None
    if not _is_number(value) or kind(value) != value:
        raise ValueError(f"{name!r} must be a {'whole ' if kind is int else ''}number, not {value!r}")
    return kind(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


OWN = BenchmarkFormat("jsonl", "our own form", (fields("media", "question"),), _own)
