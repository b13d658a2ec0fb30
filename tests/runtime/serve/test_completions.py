"""The server as its clients see it: OpenAI's own Python client asks, and gets what the model says in this process."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from serve_messages import CLIP, SAID, about_clip, data_url, png, user

from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan
from vl3edge.runtime.serve.running_answer import StopText

openai = pytest.importorskip("openai")
if TYPE_CHECKING:
    from vl3edge.runtime.serve.served_model import ServedModel

NO_SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "?"}}}


@pytest.fixture(scope="module")
def address(serve: Callable[..., str]) -> str:
    return serve()


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="unused", max_retries=0, timeout=60)


def ask(client: Any, messages: Any, **settings: Any) -> Any:
    return client.chat.completions.create(model="vl3edge-demo", messages=messages, **settings)


def test_the_model_is_listed_by_its_name(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["vl3edge-demo"]
    assert client.models.retrieve("vl3edge-demo").max_model_len == 4096
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_an_answer_is_the_model_s_own_with_its_costs(client: Any, model: ServedModel) -> None:
    clip = model.encode(CLIP)
    own = model.ask(clip, "Describe this video.")
    answer = ask(client, about_clip())
    assert answer.choices[0].message.content == own.text == SAID
    assert answer.choices[0].finish_reason == "stop"
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (own.stats.prompt_tokens, own.stats.generated_tokens)
    assert usage.visual_tokens == {"kept": clip.num_tokens, "pruned": clip.num_pruned}
    assert answer.clips[0]["timestamps_s"] == list(clip.timestamps_s)
    assert answer.clips[0]["tokens_per_frame"] == list(clip.tokens_per_frame)


def test_an_answer_has_its_boxes(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pixels of the picture that was sent, which the model sees at 112 × 112."""
    picture = io.BytesIO()
    Image.new("RGB", (400, 300)).save(picture, "PNG")
    messages = [user("What colour is it?", ("image", data_url(picture.getvalue(), "image/png")))]
    without = ask(client, messages)
    assert without.boxes == []
    assert (without.clips[0]["source_width_px"], without.clips[0]["source_height_px"]) == (400, 300)
    says = "<ref>the car</ref>[[100, 200, 500, 750]] [[1, 2"
    monkeypatch.setattr(StopText, "push", lambda *_: "")  # what the model says is made up
    monkeypatch.setattr(StopText, "flush", lambda _: says)
    whole = ask(client, messages)
    assert whole.boxes == [{"label": "the car", "x0": 40, "y0": 60, "x1": 200, "y1": 225}]
    assert whole.boxes_note == "1 of 2 boxes cannot be used: [1, 2 is not complete"
    *pieces, last = ask(client, messages, stream=True)
    assert last.boxes == whole.boxes
    assert last.boxes_note == whole.boxes_note
    assert not any(hasattr(piece, "boxes") for piece in pieces)


