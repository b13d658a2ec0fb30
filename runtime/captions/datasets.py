"""Captions as the data sets that trainers read: sd-scripts' metadata, musubi-tuner's (both by kohya), and LLaVA's.

Only clips with a caption are in them. Paths are absolute, as these trainers look for others in folders of their own.
LLaVA's trainer joins them to its media folder, so those beneath the data set's own folder are relative to it.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from ..errors import ConfigError
from ..jobs import CaptionResult
from ..media.addresses import clip_key, is_address
from ..prompt.chat_template import DESCRIBE
from .records import json_text

DATASETS = ("sd-scripts", "musubi-tuner", "llava")
_PLACEHOLDERS = re.compile(r"<(image|video)>")  # one too many, and LLaVA's trainer looks for another picture


def check_files(media: Sequence[str], format: str) -> None:
    """Raises ConfigError for media that are no files: no trainer would find them."""
    for name in media:
        if is_address(clip_key(name)):
            raise ConfigError(f"{name} is not a file, and a {format} data set names files: save it first")


def for_dataset(record: CaptionResult) -> CaptionResult:
    """A new record with what a data set says of its clip besides: its absolute path, the kind, and what was asked.

    The path is that of the folder it was captioned from; a later run may add clips from another one.
    """
    record = replace(record, media=clip_key(record.media))
    if record.clip is None or record.job is None:
        return record
    kind, question = record.clip.kind, record.job.question
    return replace(record, kind=kind, question=DESCRIBE[kind] if question is None else question)


def dataset(records: Iterable[CaptionResult], format: str, folder: Path) -> Iterator[bytes]:
    """A data set's file, in parts. records: from `for_dataset`. folder: in which the file is."""
    usable: Iterator[CaptionResult] = (record for record in records if record.error is None and record.caption)
    if format == "musubi-tuner":
        yield from _musubi_lines(usable)
        return
    if format == "sd-scripts":
        usable = _told_of_videos(usable)
    begin, end = ("[", "]") if format == "llava" else ("{", "}")
    yield begin.encode()
    for number, record in enumerate(usable):
        entry = _conversation(record, folder) if format == "llava" else _metadata(record)
        yield f"{',' if number else ''}\n{entry}".encode()
    yield f"\n{end}\n".encode()


def one_line_caption(record: CaptionResult) -> str:
    """As a text file beside the clip: sd-scripts reads the first line alone, or draws one of them."""
    return " ".join((record.caption or "").split()) + "\n"


def _metadata(record: CaptionResult) -> str:
    return f"{json_text(clip_key(record.media))}: {json_text({'caption': record.caption})}"


def _musubi_lines(records: Iterable[CaptionResult]) -> Iterator[bytes]:
    kinds = set()
    for record in records:
        kinds.add(record.kind)
        entry = {f"{record.kind}_path": clip_key(record.media), "caption": record.caption}
        yield f"{json_text(entry)}\n".encode()
    if len(kinds) > 1:
        warnings.warn(
            "musubi-tuner reads a file of pictures or one of videos, and this has both: caption them separately",
            stacklevel=2,
        )


def _told_of_videos(records: Iterable[CaptionResult]) -> Iterator[CaptionResult]:
    videos = 0
    for record in records:
        videos += record.kind == "video"
        yield record
    if videos:
        warnings.warn(
            f"sd-scripts trains on pictures, and {videos} of these are videos: leave them out, or use musubi-tuner",
            stacklevel=2,
        )


def _conversation(record: CaptionResult, folder: Path) -> str:
    path = Path(clip_key(record.media))
    name = (path.relative_to(folder) if path.is_relative_to(folder) else path).as_posix()
    question, answer = (_PLACEHOLDERS.sub(r"\1", text or "") for text in (record.question, record.caption))
    said = [{"from": "human", "value": f"<{record.kind}>\n{question}"}, {"from": "gpt", "value": answer}]
    return json_text({"id": name, str(record.kind): name, "conversations": said})
