"""`vl3edge watch` as a user meets it: the demo model answers about streams over loopback while they run."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run as run_command
from streams import Script, http_stream, paced, rtsp_stream, transport_stream

from vl3edge.models.demo.clips import write_clip
from vl3edge.models.demo.questions import ask_video
from vl3edge.models.demo.render import HELD_OUT_SEED, Scene, random_scene, source_frames
from vl3edge.runtime.cli import watch as watch_command
from vl3edge.runtime.live.clock import Sample
from vl3edge.runtime.live.reader import LiveFrame, LiveReader

COMMAND = [sys.executable, "-m", "vl3edge.runtime.cli.main", "watch"]


@pytest.fixture(autouse=True)
def restored_warnings() -> Iterator[None]:
    """The command installs its own way of showing warnings."""
    with warnings.catch_warnings():
        yield


def scene_of(number: int) -> Scene:
    return random_scene(HELD_OUT_SEED + number)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    return run_command(capsys, "watch", *arguments)


def records(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


class PatientReader(LiveReader):
    """A reader whose source waits for the model: it sees the same frames however busy the machine is."""

    def _offer(self, sample: Sample[Any] | None) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is None or self._stopped.is_set())
        super()._offer(sample)

    def take(self, timeout_s: float | None = None) -> LiveFrame | None:
        frame = super().take(timeout_s)
        with self._changed:
            self._changed.notify_all()
        return frame

    def close(self) -> None:
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()
        super().close()


def test_the_demo_model_answers_while_a_clip_is_streamed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch_command, "LiveReader", PatientReader)
    scene = scene_of(720)
    assert (scene.wait_s, scene.legs) == (1, (("up", 2), ("right", 3)))
    asked = [ask_video(scene, kind) for kind in ("colour", "shape", "ground", "direction")]
    pieces = transport_stream(source_frames(scene), scene.fps)
    script: Script = [*paced(pieces, 0.0), (60.0, b"")]
    questions = [argument for question in asked for argument in ("-q", question.text)]
    with http_stream(lambda _: script) as (url, _):
        status, out, err = run(capsys, url, *questions, "--every", 3, "--duration", 6, "--format", "jsonl")
    assert status == 0, err
    done = records(out)
    assert [r["time_s"] for r in done] == [3.0] * 4 + [6.0] * 4
    assert {r["cause"] for r in done} == {"time"}
    assert (done[-1]["num_frames"], done[-1]["dropped_frames"], done[-1]["forgotten_frames"]) == (7, 0, 0)
    # What can be seen at once is right at once; where it goes to, as far as it has gone. (Not asked in the middle of a
    # leg: in the demo model's world none is shorter than two seconds.)
    courses = {3.0: "It moves up.", 6.0: "It moves up, then right."}
    for record, question in zip(done, asked * 2, strict=True):
        expected = courses[record["time_s"]] if question.kind == "direction" else question.answer
        assert record["answer"] == expected, record
    assert done[-1]["source"] == url
    assert {r["finish_reason"] for r in done} == {"stop"}
    assert f"{url}: h264, 112×112, live" in err


def test_a_session_survives_everything_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    """Garbage, a new resolution, times that jump back, a killed connection: what was seen before is still known."""
    scene = scene_of(720)
    frames = source_frames(scene)
    half = len(frames) // 2
    larger = list(np.repeat(np.repeat(frames[half:], 2, axis=1), 2, axis=2))
    first = transport_stream(frames[:half], scene.fps, first_s=500)
    second = transport_stream(larger, scene.fps)
    noise = np.random.default_rng(0).bytes(20_000)

    def script(number: int) -> Script:
        if number == 0:
            return [*paced(first, 0.15 / scene.fps), (0.0, noise), *paced(second[:2], 0.01)]
        return paced(second, 0.15 / scene.fps)

    colour, ground = ask_video(scene, "colour"), ask_video(scene, "ground")
    with http_stream(script) as (url, connections):
        questions = ("-q", colour.text, "-q", ground.text)
        options = ("--duration", 5, "--timeout", 2, "--backoff", 0.05, "--format", "jsonl")
        status, out, err = run(capsys, url, *questions, *options)
    assert status == 0, err
    assert len(connections) >= 2
    assert [r["answer"] for r in records(out)] == [colour.answer, ground.answer]
    assert records(out)[0]["num_frames"] >= 5
    for words in ("retrying in 0.05 s", "back after", "frames changed from 112×112 to 224×224", "reconnections"):
        assert words in err


def test_a_file_is_watched_to_its_end(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    scene = write_clip(tmp_path / "clip.mp4", 721)
    question = ask_video(scene, "caption")
    status, out, err = run(capsys, tmp_path / "clip.mp4", "-q", question.text, "--speed", 4)
    assert (status, out) == (0, f"[00:0{scene.frames - 1}.0] {question.answer}\n")
    assert "asking every 10 s; Ctrl-C ends the watch" in err
    assert f"{scene.frames} sampled, {scene.frames} seen, 0 dropped while the model was busy; 1 answers" in err


def test_asked_on_a_change_and_appended_to_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    scene = write_clip(tmp_path / "clip.mp4", 702)
    assert scene.wait_s == 1
    target = tmp_path / "answers.jsonl"
    target.write_text('{"of": "an earlier watch"}\n')
    options = ("--on-change", "--speed", 8, "--duration", 2, "--format", "jsonl", "-o", target)
    status, out, _ = run(capsys, tmp_path / "clip.mp4", "-q", "What colour is it?", *options)
    assert (status, out) == (0, "")
    earlier, answer = records(target.read_text())
    assert earlier == {"of": "an earlier watch"}
    assert (answer["time_s"], answer["cause"], answer["answer"]) == (2.0, "change", f"{scene.colour.capitalize()}.")


def test_rtsp(capsys: pytest.CaptureFixture[str]) -> None:
    scene = scene_of(720)
    question = ask_video(scene, "colour")
    with rtsp_stream(source_frames(scene), scene.fps, 0.03) as url:
        status, out, err = run(capsys, url, "-q", question.text, "--duration", 3)
    assert status == 0, err
    assert out.endswith(f"] {question.answer}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_watch_with_a_summary(number: signal.Signals) -> None:
    scene = scene_of(720)
    pieces = transport_stream(source_frames(scene), scene.fps)
    script: Script = [*paced(pieces, 0.1 / scene.fps), (60.0, b"")]
    with http_stream(lambda _: script) as (url, _):
        command = [*COMMAND, url, "-q", "What colour is it?", "--every", "2"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            first = watching.stdout.readline()
            watching.send_signal(number)
            out, err = watching.communicate(timeout=10)
    assert first == f"[00:02.0] {scene.colour.capitalize()}.\n"
    assert watching.returncode == 0, err
    assert "Traceback" not in err
    last = err.splitlines()[-1]
    assert last.startswith(f"vl3edge: {url}: ")
    assert last.endswith(f"; {1 + len(out.splitlines())} answers")


USAGE = {
    "no question": (["SOURCE"], 2, "-q"),
    "every": (["SOURCE", "-q", "x", "--every", "0"], 2, "every_s must be a positive number"),
    "share": (["SOURCE", "-q", "x", "--on-change", "5"], 2, "from 0 to 1"),
    "timeout": (["SOURCE", "-q", "x", "--timeout", "-1"], 2, "timeout_s must be"),
    "backoff": (["SOURCE", "-q", "x", "--backoff", "0"], 2, "pauses must be positive"),
    "camera size": (["SOURCE", "-q", "x", "--camera-size", "big"], 2, "WIDTHxHEIGHT"),
    "speed": (["SOURCE", "-q", "x", "--speed", "0"], 2, "speed must be a positive number"),
    "fps": (["SOURCE", "-q", "x", "--fps", "nan"], 2, "fps must be a positive number"),
    "no camera": (["/dev/video93", "-q", "x"], 1, "/dev/video93: there is no such camera"),
    "no file": (["none.mp4", "-q", "x"], 1, "none.mp4: there is no such file"),
    "nobody there": (
        ["tcp://127.0.0.1:1", "-q", "x", "--reconnects", "1", "--backoff", "0.01"],
        1,
        "refused; given up",
    ),
}


@pytest.mark.parametrize("name", USAGE)
def test_bad_usage(capsys: pytest.CaptureFixture[str], name: str) -> None:
    arguments, expected, message = USAGE[name]
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (expected, "")
    assert message in err.splitlines()[-1] or expected == 1
    assert message in err
