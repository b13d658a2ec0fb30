"""How a clip will be processed, without running a model: frames, pruning, context, memory, minimum time.

Frames are sampled, resized and pruned by the code that encodes them (`vision/clip_encoder.py`, `vision/difffp.py`), and
the prompt is spliced by the code that asks about them, so the counts are those of a real call. Memory is the estimate
of `memory_estimate.py`; times are floors, float32 arithmetic and bytes over what this machine's CPU does at best, and
no predictions: stages that compute in 8 bits may pass them, all others take longer.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import roofline as workload
from ..backends.select import select_backend
from ..bundle.bundle import Bundle
from ..config import GenerationConfig, MediaKind, PruningConfig, SamplingPlan
from ..host import cores
from ..media.addresses import without_secrets
from ..memory_estimate import MemoryEstimate, estimate
from ..prompt.chat_template import DESCRIBE, MediaItem, Piece, PromptTemplate, question_about, with_system
from ..prompt.messages import conversation_pieces
from ..prompt.splice import VisualTokens, splice
from ..prompt.tokenizer import Tokenizer
from ..roofline import multiply_rate, read_bandwidth
from ..terminal import one_line
from ..vision.clip import new_uid
from ..vision.clip_encoder import ClipEncoder
from ..vision.difffp import token_differences
from ..vision.difffp_threshold import choose_threshold
from ..vision.engines import VisionEngines
from ..vision.opened_media import OpenedMedia
from ..vision.uniqueness import check_budget

LEVELS = 255.0
"""Thresholds here are times 255, as in the released model; the paper's, those of Run-Length Tokenization, are not."""
_SHOWN = 80  # characters of a name


@dataclass(frozen=True)
class Speed:
    """What this machine can do at best: bytes a second read from memory, float32 operations a second."""

    bandwidth: float
    flops: float

    @classmethod
    def measured(cls) -> Speed:
        """Measures this machine for about half a second; other load makes it look slower."""
        return cls(read_bandwidth(cores(), repeats=3), multiply_rate(repeats=3))


@dataclass(frozen=True)
class Cost:
    """What one answer about the clip takes, with the visual tokens that are left.

    visual_tokens, text_tokens: of the prompt. media_tokens: see `SplicedPrompt`.
    answer_tokens: the longest answer; 0 if the prompt leaves no room.
    memory: of the whole process on a CPU; of a full context where the prompt does not fit.
    floors_s: least seconds of every stage on this machine, with float32 products.
    """

    visual_tokens: int
    text_tokens: int
    media_tokens: int
    answer_tokens: int
    memory: MemoryEstimate
    floors_s: dict[str, float]

    @property
    def prompt_tokens(self) -> int:
        return self.visual_tokens + self.text_tokens

    @property
    def floor_s(self) -> float:
        """Of all stages, one after the other."""
        return sum(self.floors_s.values())


