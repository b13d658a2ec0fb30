"""The page in a real browser: Chromium, driven by Playwright, with a camera that it makes up itself.

VL3EDGE_PICTURES=1 puts the pictures that are taken on the way into docs/.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from serve_messages import CLIP, SAID

from vl3edge.runtime import Chunk, Session

DOCS = Path(__file__).resolve().parents[3] / "docs"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_spec("playwright") is None, reason="playwright is not installed"),
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here (apt-get install chromium)"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True, "device_scale_factor": 2}
ANSWER = "#messages .assistant"


@pytest.fixture(scope="module")
def address(serve: Callable[..., str]) -> str:
    return serve()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """visit(address, **options): a page that asks nobody but its server, and complains of nothing."""
    contexts: list[Any] = []
    complaints: list[str] = []

    def visit(address: str, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1180, "height": 860}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        own = (address, "data:", "blob:")
        page.on("request", lambda made: None if made.url.startswith(own) else complaints.append(made.url))
        page.goto(address)
        return page

    yield visit
    for context in contexts:
        context.close()
    expected = re.compile(
        r"Failed to load resource: (the server responded with a status of (400|401|404|429)|net::ERR_)"
    )
    assert [complaint for complaint in complaints if not expected.match(complaint)] == []


def wait(page: Any, condition: str) -> None:
    """Until a condition in JavaScript is true; Playwright's own wait needs what the page forbids itself."""
    end = time.monotonic() + 30
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"{condition}: {page.inner_text('body')}"
        page.wait_for_timeout(50)


def picture(page: Any, name: str, folder: Path) -> None:
    where = DOCS if os.environ.get("VL3EDGE_PICTURES") else folder
    seen = Image.open(io.BytesIO(page.screenshot(animations="disabled")))
    seen.convert("RGB").quantize(256).save(where / name, optimize=True)  # a third of the bytes


def load_clip(page: Any) -> None:
    page.set_input_files("#file", CLIP)
    page.wait_for_selector("#timeline li:nth-child(9)")


def ask(page: Any, question: str, number: int = 1) -> str:
    page.fill("#question", question)
    page.keyboard.press("Enter")
    wait(page, f"document.querySelectorAll('#messages .assistant').length >= {number}")
    page.wait_for_selector("#stop", state="hidden")
    return page.locator(ANSWER).last.inner_text()


def test_a_clip_is_seen_asked_about_and_looked_at_again(
    address: str, visit: Callable[..., Any], tmp_path: Path
) -> None:
    page = visit(address)
    assert page.inner_text("#model") == "vl3edge-demo on cpu"
    picture(page, "serve-empty.png", tmp_path)
    load_clip(page)
    assert "9 frames of 112 × 112, 87 visual tokens, 40 % pruned" in page.inner_text("#facts")
    assert ask(page, "Describe this video.") == SAID
    stops = ask(page, "When does it stop?", 2)
    moment = page.locator(f"{ANSWER} .time").last
    seconds = float(re.search(r"[\d.]+", moment.inner_text())[0])  # type: ignore[index]
    assert moment.inner_text() in stops
    moment.click()
    chosen = page.locator("#timeline [aria-current=true]")
    assert chosen.inner_text().strip() == f"{seconds:g} s"
    assert f"At {seconds:g} s" in page.inner_text("#facts")
    assert page.get_attribute("#picture", "src") == chosen.locator("img").first.get_attribute("src")
    picture(page, "serve.png", tmp_path)
    assert page.locator("#veil").is_visible()
    page.uncheck("#show-veil")
    assert not page.locator("#veil").is_visible()
    page.click("summary")
    page.fill("#max-frames", "3")
    page.keyboard.press("Tab")
    wait(page, "document.querySelectorAll('#timeline li').length === 3")


def test_the_keyboard_alone(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address)
    load_clip(page)
    wait(page, "document.activeElement.id === 'question'")
    page.keyboard.type("What colour is it?")
    page.keyboard.press("Enter")
    wait(page, "document.querySelector('#messages .assistant')?.textContent === 'Red.'")
    page.focus("#timeline [tabindex='0']")
    for key, expected in (("ArrowRight", 1), ("ArrowRight", 2), ("End", 8), ("ArrowRight", 8), ("Home", 0)):
        page.keyboard.press(key)
        place = "[...document.querySelectorAll('#timeline button')].indexOf(document.activeElement)"
        assert page.evaluate(place) == expected
    page.focus("#tab-clip")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.id") == "tab-live"
    assert page.locator("#live").is_visible()


