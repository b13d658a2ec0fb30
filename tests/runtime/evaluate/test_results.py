"""Results' files: whole lines, one setting, and nothing lost by a kill."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vl3edge.runtime.errors import ConfigError, OutputError
from vl3edge.runtime.evaluate.results import EvalResult, ResultsFile, read_results

SETTINGS = {"model": "m", "sampling": {"fps": 1.0, "max_frames": 180}, "data": [{"name": "a", "sha256": "0"}]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file with one answer and one error."""
    file = ResultsFile(tmp_path / "out.jsonl", SETTINGS)
    file.write(EvalResult("1", "What?", "A", "A", "A. x", 1.0, "choice", "g", "c.mp4", 12, 0.5))
    file.write(EvalResult("2", error="broken"))
    file.close()
    return tmp_path / "out.jsonl"


def test_results_come_back_as_they_were_written(path: Path) -> None:
    settings, results = read_results(path)
    assert settings == SETTINGS
    assert results["1"] == EvalResult("1", "What?", "A", "A", "A. x", 1.0, "choice", "g", "c.mp4", 12, 0.5)
    assert results["2"].error == "broken"


def test_a_score_of_nothing_is_a_score(path: Path) -> None:
    """0 and False are no empty fields."""
    file = ResultsFile(path, SETTINGS, keep=True)
    file.write(EvalResult("3", answer="", score=0.0))
    file.close()
    assert read_results(path)[1]["3"].score == 0.0


def test_a_torn_line_goes_and_the_run_goes_on(path: Path) -> None:
    with path.open("ab") as torn:
        torn.write(b'{"id": "3", "ans')
    assert set(read_results(path)[1]) == {"1", "2"}
    file = ResultsFile(path, SETTINGS, keep=True)
    assert set(file.results) == {"1", "2"}
    file.write(EvalResult("3", answer="B", score=0.0))
    file.close()
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert [line.get("id") for line in lines] == [None, "1", "2", "3"]


@pytest.mark.parametrize("size", [1, 20, 60])
def test_a_torn_first_line_begins_anew(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])
    file = ResultsFile(path, SETTINGS, keep=True)
    assert file.results == {}
    file.close()
    assert read_results(path) == (SETTINGS, {})


def test_an_answer_takes_the_place_of_its_error(path: Path) -> None:
    file = ResultsFile(path, SETTINGS, keep=True)
    file.write(EvalResult("2", answer="B", score=1.0))
    file.close()
    assert [line.count(b'"2"') for line in path.read_bytes().splitlines()] == [0, 0, 1]
    assert read_results(path)[1]["2"].error is None


@pytest.mark.parametrize("settings", [SETTINGS, {**SETTINGS, "limit": 7}])
def test_a_run_that_answered_nothing_is_not_in_the_way(tmp_path: Path, settings: dict[str, object]) -> None:
    """As of a bundle that could not be loaded; whatever it was made with."""
    path = tmp_path / "new.jsonl"
    ResultsFile(path, SETTINGS).close()
    again = ResultsFile(path, settings)
    again.write(EvalResult("1", "?", "x"))
    again.close()
    assert read_results(path)[0] == settings
    with pytest.raises(ConfigError, match="exists"):
        ResultsFile(path, settings)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "other"}, "made with model m; now it is other"),
        ({"sampling": {"fps": 2.0, "max_frames": 180}}, "sampling fps 1.0; now it is 2.0"),
        ({"data": [{"name": "a", "sha256": "1"}]}, "data 1 sha256 0; now it is 1"),
        ({"system": "Be brief."}, "system None; now it is Be brief."),
    ],
)
def test_another_setting_is_refused(path: Path, changed: dict[str, object], message: str) -> None:
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=message):
        ResultsFile(path, SETTINGS | changed, keep=True)
    assert path.read_bytes() == before


def test_a_file_is_neither_lost_nor_mixed_up(path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        ResultsFile(path, SETTINGS)
    captions = tmp_path / "captions.jsonl"
    captions.write_text('{"media": "a.mp4", "caption": "x"}\n')
    for keep in (True, False):
        with pytest.raises(ConfigError, match=r"no results of `vl3edge evaluate`|exists"):
            ResultsFile(captions, SETTINGS, keep=keep)
    with pytest.raises(ConfigError, match="no results"):
        read_results(captions)
    with path.open("ab") as file:
        file.write(b'{"media": "a.mp4"}\n')
    with pytest.raises(ConfigError, match="line 4"):
        ResultsFile(path, SETTINGS, keep=True)
    with pytest.raises(ConfigError, match="line 4"):
        read_results(path)
    forced = ResultsFile(path, SETTINGS, force=True)
    with pytest.raises(OutputError, match="another process"):
        ResultsFile(path, SETTINGS, keep=True)
    forced.close()
    assert read_results(path)[1] == {}
