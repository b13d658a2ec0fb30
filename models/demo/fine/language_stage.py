"""Second stage of the fine model's training: projector and decoder on clips encoded by the frozen vision encoder.

Beside the answers, linear heads read the hidden states of visual tokens and are dropped afterwards: after layer 2 the
number of the frame, after layer 3 whether what lies on the token is new there. Early on most clips keep the tokens that
show something and few others: sequences are short, and what matters is found soon. Later most keep all tokens, or those
of DiffFP, whose gaps mean "as before". No token that shows something is ever dropped at random.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn
from torch.nn import functional as F

from vl3edge.runtime.files import written_whole

from ..answers import answer_logits
from ..clips import keep_above
from ..language_stage import average_gradients
from ..questions import Question
from ..sequences import NO_LABEL, Batch, Sequence, SequenceBuilder, collate
from ..stock import VideoLlama3ForConditionalGeneration
from ..tokenizer import token_id
from .answers import EncodedWorld, encode_clip, held_out_shares
from .clips import make_clip
from .labels import UNKNOWN, news
from .questions import choices
from .vision_stage import SAVE_S
from .world import MAX_FRAMES

# How many questions of a kind are asked of a clip on average; of the others one.
_SHARES = {"caption": 0.5, "cut": 0.3, "sign": 2.0, "says": 1.5, "count": 2.0, "where": 2.0, "side": 2.0}
_NEW_SHARE = 0.2  # of a step's clips; the others were seen before, and are asked other things
_BUFFER = 10_000  # clips, some 75 kB each
_WARM_STEPS = 150
# Shares of all steps: from when on most clips have all tokens, some are pruned, and the learning rate falls evenly.
_FULL_FROM, _PRUNED_FROM, _DECAY_FROM = 0.3, 0.5, 0.65
# Shares of the clips: those with few tokens, early and later, and those that DiffFP prunes.
_FEW, _FEW_LATER, _PRUNED = 0.85, 0.25, 0.3


@dataclass(frozen=True)
class Example:
    """An encoded clip with all that can be asked about it, and `labels.news` of it."""

    clip: EncodedWorld
    questions: dict[str, list[Question]]
    news: NDArray[np.int64]


def draw_questions(questions: dict[str, list[Question]], rng: np.random.Generator) -> list[Question]:
    """Some of the questions in random order, at least one, none twice."""
    drawn = [
        asks[int(rng.integers(len(asks)))]
        for kind, asks in questions.items()
        for _ in range(int(_SHARES.get(kind, 1.0) + rng.random()))
    ]
    asked = list(dict.fromkeys(drawn))
    return [asked[int(i)] for i in rng.permutation(len(asked))]


class FineHeads(nn.Module):
    """The auxiliary read-outs of the decoder's hidden states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.frames = nn.Linear(width, MAX_FRAMES)
        self.news = nn.Linear(width, 2)


