"""Questions about many media, each a job with one result; one after another, or several in a batch of the decoder.

Media are encoded one at a time, when there is a row of the batch for them: what waits costs no memory.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from .bundle.specs import GREEDY, GenerationSpec
from .config import GenerationConfig, MediaKind, PruningConfig, SamplingPlan
from .decode.batch import BatchGenerator
from .decode.batch_sequence import BatchRequest
from .decode.best_of import best_answers
from .decode.generate import Answer, Chunk, join
from .errors import BackendError, ConfigError, ContextLengthError, MediaError, Vl3EdgeError, unexpected
from .media.addresses import clip_key
from .prompt.boxes import Box
from .prompt.chat_template import DESCRIBE, question_about
from .prompt.splice import SplicedPrompt
from .vision.clip import Clip
from .vision.pending_clip import AnyClip, PendingClip

Key = tuple[str, "int | None"]
_WRITTEN = (
    *("data", "score", "finish_reason", "num_frames", "num_tokens", "seconds", "boxes_note"),
    *("start_s", "end_s", "segment", "segments", "seen_start_s", "seen_end_s", "kind", "question"),
)


@dataclass(frozen=True)
class CaptionJob:
    """A question about one video or image.

    media: a clip, or anything `VideoLlama3.encode` takes. An exception stands for media that could not be had: it
        comes back as the result's error.
    question: None asks for a description.
    sampling, pruning, kind: see `VideoLlama3.encode`; for media that are not encoded yet.
    key: anything by which the caller knows the job again.
    system, add_system_prompt: see `VideoLlama3`.
    name: of the media in the result; None takes their own.
    """

    media: Any
    question: str | None = None
    sampling: SamplingPlan | None = None
    pruning: PruningConfig | None = None
    kind: MediaKind | None = None
    key: Any = None
    system: str | None = None
    add_system_prompt: bool = False
    name: str | None = None


@dataclass(frozen=True)
class CaptionResult:
    """What became of one job; also what a file says of it. error is None for an answer, else it says why there is none.

    media: the job's name. caption: what the model wrote; to `find`, its answer.
    data: the answer's value, where a JSON schema was asked for. An answer that was cut off, so that it is no JSON, is
        an error; `answer` has its text.
    score: of the answer, where it is the best of several; see `GenerationConfig`.
    seconds: from the beginning of its encoding (or of opening the clip) to the end of the answer; in a batch, other
        jobs had their share of them.
    start_s, end_s: the part of the clip the caption is about, or the event found, in seconds on the clip's clock.
    segment, segments: number of the piece, from 1, and of how many.
    find, found: the event looked for, and whether the answer names its time.
    seen_start_s, seen_end_s: the part of the clip in which it was looked for.
    kind, question: what the media are, and what was asked, in records from which a data set is made.
    boxes, boxes_note: see `Answer`.

    A file has none of the others. index: the job's place among the jobs, from 0. clip, answer: of a job that has them.
    exception: the error as it was raised.
    """

    media: str
    caption: str | None = None
    finish_reason: str | None = None
    num_frames: int | None = None
    num_tokens: int | None = None
    seconds: float | None = None
    start_s: float | None = None
    end_s: float | None = None
    segment: int | None = None
    segments: int | None = None
    find: str | None = None
    found: bool | None = None
    seen_start_s: float | None = None
    seen_end_s: float | None = None
    boxes: tuple[Box, ...] = ()
    boxes_note: str | None = None
    error: str | None = None
    kind: MediaKind | None = None
    question: str | None = None
    data: Any = None
    score: float | None = None
    index: int = 0
    job: CaptionJob | None = None
    clip: Clip | None = None
    answer: Answer | None = None
    exception: Exception | None = None

    @property
    def key(self) -> Key:
        """Names what the result is about: the clip, as `clip_key` gives it, and the segment, if it has any."""
        return clip_key(self.media), self.segment

    def to_json(self) -> dict[str, Any]:
        """The fields of its line in a file: media, what was found out or the error, and what it has of the rest."""
        head: dict[str, Any] = {"media": self.media}
        if self.error is not None:
            head |= {"error": self.error}
        elif self.find is not None:
            head |= {"find": self.find, "found": self.found, "answer": self.caption}
        else:
            head |= {"caption": self.caption}
        if self.boxes:
            head |= {"boxes": [asdict(box) for box in self.boxes]}
        return head | {name: value for name in _WRITTEN if (value := getattr(self, name)) is not None}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> CaptionResult:
        """What `to_json` gave such fields of. Raises KeyError or TypeError for others."""
        if not isinstance(fields["media"], str) or not {"caption", "answer", "error"} & set(fields):
            raise TypeError("not a record")
        known: dict[str, Any] = {name: fields.get(name) for name in ("find", "found", "error", *_WRITTEN)}
        boxes = tuple(Box(**box) for box in fields.get("boxes", ()))
        return cls(fields["media"], caption=fields.get("answer", fields.get("caption")), boxes=boxes, **known)


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
            chunks = model.stream(clip, question, config, system=job.system, add_system_prompt=added)
            answer = join(chunks, [clip.source_size])
            whole = clip if isinstance(clip, Clip) else clip.finish()
        except Exception as e:  # whatever is wrong with a clip costs that clip only
            yield _failed(index, job, e, begin)
        else:
            yield _answered(index, job, whole, answer, begin, config)


def batched(
    model: Answerer,
    generator: BatchGenerator,
    jobs: Iterable[CaptionJob],
    config: GenerationConfig,
    defaults: GenerationSpec = GREEDY,
) -> Iterator[CaptionResult]:
    """The results as they are ready, from a batch that is kept full. defaults: the model's own settings."""
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
                failed.append(_failed(index, job, e, begin))
            else:
                begun[index] = job, whole, begin
                yield BatchRequest(index, prompt, config)

    for index, outcome in best_answers(generator, requests(), defaults):
        yield from failed
        failed.clear()
        job, clip, begin = begun.pop(index)
        if isinstance(outcome, Answer):
            outcome = replace(outcome, source_sizes=(clip.source_size,))
            yield _answered(index, job, clip, outcome, begin, config)
        else:
            yield _failed(index, job, outcome, begin)
    yield from failed


