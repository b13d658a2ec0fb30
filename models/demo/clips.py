"""Clips of the demo world as a camera would deliver them: H.264 in MP4, sampled at 1 frame per second, pruned.

Sampling here is FFmpeg's fps filter rounding down, for clips that start at 0 with a constant rate: label n is the last
source frame before n + 1 seconds. The runtime has its own reader; a test compares the two.

    python -m vl3edge.models.demo.clips tests/fixtures/demo_clip.mp4     writes the committed clip (held-out clip 26)
"""

from __future__ import annotations

import argparse
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from vl3edge.runtime.cli.stderr import exit_status

from .render import HELD_OUT_SEED, Scene, random_scene, source_frames

PATCH_PX = 14
MERGE = 2
TOKEN_PX = PATCH_PX * MERGE


@dataclass(frozen=True)
class SceneClip:
    """A scene and its sampled frames after the round trip, uint8 [F, 112, 112, 3]; frame n is at n seconds."""

    scene: Scene
    frames: NDArray[np.uint8]


def encode_mp4(
    frames: NDArray[np.uint8], fps: int, crf: int = 23, preset: str = "medium", repeatable: bool = False
) -> bytes:
    """RGB frames [N, H, W, 3] as H.264 (yuv420p) in MP4.

    repeatable: the same bytes every time. x264's assembly (core 165) makes files that differ by a few percent from call
    to call even with one thread; without it they do not, but encoding takes longer.
    """
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"crf": str(crf), "preset": preset, "threads": "1"}
        if repeatable:
            options["x264-params"] = "no-asm=1"
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode_sampled(mp4: bytes, fps: int) -> NDArray[np.uint8]:
    """The frames at 1 per second of an MP4 with a constant whole rate, uint8 [F, H, W, 3]."""
    with av.open(io.BytesIO(mp4), "r") as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        picked = [
            frame.to_ndarray(format="rgb24") for i, frame in enumerate(container.decode(stream)) if i % fps == fps - 1
        ]
    return np.stack(picked)


def make_clip(seed: int) -> SceneClip:
    """The clip of a seed; its quality (crf 18 to 28) and noise (none in six of ten) are also drawn from the seed."""
    scene = random_scene(seed)
    rng = np.random.default_rng([seed, 4])
    noise = 0.0 if rng.random() < 0.6 else float(rng.uniform(0.5, 4.0))
    preset = str(rng.choice(["ultrafast", "veryfast", "medium"], p=[0.4, 0.4, 0.2]))
    mp4 = encode_mp4(source_frames(scene, noise, seed), scene.fps, int(rng.integers(18, 29)), preset)
    return SceneClip(scene, decode_sampled(mp4, scene.fps))


def write_clip(path: str | Path, seed: int, noise: float = 0.0, crf: int = 23) -> Scene:
    """Writes the held-out clip number `seed` as MP4 and returns what it shows.

    noise: standard deviation of sensor noise in 8-bit levels, added before encoding.
    """
    scene = random_scene(HELD_OUT_SEED + seed)
    Path(path).write_bytes(encode_mp4(source_frames(scene, noise, seed), scene.fps, crf, "veryfast", repeatable=True))
    return scene


def diff_prune(frames: NDArray[np.uint8], threshold: float | None) -> NDArray[np.bool_]:
    """DiffFP: which merged tokens are kept, bool [F, H/28, W/28]; None keeps all.

    A block is kept if the mean absolute difference of its normalized pixels (mean and std 0.5) to the frame before,
    times 255, is above the threshold. The first frame keeps all tokens; a frame that would lose all keeps its first.
    """
    return keep_above(token_differences(frames), threshold)


def token_differences(frames: NDArray[np.uint8]) -> NDArray[np.float64]:
    """DiffFP's measure of change between neighbouring frames: [F - 1, H/28, W/28]."""
    f, h, w = frames.shape[0], frames.shape[1] // TOKEN_PX, frames.shape[2] // TOKEN_PX
    difference = np.abs(frames[1:].astype(np.int16) - frames[:-1].astype(np.int16))
    sums = difference.reshape(f - 1, h, TOKEN_PX, w, TOKEN_PX, 3).sum(axis=(2, 4, 5), dtype=np.int64)
    return 2.0 * sums / (TOKEN_PX * TOKEN_PX * 3)


def keep_above(differences: NDArray[np.float64], threshold: float | None) -> NDArray[np.bool_]:
    """Kept tokens, bool [F, h, w], of `token_differences`; see `diff_prune`."""
    keep = np.ones((differences.shape[0] + 1, *differences.shape[1:]), dtype=np.bool_)
    if threshold is not None:
        keep[1:] = differences > threshold
        keep[~keep.any(axis=(1, 2)), 0, 0] = True
    return keep


def main() -> None:
    parser = argparse.ArgumentParser(description="Write one held-out demo clip as MP4.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--seed", type=int, default=26, help="number of the held-out clip")
    parser.add_argument("--noise", type=float, default=0.0, help="sensor noise, standard deviation in 8-bit levels")
    arguments = parser.parse_args()
    print(write_clip(arguments.path, arguments.seed, arguments.noise))


if __name__ == "__main__":
    sys.exit(exit_status(main))
