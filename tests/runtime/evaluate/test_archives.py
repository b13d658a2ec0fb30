"""Rows and folders as the benchmarks' archives have them: where media lie, and answers that only look like lists."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vl3edge.runtime.errors import ConfigError
from vl3edge.runtime.evaluate.item import EvalItem
from vl3edge.runtime.evaluate.measures import judge
from vl3edge.runtime.evaluate.questions import read_questions
from vl3edge.runtime.evaluate.table import read_rows

MVBENCH = {"video": "USNP1.mp4", "question": "Which?", "candidates": ["cup", "shoe"], "answer": "shoe"}
MATHVISTA = {"question": "Between which years?", "image": "1.jpg", "question_type": "free_form", "precision": None}
CHART = {"imgname": "1.png", "query": "Which two?"}


def items(path: Path, rows: Any, media_root: Path | None = None, format: str | None = None) -> list[EvalItem]:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows), encoding="utf-8")
    asked = read_questions([path], format, media_root).asked
    assert all(isinstance(one, EvalItem) for one in asked), asked
    return [one for one in asked if isinstance(one, EvalItem)]


def touch(path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return str(path)


@pytest.mark.parametrize("wanted", ["[42.47, 54.91]", "[77, 77]", "[Pink, Blue]", "[2007, 2008]"])
def test_a_list_that_is_one_answer_is_not_several(wanted: str, tmp_path: Path) -> None:
    """Labels of ChartQA, and MathVista's answers of type "list": one of the two values alone is wrong."""
    (chart,) = items(tmp_path / "test_human.json", [{**CHART, "label": wanted}])
    (math,) = items(tmp_path / "testmini.json", {"1": {**MATHVISTA, "answer_type": "list", "answer": wanted}})
    half = wanted.strip("[]").split(", ")[0]
    for item in (chart, math):
        assert item.answers == (wanted,)
        assert judge(item, wanted).score == 1.0
        assert judge(item, half).score == 0.0


@pytest.mark.parametrize("written", ["['ITC', 'itc ltd']", '["ITC", "itc ltd"]', ["ITC", "itc ltd"]])
def test_a_list_of_texts_is_several_answers(written: Any, tmp_path: Path) -> None:
    row = {"questionId": 1, "question": "Who?", "docId": 4, "image": "1.png", "answers": written}
    assert items(tmp_path / "val.json", [row])[0].answers == ("ITC", "itc ltd")


def test_options_and_answers_may_be_numbers(tmp_path: Path) -> None:
    row = {**MVBENCH, "candidates": [3, 1], "answer": 1}
    assert items(tmp_path / "moving_count.json", [row])[0].answers == ("B",)
    mlvu = {"video": "1.mp4", "duration": 9.0, "question": "How many?", "candidates": [3, 1], "answer": 3}
    assert items(tmp_path / "4_count.json", [{**mlvu, "question_type": "count"}])[0].answers == ("A",)


@pytest.mark.parametrize(
    ("file", "rows", "media"),
    [
        ("json/action_sequence.json", [MVBENCH], "video/star/Charades_v1_480/USNP1.mp4"),
        ("json/moving_count.json", [MVBENCH], "video/clevrer/video_validation/USNP1.mp4"),
        ("json/object_interaction.json", [MVBENCH], "data0613/star/Charades_v1_480/USNP1.mp4"),
        (
            "videomme/test.json",
            [{"videoID": "fF", "question": "?", "options": ["x", "y"], "answer": "A"}],
            "data/fF.mp4",
        ),
        (
            "multi-choice/test.json",
            [{"video_id": "7", "question": "?", "answer": "no", "dim": "speed"}],
            "videos/7.mp4",
        ),
    ],
)
def test_videos_lie_in_a_folder_beside_that_of_the_questions(file: str, rows: Any, media: str, tmp_path: Path) -> None:
    there = touch(tmp_path / media)
    assert items(tmp_path / file, rows)[0].media == (there,)
    assert items(tmp_path / file, rows, media_root=tmp_path)[0].media == (there,)


