"""The second training stage, shared by both demo models: a decoder learns answers, with auxiliary linear read-outs.

The read-outs (heads) read hidden states of visual tokens during training, and are dropped afterwards.
"""

from __future__ import annotations

import copy
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
import torch.distributed
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F

from vl3edge.runtime.files import written_whole

from .answers import answer_logits
from .sequences import Batch, Sequence, SequenceBuilder, collate
from .stock import VideoLlama3ForConditionalGeneration
from .tokenizer import token_id


def average_gradients(parameters: list[nn.Parameter], ranks: int) -> None:
    """Replaces gradients with their mean over the processes that train together."""
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
class Trainer(ABC):
    """The state of a second stage; `save` and `load` make it resumable.

    rank, ranks: of this process among those that train together; they average their gradients and stay equal.
    batch_clips: sequences per step in each process. rate: the highest learning rate. clips_made: by this process; its
    k-th clip has the first seed + k * ranks + rank.
    HEADS: number of classes of each head. SAVED: parts of the state that a later run resumes with.
    """

    model: VideoLlama3ForConditionalGeneration
    tokenizer: Tokenizer
    steps: int
    rank: int = 0
    ranks: int = 1
    batch_clips: int = 8
    rate: float = 1.5e-3
    step: int = 0
    clips_made: int = 0
    HEADS: ClassVar[dict[str, int]] = {}
    SAVED: ClassVar[tuple[str, ...]] = ("model", "average", "heads")

    def __post_init__(self) -> None:
        torch.manual_seed(2)
        self.builder = SequenceBuilder(self.tokenizer)
        width = self.model.config.text_config.hidden_size
        self.heads = nn.ModuleDict({name: nn.Linear(width, classes) for name, classes in self.HEADS.items()})
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
        self.first_step = self.step

    def save(self, path: Path) -> None:
        """Writes the whole state atomically, so that an interruption leaves the previous one."""
        state = {name: getattr(self, name).state_dict() for name in self.SAVED}
        with written_whole(path) as partial:
            torch.save(state | {"step": self.step, "clips_made": self.clips_made}, partial)

    def load(self, path: Path) -> None:
        """Continues from a saved state, with an empty buffer of clips."""
        state = torch.load(path)
        for name in self.SAVED:
            getattr(self, name).load_state_dict(state[name])
        self.step, self.clips_made = state["step"], state["clips_made"]
        self.first_step = self.step

    @abstractmethod
    def sequences(self, rng: np.random.Generator) -> list[Sequence]:
        """Two steps' worth of sequences, sorted by length."""

    @abstractmethod
    def learning_rate(self) -> float:
        """Of this step."""

    @abstractmethod
    def head_losses(self, batch: Batch, after: list[Tensor]) -> dict[str, Tensor]:
        """Losses of the heads on hidden states after each layer."""

    def trained_steps(self) -> Iterator[None]:
        """Trains up to `steps`; rank 0 may act after each one."""
        rng = np.random.default_rng([7, self.step, self.rank])
        started = time.monotonic()
        means: dict[str, float] = {}
        while self.step < self.steps:
            rows = self.sequences(rng)
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
                yield

    def _learn(self, batch: Batch) -> dict[str, float]:
        """One step; returns its losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        logits, targets, after = answer_logits(self.model, batch, self.builder)
        ends = int(targets.eq(token_id(self.tokenizer, "<|im_end|>")).sum())
        loss = F.cross_entropy(logits, targets, reduction="sum") / ends
        losses = {"answers": loss} | self.head_losses(batch, after)
        for name in self.HEADS:
            loss = loss + 0.5 * losses[name]
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
        return {name: value.item() for name, value in losses.items()}
