"""Conversations: the same tokens as the whole conversation at once, and nothing of it computed twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vl3edge.runtime import GenerationConfig, VideoLlama3
from vl3edge.runtime.decode.generate import join
from vl3edge.runtime.errors import ConfigError, ContextLengthError, MediaError, Vl3EdgeError
from vl3edge.runtime.prompt.chat_template import PromptTemplate
from vl3edge.runtime.prompt.messages import conversation_pieces
from vl3edge.runtime.prompt.tokenizer import Tokenizer

CLIP = Path(__file__).parent.parent / "fixtures" / "demo_clip.mp4"


@pytest.fixture(scope="module")
def demo() -> VideoLlama3:
    return VideoLlama3.load(num_threads=1)


@pytest.fixture(scope="module")
def model(any_bundle: Path) -> VideoLlama3:
    """The answers of random weights are noise, which text may tokenize in another way than it was made."""
    return VideoLlama3.load(any_bundle, num_threads=1)


def test_a_conversation_with_the_demo_model(demo: VideoLlama3) -> None:
    chat = demo.chat()
    answers = [chat.ask("What colour is it?", CLIP).text]
    answers += [chat.ask(question).text for question in ("What shape is it?", "When does it stop?", "Does it turn?")]
    assert answers == ["Red.", "A square.", "At 7.0s.", "Yes."]


def test_every_turn_reuses_all_before_it(model: VideoLlama3) -> None:
    random = np.random.default_rng(0)
    video = random.integers(0, 256, (3, 56, 84, 3), dtype=np.uint8)
    image = random.integers(0, 256, (70, 70, 3), dtype=np.uint8)
    chat = model.chat(system="Be brief.")
    config = GenerationConfig(max_new_tokens=9)
    before = 0
    for question, media in (("first", [video]), ("second <|im_end|>", []), ("third", [image, video]), ("fourth", [])):
        stats = chat.ask(question, *media, config=config).stats
        # The last token generated is chosen, not run; everything else was in the cache.
        assert stats.reused_tokens >= before
        before = stats.prompt_tokens + stats.generated_tokens - 1
    assert len(chat.turns) == 4


def test_tokens_equal_the_conversation_written_at_once(model: VideoLlama3) -> None:
    image = np.random.default_rng(1).integers(0, 256, (70, 70, 3), dtype=np.uint8)
    chat = model.chat("Be brief.")
    config = GenerationConfig(max_new_tokens=12, temperature=1.0, seed=3)
    for question, media in (("What is it?", [image]), ("And now?", [])):
        chat.ask(question, *media, config=config)
    words = [turn.answer for turn in chat.turns]
    ids = [Tokenizer.of(model.bundle).encode(text).tolist() for text in words]
    clips = [clip for turn in chat.turns for clip in turn.clips]
    as_text = model.prompt(chat.messages, clips).ids.tolist()
    generated = [dict(message) for message in chat.messages]
    for message, tokens in zip([m for m in generated if m["role"] == "assistant"], ids, strict=True):
        message["content"] = tuple(tokens)
    assert model.prompt(generated, clips).ids.tolist() == as_text


def test_ids_stand_where_the_text_would(model: VideoLlama3) -> None:
    messages = [
        {"role": "user", "content": "\ue000 one 0"},
        {"role": "assistant", "content": (7, 8, 9)},
        {"role": "user", "content": [{"type": "text", "text": "\ue0010\ue001"}]},
        {"role": "assistant", "content": ()},
        {"role": "user", "content": "three"},
    ]
    pieces = conversation_pieces(PromptTemplate.of(model.bundle, Tokenizer.of(model.bundle)), messages, [])
    at = pieces.index(7)
    assert pieces[at : at + 3] == [7, 8, 9]
    assert str(pieces[at - 1]).endswith("assistant\n")
    text = "".join(piece for piece in pieces if isinstance(piece, str))
    assert "\ue000 one 0" in text
    assert "\ue0010\ue001" in text


def test_an_answer_that_was_stopped_stays_as_far_as_it_came(demo: VideoLlama3) -> None:
    chat = demo.chat()
    stream = chat.stream("Describe this video.", CLIP)
    said = next(stream).text + next(stream).text
    stream.close()
    assert [turn.answer for turn in chat.turns] == [said]
    answer = chat.ask("What colour is it?")
    assert answer.text == "Red."
    assert answer.stats.reused_tokens > 150
    whole = demo.ask(chat.turns[0].clips[0], "Describe this video.").text
    assert whole.startswith(said)


def test_what_fails_leaves_the_conversation_as_it_was(demo: VideoLlama3, tmp_path: Path) -> None:
    chat = demo.chat()
    chat.ask("What colour is it?", CLIP)
    with pytest.raises(MediaError):
        chat.ask("And this?", tmp_path / "missing.mp4")
    with pytest.raises(ConfigError):
        chat.ask(3)  # type: ignore[arg-type]
    with pytest.raises(ContextLengthError):
        chat.ask("word " * 5000)
    unread = chat.stream("Never taken")
    assert len(chat.turns) == 1
    assert chat.ask("What shape is it?").text == "A square."
    with pytest.raises(Vl3EdgeError, match="ask again"):
        join(unread)
    begun = chat.stream("What is the ground like?")
    next(begun)
    assert chat.ask("Does it stop?").text == "Yes."
    with pytest.raises(Vl3EdgeError, match="interrupted this answer"):
        join(begun)
    assert [turn.question for turn in chat.turns] == ["What colour is it?", "What shape is it?", "Does it stop?"]


def test_undo_takes_the_last_turn_back(demo: VideoLlama3) -> None:
    chat = demo.chat()
    assert chat.undo() is None
    chat.ask("What colour is it?", CLIP)
    first = chat.ask("What shape is it?").stats
    turn = chat.undo()
    assert turn is not None
    assert turn.answer == "A square."
    again = chat.ask("What shape is it?")
    assert (again.text, again.stats.prompt_tokens) == ("A square.", first.prompt_tokens)
