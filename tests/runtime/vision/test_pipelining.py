"""Encoding and prefilling in step gives what one after the other gives; reading runs ahead and loses nothing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.decode.generate import Answer, join
from vl3edge.runtime.errors import BackendError, ContextLengthError, MediaError
from vl3edge.runtime.media.read_ahead import read_ahead
from vl3edge.runtime.media.video import VideoReader
from vl3edge.runtime.vision.clip import new_uid
from vl3edge.runtime.vision.engines import VisionEngines
from vl3edge.runtime.vision.pending_clip import PendingClip

CLIP = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
DENSE = SamplingPlan(fps=8.0, max_frames=100)
STEP = 64  # tokens a prefill step here, so that the demo model's prompts take several
WHOLE = PruningConfig(enabled=False)
CONFIG = GenerationConfig(max_new_tokens=24)


@pytest.fixture(scope="module")
def model() -> VideoLlama3:
    model = VideoLlama3.load()
    model.decoder.graph.prefill_chunk = STEP
    return model


def logits(model: VideoLlama3) -> np.ndarray:
    return model.decoder.logits.copy()


def forget(model: VideoLlama3) -> None:
    model.decoder.rewind(0)


def counts(answer: Answer) -> tuple[int, int, int]:
    stats = answer.stats
    return stats.prompt_tokens, stats.reused_tokens, stats.generated_tokens


@pytest.mark.parametrize("beside", [False, True], ids=["alternating", "beside"])
def test_growing_prompt_equals_whole(model: VideoLlama3, monkeypatch: pytest.MonkeyPatch, beside: bool) -> None:
    monkeypatch.setattr(VisionEngines, "runs_beside_decoder", beside)
    monkeypatch.setattr(VisionEngines, "frames_per_call", lambda *_: 5)  # many chunks
    clip = model.encode(CLIP, DENSE, WHOLE)
    forget(model)
    whole = model.ask(clip, "Describe this video.", CONFIG)
    whole_logits = logits(model)
    assert whole.stats.prompt_tokens > 2 * STEP

    forget(model)
    pending = model.begin(CLIP, DENSE, WHOLE)
    grown = model.ask(pending, "Describe this video.", CONFIG)
    assert (grown.text, grown.finish_reason, counts(grown)) == (whole.text, whole.finish_reason, counts(whole))
    np.testing.assert_array_equal(logits(model), whole_logits)
    finished = pending.finish()
    np.testing.assert_array_equal(finished.visual.tokens, clip.visual.tokens)
    assert finished.tokens_per_frame == clip.tokens_per_frame
    again = model.ask(finished, "When does it stop?", CONFIG)
    assert again.stats.reused_tokens > 2 * STEP, "the finished clip has another identity than the pending one"


def test_growing_prompt_reuses_what_is_cached(model: VideoLlama3) -> None:
    """A conversation whose first clip is cached and whose second is still to be encoded."""
    first = model.encode(CLIP, DENSE, WHOLE)
    forget(model)
    model.ask(first, "Describe this video.", CONFIG)
    whole = model.ask([first, model.encode(CLIP)], "Are they the same?", CONFIG)
    model.ask(first, "Describe this video.", CONFIG)
    grown = model.ask([first, model.begin(CLIP)], "Are they the same?", CONFIG)
    assert whole.stats.reused_tokens >= first.num_tokens
    assert (grown.text, counts(grown)) == (whole.text, counts(whole))


def test_prefill_starts_before_the_last_frame(model: VideoLlama3, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decoder is at work when most of the clip is still to be encoded."""
    monkeypatch.setattr(VisionEngines, "frames_per_call", lambda *_: 4)
    pending = model.begin(CLIP, DENSE, WHOLE)
    decoder = model.decoder
    seen: list[tuple[int, int]] = []
    original = decoder.prefill

    def prefill(embeddings: np.ndarray, logits: bool) -> None:
        seen.append((len(embeddings), len(pending._tokens)))
        original(embeddings, logits)

    monkeypatch.setattr(decoder, "prefill", prefill)
    forget(model)
    model.ask(pending, "Describe this video.", CONFIG)
    assert seen[0][0] == STEP
    assert seen[0][1] < pending.num_frames / 2, f"the first chunk came after {seen[0][1]} of {pending.num_frames}"


def test_too_long_prompt_fails_before_all_is_encoded(model: VideoLlama3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VisionEngines, "frames_per_call", lambda *_: 4)
    limit = model.bundle.manifest.text.max_position_embeddings
    clips = [model.begin(CLIP, DENSE, WHOLE) for _ in range(limit // 500 + 2)]  # over 500 tokens each
    with pytest.raises(ContextLengthError, match="context"):
        model.ask(clips, "What?", CONFIG)
    assert not clips[-1]._tokens
    assert model.ask(model.encode(CLIP), "Describe this video.").text  # and the model is as good as before


def test_messages_with_media_stream_like_clips(model: VideoLlama3) -> None:
    content = [{"type": "video", "video": str(CLIP)}, {"type": "text", "text": "Describe this video."}]
    streamed = join(model.stream_messages([{"role": "user", "content": content}]))
    assert streamed.text == model.ask(model.encode(CLIP), "Describe this video.").text


def test_unread_media_fail_in_the_consumer(model: VideoLlama3, monkeypatch: pytest.MonkeyPatch) -> None:
    pending = model.begin(CLIP, DENSE)
    assert isinstance(pending, PendingClip)

    def broken(*_: Any) -> Iterator[np.ndarray]:
        raise MediaError("the disk has gone")

    monkeypatch.setattr(VideoReader, "chunks", broken)
    with pytest.raises(MediaError, match="the disk has gone"):
        pending.finish()


def test_read_ahead_is_one_ahead_and_ends_with_its_consumer() -> None:
    made: list[int] = []
    third = threading.Event()

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            if number == 2:
                third.set()
            yield number

    ahead = read_ahead(numbers())
    assert [next(ahead), next(ahead)] == [0, 1]
    assert third.wait(10)  # made while nobody asked
    ahead.close()
    assert made in ([0, 1, 2], [0, 1, 2, 3])
    assert list(read_ahead(iter("abc"))) == ["a", "b", "c"]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_tokens_that_are_no_numbers_never_reach_the_cache(
    model: VideoLlama3, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """There they would turn every later answer into NaN, too: a masked position counts 0 times NaN."""
    clip = model.encode(CLIP)
    sound = model.ask(clip, "Describe this video.", CONFIG).token_ids
    tokens = VisionEngines.tokens

    def spoiled(*arguments: Any) -> np.ndarray:
        result = tokens(*arguments).copy()
        result[-1, 0] = value
        return result

    with monkeypatch.context() as patch:
        patch.setattr(VisionEngines, "tokens", spoiled)
        with pytest.raises(BackendError, match="NaN or infinite"):
            model.ask(model.begin(CLIP), "Describe this video.", CONFIG)
    assert model.ask(clip, "Describe this video.", CONFIG).token_ids == sound


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_numbers_lost_in_the_decoder_end_with_the_answer(model: VideoLlama3, temperature: float) -> None:
    clip = model.encode(CLIP)
    sound = model.ask(clip, "Describe this video.", CONFIG).token_ids
    tokens = np.full_like(clip.visual.tokens, np.nan)
    spoiled = replace(clip, visual=replace(clip.visual, tokens=tokens, uid=new_uid()))
    with pytest.raises(BackendError, match="NaN or infinite"):
        model.ask(spoiled, "Describe this video.", GenerationConfig(temperature=temperature))
    assert model.ask(clip, "Describe this video.", CONFIG).token_ids == sound
