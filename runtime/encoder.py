"""Media to clips: sample, resize, prune, encode and project, chunk by chunk in bounded memory.

Pruning (DiffFP) looks at pixels alone, so it runs before the encoder: the projector never sees a dropped token, and a
frame that is identical to its predecessor is not encoded again.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .clip import Clip, EncodeStats, MediaKind, make_visual
from .config import PruningConfig, SamplingPlan
from .errors import ConfigError, MediaError, MediaWarning
from .image import load_image
from .manifest import MediaSpec, ProcessorSpec
from .pruning import FramePruner
from .resize import PixelBudget, resize_rgb, target_size
from .video import VideoReader, open_video
from .vision import VisionPath

IMAGE_SUFFIXES = frozenset(
    {".bmp", ".jpeg", ".jpg", ".jfif", ".png", ".ppm", ".tif", ".tiff", ".webp", ".avif", ".heic"}
)


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


class ClipEncoder:
    """Turns media into clips with one bundle's processor settings and vision engines."""

    def __init__(self, vision: VisionPath, processor: ProcessorSpec, patch_size: int) -> None:
        self._vision = vision
        self._processor = processor
        self._patch_size = patch_size

    def open(self, source: Any, kind: MediaKind | None, sampling: SamplingPlan | None) -> OpenedMedia:
        """Opens a source; see `VideoLlama3.encode` for what it may be. Raises MediaError, ConfigError."""
        begin = time.perf_counter()
        if kind not in (None, "image", "video"):
            raise ConfigError(f"kind must be 'image' or 'video', not {kind!r}")
        kind = kind or media_kind(source)
        if kind == "image":
            image = load_image(source)
            height, width = image.shape[:2]
            read_s = time.perf_counter() - begin
            return OpenedMedia(kind, source_name(source), None, None, (0.0,), height, width, None, image, read_s)
        plan = sampling or SamplingPlan()
        fps = self._processor.fps if plan.fps is None else plan.fps
        max_frames = self._processor.max_frames if plan.max_frames is None else plan.max_frames
        plan = replace(plan, fps=fps, max_frames=max_frames)
        # Frames in memory without a clock count as already sampled, as in transformers: one per sampling interval.
        source_fps = fps if isinstance(source, np.ndarray | Sequence) and not isinstance(source, str) else None
        reader = open_video(source, plan, source_fps=source_fps)
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

    def encode(self, media: OpenedMedia, pruning: PruningConfig | None, sharing: int) -> Clip:
        """Encodes opened media; `sharing` frames and images share the pixel budget (see `frames_sharing`)."""
        spec = self._processor.image if media.kind == "image" else self._processor.video
        size = self._size(media, spec, sharing)
        work = _Encoding(
            self._vision, media.kind, self._pruner(media, spec, pruning), spec.merge_size, self._patch_size
        )
        begin = time.perf_counter()
        for frames in self._frames(media, size):
            work.add(frames)
        elapsed = time.perf_counter() - begin
        read_s = media.read_s + elapsed - work.prune_s - work.vision_s - work.projector_s
        kept = tuple(work.tokens_per_frame)
        per_frame = size[0] * size[1] // (self._patch_size * spec.merge_size) ** 2
        return Clip(
            kind=media.kind,
            name=media.name,
            start_s=media.start_s,
            end_s=media.end_s,
            timestamps_s=media.timestamps_s,
            height_px=size[0],
            width_px=size[1],
            tokens_per_frame=kept,
            num_pruned=per_frame * media.num_frames - sum(kept),
            stats=EncodeStats(read_s, work.prune_s, work.vision_s, work.projector_s),
            visual=make_visual(work.parts, kept),
        )

    def frames_sharing(self, media: OpenedMedia, in_conversation: int) -> int:
        """Among how many frames the pixel budget is divided: those of the video, or of the whole conversation."""
        if self._processor.rule == "authors":
            return in_conversation
        return media.num_frames if media.kind == "video" else 1

    def _frames(self, media: OpenedMedia, size: tuple[int, int]) -> Iterator[np.ndarray]:
        if media.image is not None:
            yield resize_rgb(media.image, size, self._processor.rule)[None]
        if media.reader is not None:
            for chunk in media.reader.chunks(size, self._vision.frames_per_call(*size), self._processor.rule):
                yield chunk.frames

    def _size(self, media: OpenedMedia, spec: MediaSpec, sharing: int) -> tuple[int, int]:
        """Height and width of the frames to encode; warns when the engine takes less than the model would."""
        try:
            size = target_size(media.height, media.width, self._budget(spec), sharing)
        except MediaError as e:
            raise MediaError(f"{media.name}: {e}") from e
        limit = self._vision.max_patches
        if limit is None or size[0] * size[1] <= limit * self._patch_size**2:
            return size
        budget = PixelBudget(self._patch_size, spec.merge_size, 1, limit * self._patch_size**2)
        smaller = target_size(media.height, media.width, budget)
        warnings.warn(
            f"{media.name}: {size[1]}×{size[0]} pixels are more than the engine was built for ({limit} patches); "
            f"encoded at {smaller[1]}×{smaller[0]}",
            MediaWarning,
            stacklevel=2,
        )
        return smaller

    def _budget(self, spec: MediaSpec) -> PixelBudget:
        return PixelBudget(self._patch_size, spec.merge_size, spec.min_pixels, spec.max_pixels, self._processor.rule)

    def _pruner(self, media: OpenedMedia, spec: MediaSpec, pruning: PruningConfig | None) -> FramePruner | None:
        pruning = pruning or PruningConfig()
        enabled = self._processor.token_compression if pruning.enabled is None else pruning.enabled
        if not enabled or media.kind == "image":
            return None
        return FramePruner(self._patch_size, spec.merge_size, self._processor.std, pruning.threshold)