def test_the_keyboard_is_never_lost(address: str, visit: Callable[..., Any]) -> None:
    """Buttons that had the focus are disabled, or go."""
    page = visit(address)
    load_clip(page)
    where = "document.activeElement.id"
    for button, question in (("#send", "What colour is it?"), ("#stop", "Describe this video.")):
        page.fill("#question", question)
        page.focus("#send")
        page.keyboard.press("Enter")
        if button == "#stop":
            page.evaluate("document.querySelector('#stop').hidden || document.querySelector('#stop').focus()")
            page.keyboard.press("Enter")
        page.wait_for_selector("#stop", state="hidden")
        wait(page, f"{where} === 'send'")
    page.focus("#clear")
    page.keyboard.press("Enter")
    assert page.evaluate(where) == "send"


def test_a_camera_that_is_not_wanted_any_more_is_let_go(address: str, visit: Callable[..., Any]) -> None:
    """The browser gives it late: after a second press, or when the other tab is shown."""
    page = visit(address)
    page.evaluate("""() => {
        window.given = [];
        const real = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
        navigator.mediaDevices.getUserMedia = async (wishes) => {
            await new Promise((resolve) => setTimeout(resolve, 300));
            const stream = await real(wishes);
            window.given.push(stream);
            return stream;
        };
    }""")
    on = "given.filter((stream) => stream.getTracks().some((track) => track.readyState === 'live')).length"
    page.click("#tab-live")
    for _ in range(2):
        page.click("#camera-switch")
    assert page.inner_text("#camera-switch") == "Start the camera"
    page.click("#camera-switch")
    wait(page, f"given.length === 2 && {on} === 1")
    wait(page, "/frames remembered/.test(document.querySelector('#live-facts').textContent)")
    page.click("#camera-switch")
    page.click("#camera-switch")
    page.click("#tab-clip")
    wait(page, f"given.length === 3 && {on} === 0")


def sent(pieces: list[dict[str, Any]]) -> dict[str, Any]:
    """A streamed answer, made up."""
    events = "".join(f"data: {json.dumps({'choices': [], **piece})}\n\n" for piece in pieces)
    return {"status": 200, "headers": {"Content-Type": "text/event-stream"}, "body": f"{events}data: [DONE]\n\n"}


def test_boxes_are_shown_and_drawn(address: str, visit: Callable[..., Any], tmp_path: Path) -> None:
    """On a picture of 400 × 200 with a white quarter, which is shown smaller and not at the same place."""
    pixels = np.full((200, 400, 3), 90, np.uint8)
    pixels[100:, 200:] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    page = visit(address)
    page.set_input_files("#file", tmp_path / "photo.png")
    page.wait_for_selector("#picture", state="visible")
    asked: list[str] = []
    box = {"label": "the <b>white</b>", "x0": 200, "y0": 100, "x1": 400, "y1": 200}
    said = {"choices": [{"delta": {"content": "There."}}]}
    ends = [{"boxes": [box]}, {"boxes": [], "boxes_note": "1 of 1 box cannot be used: [1] is not four whole numbers"}]

    def answer(route: Any) -> None:
        content = route.request.post_data_json["messages"][-1]["content"]
        asked.append(content if isinstance(content, str) else content[-1]["text"])
        route.fulfill(**sent([said, ends.pop(0)]))

    page.route("**/v1/chat/completions", answer)
    page.check("#ask-boxes")
    ask(page, "Where is it?")
    assert asked == ["Where is it? Answer in [[x0,y0,x1,y1]] format."]
    assert page.locator("#boxes text").text_content() == box["label"]
    assert "the <b>white</b> from 200, 100 to 400, 200" in page.get_attribute("#boxes", "aria-label")
    rectangle, view = (page.locator(which).bounding_box() for which in ("#boxes rect", "#view"))
    # The picture, as the model sees it, fills the view's width or its height, in its middle.
    shape = re.search(r"of (\d+) × (\d+)", page.inner_text("#facts"))
    assert shape
    ratio = int(shape[1]) / int(shape[2])
    width = min(view["width"], ratio * view["height"])
    height = width / ratio
    left, top = view["x"] + (view["width"] - width) / 2, view["y"] + (view["height"] - height) / 2
    expected = {"x": left + width / 2, "y": top + height / 2, "width": width / 2, "height": height / 2}
    assert all(abs(rectangle[name] - value) < 5 for name, value in expected.items())
    page.uncheck("#ask-boxes")
    page.fill("#question", "What is in ?")
    page.evaluate("document.querySelector('#question').setSelectionRange(11, 11)")
    page.mouse.move(left + width / 4, top + height / 4)
    page.mouse.down()
    page.mouse.move(left + width / 3, top + height / 3)
    page.mouse.move(left + width / 2, top + height / 2)
    assert page.locator("#boxes .drawn").count() == 1
    page.mouse.up()
    question = page.input_value("#question")
    edges = re.fullmatch(r"What is in \[\[(\d+), (\d+), (\d+), (\d+)\]\]\?", question)
    assert edges, question
    for edge, wanted in zip(map(int, edges.groups()), (250, 250, 500, 500), strict=True):
        assert abs(edge - wanted) <= 15
    assert page.input_value("#region").startswith("10")
    page.mouse.click(left + 9, top + 9)  # is no box
    assert page.input_value("#question") == question
    ask(page, question, 2)
    assert asked[1] == question
    assert "Not shown: 1 of 1 box cannot be used" in page.inner_text("#messages")
    assert page.locator("#boxes rect").count() == 0
    assert page.input_value("#region") == ""