@dataclass(frozen=True, eq=False)
class Inspection:
    """A clip as a model would see it.

    model: the bundle's name. source_size: height and width before resizing, in pixels. duration_s: of the video; 0 for
        an image. start_s, end_s: of the part sampled. frames: uint8 [F, H, W, 3], as they would be encoded.
    block: side of a token's block in pixels. differences: float64 [F, n] of `token_differences`.
    keep: bool [F, n], what DiffFP leaves; which of these a budget drops, only the encoder's output can tell.
    threshold: of DiffFP; None where every token is kept, as of an image.
    pruned, whole: what an answer takes with pruning as asked for, and with every token kept.
    read_s: what reading and resizing took just now. context_tokens: the model's limit.
    """

    name: str
    kind: MediaKind
    model: str
    question: str
    source_size: tuple[int, int]
    duration_s: float
    start_s: float
    end_s: float
    timestamps_s: tuple[float, ...]
    frames: npt.NDArray[np.uint8]
    block: int
    differences: npt.NDArray[np.float64]
    keep: npt.NDArray[np.bool_]
    threshold: float | None
    pruned: Cost
    whole: Cost
    context_tokens: int
    read_s: float

    @property
    def title(self) -> str:
        """The file's name without its folder, as it can be shown anywhere."""
        name = without_secrets(self.name)
        return shortened(Path(name).name or name)

    @property
    def shown_question(self) -> str:
        """The question, short enough for a line."""
        return shortened(self.question)

    @property
    def num_frames(self) -> int:
        return len(self.frames)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames, in pixels."""
        return self.frames.shape[1], self.frames.shape[2]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of a frame's tokens."""
        return self.size[0] // self.block, self.size[1] // self.block

    @property
    def moves(self) -> bool:
        """Whether there are frames to compare."""
        return self.num_frames > 1

    @property
    def drops(self) -> int:
        """How many of the tokens that DiffFP leaves the decoder does not get."""
        return int(self.keep.sum()) - self.pruned.visual_tokens

    @property
    def costs(self) -> dict[str, Cost]:
        """What to compare, by name; the one cost has none where nothing could be pruned."""
        if not self.drops and (self.threshold is None or not self.moves):
            return {"": self.whole}
        return {"pruned": self.pruned, "every token": self.whole}

    @cached_property
    def tokens_per_frame(self) -> tuple[int, ...]:
        return tuple(self.keep.sum(axis=1).tolist())

    @property
    def share_kept(self) -> float:
        return self.pruned.visual_tokens / self.keep.size

    def kept_with(self, thresholds: Sequence[float] | npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """How many tokens of the clip each threshold keeps, int64 [len(thresholds)]."""
        return tokens_kept(self.differences, np.asarray(thresholds, np.float64))


def shortened(text: str) -> str:
    """At most 80 characters of a text, on one line, without any that cannot be shown or written as UTF-8."""
    text = one_line(text).encode("utf-8", "replace").decode("utf-8")
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 21]}…{text[-20:]}"