class _Encoding:
    """The state of one clip's encoding, fed with chunks of frames."""

    def __init__(
        self,
        vision: VisionPath,
        kind: MediaKind,
        pruner: FramePruner | None,
        merge_size: int,
        patch_size: int,
    ) -> None:
        self._vision = vision
        self._kind = kind
        self._pruner = pruner
        self._block = merge_size * patch_size
        self._last_frame: np.ndarray | None = None
        self._last_features: np.ndarray | None = None
        self.parts: list[np.ndarray] = []
        self.tokens_per_frame: list[int] = []
        self.prune_s = self.vision_s = self.projector_s = 0.0

    def add(self, frames: np.ndarray) -> None:
        """frames: uint8 [F, H, W, 3], the next of the clip."""
        begin = time.perf_counter()
        keep = self._keep(frames)
        pruned = time.perf_counter()
        features = self._features(frames)
        encoded = time.perf_counter()
        self.parts.append(self._vision.tokens(features, self._kind, keep))
        self.projector_s += time.perf_counter() - encoded
        self.vision_s += encoded - pruned
        self.prune_s += pruned - begin
        self.tokens_per_frame += keep.sum(axis=1).tolist()

    def _keep(self, frames: np.ndarray) -> np.ndarray:
        if self._pruner is None:
            return np.ones((len(frames), frames.shape[1] * frames.shape[2] // self._block**2), np.bool_)
        return np.stack([self._pruner.push(frame) for frame in frames])

    def _features(self, frames: np.ndarray) -> np.ndarray:
        """Features of all frames; one that equals its predecessor takes the predecessor's."""
        new: list[np.ndarray] = []
        source: list[int] = []  # per frame, its place among the encoded ones; −1 is the last chunk's last frame
        for frame in frames:
            if self._last_frame is None or not np.array_equal(frame, self._last_frame):
                new.append(frame)
            source.append(len(new) - 1)
            self._last_frame = frame
        encoded = [] if self._last_features is None else [self._last_features]
        offset = len(encoded)
        if new:
            encoded.append(self._vision.features(np.stack(new)))
        features = np.concatenate(encoded)[np.array(source) + offset] if len(source) > len(new) else encoded[-1]
        self._last_features = features[-1:]
        return features


def media_kind(source: Any) -> MediaKind:
    """Whether a source is an image or a video, by its type, or a file by its name; folders and GIFs are videos."""
    if isinstance(source, Image.Image):
        return "image"
    if isinstance(source, np.ndarray):
        return "video" if source.ndim == 4 else "image"
    if isinstance(source, str | Path):
        path = Path(source)
        return "image" if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir() else "video"
    if isinstance(source, Sequence) and not isinstance(source, bytes):
        return "video"
    raise ConfigError(
        "media must be a path, a Pillow image, an array [H, W, 3] or [F, H, W, 3], or a list of Pillow images, "
        f"not {type(source).__name__}"
    )


def source_name(source: Any) -> str:
    """What messages and records call a source."""
    return str(source) if isinstance(source, str | Path) else "the image given"
