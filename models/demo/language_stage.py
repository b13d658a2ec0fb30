"""Second stage of the demo model's training: projector and decoder on clips encoded by the frozen vision encoder.

Beside the answers, linear heads read the hidden states of visual tokens: after layer 3 the number of the frame and how
the shape came there from the frame before, after layer 4 which event happened at the frame before. They are dropped
afterwards; without them training finds the steps that a question about time needs (compare neighbours, compare moves,
name the label) late or never.

Early on most clips keep only one to three random tokens per frame: sequences are short, and every token's feature says
where the shape is. Later clips keep DiffFP's tokens, half of them at the released threshold and the others at none or
higher ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from .answers import held_out_shares
from .clips import keep_above, make_clip
from .model import encode_frames
from .questions import IMAGE_KINDS, VIDEO_KINDS, Question, ask_image, ask_video, draw_wording
from .render import MAX_FRAMES, TRAIN_SEED, Scene
from .sequences import (
    EVENTS,
    MOVES,
    NO_LABEL,
    Batch,
    EncodedClip,
    Sequence,
    encode_clip,
    frame_labels,
)
from .trainer import Trainer
from .vision_stage import still

# How often a kind is asked about a clip. Times are the hardest and are asked most.
_SHARES = {"caption": 0.5, "direction": 0.5, "start": 1.0, "turn": 1.0, "stop": 1.0, "stops?": 0.12, "turns?": 0.12}
_ATTRIBUTE_SHARE = 0.25
_IMAGE_SHARE = 0.12
_CHAIN_SHARE = 0.25


def draw_keep(clip: EncodedClip, few: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Which tokens a training sequence keeps: one to three per frame with probability `few`, else what DiffFP keeps."""
    f, h, w, _ = clip.features.shape
    if rng.random() < few:
        keep = rng.random((f, h * w)).argsort(axis=1) < rng.integers(1, 4, size=(f, 1))
        return keep.reshape(f, h, w)
    draw = rng.random()
    if draw < 0.15:
        return keep_above(clip.difference, None)
    return keep_above(clip.difference, 0.1 if draw < 0.6 else float(np.exp(rng.uniform(np.log(0.1), np.log(25)))))


def draw_questions(scene: Scene, image: bool, rng: np.random.Generator) -> list[Question]:
    """Some of the kinds, in random order and wordings; at least one."""
    kinds: tuple[str, ...] = IMAGE_KINDS if image else VIDEO_KINDS
    ask = ask_image if image else ask_video
    chosen = [kind for kind in kinds if rng.random() < _SHARES.get(kind, 0.6 if image else _ATTRIBUTE_SHARE)]
    chosen = chosen or [str(rng.choice(kinds))]
    rng.shuffle(chosen)
    return [ask(scene, kind, draw_wording(kind, image, rng)) for kind in chosen]


@dataclass
class LanguageTrainer(Trainer):
    """The state of the second stage. After loading it starts with a new optimizer, so the learning rate warms up again.

    few_steps: steps with short sequences (see above). decay_steps: the last steps, in which the rate decays linearly.
    """

    few_steps: int = 1500
    decay_steps: int = 1400
    HEADS: ClassVar[dict[str, int]] = {"moves": len(MOVES), "events": len(EVENTS), "frames": MAX_FRAMES}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.buffer: list[EncodedClip] = []

    def sequences(self, rng: np.random.Generator) -> list[Sequence]:
        """Two batches' worth of sequences; half of the clips are new, the others from the buffer."""
        new = self.batch_clips
        for _ in range(new if len(self.buffer) >= 4 * new else 4 * new):
            made = make_clip(TRAIN_SEED + self.clips_made * self.ranks + self.rank)
            self.clips_made += 1
            self.buffer.append(encode_clip(self.model, made, int(rng.integers(made.scene.frames))))
        del self.buffer[:-40_000]
        used = self.buffer[-new:] + [self.buffer[int(i)] for i in rng.integers(len(self.buffer), size=new)]
        few = 0.7 if self.step < self.few_steps else 0.2
        rows = []
        for clip in used:
            chain = rng.random() < _CHAIN_SHARE
            if rng.random() >= _IMAGE_SHARE:
                questions = draw_questions(clip.scene, False, rng)
                keep, labels = draw_keep(clip, few, rng), frame_labels(clip.scene)
                rows.append(self.builder.video(clip.features, keep, questions, chain, labels))
            elif rng.random() < 0.5:
                rows.append(self.builder.image(clip.image, draw_questions(clip.scene, True, rng), chain))
            else:
                scene, _, picture = still(int(rng.integers(2**31)))
                with torch.no_grad():
                    features = encode_frames(self.model, torch.from_numpy(picture[None]))[0]
                rows.append(self.builder.image(features, draw_questions(scene, True, rng), chain))
        return sorted(rows, key=lambda row: len(row.ids))

    def learning_rate(self) -> float:
        warm = min(1.0, (self.step - self.first_step + 1) / 150)
        return self.rate * warm * min(1.0, max(0.02, (self.steps - self.step) / self.decay_steps))

    def head_losses(self, batch: Batch, after: list[Tensor]) -> dict[str, Tensor]:
        seen = batch.moves.ne(NO_LABEL)
        weight = torch.tensor([1.0, 3.0, 3.0, 3.0])
        return {
            "moves": F.cross_entropy(self.heads["moves"](after[2][seen]), batch.moves[seen]),
            "events": F.cross_entropy(self.heads["events"](after[3][seen]), batch.events[seen], weight=weight),
            "frames": F.cross_entropy(self.heads["frames"](after[2][seen]), batch.frames[seen]),
        }

    def run(self, state: Path, held_out: list[EncodedClip], every: int = 250) -> None:
        """Trains up to `steps`. `every` so many, rank 0 saves and prints the share of right answers on `held_out`."""
        for _ in self.trained_steps():
            if self.step % every == 0 or self.step == self.steps:
                self.save(state)
                shares = held_out_shares(self.average, self.builder, held_out)
                print(" ".join(f"{kind} {share:.3f}" for kind, share in shares.items()), flush=True)
