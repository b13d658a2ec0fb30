"""All questions of a set: files in any of the forms; rows that are none are told one by one; perhaps a sample."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import SamplingPlan
from ..errors import ConfigError
from ..terminal import one_line
from .find import MediaFinder
from .formats.documents import DOCUMENTS
from .formats.format import BenchmarkFormat
from .formats.long_videos import LONG_VIDEOS
from .formats.open_videos import OPEN_VIDEOS
from .formats.own import OWN
from .formats.pictures import PICTURES
from .formats.reasoning import REASONING
from .formats.short_videos import SHORT_VIDEOS
from .item import Asked, BadRow, EvalItem
from .table import TableRow, read_rows

FORMATS = {
    form.name: form for form in (OWN, *LONG_VIDEOS, *SHORT_VIDEOS, *OPEN_VIDEOS, *DOCUMENTS, *PICTURES, *REASONING)
}


@dataclass(frozen=True)
class QuestionSet:
    """formats: of its files, each once. asked: the questions, and the rows that are none, in the files' order."""

    formats: tuple[BenchmarkFormat, ...]
    asked: tuple[Asked, ...]


def read_questions(
    files: Sequence[Path],
    format: str | None = None,
    media_root: Path | None = None,
    limit: int | None = None,
    limit_seed: int = 0,
) -> QuestionSet:
    """The questions of files.

    format: a name of `FORMATS`; None tells each file's by the fields of its rows.
    media_root: the folder of the media; None is each file's own, and of benchmarks the one above, too.
    limit: at most so many, drawn from all of them by limit_seed, in the files' order.
    Raises ConfigError for a file that cannot be read, or whose form cannot be told.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit must be at least 1, not {limit}")
    if media_root is not None and not media_root.is_dir():
        raise ConfigError(f"--media-root {media_root}: there is no such folder")
    formats: dict[str, BenchmarkFormat] = {}
    asked: list[Asked] = []
    for file in files:
        rows = list(read_rows(file))
        if not rows:
            raise ConfigError(f"{file}: it has no rows")
        form = FORMATS[format] if format is not None else told_format(file, rows)
        formats[form.name] = form
        found = _items(form, rows, MediaFinder(file, _roots(file, form, media_root)))
        asked += (replace(one, id=f"{file.stem}:{one.id}") for one in found) if len(files) > 1 else found
    asked = list(_unique(asked))
    if limit is not None and limit < len(asked):
        chosen = sorted(random.Random(limit_seed).sample(range(len(asked)), limit))
        asked = [asked[i] for i in chosen]
    return QuestionSet(tuple(formats.values()), tuple(asked))


def _roots(file: Path, form: BenchmarkFormat, media_root: Path | None) -> Sequence[Path]:
    """Archives of benchmarks often have the questions in a folder beside that of the videos."""
    if media_root is not None:
        return (media_root,)
    return (file.parent,) if form is OWN else (file.parent, file.parent / os.pardir)


def told_format(file: Path, rows: Sequence[TableRow]) -> BenchmarkFormat:
    """The form whose fields the first rows have, most of them; among equals, the one that the path names."""
    readable = [row.values for row in rows[:20] if not isinstance(row.values, str)]
    for values in readable:
        best = max(form.fit(values) for form in FORMATS.values())
        found = [form for form in FORMATS.values() if best and form.fit(values) == best]
        if len(found) > 1:
            path = "".join(c for c in str(file.resolve()).lower() if c.isalnum() or c == "/")
            named = [form for form in found if form.name in path]
            found = named if len(named) == 1 else found
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(form.name for form in found)
            raise ConfigError(f"{file}: it could be {names}: say which with --format")
    seen = f" (the first row has {', '.join(sorted(map(str, readable[0]))[:12])})" if readable else ""
    raise ConfigError(f"{file}: its form cannot be told{seen}: say it with --format")


def _items(form: BenchmarkFormat, rows: Sequence[TableRow], find: MediaFinder) -> Iterator[Asked]:
    for row in rows:
        try:
            if isinstance(row.values, str):
                raise ValueError(row.values)
            yield from [_checked(item) for item in form.read(row.values, find, row.where)]
        except ConfigError:
            raise
        except KeyError as e:
            yield BadRow(row.where, one_line(f"{find.data} {row.where}: there is no {e}"))
        except (ValueError, TypeError, AttributeError, IndexError) as e:
            yield BadRow(row.where, one_line(f"{find.data} {row.where}: {e}"))


def _checked(item: EvalItem) -> EvalItem:
    """Raises ValueError for a part of a video that there cannot be."""
    try:
        SamplingPlan(start_s=item.start_s, end_s=item.end_s)
    except ConfigError as e:
        raise ValueError(str(e)) from e
    return item


def _unique(asked: Sequence[Asked]) -> Iterator[Asked]:
    """With ids that no two share: the second of a name gets a number."""
    taken: dict[str, int] = {}
    names = {one.id for one in asked}
    for one in asked:
        count = taken[one.id] = taken.get(one.id, 0) + 1
        if count == 1:
            yield one
            continue
        while (name := f"{one.id} ({count})") in names:
            count += 1
        names.add(name)
        taken[one.id] = count
        yield replace(one, id=name)
