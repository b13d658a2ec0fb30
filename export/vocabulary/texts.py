"""The texts that `--vocabulary` is made from: a file of what a deployment says, or the calibration's conversations."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vl3edge.quant.conversations import PAIRS

from ..errors import ExportError

CORPUS = "corpus"
"""What names the calibration's conversations, in the place of a file."""


def texts(source: str) -> list[str]:
    """The lines of text in a file, or those of CORPUS; of a .jsonl file every key and text of its values.

    Raises ExportError, in one line, for a file that is missing, is no text, or has none.
    """
    if source == CORPUS:
        return [line for pair in PAIRS for text in (pair.question, pair.answer) for line in text.splitlines()]
    path = Path(source)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise ExportError(
            f"--vocabulary {source}: there is no such file; give a text file of what will be said, or {CORPUS!r}"
        ) from None
    except OSError as e:
        raise ExportError(f"--vocabulary {source}: it cannot be read ({e.strerror})") from e
    except UnicodeDecodeError as e:
        raise ExportError(f"--vocabulary {source}: it is not UTF-8 text ({e.reason} at byte {e.start})") from e
    if path.suffix.lower() == ".jsonl":
        lines = [text for number, line in enumerate(lines, 1) for text in _strings_of(line, f"{source}, line {number}")]
    found = [line for line in lines if line.strip()]
    if not found:
        raise ExportError(f"--vocabulary {source}: there is no text in it; put in what will be said, such as captions")
    return found


def _strings_of(line: str, where: str) -> Iterator[str]:
    if not line.strip():
        return
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as e:
        raise ExportError(f"--vocabulary {where}: it is not a line of JSON ({e})") from e
    for text in _strings(value):
        yield from text.splitlines()


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)
