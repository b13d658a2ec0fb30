"""The part of `verify` for the vision path's GPU graphs, without a GPU.

ONNX Runtime runs them on the CPU: the weights are those a GPU reads, but many intermediate values are float32 where a
GPU has float16.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vl3edge.runtime.backends.features import on_host
from vl3edge.runtime.backends.onnxruntime import Backend, Engine, OrtEngine
from vl3edge.runtime.bundle.bundle import Bundle
from vl3edge.runtime.bundle.file_names import fp16_file
from vl3edge.runtime.vision.engines import VisionEngines

from .clips import VerifyClip
from .report import Bound, StageResult, compare


def fp16_on_host(backend: Backend) -> Backend:
    """The graphs of backend "cuda", run on `backend`, which has no GPU."""
    return _Fp16OnHost("cuda", backend.providers, backend.version, backend.num_threads)


def verify_fp16_vision(
    vision: VisionEngines,
    clips: Sequence[VerifyClip],
    features: Sequence[np.ndarray],
    tokens: Sequence[np.ndarray],
    bounds: tuple[Bound, Bound],
) -> list[StageResult]:
    """Two stages, each fed with the reference's input.

    features float32 [F, h, w, C] and tokens float32 [K, hidden]: the reference's, for each clip; a vision encoder alone
        has no tokens and only the first stage. bounds: for both.
    """
    ours = [encoded(vision, clip.prepared.frames) for clip in clips]
    hint = "the graph for GPUs belongs to another model"
    count = f"features of {sum(map(len, features))} frames, on this CPU"
    stages = [compare("encoder for GPUs", count, ours, features, bounds[0], hint)]
    if tokens:
        projected = [vision.tokens(f, clip.kind, clip.prepared.keep) for f, clip in zip(features, clips, strict=True)]
        visual = f"{sum(map(len, tokens))} visual tokens, on this CPU"
        stages.append(compare("projectors for GPUs", visual, projected, tokens, bounds[1], hint))
    return stages


def encoded(vision: VisionEngines, frames: np.ndarray) -> np.ndarray:
    """Features of all frames, in calls of the size that the engine takes."""
    step = vision.frames_per_call(frames.shape[1], frames.shape[2])
    return np.concatenate(
        [on_host(vision.features(frames[start : start + step])) for start in range(0, len(frames), step)]
    )


class _Fp16OnHost(Backend):
    def vision_file(self, bundle: Bundle, name: str = "vision") -> str:
        return fp16_file(name)

    def graph(self, bundle: Bundle, name: str) -> Engine:
        return _CastingEngine(self.session(bundle.path(self.vision_file(bundle, name))))


class _CastingEngine(OrtEngine):
    """Takes features in the type that the projector's graph expects."""

    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        if "features" in inputs:
            inputs = inputs | {"features": inputs["features"].astype(np.float16)}
        return super().run(inputs)
