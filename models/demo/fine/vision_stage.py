"""First stage of the fine model's training: the vision encoder alone, each merged token learns what is on it.

Frames come from clips that went through H.264, made by another process. Every frame is used about four times, from a
growing pool.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from vl3edge.runtime.files import written_whole

from ..model import encode_frames, merge_features
from ..stock import VideoLlama3ForConditionalGeneration
from .clips import WorldClip
from .labels import token_labels
from .model import TokenHeads
from .world import World

SAVE_S = 180
_REUSE = 4
_WARM_STEPS = 100
_POOL = 15_000  # frames, 59 kB each


class VisionTrainer:
    """The state of the first stage; `save` and `load` make it resumable. clips_used: since seed 0."""

    def __init__(self, model: VideoLlama3ForConditionalGeneration, steps: int, size: int = 64) -> None:
        torch.manual_seed(1)
        self.model, self.steps, self.size = model, steps, size
        self.step = self.clips_used = 0
        vision = model.model.vision_model
        self.heads = TokenHeads(vision.config.hidden_size)
        self.parameters = [*vision.parameters(), *self.heads.parameters()]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
        self.pool: list[tuple[World, int, NDArray[np.uint8]]] = []

    def save(self, path: Path) -> None:
        """Writes the state under a temporary name, then renames it, so that an interruption leaves the previous one."""
        state = {
            "vision": self.model.model.vision_model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "clips_used": self.clips_used,
        }
        with written_whole(path) as partial:
            torch.save(state, partial)

    def load(self, path: Path) -> None:
        """Continues from a saved state; the pool of frames starts anew."""
        state = torch.load(path)
        self.model.model.vision_model.load_state_dict(state["vision"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.clips_used = state["step"], state["clips_used"]

    def run(self, clips: Iterator[WorldClip], path: Path) -> None:
        """Trains up to `steps`, and saves every few minutes. clips: those from number `clips_used` on."""
        rng = np.random.default_rng([6, self.step])
        started = saved = time.monotonic()
        while self.step < self.steps:
            wanted = self.size // _REUSE if len(self.pool) >= 8 * self.size else 8 * self.size
            while wanted > 0:
                clip = next(clips)
                self.clips_used += 1
                self.pool += [(clip.world, n, frame) for n, frame in enumerate(clip.frames)]
                wanted -= len(clip.frames)
            del self.pool[:-_POOL]
            figures = self._learn([self.pool[int(i)] for i in rng.integers(len(self.pool), size=self.size)])
            self.step += 1
            if self.step % 50 == 0:
                print(f"vision {self.step} {time.monotonic() - started:.0f}s {figures}", flush=True)
            if time.monotonic() - saved > SAVE_S or self.step == self.steps:
                self.save(path)
                saved = time.monotonic()

    def _learn(self, batch: list[tuple[World, int, NDArray[np.uint8]]]) -> str:
        """One step of AdamW: warm-up, then cosine decay to a fiftieth. Returns the heads' figures."""
        warm = min(1.0, (self.step + 1) / _WARM_STEPS)
        falling = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = 2e-3 * warm * falling
        frames = torch.from_numpy(np.stack([frame for _, _, frame in batch]))
        labels = token_labels([(world, label) for world, label, _ in batch])
        results = self.heads(merge_features(encode_frames(self.model, frames)), labels)
        loss = torch.stack([loss for loss, _ in results.values()]).sum()
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        shares = " ".join(f"{name} {share.item():.3f}" for name, (_, share) in results.items())
        return f"loss {loss.item():.3f} {shares}"
