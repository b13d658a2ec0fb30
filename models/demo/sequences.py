"""Training sequences of the decoder: the exact text of the chat template, with visual tokens in place.

One sequence asks several questions about one clip. Most ask them *side by side*: every question sees only the clip and
itself, at the positions it would have alone, so each is a single-turn conversation and the clip's tokens are computed
once. The others are real conversations of several turns.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor

from .clips import SceneClip, token_differences
from .model import encode_frames, merge_features
from .questions import Question
from .render import DIRECTIONS, Scene
from .stock import VideoLlama3ForConditionalGeneration
from .tokenizer import token_id

NO_LABEL = -100
MOVES = ("rests", *DIRECTIONS, "first frame")
EVENTS = ("none", "start", "turn", "stop")


@dataclass(frozen=True)
class EncodedClip:
    """A clip after the frozen encoder. features: float16 [F, 4, 4, 96], merged; image: float16 [8, 8, 96], frame
    `image_frame` unmerged; difference: [F - 1, 4, 4], DiffFP's measure between neighbouring frames."""

    scene: Scene
    features: Tensor
    image: Tensor
    difference: NDArray[np.float64]


@torch.no_grad()
def encode_clip(model: VideoLlama3ForConditionalGeneration, clip: SceneClip, image_frame: int = 0) -> EncodedClip:
    """Runs the vision encoder over a clip's frames."""
    features = encode_frames(model, torch.from_numpy(clip.frames))
    return EncodedClip(
        clip.scene,
        merge_features(features).half(),
        features[image_frame].half(),
        token_differences(clip.frames),
    )


@dataclass
class Sequence:
    """One row of a batch. All lists have one entry per token.

    targets: the next token where it belongs to an answer, else -100. blocks: 0 for tokens that all later ones may
    attend to, k > 0 for the k-th question, visible only to itself. moves, events, frames: what the frame of a visual
    token shows (an index into MOVES and EVENTS) and its number, else -100. visual: [tokens, 96] features in order.
    """

    ids: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    moves: list[int] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    visual: Tensor = field(default_factory=lambda: torch.zeros(0, 96))

    def add(
        self, ids: list[int], block: int, start: int, labels: tuple[int, int, int] = (NO_LABEL, NO_LABEL, NO_LABEL)
    ) -> None:
        """Appends tokens at the positions from `start` on, none of them a target."""
        self.ids += ids
        self.targets += [NO_LABEL] * len(ids)
        self.positions += range(start, start + len(ids))
        self.blocks += [block] * len(ids)
        for row, label in zip((self.moves, self.events, self.frames), labels, strict=True):
            row += [label] * len(ids)


class SequenceBuilder:
    """Builds sequences with one tokenizer; the pieces' ids are cached."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self.image_id = token_id(tokenizer, "<|image_pad|>")
        self.video_id = token_id(tokenizer, "<|video_pad|>")
        self.encode = lru_cache(maxsize=None)(self._encode)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text).ids)

    def video(
        self,
        features: Tensor,
        keep: NDArray[np.bool_],
        questions: list[Question],
        chain: bool = False,
        labels: list[tuple[int, int]] | None = None,
    ) -> Sequence:
        """A clip at 1 frame per second, features [F, h, w, 96] merged, of which `keep` [F, h, w] stay; then questions
        side by side or, with `chain`, in turns. labels: see `frame_labels`; for training."""
        sequence = Sequence()
        sequence.add(list(self.encode("<|im_start|>user\n")), 0, 0)
        for n, kept in enumerate(keep.reshape(len(keep), -1).sum(axis=1).tolist()):
            sequence.add(list(self.encode(f"{',' if n else ''}Time {n}.0s:")), 0, len(sequence.ids))
            move, event = labels[n] if labels else (NO_LABEL, NO_LABEL)
            sequence.add([self.video_id] * kept, 0, len(sequence.ids), (move, event, n if labels else NO_LABEL))
        sequence.visual = features[torch.from_numpy(keep)].float()
        self._ask(sequence, questions, chain)
        return sequence

    def image(self, features: Tensor, questions: list[Question], chain: bool = False) -> Sequence:
        """A still, features [h, w, 96] unmerged, then questions."""
        sequence = Sequence()
        sequence.add(list(self.encode("<|im_start|>user\n")), 0, 0)
        sequence.visual = features.flatten(0, 1).float()
        sequence.add([self.image_id] * len(sequence.visual), 0, len(sequence.ids))
        self._ask(sequence, questions, chain)
        return sequence

    def _ask(self, sequence: Sequence, questions: list[Question], chain: bool) -> None:
        """The media's closing line end, then each question's turn and its answer with <|im_end|> as targets."""
        sequence.add(list(self.encode("\n")), 0, len(sequence.ids))
        prefix = len(sequence.ids)
        for k, question in enumerate(questions):
            opening = "<|im_end|>\n<|im_start|>user\n" if chain and k else ""
            turn = list(self.encode(f"{opening}{question.text}<|im_end|>\n<|im_start|>assistant\n"))
            if opening:
                turn = turn[1:]  # the previous answer ends with its <|im_end|>
            answer = list(self.encode(f"{question.answer}<|im_end|>"))
            block = 1 if chain else k + 1
            start = len(sequence.ids) if chain else prefix
            sequence.add(turn + answer, block, start)
            sequence.targets[-len(answer) - 1 : -1] = answer


def frame_labels(scene: Scene) -> list[tuple[int, int]]:
    """Per frame: how the shape came from the frame before, and which event happened *at* the frame before (indices into
    MOVES and EVENTS)."""
    labels = [(MOVES.index("first frame"), 0)]
    for n in range(1, scene.frames):
        step = np.sign(np.rint(scene.centres[n] - scene.centres[n - 1])).astype(int).tolist()
        name = next((name for name, way in DIRECTIONS.items() if list(way) == step), "rests")
        at = n - 1
        started = bool(scene.legs) and scene.wait_s > 0 and at == scene.wait_s
        event = 1 if started else 2 if at == scene.turn_time else 3 if at == scene.stop_time else 0
        labels.append((MOVES.index(name), event))
    return labels


@dataclass(frozen=True)
class Batch:
    """Padded sequences: int64 [B, S], but for mask bool [B, S, S] and visual [K, 96]."""

    ids: Tensor
    targets: Tensor
    positions: Tensor
    moves: Tensor
    events: Tensor
    frames: Tensor
    mask: Tensor
    visual: Tensor


def collate(sequences: list[Sequence]) -> Batch:
    """Pads sequences on the right."""
    length = max(len(sequence.ids) for sequence in sequences)

    def padded(name: str, fill: int) -> Tensor:
        rows = [getattr(sequence, name) for sequence in sequences]
        return torch.tensor([row + [fill] * (length - len(row)) for row in rows])

    blocks = padded("blocks", -1)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = causal & ((blocks[:, None, :] == 0) | (blocks[:, None, :] == blocks[:, :, None]))
    return Batch(
        padded("ids", 0),
        padded("targets", NO_LABEL),
        padded("positions", 0),
        padded("moves", NO_LABEL),
        padded("events", NO_LABEL),
        padded("frames", NO_LABEL),
        mask,
        torch.cat([sequence.visual for sequence in sequences]),
    )
