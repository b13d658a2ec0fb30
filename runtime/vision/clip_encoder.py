"""Media to clips: sample, resize, prune, encode and project, chunk by chunk in bounded memory.

Pruning (DiffFP) looks at pixels alone, so it runs before the encoder: the projector never sees a dropped token, and a
frame that is identical to its predecessor is not encoded again. Frames are read by a thread of its own, one chunk ahead
of the encoder.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..bundle.manifest import MediaSpec, ProcessorSpec
from ..config import MediaKind, PruningConfig, SamplingPlan
from ..errors import ConfigError, MediaError, MediaWarning
from ..media.addresses import Fetched, located
from ..media.contents import media_kind
from ..media.image import load_image
from ..media.isolated import load_image_isolated
from ..media.limits import DEFAULT_LIMITS, MediaLimits
from ..media.photographs import warn_of_photographs
from ..media.read_ahead import read_ahead
from ..media.resize import MediaShape, PixelBudget, resize_rgb, size_in_conversation, target_size
from ..media.video import VideoReader, open_source
from ..memory_budget import MemoryBudget
from ..prompt.splice import VisualTokens
from .clip import Clip, EncodeStats, new_uid
from .difffp import FramePruner
from .difffp_threshold import check_budget
from .engines import VisionEngines
from .frame_encoder import EncodedFrames, FrameEncoder
from .stream_encoder import StreamFrames, frames_sharing_budget


@dataclass(frozen=True)
class OpenedMedia:
    """A video whose samples are chosen, or an image that is loaded; nothing is encoded yet."""

    kind: MediaKind
    name: str
    start_s: float | None
    end_s: float | None
    timestamps_s: tuple[float, ...]
    height: int
    width: int
    reader: VideoReader | None
    image: np.ndarray | None
    read_s: float

    @property
    def num_frames(self) -> int:
        return len(self.timestamps_s)

    def parts(self, spans: Sequence[tuple[float, float]]) -> list[OpenedMedia]:
        """Each span (start, end) of the video, in seconds, as media of its own; in order they are read in one pass.

        Raises MediaError if a span lies outside the video, ConfigError for an image.
        """
        if self.reader is None:
            raise ConfigError(f"{self.name}: an image cannot be split into segments")
        return [
            replace(self, start_s=start, end_s=end, timestamps_s=reader.timestamps_s, reader=reader, read_s=0.0)
            for (start, end), reader in zip(spans, self.reader.parts(spans), strict=True)
        ]


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
        if kind == "image":
            isolated = self._limits.isolate and isinstance(source, str | Path | Fetched)
            image = load_image_isolated(source, self._limits) if isolated else load_image(source, self._limits)
            height, width = image.shape[:2]
            read_s = time.perf_counter() - begin
            return OpenedMedia(kind, source_name(source), None, None, (0.0,), height, width, None, image, read_s)
        plan = sampling or SamplingPlan()
        fps = self._processor.fps if plan.fps is None else plan.fps
        max_frames = self._processor.max_frames if plan.max_frames is None else plan.max_frames
        plan = replace(plan, fps=fps, max_frames=max_frames)
        # Frames in memory without a clock count as already sampled, as in transformers: one per sampling interval.
        in_memory = isinstance(source, np.ndarray | Sequence) and not isinstance(source, str)
        source_fps = fps if in_memory and plan.source_fps is None else plan.source_fps
        reader = VideoReader(open_source(source, source_fps, None, self._limits), plan)
        return OpenedMedia(
            kind=kind,
            name=reader.name,
            start_s=plan.start_s or 0.0,
            end_s=reader.duration_s if plan.end_s is None else min(plan.end_s, reader.duration_s),
            timestamps_s=reader.timestamps_s,
            height=reader.height,
            width=reader.width,
            reader=reader,
            image=None,
            read_s=time.perf_counter() - begin,
        )

    def begin(
        self, media: OpenedMedia, pruning: PruningConfig | None, conversation: Sequence[SharingMedia] | None = None
    ) -> PendingClip:
        """Encodes opened media as its tokens are asked for.

        conversation: all media that share the pixel budget of the authors' layout, these among them; None are these
        alone. What is encoded already counts as it is.
        """
        spec = self._spec(media.kind)
        size = self._size(media, spec, conversation or [media])
        pruning = pruning or PruningConfig()
        pruner = self._pruner(media, spec, pruning)
        work = FrameEncoder(self._vision, media.kind, pruner, spec.merge_size, self._patch_size)
        if pruner is not None and pruning.max_visual_tokens is not None:
            check_budget(media.name, media.num_frames, size[0] * size[1] // work.block**2, pruning.max_visual_tokens)
        at_once = self._frames_per_call(media, size, spec)
        parts = self._parts(media, size, work, pruning, at_once)
        return PendingClip(media, size, work, read_ahead(parts) if self._vision.runs_beside_decoder else parts)

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
                "streams are pruned as they arrive: the threshold must be a number, without a token budget"
            )
        spec = self._processor.video
        sharing = frames_expected or frames_sharing_budget(spec, self._processor.max_frames)
        media = OpenedMedia("video", "the stream", None, None, (0.0,) * sharing, height, width, None, None, 0.0)
        size = self._size(media, spec, [media])
        self._frames_per_call(replace(media, timestamps_s=()), size, spec)  # they come one by one
        pruner = self._pruner(media, spec, pruning)
        work = FrameEncoder(self._vision, media.kind, pruner, spec.merge_size, self._patch_size)
        return StreamFrames(work, size, self._processor.rule)

    def frames(self, media: OpenedMedia) -> np.ndarray:
        """What would be encoded of media alone, uint8 [F, H, W, 3]: all frames, sampled and resized."""
        size = self._size(media, self._spec(media.kind), [media])
        return np.concatenate(list(self._frames(media, size, media.num_frames)))

    def pruner(self, media: OpenedMedia, pruning: PruningConfig) -> FramePruner | None:
        """What would prune these media; None where every token is kept. A chosen threshold is yet to be set."""
        return self._pruner(media, self._spec(media.kind), pruning)

    def encode(self, media: OpenedMedia, pruning: PruningConfig | None) -> Clip:
        """Encodes opened media alone; see `begin`."""
        return self.begin(media, pruning).finish()

    def _spec(self, kind: MediaKind) -> MediaSpec:
        return self._processor.image if kind == "image" else self._processor.video

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
            if work.threshold is not None and pruning.needs_whole_clip:
                # The resized frames are held, at most 39 MB within the released models' pixel budget: decoding twice
                # would double a stage that often is the longest.
                held = list(chunks)
                work.choose_threshold(held, pruning)
                chunks = iter(held)
            for frames in chunks:
                yield work.encoded(frames)

    def _frames_per_call(self, media: OpenedMedia, size: tuple[int, int], spec: MediaSpec) -> int:
        """How many frames go through the engine at once; MediaError if memory is too small for one."""
        wanted = max(1, min(self._vision.frames_per_call(*size), media.num_frames))
        if self._memory is None:
            return wanted
        tokens = media.num_frames * size[0] * size[1] // (self._patch_size * spec.merge_size) ** 2
        source = (media.height, media.width)
        return self._memory.frames_per_call(media.name, wanted, size, source, spec.merge_size, tokens)

    def _frames(self, media: OpenedMedia, size: tuple[int, int], at_once: int) -> Iterator[np.ndarray]:
        if media.image is not None:
            yield resize_rgb(media.image, size, self._processor.rule)[None]
        if media.reader is not None:
            for chunk in media.reader.chunks(size, at_once, self._processor.rule):
                yield chunk.frames

    def _size(self, media: OpenedMedia, spec: MediaSpec, conversation: Sequence[SharingMedia]) -> tuple[int, int]:
        """Height and width of the frames to encode; warns when the engine takes less than the model would."""
        try:
            size = size_in_conversation(self._shape(media), [self._shape(item) for item in conversation])
        except MediaError as e:
            raise MediaError(f"{media.name}: {e}") from e
        limit = self._vision.max_patches
        if limit is None or size[0] * size[1] <= limit * self._patch_size**2:
            return size
        budget = PixelBudget(self._patch_size, spec.merge_size, 1, limit * self._patch_size**2)
        smaller = target_size(media.height, media.width, budget)
        warnings.warn(
            f"{media.name}: {size[1]}×{size[0]} pixels exceed what the engine was built for ({limit} patches); "
            f"encoded at {smaller[1]}×{smaller[0]}",
            MediaWarning,
            stacklevel=2,
        )
        return smaller

    def _pruner(self, media: OpenedMedia, spec: MediaSpec, pruning: PruningConfig) -> FramePruner | None:
        asked = True if pruning.needs_whole_clip and pruning.enabled is None else pruning.enabled
        enabled = self._processor.token_compression if asked is None else asked
        if not enabled or media.kind == "image":
            return None
        pruner = FramePruner(self._patch_size, spec.merge_size, self._processor.std)
        if pruning.threshold != "auto":
            pruner.threshold = pruning.threshold
        return pruner


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


class PendingClip:
    """A clip in the making: its kind and times are known, its frames are encoded as their tokens are asked for.

    uid: of the visual tokens, the same in the clip that `finish` returns.
    """

    def __init__(
        self, media: OpenedMedia, size: tuple[int, int], work: FrameEncoder, parts: Iterator[EncodedFrames]
    ) -> None:
        self.uid = new_uid()
        self.kind = media.kind
        self.name = media.name
        self.timestamps_s = media.timestamps_s
        self._media = media
        self._size = size
        self._work = work
        self._parts = parts
        self._tokens: list[np.ndarray] = []  # of each frame encoded so far, float32 [n, hidden]
        self._starts = [0]  # the number of each frame's first token
        self._clip: Clip | None = None

    @property
    def num_frames(self) -> int:
        return len(self.timestamps_s)

    @property
    def height_px(self) -> int:
        return self._size[0]

    @property
    def width_px(self) -> int:
        return self._size[1]

    def frame(self, index: int) -> tuple[int, np.ndarray]:
        """The number of a frame's first token, and its tokens float32 [n, hidden]; encodes up to it if need be.

        Raises MediaError for media that cannot be read to the end.
        """
        while len(self._tokens) <= index:
            part = next(self._parts)
            ends = np.cumsum(part.tokens_per_frame)
            self._tokens += np.split(part.tokens, ends[:-1])
            self._starts += (self._starts[-1] + ends).tolist()
        return self._starts[index], self._tokens[index]

    def finish(self) -> Clip:
        """The whole clip; encodes what is left of it."""
        if self._clip is None:
            self.frame(self.num_frames - 1)
            next(self._parts, None)  # the reader says at its end what of the file was damaged
            self._clip = self._finished()
        return self._clip

    def _finished(self) -> Clip:
        media, work = self._media, self._work
        tokens = np.concatenate(self._tokens)
        tokens.setflags(write=False)
        kept = tuple(len(part) for part in self._tokens)
        per_frame = self._size[0] * self._size[1] // work.block**2
        return Clip(
            kind=media.kind,
            name=media.name,
            start_s=media.start_s,
            end_s=media.end_s,
            timestamps_s=media.timestamps_s,
            height_px=self._size[0],
            width_px=self._size[1],
            tokens_per_frame=kept,
            num_pruned=per_frame * media.num_frames - sum(kept),
            threshold=work.threshold,
            stats=EncodeStats(media.read_s + work.read_s, work.prune_s, work.vision_s, work.projector_s),
            visual=VisualTokens(tokens, kept, self.uid),
        )


SharingMedia = OpenedMedia | Clip | PendingClip
"""What can share a pixel budget."""


def source_name(source: Any) -> str:
    """What messages and records call a source."""
    return str(source) if isinstance(source, str | Path | Fetched) else "the image given"
