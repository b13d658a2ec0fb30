"""Clips into a file of embeddings, a few frames at a time; and a picture into what is looked for in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from ..config import MediaKind, SamplingPlan
from ..encoder import VideoLlama3Encoder
from ..errors import ConfigError, MediaError, Vl3EdgeError, unexpected
from ..vision.frame_embedder import every_frame
from .rows import EmbeddingBatch, Form, batch_of
from .search import Query
from .store import EmbeddingStore


class MediaFailure(MediaError):
    """A clip that cannot be embedded, which costs that clip only."""


@dataclass(frozen=True)
class EmbedRequest:
    """What is wanted of every clip; see `VideoLlama3Encoder.features`."""

    sampling: SamplingPlan
    kind: MediaKind | None = None
    tokens: bool = False
    frames_expected: int | None = None

    def form(self, encoder: VideoLlama3Encoder) -> Form:
        """Of the rows that an encoder makes of it."""
        return Form(encoder.info["source"], encoder.info["hidden_size"], self.tokens)


def embed_clip(encoder: VideoLlama3Encoder, store: EmbeddingStore, media: str, request: EmbedRequest) -> str:
    """Adds a clip's rows to the store; returns what was done, in words.

    Raises MediaFailure for whatever is wrong with the clip, with nothing added; ConfigError for what is wrong with the
    options, OSError if the rows cannot be written.
    """
    begin = time.perf_counter()
    try:
        for batch in _batches(encoder, media, request):
            store.add(batch)
    except MediaFailure:
        store.abandon()
        raise
    store.complete()
    last = batch.rows[-1]
    frames = "1 frame" if last.frames == 1 else f"{last.frames} frames"
    return f"{frames} of {last.width}×{last.height}, {time.perf_counter() - begin:.2f} s"


def _batches(encoder: VideoLlama3Encoder, media: str, request: EmbedRequest) -> Iterator[EmbeddingBatch]:
    """The rows of a clip. What is raised by who takes them is not the clip's."""
    model, count = request.form(encoder).model, 0
    try:
        opened = encoder.open(media, every_frame(request.sampling), request.kind)
        parts = encoder.stream_features(opened, tokens=request.tokens, frames_expected=request.frames_expected)
        for part in parts:
            yield batch_of(part, media, count, opened.num_frames, model)
            count += part.num_frames
    except ConfigError:
        raise
    except Exception as e:
        raise MediaFailure(str(e if isinstance(e, Vl3EdgeError) else unexpected(media, e))) from e


def query_like(encoder: VideoLlama3Encoder, picture: str, frames_expected: int | None = None) -> Query:
    """What looks for a picture, at the size that pictures have and at the size that frames of videos have.

    Raises MediaError.
    """
    opened = encoder.open(picture, SamplingPlan(max_frames=2), "video")
    if opened.num_frames > 1:
        raise MediaError(f"{picture}: search takes a picture, and this is a video or an animation")
    as_frame = encoder.features(opened, frames_expected=frames_expected)
    as_picture = encoder.features(picture, kind="image")
    vectors = {"video": as_frame.vectors[0], "image": as_picture.vectors[0]}
    return Query(vectors, encoder.info["source"])
