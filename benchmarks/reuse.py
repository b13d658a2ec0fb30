"""What is not computed twice: a second question about a clip, and frames that do not change.

    python benchmarks/reuse.py --media CLIP [--bundle BUNDLE] [--frames 16] [--rounds 3]

A second question costs its own tokens: time to first token of the first question about an encoded clip against the
second. A static clip is the first frame of CLIP repeated: its whole caption with everything on, against DiffFP off and
every frame encoded. Answers must be equal with reuse on and off. Writes an entry to
benchmarks/results/reuse.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from machine import describe

from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.media.video import open_video
from vl3edge.runtime.vision import clip_encoder as encoder_module

RESULTS = Path(__file__).parent / "results" / "reuse.json"
QUESTIONS = ("Describe this video.", "When does it stop?")


def second_question(model: VideoLlama3, options: argparse.Namespace) -> dict[str, float]:
    clip = model.encode(options.media, SamplingPlan(fps=options.fps, max_frames=options.frames))
    first, second = [], []
    for _ in range(options.rounds):
        model.decoder.rewind(0)
        for question, times in zip(QUESTIONS, (first, second), strict=True):
            times.append(model.ask(clip, question, GenerationConfig(max_new_tokens=4)).stats.prefill_s)
    return ratio(first, second) | {"clip_tokens": clip.num_tokens}


def static_clip(model: VideoLlama3, options: argparse.Namespace) -> dict[str, float]:
    picture = next(iter(open_video(options.media, SamplingPlan(max_frames=1)).frames())).pixels
    frames = np.repeat(picture[None], options.frames, axis=0)

    def caption(pruning: PruningConfig) -> float:
        begin = time.perf_counter()
        model.ask(model.encode(frames, pruning=pruning), QUESTIONS[0], GenerationConfig(max_new_tokens=16))
        return time.perf_counter() - begin

    fast, slow = [], []
    for _ in range(options.rounds):
        fast.append(caption(PruningConfig()))
        # Frames that equal their predecessor are recognized here alone.
        with mock.patch.object(encoder_module.np, "array_equal", return_value=False):
            slow.append(caption(PruningConfig(enabled=False)))
    return ratio(slow, fast)


def same_with_and_without(model: VideoLlama3, options: argparse.Namespace) -> bool:
    """Whether encoding every frame anew gives the same tokens for a static clip, DiffFP off in both."""
    frames = np.repeat(np.random.default_rng(0).integers(0, 256, (1, 112, 112, 3), np.uint8), 4, axis=0)
    reused = model.encode(frames, pruning=PruningConfig(enabled=False)).visual.tokens
    with mock.patch.object(encoder_module.np, "array_equal", return_value=False):
        encoded = model.encode(frames, pruning=PruningConfig(enabled=False)).visual.tokens
    return bool(np.array_equal(reused, encoded))


def ratio(slow: list[float], fast: list[float]) -> dict[str, float]:
    medians = statistics.median(slow), statistics.median(fast)
    return {"slow_s": medians[0], "fast_s": medians[1], "ratio": medians[0] / medians[1]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--media", required=True)
    parser.add_argument("--bundle")
    parser.add_argument("--name", help="of the entry (default: the bundle's)")
    parser.add_argument("--fps", type=float, default=2.0)
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    model = VideoLlama3.load(options.bundle)
    entry: dict[str, Any] = {
        "machine": describe(),
        "frames": options.frames,
        "rounds": options.rounds,
        "reuse_changes_nothing": same_with_and_without(model, options),
        "second_question": second_question(model, options),
        "static_clip": static_clip(model, options),
    }
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[options.name or model.bundle.manifest.name] = entry
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(entry, indent=1))


if __name__ == "__main__":
    main()
