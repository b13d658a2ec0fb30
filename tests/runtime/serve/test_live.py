"""Live sessions: frames over a WebSocket, questions about what was seen."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from serve_messages import CLIP, png

from vl3edge.runtime import Chunk, GenerationConfig, SamplingPlan, Session
from vl3edge.runtime.media.video import open_video

client = pytest.importorskip("websockets.sync.client")
if TYPE_CHECKING:
    from vl3edge.runtime.serve.served_model import ServedModel


def frames_of_clip() -> list[bytes]:
    def as_png(pixels: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    return [as_png(frame.pixels) for frame in open_video(CLIP, SamplingPlan(fps=1)).frames()]


@pytest.fixture(scope="module")
def address(serve: Callable[..., str]) -> str:
    return serve(api_key="k", live_sessions=1, patience_s=0.5).replace("http", "ws") + "/v1/live"


def said(socket: Any) -> dict[str, Any]:
    return json.loads(socket.recv(timeout=30))


def start(socket: Any, **fields: Any) -> dict[str, Any]:
    socket.send(json.dumps({"type": "start", "key": "k", **fields}))
    return said(socket)


def start_seeing(socket: Any, *pictures: bytes) -> None:
    """A session that has begun and taken these frames."""
    assert start(socket)["type"] == "ready"
    for picture in pictures:
        socket.send(picture)
        assert said(socket)["type"] == "frame"


def test_a_session_sees_frames_and_answers(address: str, model: ServedModel) -> None:
    pictures = frames_of_clip()
    own = model.open_session()
    with client.connect(address) as socket:
        assert start(socket)["type"] == "ready"
        for number, picture in enumerate(pictures):
            socket.send(picture)
            report = said(socket)
            assert (report["type"], report["frames"], report["dropped"]) == ("frame", number + 1, 0)
            pixels = np.asarray(Image.open(io.BytesIO(picture)))
            assert report["kept"] == own.push(pixels, report["time_s"]).kept_tokens
        socket.send(json.dumps({"type": "ask", "text": "What colour is it?", "max_tokens": 20}))
        text = ""
        while (message := said(socket))["type"] == "answer":
            text += message["text"]
        assert message == {"type": "end", "reason": "stop", "boxes": []}
    expected = "".join(chunk.text for chunk in own.ask("What colour is it?", GenerationConfig(20), keep=False))
    assert text == expected == "Red."


def test_every_question_has_its_end_and_a_stop_ends_those_before_it(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    def ask(_: Any, question: str, *rest: Any, **options: Any) -> Iterator[Chunk]:
        """The first answer does not end by itself."""
        for _ in range(10_000) if question == "one" else range(1):
            begun.set()
            yield Chunk(question)
            time.sleep(0.002)
        yield Chunk("", "stop")

    monkeypatch.setattr(Session, "ask", ask)
    with client.connect(address) as socket:
        start_seeing(socket, png())
        for text in ("one", "two"):
            socket.send(json.dumps({"type": "ask", "text": text}))
        assert begun.wait(30)
        socket.send(json.dumps({"type": "stop"}))
        for text in ("three", "four"):
            socket.send(json.dumps({"type": "ask", "text": text}))
        ends, texts = list[str](), list[str]()
        while len(ends) < 4:
            message = said(socket)
            texts += [message["text"]] if message["type"] == "answer" else []
            ends += [message["reason"]] if message["type"] == "end" else []
    assert ends == ["cancelled", "cancelled", "stop", "stop"]
    assert texts[-2:] == ["three", "four"]
    assert "two" not in texts


def test_questions_without_end_are_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    free = threading.Event()

    def ask(*_: Any, **__: Any) -> Iterator[Chunk]:
        free.wait(30)
        yield Chunk("", "stop")

    monkeypatch.setattr(Session, "ask", ask)
    with client.connect(address) as socket:
        start_seeing(socket, png())
        for _ in range(40):
            socket.send(json.dumps({"type": "ask", "text": "?"}))
        refused = [said(socket)["error"]["message"] for _ in range(23)]  # of 40, one answered and 16 that wait
        free.set()
        rest = [said(socket)["type"] for _ in range(17)]
    assert all("16 questions wait" in words for words in refused)
    assert rest.count("end") >= 16


def picture(width: int, height: int, orientation: int = 1) -> bytes:
    """A JPEG that is shown with this width and height."""
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    stored = (width, height) if orientation < 5 else (height, width)
    Image.new("RGB", stored, "teal").save(buffer, "JPEG", exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("frames", "says", "end"),
    [
        ([(400, 300, 1)], "<ref>it</ref>[[100, 200, 500, 750]]", [40, 60, 200, 225]),
        ([(400, 300, 6), (400, 300, 1)], "[[0, 0, 1000, 500]]", [0, 0, 400, 150]),
        ([(400, 300, 1)], "[[100, 200, 500]]", "1 of 1 box cannot be used"),
        ([(400, 300, 1), (300, 400, 1)], "[[100, 200, 500, 750]]", "whose sizes differ"),
    ],
)
def test_an_answer_ends_with_its_boxes_in_pixels_of_the_frames(
    address: str, monkeypatch: pytest.MonkeyPatch, frames: list[tuple[int, int, int]], says: str, end: Any
) -> None:
    monkeypatch.setattr(Session, "ask", lambda *_, **__: iter([Chunk(says[:7]), Chunk(says[7:], "stop")]))
    with client.connect(address) as socket:
        start_seeing(socket, *(picture(*frame) for frame in frames))
        socket.send(json.dumps({"type": "ask", "text": "Where is it?"}))
        *_, ended = [said(socket) for _ in range(3)]
    found = [[box["x0"], box["y0"], box["x1"], box["y1"]] for box in ended["boxes"]]
    assert (found, ended.get("boxes_note")) == ([end], None) if isinstance(end, list) else end in ended["boxes_note"]


def test_one_camera_at_a_time_and_a_place_is_free_again(address: str) -> None:
    with client.connect(address) as first:
        assert start(first)["type"] == "ready"
        with client.connect(address) as second:
            refused = start(second)
            assert refused["status"] == 429
            assert "places for cameras are taken" in refused["error"]["message"]
    for _ in range(100):
        with client.connect(address) as third:
            if start(third)["type"] == "ready":
                return
    raise AssertionError("the place was not given back")


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ({"type": "start", "key": "wrong"}, "API key"),
        ({"type": "start"}, "API key"),
        ({"type": "ask", "text": "?"}, "begins with"),
        (["start"], "begins with"),
        ({"type": "start", "key": "k", "threshold": "high"}, "threshold must be"),
        ({"type": "start", "key": "k", "threshold": 10**400}, "threshold must be a smaller number"),
        ({"type": "start", "key": "k", "treshold": 1}, "unknown field 'treshold'"),
        ({"type": "start", "key": "\ud800"}, "API key"),
    ],
)
def test_sessions_that_do_not_begin(address: str, first: Any, words: str) -> None:
    with client.connect(address) as socket:
        socket.send(json.dumps(first))
        assert words in said(socket)["error"]["message"]


def test_what_is_no_frame_costs_itself(address: str) -> None:
    with client.connect(address) as socket:
        assert start(socket)["type"] == "ready"
        socket.send(json.dumps({"type": "ask", "text": "What do you see?"}))
        assert "no frame yet" in said(socket)["error"]["message"]
        for bad in (b"no picture", png()[:200], b""):
            socket.send(bad)
            assert said(socket)["type"] == "error"
        socket.send(json.dumps({"type": "dance"}))
        assert said(socket)["type"] == "error"
        socket.send(png())
        assert said(socket)["type"] == "frame"


def test_a_camera_may_be_silent_for_longer_than_a_request(address: str) -> None:
    with client.connect(address) as socket:
        assert start(socket)["type"] == "ready"
        time.sleep(0.8)
        socket.send(png())
        assert said(socket)["type"] == "frame"


def test_other_sites_may_not_open_a_session(address: str) -> None:
    with (
        pytest.raises(Exception, match=r"4403|403|rejected"),
        client.connect(address, origin="https://evil.example") as s,
    ):
        said(s)
