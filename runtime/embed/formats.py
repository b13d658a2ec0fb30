"""Files of embeddings: .npy with an index beside it, or one Parquet table; both read and written some rows at a time.

FILE.npy is float32 [N, C], and FILE.npy.jsonl has a line of JSON for each frame, in order, whose rows of the array
follow each other. A Parquet table has a row for each frame: `vector`, or `tokens`, a list of them.
"""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from ..captions.outputs import records_of
from ..captions.parquet import check_pyarrow, shown_name
from ..captions.records import fields_line
from ..errors import ConfigError
from ..files import write_whole, written_whole
from .rows import EmbeddedFrame, EmbeddingBatch, Form

SUFFIXES = (".npy", ".parquet")
_BATCH_BYTES = 16 << 20
_MAX_ROWS = 4096
_COLUMNS = [field.name for field in fields(EmbeddedFrame)]
_PARQUET_TYPES = {"str": "string", "int": "int32", "float": "double"}


def check_suffix(path: Path) -> None:
    """Raises ConfigError for a name of no known format, or one that needs what is not installed."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{path}: embeddings are written to a file named {' or '.join(f'*{s}' for s in SUFFIXES)}")
    if path.suffix.lower() == ".parquet":
        check_pyarrow(str(path))


def read_embeddings(path: Path) -> Iterator[EmbeddingBatch]:
    """All rows of a file, in order. Raises ConfigError if it does not exist or `vl3edge embed` did not write it."""
    check_suffix(path)
    try:
        yield from (_read_parquet if path.suffix.lower() == ".parquet" else _read_npy)(path)
    except FileNotFoundError as e:
        raise ConfigError(
            f"{e.filename or path}: there is no such file; make it with `vl3edge embed MEDIA -o {path}`"
        ) from e
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        if isinstance(e, ConfigError):
            raise
        raise ConfigError(f"{path} is not a whole file of `vl3edge embed` ({' '.join(str(e).split())})") from e


def write_embeddings(path: Path, form: Form, size: int, batches: Callable[[], Iterable[EmbeddingBatch]]) -> None:
    """Writes a file atomically. size: of the array in rows. batches: gives all rows, each time it is called."""
    if path.suffix.lower() == ".parquet":
        _write_parquet(path, form, batches())
        return
    header = io.BytesIO()
    np.lib.format.write_array_header_2_0(header, {"descr": "<f4", "fortran_order": False, "shape": (size, form.width)})
    arrays = (np.ascontiguousarray(batch.vectors, "<f4").tobytes() for batch in batches())
    # The array first: one that is longer than its index is read as far as the index goes.
    write_whole(path, itertools.chain([header.getvalue()], arrays))
    write_whole(records_of(path), (fields_line(row.to_json()) for batch in batches() for row in batch.rows))


def index_rows(lines: Iterable[bytes]) -> Iterator[EmbeddedFrame]:
    """The rows that lines of an index say. Raises ValueError, KeyError or TypeError for other lines."""
    return (EmbeddedFrame.from_json(json.loads(line)) for line in lines)


def batches_of(rows: Iterable[EmbeddedFrame], vectors: np.ndarray) -> Iterator[EmbeddingBatch]:
    """Rows with their parts of one array [N, C], which may be a mapped file. Raises ValueError if it is too short."""
    most = max(1, _BATCH_BYTES // (4 * vectors.shape[1]))
    held: list[EmbeddedFrame] = []
    start = size = 0
    for row in rows:
        if held and (size + row.size > most or len(held) == _MAX_ROWS):
            yield EmbeddingBatch(held, np.asarray(vectors[start : start + size]))
            held, start, size = [], start + size, 0
        held.append(row)
        size += row.size
        if start + size > len(vectors):
            raise ValueError(f"its index has more rows than the {len(vectors)} of the array")
    if held:
        yield EmbeddingBatch(held, np.asarray(vectors[start : start + size]))


def _read_npy(path: Path) -> Iterator[EmbeddingBatch]:
    vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    if (
        not isinstance(vectors, np.ndarray)
        or vectors.ndim != 2
        or not vectors.shape[1]
        or vectors.dtype != np.dtype("<f4")
    ):
        raise ValueError("it is not an array float32 [N, C]")
    with records_of(path).open("rb") as index:
        yield from batches_of(index_rows(index), vectors)


def _read_parquet(path: Path) -> Iterator[EmbeddingBatch]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        name = "tokens" if "tokens" in file.schema_arrow.names else "vector"
        kind = file.schema_arrow.field(name).type
        width = (kind.value_type if name == "tokens" else kind).list_size
        for part in file.iter_batches(batch_size=64 if name == "tokens" else _MAX_ROWS):
            values = part.column(name)
            flat = values.flatten().flatten() if name == "tokens" else values.flatten()
            rows = [EmbeddedFrame.from_json(row) for row in part.select(_COLUMNS).to_pylist()]
            yield from batches_of(rows, flat.to_numpy(zero_copy_only=False).reshape(-1, width))


def _write_parquet(path: Path, form: Form, batches: Iterable[EmbeddingBatch]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    vector = pa.list_(pa.float32(), form.width)
    values = pa.field("tokens", pa.list_(vector)) if form.maps else pa.field("vector", vector)
    types = [pa.type_for_alias(_PARQUET_TYPES[str(field.type)]) for field in fields(EmbeddedFrame)]
    schema = pa.schema([*zip(_COLUMNS, types, strict=True), values])
    with written_whole(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for batch in batches:
            writer.write_batch(_record_batch(pa, batch, schema, form))


def _record_batch(pa: Any, batch: EmbeddingBatch, schema: Any, form: Form) -> Any:
    flat = pa.array(np.ascontiguousarray(batch.vectors).reshape(-1), pa.float32())
    column = pa.FixedSizeListArray.from_arrays(flat, form.width)
    if form.maps:
        offsets = np.cumsum([0, *(row.size for row in batch.rows)], dtype=np.int32)
        column = pa.ListArray.from_arrays(pa.array(offsets), column)
    shown = [row.to_json() | {"media": shown_name(row.media)} for row in batch.rows]
    columns = [pa.array([row[name] for row in shown], schema.field(name).type) for name in _COLUMNS]
    return pa.RecordBatch.from_arrays([*columns, column], schema=schema)