def test_a_stream_has_the_same_text_in_pieces_and_ends_with_its_costs(client: Any) -> None:
    whole = ask(client, about_clip())
    chunks = list(ask(client, about_clip(), stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == SAID
    assert len([piece for piece in pieces if piece]) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage.visual_tokens == whole.usage.visual_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_second_question_about_a_clip_costs_its_own_tokens(client: Any) -> None:
    """By content: the second has the clip in another way, as an upload."""
    first = ask(client, about_clip("What colour is it?"))
    with CLIP.open("rb") as file:
        stored = client.files.create(file=file, purpose="user_data")
    second = ask(client, about_clip("What shape is it?", stored.id))
    assert [a.choices[0].message.content for a in (first, second)] == ["Red.", "A square."]
    visual = second.usage.visual_tokens["kept"]
    assert second.usage.prompt_tokens_details.cached_tokens > visual
    assert second.usage.prompt_tokens - second.usage.prompt_tokens_details.cached_tokens < 20
    client.files.delete(stored.id)


def test_a_conversation_goes_on_where_it_was(client: Any, model: ServedModel) -> None:
    messages = about_clip("What colour is it?")
    said = ask(client, messages).choices[0].message.content
    messages += [{"role": "assistant", "content": said}, user("What shape is it?")]
    answer = ask(client, messages)
    chat = model.chat()
    chat.ask("What colour is it?", model.encode(CLIP))
    assert answer.choices[0].message.content == chat.ask("What shape is it?").text
    assert answer.usage.prompt_tokens - answer.usage.prompt_tokens_details.cached_tokens < 20


def test_several_media_and_a_system_message(client: Any, model: ServedModel) -> None:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        user("What colour is it?", ("image", data_url(png(), "image/png")), ("video", data_url(CLIP.read_bytes()))),
    ]
    import io

    from PIL import Image

    picture, clip = Image.open(io.BytesIO(png())), model.encode(CLIP)
    own = model.generate(
        [
            messages[0],
            {"role": "user", "content": [
                {"type": "image", "image": picture}, {"type": "video", "video": clip},
                {"type": "text", "text": "What colour is it?"}]},
        ]
    )  # fmt: skip
    answer = ask(client, messages)
    assert answer.choices[0].message.content == own.text
    assert answer.usage.prompt_tokens == own.stats.prompt_tokens
    assert [clip["kind"] for clip in answer.clips] == ["image", "video"]


@pytest.mark.parametrize(
    ("fields", "sampling", "pruning"),
    [
        ({"fps": 2, "max_frames": 5}, SamplingPlan(fps=2, max_frames=5), PruningConfig()),
        ({"start_s": 2.0, "end_s": 6.5, "threshold": 4}, SamplingPlan(start_s=2.0, end_s=6.5), PruningConfig(4)),
        ({"max_visual_tokens": 40}, SamplingPlan(), PruningConfig(max_visual_tokens=40)),
        ({"threshold": "auto"}, SamplingPlan(), PruningConfig("auto")),
        ({"pruning": False}, SamplingPlan(), PruningConfig(enabled=False)),
    ],
)
def test_our_own_fields(
    client: Any, model: ServedModel, fields: dict[str, Any], sampling: SamplingPlan, pruning: PruningConfig
) -> None:
    clip = model.encode(CLIP, sampling, pruning)
    answer = ask(client, about_clip(), extra_body=fields, max_tokens=8)
    assert answer.usage.visual_tokens == {"kept": clip.num_tokens, "pruned": clip.num_pruned}
    assert answer.clips[0]["timestamps_s"] == list(clip.timestamps_s)
    assert answer.choices[0].message.content == model.ask(clip, "Describe this video.", GenerationConfig(8)).text


def test_limits_and_sampling_are_passed_on(client: Any, model: ServedModel) -> None:
    clip = model.encode(CLIP)
    config = GenerationConfig(max_new_tokens=9, temperature=1.2, top_p=0.8, seed=5)
    own = model.ask(clip, "Describe this video.", config)
    settings = {"temperature": 1.2, "top_p": 0.8, "seed": 5}
    answers = [ask(client, about_clip(), max_completion_tokens=9, **settings) for _ in range(2)]
    assert {answer.choices[0].message.content for answer in answers} == {own.text}
    assert answers[0].choices[0].finish_reason == own.finish_reason


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("stop", "shown"),
    [
        ("ground", "A red square on a checkered "),
        (["moves", "nowhere"], SAID.split("moves")[0]),
        (["zzz", "stops. And"], SAID),
        ("A", ""),
    ],
)
def test_stop_texts_end_an_answer_before_them(client: Any, stop: Any, shown: str, stream: bool) -> None:
    answer = ask(client, about_clip(), stop=stop, stream=stream)
    if stream:
        chunks = [chunk.choices[0] for chunk in answer]
        text, reason = "".join(chunk.delta.content or "" for chunk in chunks), chunks[-1].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (text, reason) == (shown, "stop")


def test_json_of_a_schema(client: Any) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green", "blue"]}, "moves": {"type": "boolean"}},
        "required": ["colour", "moves"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "scene", "schema": schema, "strict": True}}
    found = json.loads(ask(client, about_clip(), response_format=wanted).choices[0].message.content)
    assert found["colour"] in ("red", "green", "blue")
    assert isinstance(found["moves"], bool)


@pytest.mark.parametrize(
    ("messages", "settings", "words"),
    [
        ([], {}, "at least one message"),
        ([user("?", ("video", "data:video/mp4;base64,AAAA"))], {}, "the data URL"),
        ([user("?", ("video", "data:video/mp4;base64,!!"))], {}, "base64"),
        ([user("?", ("video", "file-nosuchfile123"))], {}, "no such file"),
        ([user("?", ("video", "clips/a.mp4"))], {}, "--media-root"),
        ([user("?", ("video", "/etc/passwd"))], {}, "--media-root"),
        ([user("?", ("video", "file:///etc/passwd"))], {}, "--media-root"),
        ([user("?", ("video", "http://example.com/a.mp4"))], {}, "--allow-urls"),
        ([user("?", ("video", "rtsp://example.com/a"))], {}, "media are"),
        ([user("?")], {"n": 2}, "n is not supported"),
        ([user("?")], {"temperature": -1}, "temperature must be"),
        ([user("?")], {"extra_body": {"max_frame": 3}}, "unknown field 'max_frame'"),
        ([user("?")], {"extra_body": {"max_frames": 100000}}, "max_frames may be 180"),
        ([user("?")], {"extra_body": {"fps": "2"}}, "fps must be a number"),
        ([user("?")], {"response_format": NO_SCHEMA}, "schema cannot be used"),
        ([user("word " * 5000)], {}, "context"),
        ([{"role": "assistant", "content": "Hello."}], {}, "the last message"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_refused_in_one_line(
    client: Any, messages: Any, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.APIStatusError, match=words) as caught:
        ask(client, messages, **settings)
    assert caught.value.status_code in (400, 404)
    assert caught.value.body["type"] == "invalid_request_error"
    assert "/tmp" not in str(caught.value)


def test_the_first_reason_comes_before_the_stream(client: Any) -> None:
    with pytest.raises(openai.BadRequestError, match="data URL"):
        ask(client, [user("?", ("video", "data:video/mp4;base64,AAAA"))], stream=True)
