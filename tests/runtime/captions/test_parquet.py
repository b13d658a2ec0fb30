"""Records as a Parquet table, read back by pyarrow."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from vl3edge.runtime.captions.parquet import COLUMNS, parquet_bytes
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.jobs import CaptionResult

RECORDS = [
    CaptionResult("a.mp4", "A cat.\n<b>", "stop", 12, 340, 1.25, 0.0, 12.0),
    CaptionResult("b.mp4", error="broken"),
    CaptionResult("c.mp4", "Two 🙂.", "length", 5, 6, 0.5, 60.0, 75.5, segment=2, segments=2),
    CaptionResult("c.mp4", "Never.", "stop", 5, 6, 0.5, find="it stops", found=False),
    CaptionResult("d.mp4", '{"é": [1, null]}', "stop", 5, 6, 0.5, data={"é": [1, None]}, score=-0.25),
    CaptionResult("e.mp4", "false", "stop", 5, 6, 0.5, data=False),
]


def test_every_field_comes_back(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "records.parquet"
    path.write_bytes(b"".join(parquet_bytes(RECORDS)))
    table = parquet.read_table(path)
    assert table.column_names == list(COLUMNS)
    rows = table.to_pylist()
    for row in rows:
        row["data"] = None if row["data"] is None else json.loads(row["data"])
    assert rows == [{name: getattr(record, name) for name in COLUMNS} for record in RECORDS]


def test_more_rows_than_a_batch_and_names_that_are_not_utf8(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "records.parquet"
    names = [os.fsdecode(b"caf\xe9 %d.mp4" % number) for number in range(10_000)]
    path.write_bytes(b"".join(parquet_bytes(CaptionResult(name, caption="x") for name in names)))
    media = parquet.read_table(path)["media"].to_pylist()
    assert media == [rf"caf\xe9 {number}.mp4" for number in range(10_000)]


def test_without_pyarrow_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["caption", str(tmp_path), "-o", str(tmp_path / "out.parquet")]) == 2
    assert "pip install 'vl3edge[parquet]'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
