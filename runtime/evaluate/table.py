"""The rows of a data file: JSON, JSON lines, CSV, TSV, Parquet, or Charades-STA's lines of text.

Pictures that lie in a Parquet file stay there until they are asked for, a group of rows at a time.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .item import StoredPicture

KEY = "[key]"
"""The field with a row's key, where a JSON file is an object of rows by key."""
Values = Mapping[str, Any]
_CHARADES = re.compile(r"(\S+)\s+([\d.]+)\s+([\d.]+)\s*##\s*(.+)")


@dataclass(frozen=True)
class TableRow:
    """where: "row 7" or "line 7". values: its fields, or, of a row that cannot be read, why."""

    where: str
    values: Values | str


def read_rows(path: Path) -> Iterator[TableRow]:
    """The rows of a file, told by its extension. Raises ConfigError for a file that cannot be read at all."""
    readers = {".json": _json, ".jsonl": _lines, ".csv": _csv, ".tsv": _csv, ".txt": _charades, ".parquet": _parquet}
    if path.suffix.lower() not in readers:
        raise ConfigError(f"{path}: --data takes {', '.join(readers)} files")
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such file; check --data")
    return readers[path.suffix.lower()](path)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: it is not UTF-8 text ({e.reason} at byte {e.start})") from e


def _json(path: Path) -> Iterator[TableRow]:
    text = _text(path)
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as e:
        if "\n" in text.strip() and text.lstrip().startswith("{"):
            return _lines(path)  # JSON lines under another name, as some benchmarks have them
        raise ConfigError(f"{path}: it is not JSON ({e})") from e
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]  # DocVQA's and InfoVQA's files have a head
    if isinstance(content, dict) and content and all(isinstance(value, dict) for value in content.values()):
        content = [{KEY: key, **value} for key, value in content.items()]
    if isinstance(content, dict):
        content = [content]
    if not isinstance(content, list):
        raise ConfigError(f"{path}: it holds no list of rows")
    return (TableRow(f"row {n}", _object(value)) for n, value in enumerate(content, 1))


def _object(value: Any) -> Values | str:
    return value if isinstance(value, dict) else "it is not an object with fields"


def _lines(path: Path) -> Iterator[TableRow]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            values = _object(json.loads(line))
        except (ValueError, RecursionError):
            values = "it is not JSON"
        yield TableRow(f"line {number}", values)


def _csv(path: Path) -> Iterator[TableRow]:
    csv.field_size_limit(1 << 28)
    content = io.StringIO(_text(path))  # `splitlines` would split at rare characters inside a field, too
    rows = csv.DictReader(content, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    try:
        for number, row in enumerate(rows, 1):
            values = {name: value for name, value in row.items() if name is not None and value is not None}
            yield TableRow(f"row {number}", values)
    except csv.Error as e:  # of a zero byte, before Python 3.11
        raise ConfigError(f"{path}: it is no table ({e})") from e


def _charades(path: Path) -> Iterator[TableRow]:
    """Lines of the form `3MSZA 24.3 30.4##person turn a light on.`"""
    for number, line in enumerate(_text(path).split("\n"), 1):
        if not line.strip():
            continue
        match = _CHARADES.fullmatch(line.strip())
        if match is None:
            yield TableRow(f"line {number}", "it is not of the form VIDEO START END##EVENT")
            continue
        video, start, end, caption = match.groups()
        yield TableRow(f"line {number}", {"video": video, "timestamp": [start, end], "caption": caption})


def _parquet(path: Path) -> Iterator[TableRow]:
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(f"{path}: Parquet files are read with pyarrow: pip install 'vl3edge[parquet]'")
    return _StoredTable(path).rows()


class _StoredTable:
    """A Parquet file whose pictures, columns with a field `bytes`, are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._path = path
        try:
            self._file = pq.ParquetFile(path)
        except (pa.ArrowException, OSError) as e:
            raise ConfigError(f"{path}: it cannot be read as Parquet ({' '.join(str(e).split())})") from e
        schema = self._file.schema_arrow
        self._pictures = [field.name for field in schema if _holds_bytes(field.type)]
        self._plain = [field.name for field in schema if field.name not in self._pictures]
        self._held: tuple[int, str, list[bytes | None]] | None = None

    def rows(self) -> Iterator[TableRow]:
        import pyarrow as pa

        number = 0
        for group in range(self._file.num_row_groups):
            count = self._file.metadata.row_group(group).num_rows
            try:
                values = self._file.read_row_group(group, columns=self._plain).to_pylist()
                there = {name: self._present(group, name) for name in self._pictures}
            except (pa.ArrowException, OSError) as e:
                yield TableRow(f"rows {number + 1} to {number + count}", f"they cannot be read ({e})")
                number += count
                continue
            for place in range(count):
                number += 1
                row = dict(values[place]) if values else {}
                for name in self._pictures:
                    row[name] = self._picture(number, group, place, name) if there[name][place] else None
                yield TableRow(f"row {number}", row)

    def _present(self, group: int, name: str) -> list[bool]:
        """Which rows of a group have a picture: read by `path`, or by the column itself where it has none."""
        column = self._file.read_row_group(group, columns=[name]).column(0).combine_chunks()
        stored = column.field("bytes") if hasattr(column, "field") and column.type.num_fields else column
        valid = zip(column.is_valid().to_pylist(), stored.is_valid().to_pylist(), strict=True)
        return [outer and inner for outer, inner in valid]

    def _picture(self, number: int, group: int, place: int, name: str) -> StoredPicture:
        return StoredPicture(f"{self._path}#{number}:{name}", lambda: self._load(group, place, name))

    def _load(self, group: int, place: int, name: str) -> bytes:
        if self._held is None or self._held[:2] != (group, name):
            column = self._file.read_row_group(group, columns=[name]).column(0).to_pylist()
            contents = [value.get("bytes") if isinstance(value, dict) else value for value in column]
            self._held = group, name, contents
        content = self._held[2][place]
        if content is None:
            raise ValueError("there is none")
        return content


def _holds_bytes(kind: Any) -> bool:
    """Whether a column's type is that of pictures: binary, or a struct with a binary field `bytes`."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
