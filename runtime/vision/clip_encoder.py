"""Media to clips: sample, resize, prune, encode and project, chunk by chunk in bounded memory.

Frames are read by a thread of its own, one chunk ahead of the encoder; `frame_encoder.py` says what happens to each.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..backends.features import on_host
from ..bundle.specs import MediaSpec, ProcessorSpec
from ..config import MediaKind, PruningConfig, SamplingPlan
from ..errors import ConfigError, MediaError, MediaWarning
from ..media.addresses import located
from ..media.contents import media_kind
from ..media.limits import DEFAULT_LIMITS, MediaLimits
from ..media.photographs import warn_of_photographs
from ..media.resize import MediaShape, PixelBudget, size_in_conversation, target_size
from ..media.video import VideoReader, open_source
from ..memory_budget import MemoryBudget
from .clip import Clip
from .difffp import FramePruner
from .engines import VisionEngines
from .frame_encoder import EncodedFrames, FrameEncoder, check_finite
from .frame_features import FrameFeatures, merged, vectors_of
from .opened_media import OpenedMedia
from .pending_clip import AnyClip, PendingClip
from .read_ahead import read_ahead
from .stream_encoder import StreamFrames, frames_sharing_budget
from .uniqueness import check_budget

SharingMedia = OpenedMedia | AnyClip
"""What can share a pixel budget."""


class ClipEncoder:
    """Turns media into clips with one bundle's processor settings and vision engines."""

    def __init__(
        self,
        vision: VisionEngines,
        processor: ProcessorSpec,
        patch_size: int,
        limits: MediaLimits = DEFAULT_LIMITS,
        memory: MemoryBudget | None = None,
    ) -> None:
        self._vision = vision
        self._processor = processor
        self._patch_size = patch_size
        self._limits = limits
        self._memory = memory

    def open(self, source: Any, kind: MediaKind | None, sampling: SamplingPlan | None) -> OpenedMedia:
        """Opens a source; see `VideoLlama3.encode` for what it may be. Raises MediaError, ConfigError."""
        begin = time.perf_counter()
        if kind not in (None, "image", "video"):
            raise ConfigError(f"kind must be 'image' or 'video', not {kind!r}")
        if isinstance(source, str | Path):
            source = located(source, self._limits)
        if kind is None:
            kind = media_kind(source, self._limits)
            warn_of_photographs(source, self._limits)
        plan = SamplingPlan(max_frames=1) if kind == "image" else sampling or SamplingPlan()
        fps = self._processor.fps if plan.fps is None else plan.fps
        max_frames = self._processor.max_frames if plan.max_frames is None else plan.max_frames
        plan = replace(plan, fps=fps, max_frames=max_frames)
        # Frames in memory without a clock count as already sampled, as in transformers: one per sampling interval.
        in_memory = isinstance(source, np.ndarray | Sequence) and not isinstance(source, str)
        source_fps = fps if in_memory and plan.source_fps is None else plan.source_fps
        reader = VideoReader(open_source(source, self._limits, source_fps, kind), plan)
        end_s = reader.duration_s if plan.end_s is None else min(plan.end_s, reader.duration_s)
        start, end = (None, None) if kind == "image" else (plan.start_s or 0.0, end_s)
        return OpenedMedia(kind, reader, start, end, reader.timestamps_s, time.perf_counter() - begin)

    def begin(
        self, media: OpenedMedia, pruning: PruningConfig | None, conversation: Sequence[SharingMedia] | None = None
    ) -> PendingClip:
        """Encodes opened media as its tokens are asked for.

        conversation: all media that share the pixel budget of the authors' layout, these among them; None are these
        alone. What is encoded already counts as it is.
        """
        shape = self._shape(media)
        size = self._size(media.name, shape, [self._shape(item) for item in conversation or [media]])
        pruning = pruning or PruningConfig()
        work = self._work(media.kind, pruning)
        chooses_tokens = media.kind == "video" and pruning.chooses_tokens
        if chooses_tokens and pruning.max_visual_tokens is not None:
            check_budget(media.name, media.num_frames, pruning.max_visual_tokens)
        at_once = self._frames_per_call(media.name, shape, size)
        parts = self._parts(media, size, work, pruning, at_once)
        if chooses_tokens:
            parts = work.most_unique(parts, pruning)
        return PendingClip(media, size, work, read_ahead(parts) if self._vision.runs_beside_decoder else parts)

    def begin_all(
        self,
        media: Sequence[tuple[MediaKind | None, Any]],
        sampling: SamplingPlan | None,
        pruning: PruningConfig | None,
    ) -> list[AnyClip]:
        """Media of one conversation, each of a kind (None tells it), and either a clip or what `open` takes."""
        # All are opened before one is encoded: how the authors' layout sizes frames depends on all of them.
        opened: list[SharingMedia] = []
        for kind, source in media:
            if not isinstance(source, AnyClip):
                source = self.open(source, kind, sampling)
            elif kind not in (None, source.kind):
                raise ConfigError(f"{source.name} is given as {kind}, but was encoded as {source.kind}")
            opened.append(source)
        return [self.begin(item, pruning, opened) if isinstance(item, OpenedMedia) else item for item in opened]

    def stream(
        self, height: int, width: int, pruning: PruningConfig | None, frames_expected: int | None = None
    ) -> StreamFrames:
        """For frames of height × width pixels that come one by one, like those of a clip of `frames_expected` frames.

        None: see `frames_sharing_budget`. Raises MediaError for frames that the model cannot take, ConfigError for a
        pruning that only a whole clip can tell.
        """
        pruning = pruning or PruningConfig()
        if pruning.needs_whole_clip:
            raise ConfigError(
                "streams are pruned as they arrive: the threshold must be a number, without a budget or keep_ratio"
            )
        spec = self._processor.video
        sharing = frames_expected or frames_sharing_budget(spec, self._processor.max_frames)
        shape = MediaShape(sharing, height, width, pixel_budget(self._processor, spec, self._patch_size))
        size = self._size("the stream", shape, [shape])
        self._frames_per_call("the stream", replace(shape, num_frames=0), size)  # they come one by one
        return StreamFrames(self._work("video", pruning), size, self._processor.rule)

    def features(self, media: OpenedMedia, tokens: bool, frames_expected: int | None) -> Iterator[FrameFeatures]:
        """The encoder's features of opened media, unpruned, chunk by chunk; see `FrameEmbedder.features`."""
        spec, shape = self._spec(media.kind), self._shape(media)
        if media.kind == "video":
            sharing = frames_expected or frames_sharing_budget(spec, self._processor.max_frames)
            shape = replace(shape, num_frames=sharing)
        height, width = size = self._size(media.name, shape, [shape])
        at_once = self._frames_per_call(media.name, replace(shape, num_frames=media.num_frames), size)
        work = FrameEncoder(self._vision, media.kind, None, spec.merge_size, self._patch_size)
        number = 0
        with closing(read_ahead(self._frames(media, size, at_once))) as chunks:
            for frames in chunks:
                maps = merged(on_host(work.features(frames)), spec.merge_size)
                times = media.timestamps_s[number : number + len(frames)]
                number += len(frames)
                check_finite(maps, size)
                kept = maps if tokens else None
                yield FrameFeatures(media.kind, media.name, times, height, width, vectors_of(maps), kept)

    def frames(self, media: OpenedMedia) -> np.ndarray:
        """What would be encoded of media alone, uint8 [F, H, W, 3]: all frames, sampled and resized."""
        shape = self._shape(media)
        return np.concatenate(list(self._frames(media, self._size(media.name, shape, [shape]), media.num_frames)))

    def pruner(self, kind: MediaKind, pruning: PruningConfig) -> FramePruner | None:
        """What would prune such media; None where every token is kept. A chosen threshold is yet to be set."""
        asked = True if pruning.chooses_threshold and pruning.enabled is None else pruning.enabled
        enabled = self._processor.token_compression if asked is None else asked
        if not enabled or kind == "image":
            return None
        pruner = FramePruner(self._patch_size, self._spec(kind).merge_size, self._processor.std)
        if pruning.threshold != "auto":
            pruner.threshold = pruning.threshold
        return pruner

    def encode(self, media: OpenedMedia, pruning: PruningConfig | None) -> Clip:
        """Encodes opened media alone; see `begin`."""
        return self.begin(media, pruning).finish()

    def _spec(self, kind: MediaKind) -> MediaSpec:
        return self._processor.image if kind == "image" else self._processor.video

    def _work(self, kind: MediaKind, pruning: PruningConfig) -> FrameEncoder:
        pruner = self.pruner(kind, pruning)
        return FrameEncoder(self._vision, kind, pruner, self._spec(kind).merge_size, self._patch_size)

    def _shape(self, media: SharingMedia) -> MediaShape:
        if isinstance(media, OpenedMedia):
            sides = media.height, media.width
        else:
            sides = media.height_px, media.width_px
        budget = pixel_budget(self._processor, self._spec(media.kind), self._patch_size)
        return MediaShape(media.num_frames, *sides, budget)

    def _parts(
        self, media: OpenedMedia, size: tuple[int, int], work: FrameEncoder, pruning: PruningConfig, at_once: int
    ) -> Iterator[EncodedFrames]:
        with closing(read_ahead(self._frames(media, size, at_once))) as reader:
            chunks = _timed(reader, work)
            if work.threshold is not None and pruning.chooses_threshold:
                # The resized frames are held, at most 39 MB within the released models' pixel budget: decoding twice
                # would double a stage that often is the longest.
                held = list(chunks)
                work.choose_threshold(held, pruning)
                chunks = iter(held)
            for frames in chunks:
                yield work.encoded(frames)

    def _frames_per_call(self, name: str, shape: MediaShape, size: tuple[int, int]) -> int:
        """How many frames go through the engine at once; MediaError if memory is too small for one."""
        wanted = max(1, min(self._vision.frames_per_call(*size), shape.num_frames))
        if self._memory is None:
            return wanted
        tokens = shape.num_frames * size[0] * size[1] // shape.budget.factor**2
        source = (shape.height, shape.width)
        return self._memory.frames_per_call(name, wanted, size, source, shape.budget.merge_size, tokens)

    def _frames(self, media: OpenedMedia, size: tuple[int, int], at_once: int) -> Iterator[np.ndarray]:
        return (chunk.frames for chunk in media.reader.chunks(size, at_once, self._processor.rule))

    def _size(self, name: str, shape: MediaShape, conversation: Sequence[MediaShape]) -> tuple[int, int]:
        """Height and width of the frames to encode; warns when the engine takes less than the model would."""
        try:
            size = size_in_conversation(shape, conversation)
        except MediaError as e:
            raise MediaError(f"{name}: {e}") from e
        limit = self._vision.max_patches
        if limit is None or size[0] * size[1] <= limit * self._patch_size**2:
            return size
        budget = PixelBudget(self._patch_size, shape.budget.merge_size, 1, limit * self._patch_size**2)
        smaller = target_size(shape.height, shape.width, budget)
        warnings.warn(
            f"{name}: {size[1]}×{size[0]} pixels exceed what the engine was built for ({limit} patches); "
            f"encoded at {smaller[1]}×{smaller[0]}",
            MediaWarning,
            stacklevel=2,
        )
        return smaller


def pixel_budget(processor: ProcessorSpec, spec: MediaSpec, patch_size: int) -> PixelBudget:
    """The checkpoint's budget for images or videos, whichever `spec` is of."""
    return PixelBudget(patch_size, spec.merge_size, spec.min_pixels, spec.max_pixels, processor.rule)


def _timed(chunks: Iterator[np.ndarray], work: FrameEncoder) -> Iterator[np.ndarray]:
    """The chunks; waiting for them counts as reading."""
    while True:
        begin = time.perf_counter()
        frames = next(chunks, None)
        work.read_s += time.perf_counter() - begin
        if frames is None:
            return
        yield frames