def in_order(results: Iterable[CaptionResult]) -> Iterator[CaptionResult]:
    """The results in the order of their jobs, each as soon as those before it have come."""
    held: dict[int, CaptionResult] = {}
    index = 0
    for result in results:
        held[result.index] = result
        while index in held:
            yield held.pop(index)
            index += 1


def _answered(
    index: int, job: CaptionJob, clip: Clip, answer: Answer, begin: float, config: GenerationConfig
) -> CaptionResult:
    data = error = None
    if config.json_schema is not None:
        try:
            data = answer.json()
        except Vl3EdgeError as e:
            error = f"{_name(job)}: {e}"
    return CaptionResult(
        media=_name(job),
        caption=answer.text if error is None else None,
        data=data,
        score=answer.stats.score,
        error=error,
        finish_reason=answer.finish_reason,
        num_frames=clip.num_frames,
        num_tokens=clip.num_tokens,
        seconds=time.perf_counter() - begin,
        start_s=clip.start_s,
        end_s=clip.end_s,
        boxes=answer.boxes,
        boxes_note=answer.boxes_note,
        index=index,
        job=job,
        clip=clip,
        answer=answer,
    )


def _failed(index: int, job: CaptionJob, error: Exception, begin: float) -> CaptionResult:
    name, seconds = _name(job), time.perf_counter() - begin
    return CaptionResult(name, seconds=seconds, error=_reason(name, error), index=index, job=job, exception=error)


def _reason(name: str, error: Exception) -> str:
    """What a result says of an error."""
    if isinstance(error, MediaError | ContextLengthError | BackendError | ConfigError):
        return str(error)
    if isinstance(error, MemoryError):
        return f"{name}: not enough memory; use fewer frames (--max-frames)"
    return str(unexpected(name, error))


def _name(job: CaptionJob) -> str:
    if job.name is not None:
        return job.name
    return str(job.media if isinstance(job.media, str | Path) else getattr(job.media, "name", "the media given"))


def _clip(model: Answerer, job: CaptionJob) -> AnyClip:
    if isinstance(job.media, Exception):
        raise job.media
    if isinstance(job.media, Clip | PendingClip):
        return job.media
    return model.begin(job.media, job.sampling, job.pruning, job.kind)


def _question(job: CaptionJob, clip: AnyClip) -> str:
    return DESCRIBE[clip.kind] if job.question is None else job.question
