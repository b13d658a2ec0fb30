"""Damaged media of every kind, for seconds; and what longer runs found (`make fuzz`, benchmarks/results/fuzz.json)."""

from __future__ import annotations

from pathlib import Path

import artefacts
import pytest
from fuzzer import Worker, fuzz
from mutations import MUTATIONS, mutate
from seeds import write_seeds

SECONDS = 15.0
FOUND = {
    "stream-begins-late.ts": "number 1018784: PyAV looked the late stream up among those it knew (IndexError)",
    "last-frame-twice.avi": "number 61005316: two frames with the time of the last one wanted, in 2 of 5 readings",
}
TIMES = 30  # decoders with threads do not give the same frames each time


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_seeds(tmp_path_factory.mktemp("seeds"))


def test_damaged_media_are_frames_or_one_line(seeds: list[Path]) -> None:
    report = fuzz(seeds, range(10_000), SECONDS, mutate)
    assert report.findings == []
    assert report.inputs >= 50
    assert min(report.outcomes["read"], report.outcomes["refused"]) > report.inputs // 10, report.outcomes


def test_damaged_bundles_templates_and_records_are_used_or_one_line() -> None:
    report = artefacts.fuzz(range(10_000), SECONDS)
    assert report.findings == []
    assert report.inputs >= 20
    assert set(report.by_seed) == {"manifest", "files", "template", "records"}


@pytest.mark.parametrize("name", FOUND)
def test_what_was_found(name: str) -> None:
    worker = Worker()
    results = [worker.examine(Path(__file__).parent / "found" / name) for _ in range(TIMES)]
    worker.close()
    assert {result["outcome"] for result in results} <= {"read", "refused"}, results


def test_a_number_is_a_recipe(seeds: list[Path]) -> None:
    data = seeds[0].read_bytes()
    made = [mutate(data, number) for number in range(300)]
    assert made == [mutate(data, number) for number in range(300)]
    assert {name for _, names in made for name in names} == {mutation.__name__ for mutation in MUTATIONS}


@pytest.mark.parametrize(
    ("code", "outcome"),
    [("import os; input(); os.abort()", "crashed"), ("input(); import time; time.sleep(60)", "hung")],
)
def test_the_watchdog(code: str, outcome: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr("fuzzer.HANG_S", 1.0)
    worker = Worker([sys.executable, "-c", code])
    assert worker.examine(tmp_path)["outcome"] == outcome
    worker.close()
