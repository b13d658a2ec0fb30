"""`vl3edge ask` about boxes: what is asked, what is shown, what is drawn. What the model says is made up here."""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import fps_filter, write_clip
from commands import run
from PIL import Image

from vl3edge.runtime import Answer, Box, CaptionResult, Chunk, Clip, ConfigError, GenerationStats, VideoLlama3
from vl3edge.runtime.inspect.boxes import COLOURS

FORM = "Answer in [[x0,y0,x1,y1]] format."
WHERE = "Where is the white car?"
SAYS = "<ref>the white car</ref>[[100, 200, 500, 750]]"
Script = Callable[[list[Clip], str], str]


class Scripted:
    """Stands for the model's answers. asked: every question, and the clips it was about."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[Clip], str]] = []
        self.says: Script = lambda clips, question: SAYS
        self.reason: Any = "stop"

    def stream(self, _: VideoLlama3, media: Any, question: str, *config: Any, **options: Any) -> Iterator[Chunk]:
        clips = [media] if not isinstance(media, list) else media
        self.asked.append((clips, question))
        text = self.says(clips, question)
        yield Chunk(text[:9])
        yield Chunk(text[9:], self.reason, GenerationStats(10, 0, 5, 0.1, 0.1))


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    scripted = Scripted()
    monkeypatch.setattr(VideoLlama3, "stream", lambda *a, **k: scripted.stream(*a, **k))
    return scripted


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """200×100, white at (20, 20) to (100, 75): where SAYS says."""
    pixels = np.full((100, 200, 3), 90, np.uint8)
    pixels[20:75, 20:100] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Ten seconds, 4 frames each, 96×64."""
    return write_clip(tmp_path / "film.mp4", range(40), Fraction(1, 4))


def test_boxes_are_asked_for_and_shown(capsys: pytest.CaptureFixture[str], model: Scripted, photo: Path) -> None:
    status, out, _ = run(capsys, "ask", photo, "-q", WHERE, "--boxes")
    assert (status, out) == (0, f"{SAYS}\nthe white car: 20,20,100,75\n")
    assert [question for _, question in model.asked] == [f"{WHERE} {FORM}"]
    run(capsys, "ask", photo, "-q", f"{WHERE} {FORM}", "--boxes")
    assert model.asked[1][1] == f"{WHERE} {FORM}"
    status, out, _ = run(capsys, "ask", photo, "-q", WHERE)
    assert (out, model.asked[2][1]) == (f"{SAYS}\n", WHERE)


@pytest.mark.parametrize(
    ("says", "reason", "words"),
    [
        ("<ref>it</ref>[[1, 2, 3]]", "stop", "1 of 1 box cannot be used: [1, 2, 3] is not four whole numbers"),
        ("<ref>it</ref>[[1, 2, 3", "length", "the answer was cut off: raise --max-new-tokens"),
        ("[[500, 0, 100, 10]]", "stop", "wrong order"),
        ("I see no car.", "stop", "the answer has no box"),
    ],
)
def test_a_malformed_answer_gives_none_and_says_so(
    capsys: pytest.CaptureFixture[str], model: Scripted, photo: Path, says: str, reason: str, words: str
) -> None:
    model.says, model.reason = lambda *_: says, reason
    status, out, err = run(capsys, "ask", photo, "-q", WHERE, "--boxes")
    assert (status, out) == (0, f"{says}\n")
    assert sum(words in line for line in err.splitlines()) == 1
    target = photo.with_name("out.png")
    status, _, err = run(capsys, "ask", photo, "-q", WHERE, "-o", target)
    assert status == 1
    assert "there is no box to draw" in err
    assert not target.exists()


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_pixels_of_a_photo_are_those_of_how_it_is_shown(
    capsys: pytest.CaptureFixture[str], model: Scripted, photo: Path, orientation: int
) -> None:
    """Pillow turns the photo for itself; the box is drawn where the white is."""
    turn = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    upright = Image.open(photo)
    stored = upright if orientation == 1 else upright.transpose(turn[orientation])  # type: ignore[arg-type]
    exif = Image.Exif()
    exif[0x0112] = orientation
    turned = photo.with_name("turned.jpg")
    stored.save(turned, exif=exif, quality=95)
    target = photo.with_name("drawn.png")
    status, out, err = run(capsys, "ask", turned, "-q", WHERE, "-o", target)
    assert (status, out.splitlines()[1]) == (0, "the white car: 20,20,100,75"), err
    drawn = np.asarray(Image.open(target))
    assert drawn.shape == (100, 200, 3)
    for edge in (drawn[20, 20:100], drawn[74, 20:100], drawn[20:75, 20], drawn[20:75, 99]):
        assert (edge == COLOURS[0]).all()
    assert (drawn[25:70, 25:95] > 240).all()
    assert (drawn[80:, 110:] < 110).all()


