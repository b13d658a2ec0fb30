"""A file of embeddings in the making, which can be stopped at any moment and continued.

Until the file is written, at the end and as a whole, what was encoded lies in a journal beside it: FILE.part, the
array, and FILE.part.jsonl, its index, to which a clip's rows are added when all of them are there. A clip that fails
leaves nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

from ..captions.outputs import records_of
from ..captions.parquet import shown_name
from ..captions.records import fields_line
from ..errors import ConfigError
from ..files import LockedFile
from ..media.addresses import clip_key
from .formats import batches_of, check_suffix, index_rows, read_embeddings, write_embeddings
from .rows import EmbeddedFrame, EmbeddingBatch, Form


class EmbeddingStore:
    """The rows of a run and, if it continues a file, that file's. Locked until it is closed."""

    def __init__(self, path: Path, form: Form, keep: bool = False, force: bool = False) -> None:
        """form: of the rows that will come. keep: whether to continue what the file holds. force: whether to replace
        it; one of the two at most.

        Raises ConfigError if there is something and neither is wanted, or rows of another form are to be continued;
        OutputError if another process writes it; OSError.
        """
        check_suffix(path)
        self._path, self._form = path, form
        journal = path.with_name(f"{path.name}.part")
        index = journal.with_name(f"{journal.name}.jsonl")
        if not (keep or force) and (path.exists() or index.exists()):
            what = f"{path} exists" if path.exists() else f"{index} is left of a run that was stopped"
            raise ConfigError(f"{what}; continue it with --resume, replace it with --force, or choose another file")
        self._replaces = force
        self._media: set[str] = set()
        self._old = self._new = 0  # rows of the array in the file that is continued, and in the journal
        self._rows: list[EmbeddedFrame] = []  # of the clip in the making
        self._index = LockedFile(index, discard=force)
        self._vectors = LockedFile(journal, discard=force)
        try:
            if keep:
                self._continue()
        except BaseException:
            self.close()
            raise

    def holds(self, media: str) -> bool:
        """Whether a clip has its rows already."""
        return _key(media) in self._media

    def add(self, batch: EmbeddingBatch) -> None:
        """Takes the next rows of a clip. Raises OSError."""
        self._vectors.append(np.ascontiguousarray(batch.vectors, "<f4").tobytes())
        self._rows += batch.rows

    def complete(self) -> None:
        """The clip has all its rows; they are on disk when this returns. Raises OSError."""
        if self._replaces:  # now, or a run that continues this one would take it for its own beginning
            for path in (self._path, records_of(self._path)):
                path.unlink(missing_ok=True)
            self._replaces = False
        self._index.append(b"".join(fields_line(row.to_json()) for row in self._rows))
        self._note(self._rows)
        self._rows = []

    def abandon(self) -> None:
        """Forgets the rows of a clip that failed."""
        self._vectors.truncate(self._new * self._form.width * 4)
        self._rows = []

    def finish(self) -> None:
        """Writes the file, if there is anything to write, and empties the journal."""
        if self._new:
            write_embeddings(self._path, self._form, self._old + self._new, self._batches)
            self._index.truncate(0)

    def close(self) -> None:
        """Unlocks the journal, and deletes one that has no clip."""
        whole = self._index.size
        for file in (self._index, self._vectors):
            if not whole:
                file.path.unlink(missing_ok=True)
            file.close()

    def _batches(self) -> Iterator[EmbeddingBatch]:
        old = read_embeddings(self._path) if self._old else iter(())
        vectors = np.memmap(self._vectors.path, "<f4", "r").reshape(-1, self._form.width)
        return chain(old, batches_of(index_rows(self._index.lines()), vectors))

    def _continue(self) -> None:
        if self._path.exists():
            for batch in read_embeddings(self._path):
                self._check(batch.form)
                self._media |= {_key(row.media) for row in batch.rows}
                self._old += sum(row.size for row in batch.rows)
        held: list[EmbeddedFrame] = []
        length = whole = 0
        for line in self._index.lines():
            try:
                (row,) = index_rows([line])
            except (ValueError, KeyError, TypeError) as e:
                raise ConfigError(f"{self._index.path} is damaged ({e}): start anew with --force") from e
            self._check(Form(row.model, self._form.width, row.rows > 0))
            held.append(row)
            length += len(line)
            if len(held) == row.frames:  # a kill may have cut the last clip short
                self._note(held)
                held, whole = [], length
        if self._vectors.size < self._new * self._form.width * 4:
            raise ConfigError(f"{self._vectors.path} is shorter than its index says: start anew with --force")
        self._index.truncate(whole)
        self.abandon()

    def _check(self, form: Form) -> None:
        if form != self._form:
            words = [f"{f.width} values of {f.model}, {'maps' if f.maps else 'vectors'}" for f in (form, self._form)]
            raise ConfigError(f"{self._path} holds {words[0]}, not {words[1]}: choose another file with -o")

    def _note(self, rows: Iterable[EmbeddedFrame]) -> None:
        for row in rows:
            self._media.add(_key(row.media))
            self._new += row.size


def _key(media: str) -> str:
    return clip_key(shown_name(media))
