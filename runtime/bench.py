"""Measures the stages of a bundle one by one, beside what this machine could do at best.

Inputs are random, so nothing is pruned or reused and every figure is of real work; a clip is read only if one is given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from . import roofline as workload
from .backends.features import Features
from .backends.onnxruntime import Backend
from .bundle.bundle import Bundle
from .config import SamplingPlan
from .errors import ConfigError
from .host import cores, peak_bytes, reset_peak
from .kernels.select import Kind, open_decoders
from .media.resize import PixelBudget, target_size
from .media.video import open_video
from .prompt.splice import EmbeddingTable
from .roofline import multiply_rate, read_bandwidth
from .vision.clip_encoder import pixel_budget
from .vision.engines import VisionEngines


@dataclass(frozen=True)
class BenchPlan:
    """What is measured.

    frames of `size` = (height, width) pixels are encoded, context tokens prefilled, new_tokens decoded after them; the
    median of `repeats` counts.
    """

    frames: int = 8
    size: tuple[int, int] = (360, 640)
    context: int = 1000
    new_tokens: int = 32
    repeats: int = 3

    def __post_init__(self) -> None:
        counts = (self.frames, self.context, self.new_tokens, self.repeats, *self.size)
        if min(counts) < 1:
            raise ConfigError(f"every count of a benchmark must be at least 1, not {min(counts)}")


@dataclass(frozen=True)
class StageTime:
    """One stage: `count` of `unit` in `seconds`.

    arithmetic_s, bytes_s: the least it could take on this machine by its arithmetic, in float32 (8 bits may take less),
        and by the bytes it reads; None where that is not known. peak_bytes: largest resident set during the stage; None
        where the system does not say.
    """

    name: str
    count: int
    unit: str
    seconds: float
    arithmetic_s: float | None = None
    bytes_s: float | None = None
    peak_bytes: int | None = None

    @property
    def rate(self) -> float:
        return self.count / self.seconds

    @property
    def share_of_limit(self) -> float | None:
        """The larger floor over the time taken: 1 is the limit of the machine, for what is computed in float32."""
        floors = [floor for floor in (self.arithmetic_s, self.bytes_s) if floor is not None]
        return max(floors) / self.seconds if floors else None


@dataclass
class Bench:
    """Runs the stages of one bundle; `stages` grows as they end.

    bandwidth: bytes a second read from memory; flops: of float32 products. Both None on a GPU, which they do not
        describe.
    """

    bundle: Bundle
    backend: Backend
    plan: BenchPlan
    decoder: Kind = "onnxruntime"
    stages: list[StageTime] = field(default_factory=list)
    bandwidth: float | None = None
    flops: float | None = None

    def run(self, media: Path | None = None) -> None:
        """Runs all stages in the order of the data. Raises BundleError, BackendError, MediaError."""
        if self.backend.name == "cpu":
            threads = self.backend.num_threads or cores()
            self.bandwidth, self.flops = read_bandwidth(threads), multiply_rate()
        if media is not None:
            self._read(media)
        self._see()
        self._speak()

    def _read(self, media: Path) -> None:
        spec = self.bundle.manifest.processor
        plan = SamplingPlan(fps=spec.fps, max_frames=spec.max_frames)

        def read() -> None:
            reader = open_video(media, plan)
            size = target_size(reader.height, reader.width, self._budget(), reader.num_frames)
            for _ in reader.frames(size, spec.rule):
                pass

        self._add("read", open_video(media, plan).num_frames, "frames", read)

    def _see(self) -> None:
        manifest, plan = self.bundle.manifest, self.plan
        vision = VisionEngines(self.bundle, self.backend)
        height, width = target_size(*plan.size, self._budget(), plan.frames)
        patch = manifest.vision.patch_size
        patches = (height // patch) * (width // patch)
        tokens = patches // manifest.processor.video.merge_size**2
        frames = np.random.default_rng(0).integers(0, 256, (plan.frames, height, width, 3), np.uint8)
        step = vision.frames_per_call(height, width)

        def encode() -> list[Features]:
            return [vision.features(frames[i : i + step]) for i in range(0, plan.frames, step)]

        features = encode()
        flops = plan.frames * workload.vision_flops(manifest, patches)
        self._add(f"vision, {width}×{height}", plan.frames, "frames", encode, flops)
        keep = [np.ones((part.shape[0], tokens), np.bool_) for part in features]
        self._add(
            "projector",
            plan.frames * tokens,
            "tokens",
            lambda: [vision.tokens(f, "video", k) for f, k in zip(features, keep, strict=True)],
            workload.projector_flops(manifest, plan.frames * tokens),
        )

    def _speak(self) -> None:
        manifest, plan = self.bundle.manifest, self.plan
        text = manifest.text
        table = EmbeddingTable.of(self.bundle)
        decoder = open_decoders(self.decoder, self.backend, self.bundle).make()
        ids = np.random.default_rng(0).integers(0, text.vocab_size, plan.context)
        prompt = table.rows(ids)
        decoder.reserve(plan.context + plan.new_tokens)

        def prefill() -> None:
            decoder.rewind(0)
            decoder.prefill(prompt)

        def decode() -> None:
            decoder.rewind(plan.context)
            for _ in range(plan.new_tokens):
                decoder.advance(decoder.tokens, table)

        self._add("prefill", plan.context, "tokens", prefill, workload.prefill_flops(manifest, plan.context))
        middle = plan.context + plan.new_tokens // 2
        read = plan.new_tokens * workload.step_bytes(self.bundle, middle)
        flops = plan.new_tokens * workload.prefill_flops(manifest, 1)
        self._add("decode", plan.new_tokens, "tokens", decode, flops, read)

    def _add(
        self, name: str, count: int, unit: str, work: Callable[[], Any], flops: float | None = None, read: int = 0
    ) -> None:
        """Runs the work once to warm up, then `repeats` times."""
        reset_peak()
        work()
        seconds = []
        for _ in range(self.plan.repeats):
            begin = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - begin)
        arithmetic_s = flops / self.flops if flops is not None and self.flops is not None else None
        bytes_s = read / self.bandwidth if read and self.bandwidth is not None else None
        stage = StageTime(name, count, unit, float(np.median(seconds)), arithmetic_s, bytes_s, peak_bytes())
        self.stages.append(stage)

    def _budget(self) -> PixelBudget:
        manifest = self.bundle.manifest
        return pixel_budget(manifest.processor, manifest.processor.video, manifest.vision.patch_size)
