"""Times read from answers; and events found in clips whose times are known."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from vl3edge.models.demo.clips import write_clip
from vl3edge.runtime.captions.grounding import Span, grounding_question, read_span
from vl3edge.runtime.cli.main import main

ANSWERS: dict[str, tuple[float, float] | None] = {
    "At 4.0s.": (4, 4),
    "from 3.2 to 7.5 seconds": (3.2, 7.5),
    "3.2s - 7.5s": (3.2, 7.5),
    "3.2–7.5": (3.2, 7.5),
    "2.5 - 4.0 seconds": (2.5, 4),
    "from 2.5-4.0 seconds": (2.5, 4),
    "[3.2, 7.5]": (3.2, 7.5),
    "(3.2, 7.5)": (3.2, 7.5),
    "The event happens between 3 and 7 seconds.": (3, 7),
    "From 0.0s until 2.5s": (0, 2.5),
    "00:03 - 00:07": (3, 7),
    "1:02:03.5 to 1:02:05": (3723.5, 3725),
    "at 00:01:05,250": (65.25, 65.25),
    "1 minute 20 seconds": (80, 80),
    "1 minute and 20 seconds to 2 minutes": (80, 120),
    "from 1m20s to 1m30s": (80, 90),
    "1 min 20 sec": (80, 80),
    "1 - 2 minutes": (60, 120),
    "1 hour 2 minutes": (3720, 3720),
    "1h 2m 3s": (3723, 3723),
    "at 2.5 minutes": (150, 150),
    "start: 3.2, end: 7.5": (3.2, 7.5),
    '{"start": 3.2, "end": 7.5}': (3.2, 7.5),
    "'start_time': '00:00:03', 'end_time': '00:00:05'": (3, 5),
    "The start time is 3.0 and the end time is 5.5": (3, 5.5),
    "It starts at 3.0s and ends at 7.0s.": (3, 7),
    "from second 3 to second 5": (3, 5),
    "from the 3 second mark to the 5 second mark": (3, 5),
    "Time 3.0s": (3, 3),
    "3,5 s": (3.5, 3.5),
    "From 3,5 s to 4,25 s": (3.5, 4.25),
    "from 1,234.5 to 1,240 seconds": (1234.5, 1240),
    "from 7 to 3 seconds": (3, 7),
    "2 people walk from 3 to 5 seconds": (3, 5),
    "10-second clip from 2.0 to 4.0": (2, 4),
    "The person opens the door at 3.0 seconds and closes it at 6.": (3, 3),
    "4": (4, 4),
    "3.2 7.5": (3.2, 7.5),
    "5 seconds": (5, 5),
    "": None,
    "It never stops.": None,
    "A man with 3 dogs.": None,
    "It happened in 2019.": None,
    "The event does not occur in the video from 0 to 10 seconds.": None,
    "There is no such event between 0 and 9 seconds": None,
    "9999999999 s": None,
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_times_of_an_answer(answer: str) -> None:
    wanted = ANSWERS[answer]
    assert read_span(answer, 0.0, 4000.0) == (Span(*wanted) if wanted else None)


def test_times_are_kept_within_what_was_seen() -> None:
    assert read_span("from 50 to 70 seconds", 60.0, 120.0) == Span(60.0, 70.0)
    assert read_span("from 110 to 130 seconds", 60.0, 120.0) == Span(110.0, 120.0)
    assert read_span("from 10 to 20 seconds", 60.0, 120.0) is None
    assert read_span("at 121 s", 60.0, 120.0) is None


@pytest.mark.parametrize("piece", ["1", "1,", "1 ", "start", "from 1 ", "1:1:", "1m1s", "1 h", "from  ", "["])
def test_no_answer_takes_long_to_read(piece: str) -> None:
    begin = time.perf_counter()
    read_span(piece * (4000 // len(piece)), 0.0, 1e9)
    assert time.perf_counter() - begin < 1.0


def test_questions_are_asked_as_they_stand() -> None:
    assert grounding_question(" When does\n it stop?") == "When does it stop?"
    assert grounding_question("the cat jumps.").startswith('When does "the cat jumps" happen in the video?')


@pytest.mark.parametrize(
    ("question", "event"), [("When does it stop?", "stop_time"), ("When does it turn?", "turn_time")]
)
def test_events_of_held_out_clips_are_found(
    question: str, event: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = {}
    for seed in range(100, 116):
        clip = tmp_path / f"{seed}.mp4"
        wanted[str(clip)] = getattr(write_clip(clip, seed), event)
    command = ["caption", str(tmp_path), "--threads", "1", "--batch", "4", "--find", question, "--format", "jsonl"]
    assert main(command) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [record["media"] for record in records] == list(wanted)
    times = {record["media"]: record.get("start_s") for record in records}
    assert times == wanted
    assert all(record["found"] == (wanted[record["media"]] is not None) for record in records)
    assert all(record.get("start_s") == record.get("end_s") for record in records)