def tokens_kept(differences: npt.NDArray[np.float64], thresholds: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """How many tokens of a clip each of thresholds, float64 [T], keeps: int64 [T]; differences as of `Inspection`."""
    total = np.full(len(thresholds), differences.shape[1], np.int64)
    for row in differences[1:]:  # of a frame in which nothing changed, one token is kept
        total += np.maximum(1, len(row) - np.searchsorted(np.sort(row), thresholds, side="right"))
    return total


def inspect(
    bundle: Bundle,
    media: Any,
    sampling: SamplingPlan | None = None,
    pruning: PruningConfig | None = None,
    question: str | None = None,
    generation: GenerationConfig | None = None,
    speed: Speed | None = None,
    system: str | None = None,
    add_system_prompt: bool = False,
    kind: MediaKind | None = None,
) -> Inspection:
    """What `bundle` would make of media and a question about them; no graph of it is loaded.

    media, sampling, pruning, kind: as of `VideoLlama3.encode`. question: None asks for a description.
    system, add_system_prompt: see `VideoLlama3`.
    speed: of the machine; None measures it. Raises MediaError, ConfigError, BundleError as encoding and asking would.
    """
    manifest, pruning = bundle.manifest, pruning or PruningConfig()
    processor, patch = manifest.processor, manifest.vision.patch_size
    encoder = ClipEncoder(VisionEngines(bundle, select_backend("cpu", 0)), processor, patch)
    opened = encoder.open(media, kind, sampling)
    begin = time.perf_counter()
    frames = encoder.frames(opened)
    read_s = opened.read_s + time.perf_counter() - begin
    merge = (processor.image if opened.kind == "image" else processor.video).merge_size
    differences = token_differences(frames, patch, merge, processor.std)
    threshold = _threshold(encoder, opened, pruning, differences)
    keep = _keep(differences, threshold)
    question = question or DESCRIBE[opened.kind]
    messages = with_system(question_about([opened], question), system)
    tokenizer, item = Tokenizer.of(bundle), MediaItem(opened.kind, opened.timestamps_s)
    template = PromptTemplate.of(bundle, tokenizer)
    pieces = conversation_pieces(template, messages, [item], add_system_prompt=add_system_prompt)
    generation, speed = generation or GenerationConfig(), speed or Speed.measured()
    costs = _Costs(bundle, tokenizer, opened, frames, merge, pieces, generation, speed)
    return Inspection(
        name=opened.name,
        kind=opened.kind,
        model=manifest.name,
        question=question,
        source_size=(opened.height, opened.width),
        duration_s=0.0 if opened.kind == "image" else opened.reader.duration_s,
        start_s=opened.start_s or 0.0,
        end_s=opened.end_s or 0.0,
        timestamps_s=opened.timestamps_s,
        frames=frames,
        block=patch * merge,
        differences=differences,
        keep=keep,
        threshold=threshold,
        pruned=costs.of(keep, _tokens_given(opened, pruning, keep)),
        whole=costs.of(np.ones_like(keep), keep.size),
        context_tokens=manifest.text.max_position_embeddings,
        read_s=read_s,
    )


def _threshold(
    encoder: ClipEncoder, media: OpenedMedia, pruning: PruningConfig, differences: npt.NDArray[np.float64]
) -> float | None:
    return None if encoder.pruner(media.kind, pruning) is None else choose_threshold(differences, pruning)


def _tokens_given(media: OpenedMedia, pruning: PruningConfig, keep: npt.NDArray[np.bool_]) -> int:
    """How many of the tokens that DiffFP leaves the decoder gets."""
    left = int(keep.sum())
    if media.kind == "image":
        return left
    if pruning.max_visual_tokens is not None:
        check_budget(media.name, len(keep), pruning.max_visual_tokens)
    return max(pruning.tokens_chosen(left), len(keep))


def _keep(differences: npt.NDArray[np.float64], threshold: float | None) -> npt.NDArray[np.bool_]:
    """DiffFP's decisions, as `FramePruner.push` makes them."""
    if threshold is None:
        return np.ones(differences.shape, np.bool_)
    keep = differences > threshold
    keep[~keep.any(axis=1), 0] = True
    return keep


class _Costs:
    """Costs of answers that differ only in which visual tokens are kept."""

    def __init__(
        self,
        bundle: Bundle,
        tokenizer: Tokenizer,
        media: OpenedMedia,
        frames: npt.NDArray[np.uint8],
        merge: int,
        pieces: list[Piece],
        generation: GenerationConfig,
        speed: Speed,
    ) -> None:
        self._bundle, self._media, self._speed = bundle, media, speed
        self._size = (frames.shape[1], frames.shape[2])
        self._merge = merge
        # A frame that equals its predecessor is not encoded again.
        self._encoded = 1 + sum(not np.array_equal(a, b) for a, b in pairwise(frames))
        self._generation = generation
        self._tokenizer = tokenizer
        self._pieces = pieces

    def of(self, keep: npt.NDArray[np.bool_], visual: int) -> Cost:
        """keep: bool [F, n], what DiffFP leaves. visual: how many of these the decoder gets, at least F."""
        manifest, media = self._bundle.manifest, self._media
        left = keep.sum(axis=1)
        # Whose tokens go is not known here, and changes no length: one of each frame, the others from the first on.
        given = 1 + np.diff(np.minimum(np.cumsum(left - 1), visual - len(left)), prepend=0)
        nothing = VisualTokens(np.zeros((visual, 0), np.float32), tuple(given.tolist()), new_uid())
        spliced = splice(self._pieces, [nothing], [0], self._tokenizer)
        prompt = len(spliced)
        limit = manifest.text.max_position_embeddings
        answer = max(0, min(self._generation.new_tokens(manifest.generation, prompt), limit - prompt))
        memory = estimate(
            manifest,
            frames=media.num_frames,
            size=self._size,
            visual_tokens=int(left.sum()),
            context_tokens=min(limit, prompt + answer),
            kind=media.kind,
            source_size=(media.height, media.width),
        )
        floors = self._floors(int(left.sum()), prompt, answer)
        return Cost(visual, prompt - visual, spliced.media_tokens, answer, memory, floors)

    def _floors(self, projected: int, prompt: int, answer: int) -> dict[str, float]:
        manifest, speed = self._bundle.manifest, self._speed
        patches = self._size[0] * self._size[1] // manifest.vision.patch_size**2
        steps = max(0, answer - 1)  # the first token comes with the prefill
        read = steps * workload.step_bytes(self._bundle, prompt + answer // 2)
        return {
            "vision encoder": self._encoded * workload.vision_flops(manifest, patches) / speed.flops,
            "projector": workload.projector_flops(manifest, projected) / speed.flops,
            "prefill": workload.prefill_flops(manifest, prompt) / speed.flops,
            "decoding": max(read / speed.bandwidth, steps * workload.prefill_flops(manifest, 1) / speed.flops),
        }
