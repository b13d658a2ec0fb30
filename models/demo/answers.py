"""The demo model's answers under teacher forcing: logits where an answer's token is predicted, and exact matches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .clips import keep_above
from .model import decode
from .questions import IMAGE_KINDS, VIDEO_KINDS, ask_image, ask_video
from .sequences import NO_LABEL, Batch, EncodedClip, SequenceBuilder, collate
from .stock import VideoLlama3ForConditionalGeneration


def embed(model: VideoLlama3ForConditionalGeneration, batch: Batch, builder: SequenceBuilder) -> Tensor:
    """Input embeddings [B, S, 128]: the table's rows, with projected visual features in place of the placeholders."""
    table = model.model.language_model.embed_tokens
    embeddings = table(batch.ids)
    slots = (batch.ids == builder.video_id) | (batch.ids == builder.image_id)
    return embeddings.masked_scatter(slots[..., None], model.model.projector(batch.visual))


def answer_logits(
    model: VideoLlama3ForConditionalGeneration, batch: Batch, builder: SequenceBuilder
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Logits [N, 448] where an answer's token is predicted, those tokens [N], and hidden states after each layer."""
    hidden, after = decode(model, embed(model, batch, builder), batch.positions, batch.mask)
    wanted = batch.targets.ne(NO_LABEL)
    return F.linear(hidden[wanted], model.model.language_model.embed_tokens.weight), batch.targets[wanted], after


@torch.no_grad()
def held_out_shares(
    model: VideoLlama3ForConditionalGeneration,
    builder: SequenceBuilder,
    clips: list[EncodedClip],
    threshold: float | None = 0.1,
) -> dict[str, float]:
    """Share of exactly right answers by kind. Teacher forcing is equivalent to greedy decoding here: an answer is right
    if each of its tokens, and the end, is the most likely one given those before."""
    right: dict[str, list[bool]] = {}
    for start in range(0, len(clips), 8):
        part = clips[start : start + 8]
        asked = [[ask_video(clip.scene, kind) for kind in VIDEO_KINDS] for clip in part]
        rows = [
            builder.video(clip.features, keep_above(clip.difference, threshold), questions)
            for clip, questions in zip(part, asked, strict=True)
        ]
        stills = [[ask_image(clip.scene, kind) for kind in IMAGE_KINDS] for clip in part]
        rows += [builder.image(clip.image, qs) for clip, qs in zip(part, stills, strict=True)]
        logits, targets, _ = answer_logits(model, collate(rows), builder)
        hits = (logits.argmax(-1) == targets).tolist()
        names = [q.kind if q.event else "never" for qs in asked for q in qs]
        names += [f"image {q.kind}" for qs in stills for q in qs]
        ends = (targets == builder.encode("<|im_end|>")[0]).nonzero()[:, 0].tolist()
        first = 0
        for name, end in zip(names, ends, strict=True):
            right.setdefault(name, []).append(all(hits[first : end + 1]))
            first = end + 1
    return {name: float(np.mean(values)) for name, values in right.items()}
