"""Typed access to the JSON files of a checkpoint, with errors that name the file and the key.

A `Section` is one JSON object and where it came from. Its readers check types strictly: a number written as a string,
or `true` where a number is meant, is refused, not guessed at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from .errors import CheckpointError

_MAX_BYTES = 256 << 20  # vocab.json and the index of shards are the large ones, a few MB
_T = TypeVar("_T")


class _Required:
    """Marks a key that has no default."""


_REQUIRED = _Required()


@dataclass(frozen=True)
class Section:
    """One JSON object: its values, the file it was read from and the dotted path inside that file."""

    values: Mapping[str, Any]
    file: Path
    path: str = ""

    @classmethod
    def read(cls, file: Path) -> Section:
        """Reads a file with one JSON object; raises CheckpointError if it is missing or something else."""
        try:
            if file.stat().st_size > _MAX_BYTES:
                raise CheckpointError(f"{file} is too large: the limit is {_MAX_BYTES:,} bytes")
            values = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as e:
            raise CheckpointError(f"{file} does not exist") from e
        except CheckpointError:
            raise
        except (OSError, ValueError, RecursionError) as e:
            raise CheckpointError(f"{file} is not readable JSON: {e}") from e
        if not isinstance(values, dict):
            raise CheckpointError(f"{file} must hold a JSON object, not {_kind(values)}")
        return cls(values, file)

    @classmethod
    def read_if_there(cls, file: Path) -> Section:
        """As `read`; a missing file is an empty section, so that every key takes its default."""
        return cls.read(file) if file.is_file() else cls({}, file)

    def __contains__(self, key: str) -> bool:
        """True when the key is there and not null: checkpoints write null for "use the default"."""
        return self.values.get(key) is not None

    def integer(self, key: str, default: int | _Required = _REQUIRED, at_least: int = 1) -> int:
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"must be a whole number, not {_kind(value)}")
        if value < at_least:
            raise self.error(key, f"must be at least {at_least}, not {value}")
        return value

    def number(self, key: str, default: float | _Required = _REQUIRED, zero: bool = False) -> float:
        """A number above zero, or zero where that is allowed."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, f"must be a number, not {_kind(value)}")
        if not 0 < value < float("inf") and not (zero and value == 0):
            raise self.error(key, f"must be a number {'from' if zero else 'above'} zero, not {value}")
        return float(value)

    def boolean(self, key: str, default: bool | _Required = _REQUIRED) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, not {_kind(value)}")
        return value

    def string(self, key: str, default: str | _Required = _REQUIRED) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self.error(key, f"must be a string, not {_kind(value)}")
        return value

    def one_of(self, key: str, choices: tuple[_T, ...], default: _T) -> _T:
        """A value from a fixed set; anything else is refused, with the set in the message."""
        value: _T = self._get(key, default)
        if value not in choices or isinstance(value, bool) != isinstance(default, bool):
            known = ", ".join(json.dumps(choice) for choice in choices)
            raise self.error(key, f"is {json.dumps(value)}; supported: {known}")
        return value

    def numbers(self, key: str, length: int, default: tuple[float, ...] | _Required) -> tuple[float, ...]:
        """`length` numbers, one per channel; a single number stands for all of them."""
        value = self._get(key, default)
        items = list(value) if isinstance(value, (list, tuple)) else [value] * length
        if len(items) != length or any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in items):
            raise self.error(key, f"must be {length} numbers, not {json.dumps(value)}")
        return tuple(float(x) for x in items)

    def integers(self, key: str) -> tuple[int, ...]:
        """A number or a list of numbers, none below zero; empty if the key is absent."""
        value = self._get(key, ())
        items = list(value) if isinstance(value, (list, tuple)) else [value]
        if any(isinstance(x, bool) or not isinstance(x, int) or x < 0 for x in items):
            raise self.error(key, f"must be one or several token ids, not {json.dumps(value)}")
        return tuple(items)

    def section(self, key: str, default: Mapping[str, Any] | _Required = _REQUIRED) -> Section:
        value = self._get(key, default)
        if not isinstance(value, Mapping):
            raise self.error(key, f"must be an object, not {_kind(value)}")
        return Section(value, self.file, self._dotted(key))

    def error(self, key: str, problem: str) -> CheckpointError:
        """The error to raise about one key of this file."""
        return CheckpointError(f"{self.file}: {self._dotted(key)} {problem}")

    def _dotted(self, key: str) -> str:
        return f"{self.path}.{key}" if self.path else key

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is not None:
            return value
        if isinstance(default, _Required):
            raise self.error(key, "is missing")
        return default


def _kind(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
