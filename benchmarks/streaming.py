"""Streaming sessions: memory and time per frame over many frames, and time to the first token of a question.

The demo model sees a generated scene at 112 × 112 pixels that goes on for ever; its context is full after some hundred
frames, and from then on the oldest leave. A larger model (--model) sees fewer frames, of the same size. Each question
is asked right after a new frame and leaves no trace. Times are CPU time of one thread, about what a quiet machine
takes; other work on the machine lengthens it only by what caches and cores have to be shared.

    python benchmarks/streaming.py [--frames 20000] [--model BUNDLE --model-frames 100] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

from vl3edge.runtime import GenerationConfig, VideoLlama3
from vl3edge.runtime.host import current_bytes
from vl3edge.runtime.live.session import Session

SIDE = 112
QUESTION = "What colour is it?"
WINDOWS = 20


def scene(frames: int) -> Iterator[np.ndarray]:
    """A square that wanders over a still ground and rests one frame in four: uint8 [112, 112, 3] each."""
    ground = np.random.default_rng(0).integers(60, 120, (SIDE, SIDE, 3), dtype=np.uint8)
    for number in range(frames):
        step = number - number // 4
        top, left = (step * 5) % (SIDE - 28), (step * 3) % (SIDE - 28)
        frame = ground.copy()
        frame[top : top + 28, left : left + 28] = (200, 30, 30)
        yield frame


def push_s(session: Session, frame: np.ndarray, time_s: float) -> float:
    """CPU time of one frame, in seconds."""
    begin = time.process_time()
    session.push(frame, time_s)
    return time.process_time() - begin


def first_token_s(session: Session) -> float:
    """CPU time to the first token of a question that leaves no trace, in seconds."""
    begin = time.process_time()
    answer = session.ask(QUESTION, GenerationConfig(max_new_tokens=1), keep=False)
    next(answer)
    elapsed = time.process_time() - begin
    answer.close()
    return elapsed


def soak(model: VideoLlama3, frames: int) -> dict[str, Any]:
    """Pushes `frames` frames and asks after each hundredth; figures for WINDOWS equal parts of the run."""
    session = model.open_session()
    size = frames // WINDOWS
    windows: list[dict[str, Any]] = []
    times: list[float] = []
    first: list[float] = []
    for number, frame in enumerate(scene(size * WINDOWS), 1):
        times.append(push_s(session, frame, float(number)))
        if number % 100 == 0:
            first.append(first_token_s(session))
        if number % size == 0:
            windows.append(
                {
                    "frames_seen": number,
                    "frames_in_context": session.num_frames,
                    "tokens_in_context": session.num_tokens,
                    "frame_cpu_ms_median": round(1e3 * float(np.median(times)), 3),
                    "frame_cpu_ms_mean": round(1e3 * float(np.mean(times)), 3),
                    "frame_cpu_ms_max": round(1e3 * max(times), 2),
                    "first_token_cpu_ms_median": round(1e3 * float(np.median(first)), 2) if first else None,
                    "resident_mb": round(current_bytes() / 1e6, 1),
                }
            )
            times, first = [], []
    return {"frames": size * WINDOWS, "dropped": session.dropped_frames, "windows": windows}


def latency(model: VideoLlama3, after: list[int], repeats: int) -> list[dict[str, Any]]:
    """Time to the first token of a question after so many frames: the median of `repeats`, each after a new frame."""
    session = model.open_session()
    rows = []
    frames = scene(max(after) + len(after) * repeats)
    number = 0
    for count in after:
        seconds, pushes = [], []
        while number < count + repeats - 1:
            spent = push_s(session, next(frames), float(number))
            number += 1
            if number >= count:
                pushes.append(spent)
                seconds.append(first_token_s(session))
        rows.append(
            {
                "frames_seen": count,
                "tokens_in_context": session.num_tokens,
                "first_token_cpu_ms": round(1e3 * float(np.median(seconds)), 2),
                "frame_cpu_ms": round(1e3 * float(np.median(pushes)), 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=20_000, help="of the soak; 0 leaves it out")
    parser.add_argument("--model", help="another bundle, for its latency")
    parser.add_argument("--model-name", default="2B sizes, random weights, int4")
    parser.add_argument("--model-frames", type=int, default=100)
    parser.add_argument("--json", type=Path, help="results are added to this file")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    if options.json and options.json.exists():
        results = json.loads(options.json.read_text())
    results["machine"] = describe()
    if options.frames:
        demo = VideoLlama3.load(num_threads=1)
        results["demo"] = {
            "max_tokens": demo.open_session().max_tokens,
            "latency": latency(demo, [1, 10, 100, 300, 1000, 3000], 9),
            "soak": soak(demo, options.frames),
        }
    if options.model:
        model = VideoLlama3.load(options.model, num_threads=1)
        counts = [n for n in (1, 3, 10, 30, 100, 300) if n <= options.model_frames]
        results[options.model_name] = {"latency": latency(model, counts, 3)}
    text = json.dumps(results, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
