"""The results of a run in a file of JSON lines that can be stopped at any moment and continued.

The first line says what was run, every other what became of one question. A run continues only what was made as it
would make it itself: with another setting, scores would be of two runs at once. Lines are written as captions' are
(`captions/jsonl.py`): whole, on disk at once, and an error's by its successor's.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from ..errors import ConfigError
from ..files import LockedFile

FORMAT = "vl3edge-results"
VERSION = 1
Settings = dict[str, Any]
_SHOWN = 60  # characters of a setting in a message


@dataclass(frozen=True)
class EvalResult:
    """What became of one question.

    answer: as the model wrote it. read: what was taken from it. score: from 0 to 1; None where no answer is known.
    right: what would be, for people. clip: what it was about; questions of one clip stand or fall together.
    num_tokens: of the clip. answer_tokens: of the answer, where it was counted.
    error: why there is no answer, in one line.
    """

    id: str
    question: str = ""
    answer: str | None = None
    read: str = ""
    right: str = ""
    score: float | None = None
    measure: str = ""
    group: str = ""
    clip: str = ""
    num_tokens: int | None = None
    answer_tokens: int | None = None
    seconds: float | None = None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Its fields, without those that say nothing."""
        return {name: value for name, value in asdict(self).items() if value not in (None, "")}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> EvalResult:
        """What `to_json` gave such fields of. Raises TypeError for others."""
        names = {field.name for field in fields(cls)}
        if not isinstance(values.get("id"), str) or not set(values) <= names:
            raise TypeError("not a result")
        return cls(**values)


class ResultStore(Protocol):
    """Takes results, and knows those that it has."""

    results: dict[str, EvalResult]

    def write(self, result: EvalResult) -> None:
        """Takes the result of a question, in the place of an earlier one of the same id."""

    def close(self) -> None:
        """To be called in any case."""


class ResultsInMemory(ResultStore):
    """For a run whose answers nobody keeps."""

    def __init__(self) -> None:
        self.results = {}

    def write(self, result: EvalResult) -> None:
        self.results[result.id] = result

    def close(self) -> None:
        """Nothing is open."""


class ResultsFile(ResultStore):
    """The results of one run. It is locked until it is closed."""

    def __init__(self, path: Path, settings: Settings, keep: bool = False, force: bool = False) -> None:
        """settings: what is run. keep: whether to continue what the file holds; force: whether to replace it.

        Raises ConfigError if the file holds something and neither is wanted, or something else, or was made with other
        settings; OutputError if another process writes it; OSError.
        """
        self.results = {}
        self._file = LockedFile(path, discard=force)
        try:
            if not (keep or force):
                refuse_old_results(path)
                self._file.truncate(0)
            if keep:
                self._file.truncate(self._read(path, settings))
            if force or not self._file.size:
                self._file.append(_line({"format": FORMAT, "version": VERSION, "settings": settings}))
        except BaseException:
            self._file.close()
            raise

    def _read(self, path: Path, settings: Settings) -> int:
        """Takes in the file's results; the size in bytes of its whole lines."""
        size = 0
        for number, line in enumerate(self._file.lines() if self._file.is_regular else ()):
            if number == 0:
                _check_same(path, _settings_of(path, line), settings)
            else:
                result = _result_of(path, number + 1, line)
                self.results[result.id] = result
            size += len(line)
        return size

    def write(self, result: EvalResult) -> None:
        """It is on disk when this returns. Raises OSError, with nothing changed."""
        if result.id in self.results:
            self._file.replace(self._without(result.id, _line(result.to_json())))
        else:
            self._file.append(_line(result.to_json()))
        self.results[result.id] = result

    def _without(self, id: str, last: bytes) -> Iterator[bytes]:
        for number, line in enumerate(self._file.lines()):
            if number == 0 or json.loads(line)["id"] != id:
                yield line
        yield last

    def close(self) -> None:
        """Unlocks the file for other processes."""
        self._file.close()


def refuse_old_results(path: Path) -> None:
    """Raises ConfigError for a file that holds anything but the first line of a run that answered nothing."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        first, more = file.readline(), file.read(1)
    with contextlib.suppress(ConfigError):
        if not first or (not more and _settings_of(path, first)):
            return
    raise ConfigError(f"{path} exists; continue it with --resume, replace it with --force, or choose another")


def read_results(path: Path) -> tuple[Settings, dict[str, EvalResult]]:
    """What was run, and the results by id, of a file that another run wrote. Raises ConfigError for any other file."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last line end was cut short
    except OSError as e:
        raise ConfigError(f"{path}: it cannot be read ({e.strerror})") from e
    if not lines:
        raise ConfigError(f"{path} holds no results of `vl3edge evaluate`")
    results = [_result_of(path, number, line) for number, line in enumerate(lines[1:], 2)]
    return _settings_of(path, lines[0]), {result.id: result for result in results}


def _settings_of(path: Path, line: bytes) -> Settings:
    try:
        head = json.loads(line)
        if head["format"] != FORMAT or not isinstance(head["settings"], dict):
            raise ValueError
        settings: Settings = head["settings"]
    except (ValueError, KeyError, TypeError) as e:
        raise ConfigError(f"{path} holds no results of `vl3edge evaluate`; choose another file") from e
    if head.get("version") != VERSION:
        raise ConfigError(f"{path} was written by another version of vl3edge; choose another file")
    return settings


def _result_of(path: Path, number: int, line: bytes) -> EvalResult:
    try:
        return EvalResult.from_json(json.loads(line))
    except (ValueError, TypeError, AttributeError) as e:
        raise ConfigError(f"{path} line {number} is no result of `vl3edge evaluate`; choose another file") from e


def _check_same(path: Path, before: Settings, now: Settings) -> None:
    """Raises ConfigError, with the first setting that differs."""
    for difference in differences(before, now):
        raise ConfigError(f"{path} was made with {difference}: use the same, or another file")


def differences(before: Settings, now: Settings) -> Iterator[str]:
    """What is set differently, such as "sampling fps 1.0; now it is 2.0"."""
    was, given = dict(_flat(before)), dict(_flat(json.loads(json.dumps(now))))
    for name in dict.fromkeys([*given, *was]):
        if was.get(name) != given.get(name):
            yield f"{name} {'; now it is '.join(str(of.get(name))[:_SHOWN] for of in (was, given))}"


def _flat(values: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting by its name: ("sampling fps", 1.0)."""
    if isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values, 1):
            yield from _flat(value, f"{name} {key}".strip().replace("_", " "))
    else:
        yield name, values


def _line(values: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(values)}\n".encode()