def test_an_odd_size_and_a_jpeg(capsys: pytest.CaptureFixture[str], model: Scripted, tmp_path: Path) -> None:
    Image.new("RGB", (333, 1001), (90, 90, 90)).save(tmp_path / "odd.webp")
    model.says = lambda *_: "[[0, 0, 1000, 1000]] [[999, 999, 1000, 1000]]"
    status, out, _ = run(capsys, "ask", tmp_path / "odd.webp", "-q", WHERE, "-o", tmp_path / "out.JPEG")
    assert (status, out.splitlines()[1:]) == (0, ["box: 0,0,333,1001", "box: 332,1000,333,1001"])
    opened = Image.open(tmp_path / "out.JPEG")
    assert (opened.format, opened.size, opened.getexif().get(0x0112)) == ("JPEG", (333, 1001), None)


def test_a_video_that_is_turned_or_anamorphic(
    capsys: pytest.CaptureFixture[str], model: Scripted, tmp_path: Path
) -> None:
    """Turned as its display matrix says; stretched pixels stay as they are stored, as the model sees them."""
    options = {"x264-params": "sar=4/3"}
    wide = write_clip(tmp_path / "wide.mp4", range(8), Fraction(1, 4), options=options)
    with av.open(str(wide)) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
    turned = write_clip(tmp_path / "turned.mp4", range(8), Fraction(1, 4), rotation=90)
    for path, line in ((wide, "the white car: 10,13,48,48"), (turned, "the white car: 6,19,32,72")):
        status, out, err = run(capsys, "ask", path, "-q", WHERE, "--boxes")
        assert (status, out.splitlines()[1]) == (0, line)
        assert "does not say of which frame" in err


def test_a_box_in_a_question(capsys: pytest.CaptureFixture[str], model: Scripted, photo: Path) -> None:
    run(capsys, "ask", photo, "-q", "What is {box} beside {box}?", "--box", "20,20,100,75", "--box", "0,0,200,0.5")
    assert model.asked[0][1] == "What is [[100, 200, 500, 750]] beside [[0, 0, 1000, 5]]?"
    run(capsys, "ask", photo, "-q", "What is it?", "--box", "20,20,100,75", "--boxes")
    assert model.asked[1][1] == f"What is it? The region is [[100, 200, 500, 750]]. {FORM}"


BAD = [
    (("--box", "1,2,3"), "must be four numbers of pixels"),
    (("--box", "1,2,3,x"), "must be four numbers of pixels"),
    (("--box", "1,2,3,inf"), "must be four numbers of pixels"),
    (("--box", "1,2,300,4"), "X must be 0 to 200, Y 0 to 100"),
    (("--box", "9,2,3,4"), "X0 must be less than X1"),
    (("-q", "{box}?"), "--box"),
    (("-q", "{box} {box}?", "--box", "1,2,3,4"), "2 times"),
    (("-o", "out.gif"), ".png, .jpg, .jpeg"),
    (("-o", "nowhere/out.png"), "there is no such folder"),
    (("--json", "nowhere/out.json"), "there is no such folder"),
    (("--find", " "), "needs an event"),
]


