"""Questions about many media, each a job with one result; one after another, or several in a batch of the decoder.

Media are encoded one at a time, when there is a row of the batch for them: what waits costs no memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from .config import GenerationConfig, MediaKind, PruningConfig, SamplingPlan
from .decode.batch import BatchGenerator, BatchRequest
from .decode.generate import Answer, Chunk, join
from .prompt.chat_template import DESCRIBE, question_about
from .prompt.splice import SplicedPrompt
from .vision.clip import Clip
from .vision.clip_encoder import PendingClip


@dataclass(frozen=True)
class CaptionJob:
    """A question about one video or image.

    media: a clip, or anything `VideoLlama3.encode` takes. An exception stands for media that could not be had: it
        comes back as the result's error.
    question: None asks for a description.
    sampling, pruning, kind: see `VideoLlama3.encode`; for media that are not encoded yet.
    key: anything by which the caller knows the job again.
    system, add_system_prompt: see `VideoLlama3`.
    """

    media: Any
    question: str | None = None
    sampling: SamplingPlan | None = None
    pruning: PruningConfig | None = None
    kind: MediaKind | None = None
    key: Any = None
    system: str | None = None
    add_system_prompt: bool = False


@dataclass(frozen=True)
class CaptionResult:
    """What became of one job: clip and answer, or the error.

    index: the job's place among the jobs, from 0. seconds: from the beginning of its encoding to its result; in a
    batch, other jobs had their share of them.
    """

    index: int
    job: CaptionJob
    clip: Clip | None
    answer: Answer | None
    error: Exception | None
    seconds: float


class Answerer(Protocol):
    """What jobs need of a model: the methods of `VideoLlama3` of these names."""

    def begin(
        self, media: Any, sampling: SamplingPlan | None, pruning: PruningConfig | None, kind: MediaKind | None
    ) -> PendingClip: ...

    def stream(
        self, media: Any, question: str, config: GenerationConfig, *, system: str | None, add_system_prompt: bool
    ) -> Iterator[Chunk]: ...

    def prompt(self, messages: Any, clips: Any, *, system: str | None, add_system_prompt: bool) -> SplicedPrompt: ...


def sequential(model: Answerer, jobs: Iterable[CaptionJob], config: GenerationConfig) -> Iterator[CaptionResult]:
    """The results in the order of the jobs; encoding and prefilling of one clip overlap."""
    for index, job in enumerate(jobs):
        begin = time.perf_counter()
        try:
            clip = _clip(model, job)
            question, added = _question(job, clip), job.add_system_prompt
            answer = join(model.stream(clip, question, config, system=job.system, add_system_prompt=added))
            whole = clip if isinstance(clip, Clip) else clip.finish()
        except Exception as e:  # whatever is wrong with a clip costs that clip only
            yield CaptionResult(index, job, None, None, e, time.perf_counter() - begin)
        else:
            yield CaptionResult(index, job, whole, answer, None, time.perf_counter() - begin)


def batched(
    model: Answerer, generator: BatchGenerator, jobs: Iterable[CaptionJob], config: GenerationConfig
) -> Iterator[CaptionResult]:
    """The results as they are ready, from a batch that is kept full."""
    begun: dict[int, tuple[CaptionJob, Clip, float]] = {}
    failed: list[CaptionResult] = []

    def requests() -> Iterator[BatchRequest]:
        for index, job in enumerate(jobs):
            begin = time.perf_counter()
            try:
                clip = _clip(model, job)
                whole = clip if isinstance(clip, Clip) else clip.finish()
                messages, added = question_about([whole], _question(job, whole)), job.add_system_prompt
                prompt = model.prompt(messages, [whole], system=job.system, add_system_prompt=added)
            except Exception as e:
                failed.append(CaptionResult(index, job, None, None, e, time.perf_counter() - begin))
            else:
                begun[index] = job, whole, begin
                yield BatchRequest(index, prompt, config)

    for index, outcome in generator.answers(requests()):
        yield from failed
        failed.clear()
        job, clip, begin = begun.pop(index)
        seconds = time.perf_counter() - begin
        if isinstance(outcome, Answer):
            yield CaptionResult(index, job, clip, outcome, None, seconds)
        else:
            yield CaptionResult(index, job, None, None, outcome, seconds)
    yield from failed


def _clip(model: Answerer, job: CaptionJob) -> Clip | PendingClip:
    if isinstance(job.media, Exception):
        raise job.media
    if isinstance(job.media, Clip | PendingClip):
        return job.media
    return model.begin(job.media, job.sampling, job.pruning, job.kind)


def _question(job: CaptionJob, clip: Clip | PendingClip) -> str:
    return DESCRIBE[clip.kind] if job.question is None else job.question
