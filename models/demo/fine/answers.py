"""The fine model's answers under teacher forcing, on clips that the encoder has seen."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..answers import answer_logits
from ..clips import keep_above, token_differences
from ..model import encode_frames, merge_features
from ..questions import Question
from ..sequences import SequenceBuilder, collate
from ..stock import VideoLlama3ForConditionalGeneration
from .clips import WorldClip
from .world import World


@dataclass(frozen=True)
class EncodedWorld:
    """A clip after the frozen encoder. features: float16 [F, 5, 5, 128], merged; difference: [F - 1, 5, 5], DiffFP's
    measure between neighbouring frames."""

    world: World
    features: Tensor
    difference: NDArray[np.float64]


@torch.no_grad()
def encode_clip(model: VideoLlama3ForConditionalGeneration, clip: WorldClip) -> EncodedWorld:
    """Runs the vision encoder over a clip's frames."""
    features = merge_features(encode_frames(model, torch.from_numpy(clip.frames)))
    return EncodedWorld(clip.world, features.half(), token_differences(clip.frames))


@torch.no_grad()
def right_answers(
    model: VideoLlama3ForConditionalGeneration,
    builder: SequenceBuilder,
    clips: list[EncodedWorld],
    keeps: list[NDArray[np.bool_]],
    asked: list[list[Question]],
) -> list[list[bool]]:
    """Whether each question asked of each clip is answered exactly right from the kept tokens. Teacher forcing is
    equivalent to greedy decoding here: each token of the answer, and its end, is the likeliest after those before it.
    """
    rows = [builder.video(clip.features, keep, asks) for clip, keep, asks in zip(clips, keeps, asked, strict=True)]
    logits, targets, _ = answer_logits(model, collate(rows), builder)
    hits = iter((logits.argmax(-1) == targets).tolist())
    lengths = [[len(builder.encode(f"{q.answer}<|im_end|>")) for q in asks] for asks in asked]
    return [[all(list(islice(hits, length))) for length in row] for row in lengths]


def random_keep(shape: tuple[int, ...], share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """A random mask of a clip's tokens [F, h, w] that keeps this share of every frame, and at least one token."""
    frames, count = shape[0], int(np.prod(shape[1:]))
    keep = rng.random((frames, count)).argsort(axis=1) < max(1, round(share * count))
    return keep.reshape(shape)


def held_out_shares(
    model: VideoLlama3ForConditionalGeneration,
    builder: SequenceBuilder,
    clips: list[EncodedWorld],
    asked: list[list[Question]],
    pruned: str = "no",
) -> dict[str, float]:
    """Share of exactly right answers by kind and of all. pruned: "no", "difffp" (at 0.1) or "half" (at random)."""
    rng = np.random.default_rng(16)
    right: dict[str, list[bool]] = {}
    for start in range(0, len(clips), 16):
        part, asks = clips[start : start + 16], asked[start : start + 16]
        if pruned == "half":
            keeps = [random_keep(clip.features.shape[:3], 0.5, rng) for clip in part]
        else:
            keeps = [keep_above(clip.difference, 0.1 if pruned == "difffp" else None) for clip in part]
        for questions, row in zip(asks, right_answers(model, builder, part, keeps, asks), strict=True):
            for question, hit in zip(questions, row, strict=True):
                right.setdefault(question.kind, []).append(hit)
    shares = {kind: float(np.mean(hits)) for kind, hits in right.items()}
    return shares | {"all": float(np.mean([hit for hits in right.values() for hit in hits]))}
