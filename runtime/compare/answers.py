"""What one bundle says about each of many clips, kept in a file that can be stopped at any moment and continued."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..captions.captioner import CaptionRequest, CollectionCaptioner
from ..evaluate.results import EvalResult, ResultStore
from ..jobs import CaptionResult
from ..media.addresses import clip_key
from ..model import VideoLlama3
from ..prompt.chat_template import DESCRIBE


def waiting(media: Sequence[str], store: ResultStore, retry: bool) -> list[str]:
    """The media that have no answer yet; retry: those that failed, too."""
    known = {name: store.results.get(clip_key(name)) for name in media}
    return [name for name, found in known.items() if found is None or (retry and found.error is not None)]


def answered(
    model: VideoLlama3, request: CaptionRequest, media: Sequence[str], store: ResultStore
) -> Iterator[EvalResult]:
    """Asks about each of the media; its result, when it is stored. What is wrong with a clip costs its own only."""
    for result in CollectionCaptioner(model, request).results(media, in_order=False):
        found = _result(result)
        store.write(found)
        yield found


def failure(name: str, error: str) -> EvalResult:
    """The result of a clip that there is not."""
    return EvalResult(clip_key(name), clip=name, error=error)


def _result(result: CaptionResult) -> EvalResult:
    if result.error is not None or result.clip is None or result.answer is None:
        return failure(result.media, " ".join((result.error or "").split()))
    asked = None if result.job is None else result.job.question
    return EvalResult(
        clip_key(result.media),
        DESCRIBE[result.clip.kind] if asked is None else asked,
        result.caption,
        clip=result.media,
        num_tokens=result.num_tokens,
        answer_tokens=result.answer.stats.generated_tokens,
        seconds=result.seconds,
    )