@dataclass
class FineTrainer:
    """The state of the second stage; `save` and `load` make it resumable.

    rank, ranks: of this process among those that train together; they average their gradients and stay equal.
    batch_clips: sequences per step in each process. rate: the highest learning rate. clips_made: by this process; its
    k-th clip has seed first_seed + k * ranks + rank.
    """

    model: VideoLlama3ForConditionalGeneration
    tokenizer: Tokenizer
    steps: int
    rank: int = 0
    ranks: int = 1
    batch_clips: int = 4
    rate: float = 1.5e-3
    first_seed: int = 100_000
    step: int = 0
    clips_made: int = 0

    def __post_init__(self) -> None:
        torch.manual_seed(2)
        self.builder = SequenceBuilder(self.tokenizer)
        self.heads = FineHeads(self.model.config.text_config.hidden_size)
        self.model.model.vision_model.requires_grad_(False)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        others = [p for p in trained if p.ndim == 1]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.05},
            {"params": [*others, *self.heads.parameters()], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=self.rate, betas=(0.9, 0.98), fused=True)
        self.trained = [*trained, *self.heads.parameters()]
        self.average = copy.deepcopy(self.model)
        self.buffer: list[Example] = []

    def save(self, path: Path) -> None:
        """Writes the whole state, first beside its name, so that an interruption leaves the last one."""
        state = {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "clips_made": self.clips_made,
        }
        with written_whole(path) as partial:
            torch.save(state, partial)

    def load(self, path: Path) -> None:
        """Continues from a saved state. The buffer of clips starts anew."""
        state = torch.load(path)
        for name in ("model", "average", "heads", "optimizer"):
            getattr(self, name).load_state_dict(state[name])
        self.step, self.clips_made = state["step"], state["clips_made"]

    def _keep(self, example: Example, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Which tokens of a clip a training sequence has."""
        draw = rng.random()
        done = self.step / self.steps
        if draw < (_FEW if done < _FULL_FROM else _FEW_LATER):
            return (example.news != UNKNOWN) | (rng.random(example.news.shape) < rng.uniform(0.05, 0.5))
        if done < _PRUNED_FROM or draw >= _FEW_LATER + _PRUNED:
            return keep_above(example.clip.difference, None)
        return keep_above(example.clip.difference, float(np.exp(rng.uniform(np.log(0.1), np.log(4)))))

    def _sequence(self, example: Example, rng: np.random.Generator) -> Sequence:
        clip, keep = example.clip, self._keep(example, rng)
        unknown = [(NO_LABEL, NO_LABEL)] * clip.world.frames
        sequence = self.builder.video(clip.features, keep, draw_questions(example.questions, rng), labels=unknown)
        new = iter(example.news[keep].tolist())
        sequence.events = [next(new) if token == self.builder.video_id else NO_LABEL for token in sequence.ids]
        return sequence

    def _sequences(self, rng: np.random.Generator) -> list[Sequence]:
        """Two steps' worth of sequences, sorted by length."""
        wanted = 2 * self.batch_clips
        fresh = int(rng.binomial(wanted, _NEW_SHARE)) if len(self.buffer) >= 8 * wanted else 8 * wanted
        for _ in range(fresh):
            made = make_clip(self.first_seed + self.clips_made * self.ranks + self.rank)
            self.clips_made += 1
            self.buffer.append(Example(encode_clip(self.model, made), choices(made.world), news(made.world)))
        del self.buffer[:-_BUFFER]
        used = [self.buffer[int(i)] for i in rng.integers(len(self.buffer), size=wanted)]
        return sorted((self._sequence(example, rng) for example in used), key=lambda row: len(row.ids))

    def _learn(self, batch: Batch) -> dict[str, float]:
        """One step; returns its losses."""
        warm = min(1.0, (self.step + 1) / _WARM_STEPS)
        falling = (1 - self.step / self.steps) / (1 - _DECAY_FROM)
        rate = self.rate * warm * min(1.0, max(0.02, falling))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        logits, targets, after = answer_logits(self.model, batch, self.builder)
        ends = int(targets.eq(token_id(self.tokenizer, "<|im_end|>")).sum())
        answers = F.cross_entropy(logits, targets, reduction="sum") / ends
        seen, known = batch.frames.ne(NO_LABEL), batch.events.ne(NO_LABEL)
        frames = F.cross_entropy(self.heads.frames(after[1][seen]), batch.frames[seen])
        new = F.cross_entropy(self.heads.news(after[2][known]), batch.events[known])
        loss = answers + 0.5 * frames + 0.5 * new
        self.optimizer.zero_grad()
        loss.backward()
        average_gradients(self.trained, self.ranks)
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        kept = min(0.998, 1 - 1 / (self.step + 2))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.model.parameters(), strict=True):
                if value.requires_grad:
                    mean.lerp_(value, 1 - kept)
        return {"answers": answers.item(), "frames": frames.item(), "news": new.item()}

    def run(self, state: Path, held_out: list[EncodedWorld], asked: list[list[Question]], every: int = 200) -> None:
        """Trains up to `steps`. Rank 0 saves every few minutes, and prints the shares of right answers on `held_out`
        `every` so many steps."""
        rng = np.random.default_rng([7, self.step, self.rank])
        started = saved = time.monotonic()
        means: dict[str, float] = {}
        while self.step < self.steps:
            rows = self._sequences(rng)
            for part in (rows[: self.batch_clips], rows[self.batch_clips :]):
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
                if time.monotonic() - saved > SAVE_S or self.step >= self.steps:
                    self.save(state)
                    saved = time.monotonic()
                if self.step % every == 0 or self.step >= self.steps:
                    for pruned in ("no", "half", "difffp") if held_out else ():
                        shares = held_out_shares(self.average, self.builder, held_out, asked, pruned)
                        figures = " ".join(f"{kind} {share:.3f}" for kind, share in shares.items())
                        print(f"  pruned {pruned}: {figures}", flush=True)