@pytest.mark.parametrize(("options", "words"), BAD)
def test_what_cannot_work_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], model: Scripted, photo: Path, options: tuple[str, ...], words: str
) -> None:
    question = () if "-q" in options else ("-q", WHERE)
    status, _, err = run(capsys, "ask", photo, *question, *options)
    assert status == 2
    assert len([line for line in err.splitlines() if "error: " in line and words in line]) == 1
    assert model.asked == []


@pytest.mark.parametrize("options", [("--box", "1,2,3,4"), ("--find", "x"), ("-o", "a.png"), ("--json", "-")])
def test_a_conversation_has_no_options_of_one_question(
    capsys: pytest.CaptureFixture[str], photo: Path, options: tuple[str, str]
) -> None:
    status, _, err = run(capsys, "ask", photo, *options)
    assert status == 2
    assert f"{options[0]} needs a question: give one with -q" in err


def test_the_picture_itself_is_not_overwritten(
    capsys: pytest.CaptureFixture[str], model: Scripted, photo: Path, tmp_path: Path
) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for number in range(3):
        Image.new("RGB", (96, 64)).save(frames / f"{number}.png")
    (tmp_path / "link.png").symlink_to(photo)
    for media, target in (
        (photo, photo),
        (photo, tmp_path / "link.png"),
        (f"file://{photo}", photo),
        (frames, frames / "1.png"),
    ):
        before = Path(target).read_bytes()
        status, _, err = run(capsys, "ask", media, "-q", WHERE, "-o", target, "--find", "it")
        assert status == 2
        assert "would overwrite" in err
        assert Path(target).read_bytes() == before


def test_boxes_are_of_one_picture(capsys: pytest.CaptureFixture[str], model: Scripted, photo: Path, film: Path) -> None:
    status, _, err = run(capsys, "ask", photo, film, "-q", WHERE, "--boxes")
    assert status == 2
    assert "one picture or video, not 2" in err
    status, _, err = run(capsys, "ask", film, "-q", WHERE, "-o", "out.png")
    assert status == 2
    assert "does not say of which of the 10 frames" in err
    assert model.asked == []


def test_one_frame_of_a_video_is_drawn_on(capsys: pytest.CaptureFixture[str], model: Scripted, film: Path) -> None:
    target = film.with_name("out.png")
    status, _, _ = run(capsys, "ask", film, "-q", WHERE, "-o", target, "--start", "3", "--max-frames", "1")
    assert status == 0
    drawn, frame = np.asarray(Image.open(target)), fps_filter(film, "1")[3]
    assert (drawn[13, 10:48] == COLOURS[0]).all()
    assert (drawn[30:45, 15:45] == frame[30:45, 15:45]).all()


def by_time(clips: list[Clip], question: str) -> str:
    if question.startswith("When does"):
        return "From 2 to 3 seconds and from 7.0 to 7.4 seconds."
    return SAYS if len(clips) == 1 and clips[0].kind == "image" else "?"


@pytest.mark.parametrize("isolate", [(), ("--isolate",)])
def test_the_frames_of_an_event(
    capsys: pytest.CaptureFixture[str], model: Scripted, film: Path, isolate: tuple[str, ...]
) -> None:
    model.says = by_time
    target = film.with_name("out.png")
    status, out, err = run(capsys, "ask", film, "-q", WHERE, "-o", target, "--find", "it turns", *isolate)
    assert status == 0
    assert out == "".join(f"at {time}.0 s: {SAYS}\nthe white car: 10,13,48,48\n" for time in (2, 3, 7))
    assert 'When does "it turns" happen in the video?' in model.asked[0][1]
    assert [question for _, question in model.asked[1:]] == [f"{WHERE} {FORM}"] * 3
    assert "it turns: 2.0 - 3.0 s" in err
    assert "it turns: 7.0 - 7.4 s" in err
    page = np.asarray(Image.open(target))
    every = fps_filter(film, "1")
    for number, at in ((2, (0, 0)), (3, (0, 1)), (7, (1, 0))):
        patch = every[number][30:45, 15:45]  # inside the box
        top, left = 30 + at[0] * (64 + 42) + 30, 12 + at[1] * (96 + 12) + 15
        assert (page[top : top + 15, left : left + 30] == patch).all()
    assert (page == COLOURS[0]).all(axis=2).sum() > 3 * 2 * (38 + 35 - 2)


