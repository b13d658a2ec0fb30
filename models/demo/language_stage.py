"""Second stage of the demo model's training: projector and decoder on clips encoded by the frozen vision encoder.

Beside the answers, linear heads read the hidden states of visual tokens: after layer 3 the number of the frame and how
the shape came there from the frame before, after layer 4 which event happened at the frame before. They are dropped
afterwards; without them the steps that a question about time needs (compare neighbours, compare moves, name the label)
are found late or never.
Early on most clips keep only one to three tokens per frame, drawn at random: sequences are short, and every token's
feature says where the shape is. Later the tokens are those that DiffFP keeps, at the released threshold for half of
the clips and at none or higher ones for the others.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

from vl3edge.runtime.files import written_whole

from .answers import answer_logits, held_out_shares
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
    SequenceBuilder,
    collate,
    encode_clip,
    frame_labels,
)
from .stock import VideoLlama3ForConditionalGeneration
from .tokenizer import token_id
from .vision_stage import still

# How often a kind is asked of a clip. Times are the hardest and are asked most.
_SHARES = {"caption": 0.5, "direction": 0.5, "start": 1.0, "turn": 1.0, "stop": 1.0, "stops?": 0.12, "turns?": 0.12}
_ATTRIBUTE_SHARE = 0.25
_IMAGE_SHARE = 0.12
_CHAIN_SHARE = 0.25


class TrainingHeads(nn.Module):
    """The auxiliary read-outs of the decoder's hidden states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.moves = nn.Linear(width, len(MOVES))
        self.events = nn.Linear(width, len(EVENTS))
        self.frames = nn.Linear(width, MAX_FRAMES)


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


def average_gradients(parameters: list[nn.Parameter], ranks: int) -> None:
    """Replaces gradients by their mean over so many processes that train together."""
    if ranks == 1:
        return
    flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    torch.distributed.all_reduce(flat)
    flat /= ranks
    first = 0
    for p in parameters:
        if p.grad is not None:
            p.grad.copy_(flat[first : first + p.numel()].view_as(p))
            first += p.numel()


@dataclass
class LanguageTrainer:
    """The state of the second stage; `save` and `load` make it resumable.

    rank, ranks: of this process among those that train together; they average their gradients and stay equal.
    batch_clips: sequences per step in each process. few_steps: how long sequences are short (see above).
    decay_steps: the last steps, in which the learning rate falls evenly.
    clips_made: by this process; its k-th clip has seed k * ranks + rank.
    """

    model: VideoLlama3ForConditionalGeneration
    tokenizer: Tokenizer
    steps: int
    rank: int = 0
    ranks: int = 1
    batch_clips: int = 8
    few_steps: int = 1500
    decay_steps: int = 1400
    rate: float = 1.5e-3
    step: int = 0
    clips_made: int = 0

    def __post_init__(self) -> None:
        torch.manual_seed(2)
        self.builder = SequenceBuilder(self.tokenizer)
        self.heads = TrainingHeads(self.model.config.text_config.hidden_size)
        self.model.model.vision_model.requires_grad_(False)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        matrices = [p for p in trained if p.ndim > 1]
        others = [p for p in trained if p.ndim == 1]
        groups = [
            {"params": matrices, "weight_decay": 0.05},
            {"params": [*others, *self.heads.parameters()], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.rate, betas=(0.9, 0.98), fused=True)
        self.trained = [*trained, *self.heads.parameters()]
        self.average = copy.deepcopy(self.model)
        self.buffer: list[EncodedClip] = []
        self.first_step = self.step

    def save(self, path: Path) -> None:
        """Writes the whole state, first beside its name, so that an interruption leaves the last one."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "heads": self.heads.state_dict(),
            "step": self.step,
            "clips_made": self.clips_made,
        }
        with written_whole(path) as partial:
            torch.save(state, partial)

    def load(self, path: Path) -> None:
        """Continues from a saved state. The optimizer's moments and the replay buffer start anew, and so the learning
        rate warms up again."""
        state = torch.load(path)
        for name in ("model", "average", "heads"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.clips_made = state["step"], state["clips_made"]
        self.first_step = self.step

    def _sequences(self, rng: np.random.Generator) -> list[Sequence]:
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

    def _learn(self, batch: Batch) -> dict[str, float]:
        """One step; returns its losses."""
        warm = min(1.0, (self.step - self.first_step + 1) / 150)
        rate = self.rate * warm * min(1.0, max(0.02, (self.steps - self.step) / self.decay_steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        logits, targets, after = answer_logits(self.model, batch, self.builder)
        ends = int(targets.eq(token_id(self.tokenizer, "<|im_end|>")).sum())
        answers = F.cross_entropy(logits, targets, reduction="sum") / ends
        seen = batch.moves.ne(NO_LABEL)
        moves = F.cross_entropy(self.heads.moves(after[2][seen]), batch.moves[seen])
        weight = torch.tensor([1.0, 3.0, 3.0, 3.0])
        events = F.cross_entropy(self.heads.events(after[3][seen]), batch.events[seen], weight=weight)
        frames = F.cross_entropy(self.heads.frames(after[2][seen]), batch.frames[seen])
        loss = answers + 0.5 * moves + 0.5 * events + 0.5 * frames
        self.optimizer.zero_grad()
        loss.backward()
        average_gradients(self.trained, self.ranks)
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        keep = min(0.998, 1 - 1 / (self.step + 2))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                if value.requires_grad:
                    mean.lerp_(value, 1 - keep)
        return {"answers": answers.item(), "moves": moves.item(), "events": events.item(), "frames": frames.item()}

    def run(self, state: Path, held_out: list[EncodedClip], every: int = 250) -> None:
        """Trains up to `steps`. `every` so many, rank 0 saves and prints the share of right answers on `held_out`."""
        rng = np.random.default_rng([7, self.step, self.rank])
        started = time.monotonic()
        means: dict[str, float] = {}
        while self.step < self.steps:
            rows = self._sequences(rng)
            half = len(rows) // 2
            for part in (rows[:half], rows[half:]):
                batch = collate(part)
                for name, value in self._learn(batch).items():
                    means[name] = 0.95 * means.get(name, value) + 0.05 * value
                self.step += 1
                if self.rank:
                    continue
                if self.step % 50 == 0:
                    figures = " ".join(f"{name} {value:.3f}" for name, value in means.items())
                    seconds = time.monotonic() - started
                    print(f"language {self.step} {seconds:.0f}s {figures} tokens {batch.ids.numel()}", flush=True)
                if self.step % every == 0 or self.step == self.steps:
                    self.save(state)
                    shares = held_out_shares(self.average, self.builder, held_out)
                    print(" ".join(f"{kind} {share:.3f}" for kind, share in shares.items()), flush=True)
