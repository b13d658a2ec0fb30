"""A benchmark's file form: by which fields it is told, and how its rows become questions."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..find import MediaFinder
from ..item import LETTERS, EvalItem
from ..table import Values

Reader = Callable[[Values, MediaFinder, str], Iterable[EvalItem]]
"""(a row's fields, where media are, an id for rows that have none) -> the row's questions. Raises KeyError for a field
that is missing, ValueError or TypeError for one that cannot be used."""


@dataclass(frozen=True)
class BenchmarkFormat:
    """name: as --format has it. title: as its authors write it. forms: the sets of fields that tell its rows.

    differs: what its score here is not, if it is not that of the paper.
    max_new_tokens: that its answers need, where the usual limit is too short.
    """

    name: str
    title: str
    forms: tuple[frozenset[str], ...]
    read: Reader
    differs: str = ""
    max_new_tokens: int | None = None

    def fit(self, row: Values) -> int:
        """How many fields of a form are those of the row, of the largest form that the row has; 0 for none."""
        return max((len(form) for form in self.forms if form <= set(row)), default=0)


def fields(*names: str) -> frozenset[str]:
    return frozenset(names)


def first_of(row: Values, *names: str) -> Any:
    """The first of these fields that the row has. Raises KeyError, with the first name."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise KeyError(names[0])


def text_of(row: Values, *names: str) -> str:
    """The first of these fields, which must be text. Raises KeyError, ValueError."""
    value = first_of(row, *names)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{names[0]!r} is not text")
    return value


def texts(value: Any, name: str) -> tuple[str, ...]:
    """A list of texts; as Parquet and CSV files have it, too: written as Python or JSON, or a single text.

    Raises ValueError.
    """
    if isinstance(value, str) and (listed := _written_list(value)) is not None:
        value = listed
    if isinstance(value, str | int | float):
        value = [value]
    if not isinstance(value, Sequence) or not value or not all(isinstance(v, str | int | float) for v in value):
        raise ValueError(f"{name!r} is not a list of texts")
    return tuple(str(v) for v in value)


def _written_list(text: str) -> list[Any] | None:
    if not text.lstrip().startswith("["):
        return None
    for parse in (ast.literal_eval, json.loads):
        try:
            found = parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        if isinstance(found, list):
            return found
    return None


def answers_of(row: Values, *names: str) -> tuple[str, ...]:
    """All right answers; none where the field is missing or empty, as in test sets.

    A text is one answer, but for a written list of quoted texts, as MMMU has them: of ChartQA's "[42.47, 54.91]" and
    MathVista's "[2007, 2008]" a half is wrong.
    """
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if value is None or value in ("", []):
        return ()
    if isinstance(value, str):
        listed = _written_list(value)
        return tuple(listed) if listed and all(isinstance(one, str) for one in listed) else (value,)
    return texts(value, names[0])


def unlettered(options: Sequence[str]) -> tuple[str, ...]:
    """Options without their letters, where all have them: "A. a dog" is "a dog"."""
    marks = [(f"{letter}. ", f"({letter}) ", f"{letter}: ") for letter in LETTERS[: len(options)]]
    if not all(option.startswith(mark) for option, mark in zip(options, marks, strict=True)):
        return tuple(options)
    return tuple(option.split(" ", 1)[1] for option in options)


def letter_of_text(answer: Any, options: Sequence[str]) -> str:
    """answer: a text, or a number as JSON has it. Raises ValueError for one that is none of the options."""
    if str(answer) not in options:
        raise ValueError(f"its answer {answer!r} is none of its options")
    return LETTERS[list(options).index(str(answer))]


def letter_of_index(answer: Any, options: Sequence[str]) -> str:
    """answer: from 0, a number or its figures. Raises ValueError for one that there is not."""
    if isinstance(answer, bool) or not str(answer).strip().isdigit() or int(answer) >= len(options):
        raise ValueError(f"its answer {answer!r} is not the number of an option")
    return LETTERS[int(answer)]


def letter_of(answer: Any, count: int) -> str:
    """answer: a letter, perhaps in brackets or with its option. Raises ValueError for one that there is not."""
    letter = str(answer).strip().lstrip("(")[:1].upper()
    rest = str(answer).strip().lstrip("(")[1:2]
    if not letter or letter not in LETTERS[:count] or rest.isalnum():
        raise ValueError(f"its answer {answer!r} is not the letter of an option")
    return letter


def known(answer: Any, letter: Callable[[Any], str]) -> tuple[str, ...]:
    """The right letter; nothing where the answer is not known (None, or -1 as test sets have it)."""
    return () if answer is None or answer in ("", -1, "-1") else (letter(answer),)


def about(media: Any, text: str) -> dict[str, Any]:
    """Fields of an item about one clip, with the text after it."""
    return {"media": (media,), "parts": (0, text)}


def group_of(row: Values, *names: str) -> str:
    """The group of a row: the first of these fields that is there."""
    return str(next((row[name] for name in names if row.get(name) not in (None, "")), ""))


def nested(row: Values, name: str) -> Mapping[str, Any]:
    """A field that holds fields itself; empty where there is none."""
    value = row.get(name)
    return value if isinstance(value, Mapping) else {}
