"""caption_all: one result for every job, the same alone and in a batch; what fails costs its own job only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.errors import ConfigError, ContextLengthError, MediaError
from vl3edge.runtime.jobs import CaptionJob, CaptionResult

CLIP = Path(__file__).parents[1] / "fixtures" / "demo_clip.mp4"
CONFIG = GenerationConfig(max_new_tokens=24)


@pytest.fixture(scope="module")
def model() -> VideoLlama3:
    return VideoLlama3.load(num_threads=1)


def noise(frames: int) -> np.ndarray:
    return np.random.default_rng(frames).integers(0, 255, (frames, 56, 56, 3), np.uint8)


def jobs(model: VideoLlama3) -> list[CaptionJob]:
    return [
        CaptionJob(CLIP, key="whole"),
        CaptionJob(CLIP, "What colour is it?", SamplingPlan(start_s=1.0, end_s=4.0), PruningConfig(enabled=False)),
        CaptionJob("missing.mp4", key="missing"),
        CaptionJob(noise(1)[0]),
        CaptionJob(noise(1)[0][None], kind="video"),
        CaptionJob(model.encode(noise(3)), "Which way does it move?"),
        CaptionJob(model.begin(noise(5))),
        CaptionJob(MediaError("given up"), key="given up"),
        CaptionJob(noise(7), "Why? " * 3000, key="long"),
        CaptionJob(model.open(CLIP), key="opened"),
    ]


def alone(model: VideoLlama3, job: CaptionJob) -> tuple[str, tuple[int, ...]]:
    clip = model.encode(job.media, job.sampling, job.pruning, job.kind)
    answer = model.ask(clip, job.question or f"Describe this {clip.kind}.", CONFIG)
    return answer.text, clip.tokens_per_frame


@pytest.mark.parametrize("batch", [1, 2, 4, 16])
def test_every_job_has_one_result_and_it_is_what_the_job_gives_alone(model: VideoLlama3, batch: int) -> None:
    work = jobs(model)
    results = list(model.caption_all(iter(work), CONFIG, batch))
    assert sorted(result.index for result in results) == list(range(len(work)))
    assert all(result.job is work[result.index] for result in results)
    by_index = sorted(results, key=lambda result: result.index)
    if batch == 1:
        assert by_index == results
    failed = {"missing": MediaError, "given up": MediaError, "long": ContextLengthError}
    for result in by_index:
        assert result.seconds >= 0
        if result.job.key in failed:
            assert isinstance(result.exception, failed[result.job.key])
            assert (result.clip, result.answer) == (None, None)
            continue
        assert result.exception is None
        assert result.answer is not None
        assert result.clip is not None
    for index in (0, 1, 3, 4, 9):
        found, answer = by_index[index].clip, by_index[index].answer
        assert found is not None
        assert answer is not None
        media = CLIP if index == 9 else work[index].media
        expected = alone(
            model, CaptionJob(media, work[index].question, work[index].sampling, work[index].pruning, work[index].kind)
        )
        assert (answer.text, found.tokens_per_frame) == expected
    assert by_index[3].clip is not None
    assert by_index[3].clip.kind == "image"


def test_clips_are_encoded_when_there_is_room_for_them(model: VideoLlama3) -> None:
    taken = 0

    def lazily() -> Iterator[CaptionJob]:
        nonlocal taken
        for frames in range(1, 9):
            taken += 1
            yield CaptionJob(noise(frames))

    for finished, _ in enumerate(model.caption_all(lazily(), CONFIG, 2), 1):
        assert taken <= finished + 2
    assert taken == 8


def test_the_model_can_be_asked_while_a_batch_is_under_way(model: VideoLlama3) -> None:
    work = [CaptionJob(noise(frames)) for frames in (2, 3, 4)]
    expected = {index: alone(model, job) for index, job in enumerate(work)}
    found: dict[int, Any] = {}
    for result in model.caption_all(work, CONFIG, 2):
        assert model.ask(model.encode(CLIP), "What colour is it?").text
        assert result.answer is not None
        assert result.clip is not None
        found[result.index] = (result.answer.text, result.clip.tokens_per_frame)
    assert found == expected


def test_no_jobs_no_results_and_a_bad_batch_fails_at_the_call(model: VideoLlama3) -> None:
    none: list[CaptionResult] = list(model.caption_all([], batch=4))
    assert none == []
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        model.caption_all([], batch=0)


def test_a_result_is_what_outputs_write(model: VideoLlama3) -> None:
    work = [CaptionJob(CLIP, name="the clip"), CaptionJob(noise(1)[0]), CaptionJob("missing.mp4")]
    film, picture, missing = model.caption_all(work, CONFIG)
    for result, media in ((film, "the clip"), (picture, "the media given")):
        assert result.clip is not None
        assert result.answer is not None
        fields = result.to_json()
        assert (fields["media"], fields["caption"]) == (media, result.answer.text)
        assert (fields["num_frames"], fields["num_tokens"]) == (result.clip.num_frames, result.clip.num_tokens)
        assert (fields.get("start_s"), fields.get("end_s")) == (result.clip.start_s, result.clip.end_s)
        assert CaptionResult.from_json(fields).to_json() == fields
    assert (missing.media, missing.error) == ("missing.mp4", str(missing.exception))
