"""One question of a set: what it is about, what is asked, and what would be right."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from ..config import MediaKind
from ..errors import MediaError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class StoredPicture:
    """A picture that lies in a data file itself. name: of it, for messages and as its clip. load: its file's bytes."""

    name: str
    load: Callable[[], bytes]

    def open(self) -> Image.Image:
        """Raises MediaError for bytes that are no picture."""
        try:
            picture = Image.open(io.BytesIO(self.load()))
            picture.load()
        except Exception as e:  # Pillow raises many kinds
            raise MediaError(f"{self.name}: the picture cannot be read ({' '.join(str(e).split())})") from e
        return picture


Source = str | StoredPicture
Part = str | int


@dataclass(frozen=True)
class EvalItem:
    """One question.

    id: no other question of the set has it. media: what it is about; paths, addresses or stored pictures.
    parts: of the message in order: text, and the numbers of media, from 0.
    question: for people; without instructions. options: the texts to choose from, if any; the letter A is the first.
    answers: those that are right, as text; a letter where there is a choice; empty where none is known.
    span: seconds (start, end) of the event asked for, instead of answers. measure: a name of `measures.py`.
    precision: decimals to which a number has to be right. group: kind of question, scored by itself, too.
    start_s, end_s: the part of the video that is shown. kind: of the media; None tells by their content.
    """

    id: str
    media: tuple[Source, ...]
    parts: tuple[Part, ...]
    question: str
    measure: str
    answers: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    span: tuple[float, float] | None = None
    precision: int | None = None
    group: str = ""
    start_s: float | None = None
    end_s: float | None = None
    kind: MediaKind | None = None

    @property
    def clip(self) -> str:
        """One name for all questions that stand or fall together: the media's and the part's."""
        names = "|".join(source if isinstance(source, str) else source.name for source in self.media)
        if self.start_s is None and self.end_s is None:
            return names
        return f"{names}@{self.start_s or 0:g}-{'' if self.end_s is None else f'{self.end_s:g}'}"

    @property
    def text(self) -> str:
        """The message's text without its media."""
        return "".join(part for part in self.parts if isinstance(part, str))

    @property
    def is_simple(self) -> bool:
        """Whether it is about one clip that stands before the text, as a caption's is."""
        return len(self.parts) == 2 and self.parts[0] == 0

    @property
    def right(self) -> str:
        """What is right, for people."""
        if self.span is not None:
            return f"{self.span[0]:g} to {self.span[1]:g} s"
        if self.options and len(self.answers) == 1 and len(self.answers[0]) == 1 and self.answers[0] in LETTERS:
            number = LETTERS.index(self.answers[0])
            if number < len(self.options):
                return f"{self.answers[0]}. {self.options[number]}"
        return " / ".join(self.answers)


@dataclass(frozen=True)
class BadRow:
    """A row that is no question. id: which one it is ("row 7"). error: one line, with the file's name."""

    id: str
    error: str


Asked = EvalItem | BadRow
