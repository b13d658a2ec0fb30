"""A model that several threads use: one reads media, one encodes, one decodes, and live sessions come in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..config import MediaKind, PruningConfig, SamplingPlan
from ..decode.batch import BatchGenerator
from ..decode.json_grammar import JsonConstraint
from ..errors import Vl3EdgeError
from ..inspect.frames import jpeg, veil
from ..loaded_bundle import Messages
from ..media.resize import BudgetRule
from ..media.video import FrameChunk, VideoReader
from ..model import VideoLlama3
from ..prompt.splice import SplicedPrompt
from ..prompt.tokenizer import Tokenizer
from ..vision.clip import Clip
from ..vision.difffp import keep_mask
from ..vision.opened_media import OpenedMedia
from .turns import Turns

_THUMBNAIL_PX = 360


class AbandonedError(Vl3EdgeError):
    """Nobody waits any more for what is being made."""


@dataclass(frozen=True)
class ReadMedia:
    """A clip whose sampled frames are in memory: uint8 [F, H, W, 3], as they will be encoded."""

    opened: OpenedMedia
    frames: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Preview:
    """A frame as the model sees it: a JPEG, and a PNG with one pixel a token that is opaque where it was pruned."""

    time_s: float
    picture: bytes
    veil: bytes
    kept: int
    of: int


class _FramesRead(VideoReader):
    """Gives frames that were read already."""

    def __init__(self, reader: VideoReader, frames: npt.NDArray[np.uint8]) -> None:
        self.name, self.height, self.width = reader.name, reader.height, reader.width
        self.timestamps_s, self.num_frames = reader.timestamps_s, reader.num_frames
        self._frames = frames

    def chunks(
        self, size: tuple[int, int] | None = None, chunk_frames: int = 8, rule: BudgetRule = "transformers"
    ) -> Iterator[FrameChunk]:
        assert size in (None, self._frames.shape[1:3])  # they were read for this encoder
        for start in range(0, self.num_frames, chunk_frames):
            end = start + chunk_frames
            yield FrameChunk(start, self.timestamps_s[start:end], self._frames[start:end])


class ServedModel(VideoLlama3):
    """vision_turns, decoder_turns: to be held while either computes; who needs both takes them in this order."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.vision_turns, self.decoder_turns = Turns(), Turns()
        self._preparing = Turns()

    @property
    def tokenizer(self) -> Tokenizer:
        return self._tokenizer

    @property
    def max_frames(self) -> int:
        """Of a clip, by the model's own settings."""
        return self.bundle.manifest.processor.max_frames

    def batch(self, rows: int) -> BatchGenerator:
        """A batch that keeps what ended answers leave in the cache."""
        return self._batch_generator(rows, None, keep_rows=True)

    def read(self, path: str, name: str, kind: MediaKind, sampling: SamplingPlan) -> ReadMedia:
        """Reads a file, in a process of its own where the limits say so. name: for messages. Raises MediaError."""
        opened = self.open(path, sampling, kind)
        frames = self._encoder.frames(opened)
        reader = _FramesRead(opened.reader, frames)
        reader.name = name
        return ReadMedia(replace(opened, reader=reader), frames)

    def encoded(self, media: ReadMedia, pruning: PruningConfig, wanted: Callable[[], bool]) -> Clip:
        """The clip. Raises AbandonedError as soon as it is not wanted any more; looks before every frame."""
        with self.vision_turns:
            pending = self.begin(media.opened, pruning=pruning)
            for index in range(pending.num_frames):
                if not wanted():
                    raise AbandonedError("nobody waits for this clip any more")
                pending.frame(index)
            return pending.finish()

    def previews(self, media: ReadMedia, clip: Clip) -> tuple[Preview, ...]:
        """What the model saw of a clip, frame by frame."""
        manifest = self.bundle.manifest
        spec = manifest.processor.image if clip.kind == "image" else manifest.processor.video
        patch, merge = manifest.vision.patch_size, spec.merge_size
        grid = clip.height_px // (patch * merge), clip.width_px // (patch * merge)
        keep = np.ones((clip.num_frames, grid[0] * grid[1]), np.bool_)
        if clip.threshold is not None:
            keep = keep_mask(media.frames, patch, merge, manifest.processor.std, clip.threshold)
        return tuple(
            Preview(time_s, jpeg(frame, _THUMBNAIL_PX), veil(kept, grid), int(kept.sum()), kept.size)
            for time_s, frame, kept in zip(clip.timestamps_s, media.frames, keep, strict=True)
        )

    def prompt_of(self, messages: Messages, clips: Sequence[Clip], add_system_prompt: bool) -> SplicedPrompt:
        """`prompt`, one at a time: templates and tokenizers are shared."""
        with self._preparing:
            return self.prompt(messages, clips, add_system_prompt=add_system_prompt)

    def constraint(self, schema: Mapping[str, Any]) -> JsonConstraint:
        """For one answer that has to fit a JSON schema. Raises ConfigError as `JsonGrammar.constraint`."""
        with self._preparing:
            return self._grammar.constraint(schema)
