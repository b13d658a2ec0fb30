"""Records as a Parquet table (needs pyarrow: the extra `parquet`), a batch of rows at a time."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any

from ..errors import ConfigError
from ..jobs import CaptionResult
from .records import json_text

_ROWS = 4096  # of a batch: bounds the memory, and how far a reader must look for one column
COLUMNS = {
    "media": "string",
    "caption": "string",
    "finish_reason": "string",
    "num_frames": "int32",
    "num_tokens": "int32",
    "seconds": "double",
    "start_s": "double",
    "end_s": "double",
    "segment": "int32",
    "segments": "int32",
    "find": "string",
    "found": "bool",
    "data": "string",
    "score": "double",
    "error": "string",
}
"""Fields of a record, and their types in the table; what a record does not have is null. `data` is JSON text."""


def check_pyarrow(what: str = "--format parquet") -> None:
    """Raises ConfigError if pyarrow, which `what` needs, is not installed."""
    if importlib.util.find_spec("pyarrow") is None:
        raise ConfigError(f"{what} needs pyarrow: pip install 'vl3edge[parquet]'")


def parquet_bytes(records: Iterable[CaptionResult]) -> Iterator[bytes]:
    """The file, in parts. A name that is not UTF-8 has its bytes as \\xNN."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = _Sink()
    rows = iter(records)
    with pq.ParquetWriter(pa.PythonFile(sink, "w"), record_table(()).schema) as writer:
        while batch := list(itertools.islice(rows, _ROWS)):
            writer.write_table(record_table(batch))
            yield sink.take()
    yield sink.take()


def record_table(records: Iterable[CaptionResult], names: Iterable[str] = COLUMNS) -> Any:
    """The columns `names` of the records as a pyarrow.Table, of the same types whatever is null in them."""
    import pyarrow as pa

    names = tuple(names)
    schema = pa.schema([(name, pa.type_for_alias(COLUMNS[name])) for name in names])
    return pa.Table.from_pylist([{name: _value(record, name) for name in names} for record in records], schema)


def _value(record: CaptionResult, name: str) -> Any:
    value = getattr(record, name)
    if name == "media":
        return shown_name(value)
    if name == "data" and value is not None:
        return json_text(value)
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def shown_name(media: str) -> str:
    """The name of media as Parquet can hold it."""
    return os.fsencode(media).decode("utf-8", "backslashreplace")


class _Sink:
    """What Parquet's writer takes for a file: keeps the bytes until they are taken."""

    closed = False

    def __init__(self) -> None:
        self._data = bytearray()

    def write(self, data: Any) -> int:
        self._data += memoryview(data)
        return len(data)

    def take(self) -> bytes:
        data, self._data = bytes(self._data), bytearray()
        return data

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
