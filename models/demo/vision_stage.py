"""First stage of the demo model's training: the vision encoder alone, with auxiliary heads, on single frames.

Half of the frames of a batch come from clips that went through H.264 (made by another process), half are drawn
directly with noise, which costs a tenth.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .clips import SceneClip
from .model import PATCH_PX, AuxiliaryHeads, VisionLabels, encode_frames
from .render import COLOURS, GROUNDS, SHAPES, SIZE_PX, Scene, coverage, draw, draw_ground, random_scene
from .stock import VideoLlama3ForConditionalGeneration

STILL_SEED = 500_000_000  # training stills: neither training clips nor held out


def _labels(scenes: list[Scene], centres: list[NDArray[np.float64]]) -> VisionLabels:
    side = SIZE_PX // PATCH_PX
    presence = [
        coverage(scene, centre).reshape(side, PATCH_PX, side, PATCH_PX).mean(axis=(1, 3))
        for scene, centre in zip(scenes, centres, strict=True)
    ]
    return VisionLabels(
        colour=torch.tensor([list(COLOURS).index(scene.colour) for scene in scenes]),
        shape=torch.tensor([SHAPES.index(scene.shape) for scene in scenes]),
        ground=torch.tensor([GROUNDS.index(scene.ground) for scene in scenes]),
        centre=torch.from_numpy(np.stack(centres) / SIZE_PX).float(),
        presence=torch.from_numpy(np.stack(presence)),
    )


def still(seed: int) -> tuple[Scene, NDArray[np.float64], NDArray[np.uint8]]:
    """One picture that never was in a video: its scene, the shape's centre [2] and its pixels [112, 112, 3]."""
    scene = random_scene(STILL_SEED + seed)
    rng = np.random.default_rng([seed, 5])
    centre = rng.uniform(24, SIZE_PX - 24, size=2)
    picture = draw(scene, draw_ground(scene), centre)
    picture = picture + rng.standard_normal(picture.shape, np.float32) * np.float32(rng.uniform(0, 5))
    return scene, centre, np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def frame_batches(clips: Iterator[SceneClip], size: int) -> Iterator[tuple[Tensor, VisionLabels]]:
    """Batches of `size` frames uint8 [size, 112, 112, 3] with labels, half of them from clips."""
    seed = 0
    pool: list[tuple[Scene, NDArray[np.float64], NDArray[np.uint8]]] = []
    rng = np.random.default_rng(6)
    while True:
        while len(pool) < size * 4:  # so that a batch mixes many clips
            clip = next(clips)
            pool += [(clip.scene, clip.scene.centres[i], clip.frames[i]) for i in range(clip.scene.frames)]
        batch = [pool.pop(int(rng.integers(len(pool)))) for _ in range(size // 2)]
        batch += [still(seed + i) for i in range(size - size // 2)]
        seed += size - size // 2
        scenes, centres, pictures = zip(*batch, strict=True)
        yield torch.from_numpy(np.stack(pictures)), _labels(list(scenes), list(centres))


def train_vision(
    model: VideoLlama3ForConditionalGeneration, clips: Iterator[SceneClip], steps: int, size: int = 96
) -> None:
    """Trains `model`'s vision encoder in place: AdamW, warm-up, then cosine decay to a twentieth."""
    torch.manual_seed(1)
    vision = model.model.vision_model
    heads = AuxiliaryHeads(vision.config.hidden_size)
    parameters = [*vision.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    warm = 100

    def rate(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.05 + 0.95 * 0.5 * (1 + float(np.cos(np.pi * (step - warm) / max(1, steps - warm))))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    started = time.monotonic()
    for step, (frames, labels) in enumerate(frame_batches(clips, size)):
        if step == steps:
            break
        losses = heads(encode_frames(model, frames), labels)
        loss = torch.stack([v for k, v in losses.items() if not k.endswith(("_right", "_px"))]).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            figures = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            print(f"vision {step} {time.monotonic() - started:.0f}s loss {loss.item():.3f} {figures}", flush=True)
