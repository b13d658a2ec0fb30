"""Second stage of the fine model's training: projector and decoder on clips encoded by the frozen vision encoder.

Beside the answers, linear heads read the hidden states of visual tokens and are dropped afterwards: after layer 2 the
number of the frame, after layer 3 whether what lies on the token is new there. Early on most clips keep the tokens that
show something and few others: sequences are short, and training finds what matters quickly. Later most keep all tokens,
or those of DiffFP, whose gaps mean "unchanged". No token that shows something is ever dropped at random.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..clips import keep_above
from ..questions import Question
from ..sequences import NO_LABEL, Batch, Sequence
from ..trainer import Trainer
from .answers import EncodedWorld, encode_clip, held_out_shares
from .clips import make_clip
from .labels import UNKNOWN, news
from .questions import choices
from .vision_stage import SAVE_S
from .world import MAX_FRAMES

# Average number of questions of a kind about a clip; one for all other kinds.
_SHARES = {"caption": 0.5, "cut": 0.3, "sign": 2.0, "says": 1.5, "count": 2.0, "where": 2.0, "side": 2.0}
_NEW_SHARE = 0.2  # share of new clips in a step; the others were seen before, with other questions
_BUFFER = 10_000  # clips, some 75 kB each
_WARM_STEPS = 150
# Shares of all steps from which most clips have all tokens, some are pruned, and the learning rate decays linearly.
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
    """Some of the questions in random order, at least one, without repetition."""
    drawn = [
        asks[int(rng.integers(len(asks)))]
        for kind, asks in questions.items()
        for _ in range(int(_SHARES.get(kind, 1.0) + rng.random()))
    ]
    asked = list(dict.fromkeys(drawn))
    return [asked[int(i)] for i in rng.permutation(len(asked))]


@dataclass
class FineTrainer(Trainer):
    """The state of the second stage."""

    batch_clips: int = 4
    first_seed: int = 100_000
    HEADS: ClassVar[dict[str, int]] = {"frames": MAX_FRAMES, "news": 2}
    SAVED: ClassVar[tuple[str, ...]] = ("model", "average", "heads", "optimizer")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.buffer: list[Example] = []

    def keep(self, example: Example, rng: np.random.Generator) -> NDArray[np.bool_]:
        """Which tokens of a clip a training sequence has."""
        draw = rng.random()
        done = self.step / self.steps
        if draw < (_FEW if done < _FULL_FROM else _FEW_LATER):
            return (example.news != UNKNOWN) | (rng.random(example.news.shape) < rng.uniform(0.05, 0.5))
        if done < _PRUNED_FROM or draw >= _FEW_LATER + _PRUNED:
            return keep_above(example.clip.difference, None)
        return keep_above(example.clip.difference, float(np.exp(rng.uniform(np.log(0.1), np.log(4)))))

    def sequence(self, example: Example, rng: np.random.Generator) -> Sequence:
        clip, keep = example.clip, self.keep(example, rng)
        unknown = [(NO_LABEL, NO_LABEL)] * clip.world.frames
        sequence = self.builder.video(clip.features, keep, draw_questions(example.questions, rng), labels=unknown)
        new = iter(example.news[keep].tolist())
        sequence.events = [next(new) if token == self.builder.video_id else NO_LABEL for token in sequence.ids]
        return sequence

    def sequences(self, rng: np.random.Generator) -> list[Sequence]:
        wanted = 2 * self.batch_clips
        fresh = int(rng.binomial(wanted, _NEW_SHARE)) if len(self.buffer) >= 8 * wanted else 8 * wanted
        for _ in range(fresh):
            made = make_clip(self.first_seed + self.clips_made * self.ranks + self.rank)
            self.clips_made += 1
            self.buffer.append(Example(encode_clip(self.model, made), choices(made.world), news(made.world)))
        del self.buffer[:-_BUFFER]
        used = [self.buffer[int(i)] for i in rng.integers(len(self.buffer), size=wanted)]
        return sorted((self.sequence(example, rng) for example in used), key=lambda row: len(row.ids))

    def learning_rate(self) -> float:
        falling = (1 - self.step / self.steps) / (1 - _DECAY_FROM)
        return self.rate * min(1.0, (self.step + 1) / _WARM_STEPS) * min(1.0, max(0.02, falling))

    def head_losses(self, batch: Batch, after: list[Tensor]) -> dict[str, Tensor]:
        seen, known = batch.frames.ne(NO_LABEL), batch.events.ne(NO_LABEL)
        return {
            "frames": F.cross_entropy(self.heads["frames"](after[1][seen]), batch.frames[seen]),
            "news": F.cross_entropy(self.heads["news"](after[2][known]), batch.events[known]),
        }

    def run(self, state: Path, held_out: list[EncodedWorld], asked: list[list[Question]], every: int = 200) -> None:
        """Trains up to `steps`. Rank 0 saves every few minutes, and prints the shares of right answers on `held_out`
        `every` so many steps."""
        saved = time.monotonic()
        for _ in self.trained_steps():
            if time.monotonic() - saved > SAVE_S or self.step >= self.steps:
                self.save(state)
                saved = time.monotonic()
            if self.step % every == 0 or self.step >= self.steps:
                for pruned in ("no", "half", "difffp") if held_out else ():
                    shares = held_out_shares(self.average, self.builder, held_out, asked, pruned)
                    figures = " ".join(f"{kind} {share:.3f}" for kind, share in shares.items())
                    print(f"  pruned {pruned}: {figures}", flush=True)
