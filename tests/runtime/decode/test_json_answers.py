"""Answers of a JSON schema, and with a prefix, through the model: alone, in batches, in sessions."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extras import needs_llguidance

from vl3edge.runtime import CaptionJob, Clip, ConfigError, ContextLengthError, GenerationConfig, VideoLlama3
from vl3edge.runtime.decode.generate import Answer, GenerationStats
from vl3edge.runtime.errors import Vl3EdgeError

CLIP = Path(__file__).resolve().parents[2] / "fixtures" / "demo_clip.mp4"
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"moves": {"type": "boolean"}, "shape": {"enum": ["square", "circle"]}},
    "required": ["moves", "shape"],
    "additionalProperties": False,
}
OTHERS: list[dict[str, Any]] = [
    {"type": "array", "items": {"enum": ["red", "blue"]}, "minItems": 2, "maxItems": 2},
    {"enum": ["a square", "a circle", None, 7]},
]


@pytest.fixture(scope="module")
def model() -> VideoLlama3:
    return VideoLlama3.load(num_threads=1)


@pytest.fixture(scope="module")
def clip(model: VideoLlama3) -> Clip:
    return model.encode(CLIP)


def fits(value: Any, schema: dict[str, Any]) -> bool:
    if schema is SCHEMA:
        return set(value) == {"moves", "shape"} and value["moves"] in (True, False) and value["shape"] in (
            "square", "circle")  # fmt: skip
    if "items" in schema:
        return len(value) == 2 and set(value) <= {"red", "blue"}
    return value in schema["enum"]


@needs_llguidance
@pytest.mark.parametrize("schema", [SCHEMA, *OTHERS], ids=["object", "array", "enum"])
@pytest.mark.parametrize("batch", [1, 3])
def test_results_hold_the_value(model: VideoLlama3, clip: Clip, schema: dict[str, Any], batch: int) -> None:
    config = GenerationConfig(json_schema=schema)
    for result in model.caption_all([CaptionJob(clip), CaptionJob(clip, "What is it?")], config, batch):
        assert result.caption is not None
        assert result.data == json.loads(result.caption)
        assert fits(result.data, schema)
        assert result.data is None or result.to_json()["data"] == result.data
    answer = model.ask(clip, "What is it?", config)
    assert fits(answer.json(), schema)
    drawn = GenerationConfig(json_schema=schema, temperature=2.0, seed=3, best_of=2)
    (result,) = model.caption_all([CaptionJob(clip)], drawn)
    assert fits(result.data, schema)
    assert result.score is not None


@needs_llguidance
@pytest.mark.parametrize("batch", [1, 2])
def test_an_answer_that_was_cut_off_is_an_error(model: VideoLlama3, clip: Clip, batch: int) -> None:
    config = GenerationConfig(json_schema=SCHEMA, max_new_tokens=4)
    (result,) = model.caption_all([CaptionJob(clip)], config, batch)
    assert result.error is not None
    assert "cut off after 4 tokens" in result.error
    assert (result.caption, result.data, result.finish_reason) == (None, None, "length")
    assert result.answer is not None
    assert result.answer.text.startswith("{")


@pytest.mark.parametrize(
    ("text", "reason", "value"),
    [('{"a": 1}', "length", {"a": 1}), ("12", "stop", 12), ("null", "stop", None), ("true", "length", True)],
)
def test_whole_values_are_taken(text: str, reason: Any, value: Any) -> None:
    assert Answer(text, reason, GenerationStats(1, 0, 2, 0.0, 0.0)).json() == value


@pytest.mark.parametrize(("text", "reason"), [("12", "length"), ('"ab', "length"), ("[1, ", "cancelled"), ("", "stop")])
def test_values_that_may_be_cut_are_refused(text: str, reason: Any) -> None:
    with pytest.raises(Vl3EdgeError, match="no whole JSON"):
        Answer(text, reason, GenerationStats(1, 0, 2, 0.0, 0.0)).json()


@needs_llguidance
def test_a_prefix_is_part_of_the_value(model: VideoLlama3, clip: Clip) -> None:
    config = GenerationConfig(json_schema=SCHEMA, prefix='{"moves": fal')
    assert model.ask(clip, "Does it move?", config).json()["moves"] is False
    wrong = GenerationConfig(json_schema=SCHEMA, prefix="A video of")
    for call in (lambda: model.stream(clip, "?", wrong), lambda: model.caption_all([], wrong, 2)):
        with pytest.raises(ConfigError, match="cannot begin with the prefix 'A video of'"):
            call()


def test_without_llguidance_the_extra_is_named(clip: Clip, monkeypatch: pytest.MonkeyPatch) -> None:
    model = VideoLlama3.load(num_threads=1)
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(ConfigError, match=r"pip install 'vl3edge\[schema\]'"):
        model.stream(clip, "What is it?", GenerationConfig(json_schema=SCHEMA))


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"json_schema": "{}"}, "json_schema must be a dictionary"), ({"json_schema": True}, "json_schema"),
     ({"prefix": 5}, "prefix must be text"), ({"prefix": None}, "prefix"), ({"prefix": "\udcff"}, "prefix")],
)  # fmt: skip
def test_what_is_no_schema_or_prefix_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        GenerationConfig(**settings)


@needs_llguidance
@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"enum": [{1, 2}]}])
def test_a_schema_that_cannot_be_used_is_refused_at_the_call(
    model: VideoLlama3, clip: Clip, schema: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="JSON schema cannot be used"):
        model.stream(clip, "What is it?", GenerationConfig(json_schema=schema))


def test_conversations_keep_the_prefix(model: VideoLlama3, clip: Clip) -> None:
    """What stands in the context is what was shown."""
    config = GenerationConfig(prefix="A green", max_new_tokens=5)
    chat = model.chat()
    said = chat.ask("What is it?", clip, config=config)
    assert said.text.startswith("A green")
    assert chat.messages[-1]["content"] == said.text
    assert model._tokenizer.decode(list(chat.turns[0].answer_ids)) == said.text
    second = chat.ask("And now?", config=config)
    assert second.stats.reused_tokens >= said.stats.prompt_tokens + len(said.token_ids) - 7


def test_sessions_have_room_for_a_prefix(model: VideoLlama3) -> None:
    session = model.open_session(max_tokens=200, frames_expected=8)
    for second in range(8):
        session.push(np.full((112, 112, 3), 30 * second, np.uint8), float(second))
    config = GenerationConfig(prefix="A green square that moves", max_new_tokens=100)
    for _ in range(4):
        text = "".join(chunk.text for chunk in session.ask("What is it?", config))
        assert text.startswith("A green square that moves")
        assert session.num_tokens <= 200
    with pytest.raises(ContextLengthError, match="prefix of"):
        session.ask("What is it?", GenerationConfig(prefix="a long one " * 40))


def test_another_question_ends_an_answer_that_has_shown_its_prefix(model: VideoLlama3, clip: Clip) -> None:
    chunks = model.stream(clip, "What is it?", GenerationConfig(prefix="A green"))
    assert next(chunks).text == "A green"
    model.ask(clip, "What colour?", GenerationConfig(max_new_tokens=1))
    with pytest.raises(Vl3EdgeError, match="interrupted this answer"):
        next(chunks)