def test_one_frame_of_an_event_keeps_its_size(capsys: pytest.CaptureFixture[str], model: Scripted, film: Path) -> None:
    model.says = lambda clips, question: "At 4.4 seconds." if question.startswith("When") else SAYS
    target = film.with_name("out.png")
    status, _, _ = run(capsys, "ask", film, "-q", WHERE, "-o", target, "--find", "When does it turn?")
    assert (status, Image.open(target).size) == (0, (96, 64))
    assert (np.asarray(Image.open(target))[30:45, 15:45] == fps_filter(film, "1")[4][30:45, 15:45]).all()


def test_an_event_that_is_not_there(
    capsys: pytest.CaptureFixture[str], model: Scripted, film: Path, photo: Path
) -> None:
    model.says = lambda *_: "It does not happen."
    target = film.with_name("out.png")
    status, out, err = run(capsys, "ask", film, "-q", WHERE, "-o", target, "--find", "it turns")
    assert (status, out) == (1, "")
    assert "it turns was not found: It does not happen." in err
    assert not target.exists()
    status, out, _ = run(capsys, "ask", film, "-q", WHERE, "--find", "it turns", "--json", "-")
    assert status == 0
    assert {name: json.loads(out)[name] for name in ("found", "spans", "frames")} == {
        "found": False,
        "spans": [],
        "frames": [],
    }
    status, _, err = run(capsys, "ask", photo, "-q", WHERE, "--find", "it turns")
    assert status == 1
    assert "this is an image" in err


def test_json(capsys: pytest.CaptureFixture[str], model: Scripted, photo: Path, film: Path) -> None:
    status, out, _ = run(capsys, "ask", photo, "-q", WHERE, "--boxes", "--json", "-")
    assert status == 0
    boxes = [{"label": "the white car", "x0": 20, "y0": 20, "x1": 100, "y1": 75}]
    assert json.loads(out) == {
        "media": [str(photo)],
        "question": f"{WHERE} {FORM}",
        "width_px": 200,
        "height_px": 100,
        "answer": SAYS,
        "finish_reason": "stop",
        "boxes": boxes,
    }
    model.says = lambda *_: "[[1,2,3]]"
    file = photo.with_name("out.json")
    status, out, _ = run(capsys, "ask", photo, film, "-q", WHERE, "--json", file)
    assert (status, out) == (0, "[[1,2,3]]\n")
    written = json.loads(file.read_text())
    assert (written["boxes"], written["media"]) == ([], [str(photo), str(film)])
    assert "not four whole numbers" in written["boxes_note"]
    model.says = by_time
    _, out, _ = run(capsys, "ask", film, "-q", WHERE, "--boxes", "--find", "it turns", "--json", "-")
    found = json.loads(out)
    assert found["spans"] == [{"start_s": 2.0, "end_s": 3.0}, {"start_s": 7.0, "end_s": 7.4}]
    assert [(one["time_s"], one["boxes"][0]["x1"]) for one in found["frames"]] == [(2.0, 48), (3.0, 48), (7.0, 48)]


def test_a_caption_s_record_has_its_boxes(
    capsys: pytest.CaptureFixture[str], model: Scripted, photo: Path, film: Path
) -> None:
    model.says = lambda clips, _: SAYS if clips[0].kind == "image" else "[[1,2,3]]"
    model.stream = (lambda stream: lambda m, media, *a, **k: stream(m, media.finish(), *a, **k))(model.stream)  # type: ignore[method-assign]
    records = photo.with_name("records.jsonl")
    run(capsys, "caption", photo, film, "-p", f"{WHERE} {FORM}", "-o", records)
    first, second = map(json.loads, records.read_text().splitlines())
    assert first["boxes"] == [{"label": "the white car", "x0": 20, "y0": 20, "x1": 100, "y1": 75}]
    assert CaptionResult.from_json(first).to_json() == first
    assert "boxes" not in second
    assert "not four whole numbers" in second["boxes_note"]