def test_a_box_by_the_keyboard_alone(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address)
    load_clip(page)
    for text in ("1, 2, 3", "5, 0, 1, 9", "0, 0, 112, 113", "a, b, c, d"):
        page.fill("#region", text)
        page.keyboard.press("Enter")
        assert "four numbers of pixels" in page.inner_text("#status")
    assert page.input_value("#question") == ""
    page.fill("#region", "28, 56, 112, 112")
    page.keyboard.press("Enter")
    assert page.input_value("#question") == "[[250, 500, 1000, 1000]]"
    assert page.evaluate("document.activeElement.id") == "question"
    page.route(
        "**/v1/chat/completions",
        lambda r: r.fulfill(**sent([{"boxes": [{"label": None, "x0": 0, "y0": 0, "x1": 56, "y1": 56}]}])),
    )
    page.keyboard.press("Enter")
    page.wait_for_selector("#messages .note")
    assert "does not say of which frame" in page.inner_text("#messages")


def test_a_conversation_is_saved(address: str, visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit(address)
    load_clip(page)
    ask(page, "What colour is it?")
    saved = {}
    for button in ("#export-json", "#export-text"):
        with page.expect_download() as download:
            page.click(button)
        download.value.save_as(tmp_path / download.value.suggested_filename)
        saved[button] = (tmp_path / download.value.suggested_filename).read_text(encoding="utf-8")
    turns = json.loads(saved["#export-json"])
    assert [(turn["role"], turn["text"]) for turn in turns] == [("user", "What colour is it?"), ("assistant", "Red.")]
    assert turns[0]["clip"] == "demo_clip.mp4"
    assert saved["#export-text"] == "**What colour is it?** (demo_clip.mp4)\n\nRed.\n"


def test_on_a_phone(address: str, visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit(address, **PHONE, color_scheme="dark")
    load_clip(page)
    assert ask(page, "Describe this video.") == SAID
    page.evaluate("scrollTo(0, 0)")
    picture(page, "serve-phone.png", tmp_path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    heights = page.evaluate("[...document.querySelectorAll('button:not(.time)')].filter(b => b.offsetParent)"
                            ".map(b => b.offsetHeight)")  # fmt: skip
    assert min(heights) >= 44  # for fingers


def test_boxes_over_the_camera(address: str, visit: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model says is made up; the frames are 640 wide, and shown with bars where their shape is another."""
    asked: list[str] = []

    def answer(_: Session, question: str, *rest: Any, **options: Any) -> Iterator[Chunk]:
        asked.append(question)
        return iter([Chunk("<ref>the car</ref>[[0, 500, 500, 1000]]", "stop")])

    page = visit(address)
    page.click("#tab-live")
    page.fill("#region", "1, 2, 3, 4")
    page.keyboard.press("Enter")
    assert page.inner_text("#status") == "Start the camera first."
    page.fill("#live-fps", "5")
    page.click("#camera-switch")
    wait(page, "/ [3-9] frames remembered/.test(document.querySelector('#live-facts').textContent)")
    monkeypatch.setattr(Session, "ask", answer)
    page.check("#ask-boxes")
    ask(page, "Where is the car?")
    assert asked == ["Where is the car? Answer in [[x0,y0,x1,y1]] format."]
    size = "(({ videoWidth, videoHeight }) => [videoWidth, videoHeight])(document.querySelector('#camera'))"
    width, height = page.evaluate(size)
    edges = f"the car from 0, {height // 2} to {width // 2}, {height}"
    wait(page, f"document.querySelector('#live-view #boxes').getAttribute('aria-label') === 'Boxes: {edges}'")
    assert "does not say of which frame" in page.inner_text("#messages")
    rectangle, view = (page.locator(which).bounding_box() for which in ("#boxes rect", "#camera"))
    scale = min(view["width"] / width, view["height"] / height)
    left = view["x"] + (view["width"] - scale * width) / 2
    top = view["y"] + (view["height"] - scale * height) / 2
    expected = {"x": left, "y": top + scale * height / 2, "width": scale * width / 2, "height": scale * height / 2}
    assert all(abs(rectangle[name] - value) < 5 for name, value in expected.items()), (rectangle, expected)
    page.uncheck("#ask-boxes")
    page.mouse.move(left + scale * width / 4, top + scale * height / 4)
    page.mouse.down()
    page.mouse.move(left + scale * width / 2, top + scale * height / 2)
    page.mouse.up()
    found = re.fullmatch(r"\[\[(\d+), (\d+), (\d+), (\d+)\]\]", page.input_value("#question"))
    assert found
    near = zip(map(int, found.groups()), (250, 250, 500, 500), strict=True)
    assert all(abs(edge - wanted) <= 15 for edge, wanted in near)
    page.click("#camera-switch")
    assert page.locator("#boxes rect").count() == 0
    page.click("#tab-clip")
    load_clip(page)
    page.fill("#region", "28, 56, 112, 112")
    page.keyboard.press("Enter")
    assert page.input_value("#question").endswith("[[250, 500, 1000, 1000]]")
    assert page.locator("#view #boxes .drawn").count() == 1


def test_a_camera(address: str, visit: Callable[..., Any], tmp_path: Path) -> None:
    page = visit(address)
    page.click("#tab-live")
    page.fill("#question", "What do you see?")
    page.click("#send")
    assert page.inner_text("#status") == "Start the camera first."
    page.fill("#live-fps", "5")
    page.click("#camera-switch")
    wait(page, "/ [3-9] frames remembered/.test(document.querySelector('#live-facts').textContent)")
    assert ask(page, "What shape is it?").strip(" …")
    assert "remembered" in page.inner_text("#live-facts")
    picture(page, "serve-camera.png", tmp_path)
    page.click("#camera-switch")
    assert page.inner_text("#live-facts") == "The camera is off."


def test_a_busy_server_is_tried_again(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address)
    load_clip(page)
    refusals = [{"status": 429, "headers": {"Retry-After": "1"}, "json": {"error": {"message": "busy"}}}]
    page.route("**/v1/chat/completions", lambda r: r.fulfill(**refusals.pop()) if refusals else r.continue_())
    page.fill("#question", "What colour is it?")
    page.keyboard.press("Enter")
    wait(page, "document.querySelector('#status').textContent.includes('busy. Trying again in 1 s')")
    wait(page, "document.querySelector('#messages .assistant').textContent === 'Red.'")


def test_a_server_that_is_gone_and_comes_back_empty(address: str, visit: Callable[..., Any]) -> None:
    page = visit(address)
    load_clip(page)
    page.context.set_offline(True)
    page.fill("#question", "What colour is it?")
    page.keyboard.press("Enter")
    page.wait_for_selector("#banner:not([hidden])")
    assert "cannot be reached" in page.inner_text("#banner")
    page.context.set_offline(False)
    page.wait_for_selector("#banner", state="hidden")
    assert "The server is back" in page.inner_text("#messages")
    lost = {"status": 404, "json": {"error": {"message": "there is no such file", "code": "no_such_file"}}}
    replies = [lost]
    page.route("**/v1/chat/completions", lambda r: r.fulfill(**replies.pop()) if replies else r.continue_())
    assert ask(page, "What colour is it?") == "Red."  # the clip was sent once more


def test_a_server_with_a_key(serve: Callable[..., str], visit: Callable[..., Any]) -> None:
    page = visit(serve(api_key="open sesame"))
    page.wait_for_selector("#key-form:not([hidden])")
    for wrong in ("sesame", "\u958b\u3051\u30b4\u30de"):
        page.fill("#key", wrong)
        page.keyboard.press("Enter")
        wait(page, "!document.querySelector('#key-form').hidden && document.activeElement.id === 'key'")
        assert page.locator("#banner").is_hidden()
    page.fill("#key", " open sesame ")
    page.keyboard.press("Enter")
    wait(page, "document.querySelector('#model').textContent.startsWith('vl3edge-demo')")
    assert (page.inner_text("#status"), page.evaluate("document.activeElement.id")) == ("", "question")
    page.click("#tab-live")
    page.click("#camera-switch")
    wait(page, "/frames remembered/.test(document.querySelector('#live-facts').textContent)")
    page.click("#tab-clip")
    load_clip(page)
    assert ask(page, "What colour is it?") == "Red."


def test_what_is_no_clip_is_said_so(address: str, visit: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("no film at all")
    page = visit(address)
    page.set_input_files("#file", tmp_path / "notes.mp4")
    page.wait_for_selector("#messages .note")
    assert "notes.mp4" in page.inner_text("#messages .note")
    assert page.locator("#drop").is_visible()
    load_clip(page)
