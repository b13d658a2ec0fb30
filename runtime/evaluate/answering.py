"""Questions to results: asked of a bundle, several at a time; a question that fails costs its own result only.

Questions about one clip are asked one after the other, and it is read and encoded once. Those with several pictures, or
with one inside their text, are asked one at a time.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ..config import GenerationConfig, MediaKind, PruningConfig, SamplingPlan
from ..errors import Vl3EdgeError, unexpected
from ..jobs import CaptionJob, CaptionResult
from ..media.contents import media_kind
from ..media.limits import DEFAULT_LIMITS, MediaLimits
from ..model import VideoLlama3
from .item import Asked, BadRow, EvalItem, Source
from .measures import judge
from .results import EvalResult, ResultStore


@dataclass(frozen=True)
class ModelAnswer:
    """What a model said to one question, or, in one line, why it did not."""

    item: EvalItem
    text: str | None = None
    num_tokens: int | None = None
    seconds: float | None = None
    error: str | None = None


class Answering(Protocol):
    """Something that answers questions."""

    def answers(self, items: Iterable[EvalItem]) -> Iterator[ModelAnswer]:
        """One for each question, as they are finished."""


def answer_questions(asked: Sequence[Asked], model: Answering, store: ResultStore, retry: bool) -> Iterator[EvalResult]:
    """Asks what the store has no result of, and, to retry, what has an error; each result, when it is stored."""
    waiting = [one for one in asked if _is_waiting(store.results.get(one.id), retry)]
    for row in waiting:
        if isinstance(row, BadRow):
            yield _stored(EvalResult(row.id, error=row.error), store)
    for answer in model.answers(one for one in waiting if isinstance(one, EvalItem)):
        yield _stored(_result(answer), store)


def _is_waiting(known: EvalResult | None, retry: bool) -> bool:
    return known is None or (retry and known.error is not None)


def _stored(result: EvalResult, store: ResultStore) -> EvalResult:
    store.write(result)
    return result


def _result(answer: ModelAnswer) -> EvalResult:
    item = answer.item
    known = EvalResult(
        item.id,
        item.question,
        answer.text,
        right=item.right,
        measure=item.measure,
        group=item.group,
        clip=item.clip,
        num_tokens=answer.num_tokens,
        seconds=None if answer.seconds is None else round(answer.seconds, 3),
        error=answer.error,
    )
    if answer.text is None:
        return known
    verdict = judge(item, answer.text)
    return replace(known, read=verdict.read, score=verdict.score)


@dataclass(frozen=True)
class BundleAnswering(Answering):
    """A bundle through the runtime. Fields as of `CaptionRequest`."""

    model: VideoLlama3
    sampling: SamplingPlan
    pruning: PruningConfig
    generation: GenerationConfig
    batch: int = 1
    system: str | None = None
    add_system_prompt: bool = False
    limits: MediaLimits = DEFAULT_LIMITS

    def answers(self, items: Iterable[EvalItem]) -> Iterator[ModelAnswer]:
        everything = list(items)
        for item in everything:
            if not item.is_simple:
                yield self._answer_alone(item)
        simple = by_clip(item for item in everything if item.is_simple)
        for result in self.model.caption_all(self._jobs(simple), self.generation, self.batch):
            yield _from_job(result)

    def _jobs(self, items: Iterable[EvalItem]) -> Iterator[CaptionJob]:
        for _, group in itertools.groupby(items, lambda item: (item.clip, item.kind)):
            asked = list(group)
            media = self._media(asked[0], once=len(asked) == 1)
            for item in asked:
                yield CaptionJob(
                    media,
                    item.text,
                    self._plan(item),
                    self.pruning,
                    item.kind,
                    item,
                    self.system,
                    self.add_system_prompt,
                    item.clip,
                )

    def _media(self, item: EvalItem, once: bool) -> Any:
        """What a job takes: the clip itself where there are more questions about it, or why it cannot be had."""
        try:
            source = opened(item.media[0])
            return source if once else self.model.encode(source, self._plan(item), self.pruning, item.kind)
        except Exception as e:  # whatever is wrong with a clip costs its questions only
            return e

    def _plan(self, item: EvalItem) -> SamplingPlan:
        if item.start_s is None and item.end_s is None:
            return self.sampling
        return replace(self.sampling, start_s=item.start_s, end_s=item.end_s)

    def _answer_alone(self, item: EvalItem) -> ModelAnswer:
        begin = time.perf_counter()
        try:
            content: list[dict[str, Any]] = []
            for part in item.parts:
                if isinstance(part, str):
                    content.append({"type": "text", "text": part})
                else:
                    kind = kind_of(item.media[part], item.kind, self.limits)
                    content.append({"type": kind, kind: opened(item.media[part])})
            answer = self.model.generate(
                [{"role": "user", "content": content}],
                self.generation,
                self._plan(item),
                self.pruning,
                system=self.system,
                add_system_prompt=self.add_system_prompt,
            )
        except Exception as e:
            return ModelAnswer(item, error=reason(item, e))
        return ModelAnswer(item, answer.text, seconds=time.perf_counter() - begin)


def by_clip(items: Iterable[EvalItem]) -> list[EvalItem]:
    """Questions about one clip together, clips in the order of their first question."""
    groups: dict[tuple[str, MediaKind | None], list[EvalItem]] = {}
    for item in items:
        groups.setdefault((item.clip, item.kind), []).append(item)
    return [item for group in groups.values() for item in group]


def opened(source: Source) -> Any:
    """A source as the runtime takes it. Raises MediaError for a stored picture that cannot be read."""
    return source if isinstance(source, str) else source.open()


def kind_of(source: Source, kind: MediaKind | None, limits: MediaLimits = DEFAULT_LIMITS) -> MediaKind:
    """What a source is, where the item does not say. Raises MediaError."""
    if kind is not None:
        return kind
    return media_kind(source, limits) if isinstance(source, str) else "image"


def reason(item: EvalItem, error: Exception) -> str:
    """What a result says of an error."""
    known = error if isinstance(error, Vl3EdgeError) else unexpected(item.clip, error)
    return " ".join(str(known).split())


def _from_job(result: CaptionResult) -> ModelAnswer:
    assert result.job is not None
    item: EvalItem = result.job.key
    if result.error is not None:
        return ModelAnswer(item, error=" ".join(result.error.split()), seconds=result.seconds)
    return ModelAnswer(item, result.caption, result.num_tokens, result.seconds)