def test_in_a_conversation(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, photo: Path, film: Path
) -> None:
    asked: list[str] = []

    def answer(self: VideoLlama3, messages: Any, *_: Any) -> Iterator[Chunk]:
        asked.append(messages[-1]["content"][-1]["text"])
        yield Chunk(SAYS, "stop", GenerationStats(10, 0, 5, 0.1, 0.1), (1,))

    monkeypatch.setattr(VideoLlama3, "_answer", answer)
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{WHERE}\nAnd now?\n/media {film}\nAnd there?\n"))
    status, out, err = run(capsys, "ask", photo, "--boxes")
    assert status == 0
    assert out == f"{SAYS}\nthe white car: 20,20,100,75\n" * 2 + f"{SAYS}\n"
    assert asked == [f"{question} {FORM}" for question in (WHERE, "And now?", "And there?")]
    assert "sizes differ" in err


def test_in_python(model: Scripted, photo: Path, film: Path) -> None:
    loaded = VideoLlama3.load()
    clip = loaded.encode(photo)
    assert clip.source_size == (100, 200)
    assert clip.region(20, 20, 100, 75) == "[[100, 200, 500, 750]]"
    with pytest.raises(ConfigError, match=r"photo\.png: X must be"):
        clip.region(20, 20, 201, 75)
    answer = loaded.ask(clip, WHERE)
    assert answer.boxes == (Box("the white car", 20, 20, 100, 75),)
    assert answer.boxes_note is None
    assert loaded.ask(loaded.begin(photo), WHERE).boxes == answer.boxes
    two = loaded.ask([clip, loaded.encode(film)], WHERE)
    assert two.boxes == ()
    assert "sizes differ" in str(two.boxes_note)
    assert Answer(SAYS, "stop", answer.stats).boxes == ()


def test_every_way_to_ask_knows_the_size(monkeypatch: pytest.MonkeyPatch, photo: Path) -> None:
    def answer(*_: Any) -> Iterator[Chunk]:
        yield Chunk(SAYS, "stop", GenerationStats(10, 0, 5, 0.1, 0.1), (1,))

    monkeypatch.setattr(VideoLlama3, "_answer", answer)
    loaded = VideoLlama3.load()
    content = [{"type": "image", "image": photo}, {"type": "text", "text": WHERE}]
    box = (Box("the white car", 20, 20, 100, 75),)
    assert loaded.generate([{"role": "user", "content": content}]).boxes == box
    chat = loaded.chat()
    assert chat.ask(WHERE, photo).boxes == box
    assert chat.ask("And now?").boxes == box


def test_a_batch_knows_the_size_of_each(photo: Path) -> None:
    from vl3edge.runtime import CaptionJob, GenerationConfig

    jobs = [CaptionJob(photo), CaptionJob(np.zeros((56, 84, 3), np.uint8))]
    results = VideoLlama3.load().caption_all(jobs, GenerationConfig(max_new_tokens=2), batch=2)
    sizes = {result.index: result.answer.source_sizes for result in results if result.answer}
    assert sizes == {0: ((100, 200),), 1: ((56, 84),)}


def test_output_is_replaced_as_a_whole(
    capsys: pytest.CaptureFixture[str], model: Scripted, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = photo.with_name("out.png")
    target.write_bytes(b"old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", str(target))

    monkeypatch.setattr(os, "replace", fail)
    status, _, err = run(capsys, "ask", photo, "-q", WHERE, "-o", target)
    assert status == 1
    assert "No space left" in err
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in photo.parent.iterdir()) == ["out.png", "photo.png"]