def test_media_of_our_own_form_lie_below_its_folder_alone(tmp_path: Path) -> None:
    touch(tmp_path / "a.mp4")
    (item,) = items(tmp_path / "sets" / "a.json", [{"media": "a.mp4", "question": "?"}])
    assert item.media == (str(tmp_path / "sets" / "a.mp4"),)


@pytest.mark.parametrize(
    ("task", "name", "media", "part"),
    [
        ("action_sequence", "USNP1.mp4", "star/Charades_segment/USNP1_1.3_15.4.mp4", (None, None)),
        ("action_localization", "c_1.3_15.4.mp4", "sta/sta_video_segment/c_1.3_15.4.mp4", (None, None)),
        ("episodic_reasoning", "ep_clip", "tvqa/video_fps3_hq_segment/ep_clip_1.3_15.4.mp4", (None, None)),
        ("action_prediction", "USNP1.mp4", "star/Charades_v1_480/USNP1.mp4", (1.3, 15.4)),
        ("episodic_reasoning", "ep_clip", "tvqa/frames_fps3_hq/ep_clip/00001.jpg", (1.3, 15.4)),
    ],
)
def test_a_part_that_is_a_file_of_its_own_is_shown_whole(
    task: str, name: str, media: str, part: tuple[float | None, float | None], tmp_path: Path
) -> None:
    """MVBench's parts: files in the hub's branch `video`; else seconds of the authors' files or folders of frames."""
    there = touch(tmp_path / media)
    (item,) = items(tmp_path / f"{task}.json", [{**MVBENCH, "video": name, "start": 1.3, "end": 15.4}])
    assert item.media == (there.removesuffix("/00001.jpg"),)
    assert (item.start_s, item.end_s) == part


def test_videos_that_were_converted_are_found(tmp_path: Path) -> None:
    there = touch(tmp_path / "ssv2_video_mp4" / "166583.mp4")
    (item,) = items(tmp_path / "action_antonym.json", [{**MVBENCH, "video": "166583.mp4"}])
    assert item.media == (there,)


def test_options_beside_a_question_are_asked_with_it(tmp_path: Path) -> None:
    """LVBench of the hub, where they do not stand in the question."""
    row = {"video_path": "C.mp4", "uid": "17", "question": "When?", "answer": "B", "time_reference": "00:01-00:03"}
    for options in (["now", "then"], ["(A) now", "(B) then"]):
        (item,) = items(tmp_path / "rows.json", [{**row, "options": options}])
        assert item.text.startswith("When?\n(A) now\n(B) then\nAnswer with")
        assert item.options == ("now", "then")
        assert judge(item, "then").score == 1.0


@pytest.mark.parametrize("rare", ["\u2028", "\x0c", "\x85", "\x1c"])
def test_rare_characters_do_not_end_a_row_of_a_table(rare: str, tmp_path: Path) -> None:
    path = tmp_path / "set.csv"
    path.write_text(f"media,question\na.mp4,first{rare}second\n", encoding="utf-8")
    (row,) = read_rows(path)
    assert row.values == {"media": "a.mp4", "question": f"first{rare}second"}


def test_answers_in_a_file_of_their_own_are_looked_up_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ActivityNet-QA's 8,000 questions would be looked for among 8,000 answers each."""
    rows = [{"video_name": f"v{n}", "question": "is it", "question_id": f"{n}_0"} for n in range(50)]
    answers = [{"question_id": f"{n}_0", "answer": str(n), "type": 7} for n in range(50)]
    (tmp_path / "test_a.json").write_text(json.dumps([*answers, "garbage"]))
    found = items(tmp_path / "test_q.json", rows)
    assert [item.answers for item in found] == [(str(n),) for n in range(50)]
    assert {item.group for item in found} == {"number"}


def test_a_file_beside_that_is_no_json_is_told(tmp_path: Path) -> None:
    (tmp_path / "test_a.json").write_text("{")
    with pytest.raises(ConfigError, match=r"test_a\.json: it is not JSON"):
        items(tmp_path / "test_q.json", [{"video_name": "v", "question": "?", "question_id": "1"}])
