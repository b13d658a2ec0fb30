"""Media to the vision encoder's features."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ..backends.onnxruntime import Backend
from ..bundle.bundle import Bundle
from ..config import MediaKind, SamplingPlan
from ..errors import ConfigError
from ..media.limits import MediaLimits
from ..memory_budget import MemoryBudget
from .clip_encoder import ClipEncoder
from .engines import VisionEngines
from .frame_features import FrameFeatures, joined
from .opened_media import OpenedMedia

_NO_LIMIT = 1 << 31  # frames


def every_frame(plan: SamplingPlan) -> SamplingPlan:
    """The plan with no limit of frames where it has none, in place of the checkpoint's: no context has to hold them."""
    return replace(plan, max_frames=plan.max_frames or _NO_LIMIT)


class FrameEmbedder:
    """A bundle's vision encoder on one backend: opens media and gives the features of their frames."""

    def __init__(self, bundle: Bundle, backend: Backend, memory_limit: int | None, limits: MediaLimits) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self._backend = backend = backend.within(memory_limit)
        self._memory = MemoryBudget(manifest, backend, memory_limit)
        self._memory.check_model()
        self._engines = VisionEngines(bundle, backend)
        self._engines.warm_up()  # beside all that follows
        patch_size = manifest.vision.patch_size
        self._encoder = ClipEncoder(self._engines, manifest.processor, patch_size, limits, self._memory)

    def open(self, media: Any, sampling: SamplingPlan | None = None, kind: MediaKind | None = None) -> OpenedMedia:
        """Media whose length and samples are known, with nothing encoded yet; `parts` of it are the way into long
        videos. Arguments as of `VideoLlama3.encode`."""
        return self._encoder.open(media, kind, sampling)

    def features(
        self,
        media: Any,
        sampling: SamplingPlan | None = None,
        kind: MediaKind | None = None,
        *,
        tokens: bool = False,
        frames_expected: int | None = None,
    ) -> FrameFeatures:
        """What the vision encoder says of a video's frames or of an image: one vector a frame.

        Nothing is pruned, and neither projector nor decoder is used.
        media, kind: as for `VideoLlama3.encode`. sampling: None takes the checkpoint's frames per second; without
            max_frames all of them are taken, however many.
        tokens: also gives the map of tokens.
        frames_expected: a video's frames are encoded at the size that those of a clip of so many have. None is the
            checkpoint's max_frames, or fewer where that would leave a frame less than the checkpoint's minimum of
            pixels; so frames of a short and of a long film compare. Images have a budget of their own; as "video" they
            are sized as frames.
        Raises MediaError, ConfigError; BackendError for features that are no numbers.
        """
        parts = self.stream_features(media, sampling, kind, tokens=tokens, frames_expected=frames_expected)
        return joined(parts)

    def stream_features(
        self,
        media: Any,
        sampling: SamplingPlan | None = None,
        kind: MediaKind | None = None,
        *,
        tokens: bool = False,
        frames_expected: int | None = None,
    ) -> Iterator[FrameFeatures]:
        """Like `features`, a few frames at a time, so that a film of hours takes no more memory than a short one."""
        if frames_expected is not None and frames_expected < 1:
            raise ConfigError(f"frames_expected must be at least 1, not {frames_expected}")
        if not isinstance(media, OpenedMedia):
            media = self.open(media, every_frame(sampling or SamplingPlan()), kind)
        return self._encoder.features(media, tokens, frames_expected)
