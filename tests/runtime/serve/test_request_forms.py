"""Forms of requests that OpenAI's client and its users' programs send, and fields that mean nothing here."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from serve_messages import CLIP, about_clip, data_url, png, user

openai = pytest.importorskip("openai")


@pytest.fixture(scope="module")
def client(serve: Callable[..., str]) -> Any:
    return openai.OpenAI(base_url=f"{serve()}/v1", api_key="unused", max_retries=0, timeout=60)


def ask(client: Any, messages: Any, **settings: Any) -> Any:
    return client.chat.completions.create(model="vl3edge-demo", messages=messages, **settings)


def part(kind: str, **link: Any) -> list[dict[str, Any]]:
    parts = [{"type": f"{kind}_url", f"{kind}_url": link}, {"type": "text", "text": "What is it?"}]
    return [{"role": "user", "content": parts}]


SPLIT = data_url(png(), "image/png")
UNKNOWN = {
    "a message's pictures": ([{"role": "user", "content": "What is it?", "images": ["abc"]}], {}, "'images'"),
    "a message's tool calls": (
        [user("?"), {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}, user("?")], {}, "'tool_calls'"),
    "a video's rate": (part("video", url=data_url(CLIP.read_bytes()), fps=3), {}, "'fps'"),
    "a picture's size": (part("image", url=SPLIT, max_pixels=9), {}, "'max_pixels'"),
    "a part's time": ([{"role": "user", "content": [{"type": "text", "text": "?", "end_s": 3}]}], {}, "'end_s'"),
    "a part's rate": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": SPLIT, "fps": 3}]}], {}, "'fps'"),
    "an option of streams": ([user("?")], {"stream": True, "stream_options": {"usage": True}}, "'usage'"),
    "an option of formats": (
        [user("?")], {"response_format": {"type": "json_object", "schema": {"type": "array"}}}, "'schema'"),
    "an option of schemas": (
        [user("?")],
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strickt": True}}},
        "'strickt'"),
}  # fmt: skip


@pytest.mark.parametrize(("messages", "settings", "words"), UNKNOWN.values(), ids=UNKNOWN)
def test_an_option_that_would_be_ignored_is_an_error(
    client: Any, messages: Any, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=f"unknown field {words}"):
        ask(client, messages, **settings)


def test_an_answer_goes_back_as_the_client_has_it(client: Any) -> None:
    """With the empty fields that its class has; the cache knows the tokens of what was said."""
    first = about_clip("What colour is it?")
    message = ask(client, first).choices[0].message
    for said in (message, message.model_dump(), {**message.model_dump(), "annotations": [], "name": "helper"}):
        answer = ask(client, [*first, said, user("What shape is it?")])
        assert answer.choices[0].message.content == "A square."
        assert answer.usage.prompt_tokens - answer.usage.prompt_tokens_details.cached_tokens < 20


def test_detail_and_system_text_in_parts(client: Any) -> None:
    plain = ask(client, part("image", url=SPLIT), max_tokens=4)
    detailed = ask(client, part("image", url=SPLIT, detail="high"), max_tokens=4)
    assert detailed.choices[0].message.content == plain.choices[0].message.content
    system = [{"role": "system", "content": "Be brief."}, {"role": "developer", "content": [
        {"type": "text", "text": "Be brief."}]}]  # fmt: skip
    costs = {ask(client, [one, *about_clip()], max_tokens=2).usage.prompt_tokens for one in system}
    assert len(costs) == 1
    assert costs.pop() > ask(client, about_clip(), max_tokens=2).usage.prompt_tokens


def test_the_client_s_own_stream_helper(client: Any) -> None:
    settings = {"model": "m", "messages": about_clip("What colour is it?"), "stream_options": {"include_usage": True}}
    with client.chat.completions.stream(**settings) as stream:
        whole = stream.until_done().get_final_completion()
    assert whole.choices[0].message.content == "Red."
    assert whole.choices[0].finish_reason == "stop"
    assert whole.usage.visual_tokens["kept"] == 87


def test_the_client_s_own_parsing(client: Any) -> None:
    from enum import Enum

    from pydantic import BaseModel

    class Colour(Enum):
        RED, BLUE = "Red.", "Blue."

    class Scene(BaseModel):
        colour: Colour

    found = client.chat.completions.parse(
        model="m", messages=about_clip("What colour is it?"), response_format=Scene, max_tokens=60
    )
    assert isinstance(found.choices[0].message.parsed, Scene)


def test_a_query_that_would_be_ignored_is_an_error(client: Any) -> None:
    stored = client.files.create(file=("clip.mp4", CLIP.read_bytes()), purpose="vision")
    for name, value in (("fsp", 2), ("add_system_prompt", "true"), ("start_s", "1" + "0" * 400)):
        with pytest.raises(openai.BadRequestError, match=r"unknown field|smaller number"):
            client.get(f"/files/{stored.id}/frames", cast_to=object, options={"params": {name: value}})
    seen = client.get(f"/files/{stored.id}/frames", cast_to=object, options={"params": {"max_frames": 2}})
    assert len(seen["frames"]) == 2


def test_odd_uploads_are_refused_or_kept_as_they_are(client: Any) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(picture, "PNG")
    name = "..\\../a\u202e b\x1b[31m.png"
    stored = client.files.create(file=(name, picture.getvalue()), purpose="vision")
    answer = ask(client, part("image", url=stored.id), max_tokens=2)
    assert (answer.clips[0]["source_width_px"], answer.clips[0]["kind"]) == (20, "image")
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, [user("?", ("video", client.files.create(file=(name, b"no film"), purpose="vision").id))])
    assert "/tmp" not in str(caught.value)
