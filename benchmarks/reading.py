"""Sampling frames from a long video against decoding all of it, which is what a plain loop over PyAV's frames does.

    python benchmarks/reading.py --work FOLDER [--source CLIP] [--minutes 10] [--frames 32] [--rounds 3]

The video is 1080p H.264 at 30 frames a second, once with a keyframe every 2 s, as cameras write, and once with x264's
default of at most one in 250. It is made from CLIP, scaled up: some seconds are encoded and their packets repeated.
Both ways resize to the size the model would see and give the same pixels, which is checked; the plain loop decodes with
as many threads as PyAV likes. Takes turns; medians count. Writes benchmarks/results/reading.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from machine import describe

from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.media.resize import PixelBudget, resize_rgb, target_size
from vl3edge.runtime.media.video import open_video

RESULTS = Path(__file__).parent / "results" / "reading.json"
FPS = 30
# Frames encoded before their packets repeat: whole groups of pictures. x264's own choices but for the first line.
KINDS = {"keyframe every 2 s": ({"g": "60", "keyint_min": "60", "sc_threshold": "0"}, 600), "x264's default": ({}, 750)}


def make_video(path: Path, source: Path, options: dict[str, str], encoded: int, minutes: int) -> None:
    """`encoded` frames of `source` at 1080p, repeated to fill the minutes."""
    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as sink:
        stream = sink.add_stream("libx264", FPS, options={"preset": "veryfast", **options})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        count = 0
        while count < encoded:
            with av.open(str(source)) as container:
                for frame in container.decode(video=0):
                    if count == encoded:
                        break
                    scaled = frame.reformat(1920, 1080, "yuv420p")
                    scaled.pts, scaled.time_base = count, Fraction(1, FPS)
                    sink.mux(stream.encode(scaled))
                    count += 1
        sink.mux(stream.encode(None))
    with av.open(str(path), "w") as sink:
        target = None
        shift = 0
        while shift < minutes * 60 * FPS:
            with av.open(str(part)) as container:
                stream = container.streams.video[0]
                target = target or sink.add_stream_from_template(stream)
                tick = int(1 / (FPS * stream.time_base))
                for packet in container.demux(stream):
                    if packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + shift * tick, packet.dts + shift * tick
                        packet.stream = target
                        sink.mux(packet)
            shift += encoded
    part.unlink()


def by_us(path: Path, plan: SamplingPlan, size: tuple[int, int]) -> np.ndarray:
    return np.stack([frame.pixels for frame in open_video(path, plan).frames(size)])


def by_decoding_all(path: Path, numbers: list[int], size: tuple[int, int]) -> np.ndarray:
    """The frames with these numbers, from a loop over all."""
    wanted = set(numbers)
    found = []
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for number, frame in enumerate(container.decode(video=0)):
            if number in wanted:
                found.append(resize_rgb(frame.to_ndarray(format="rgb24"), size))
    return np.stack(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    plan = SamplingPlan(fps=1.0, max_frames=options.frames)
    kinds = {}
    for name, (settings, encoded) in KINDS.items():
        path = options.work / f"{''.join(c for c in name if c.isalnum())}-{options.minutes}.mp4"
        if not path.exists():
            make_video(path, options.source, settings, encoded, options.minutes)
        reader = open_video(path, plan)
        size = target_size(reader.height, reader.width, PixelBudget(14, 2, 1, 16384 * 28**2), reader.num_frames)
        numbers = reader._indices.tolist()
        ours, theirs = [], []
        for _ in range(options.rounds):
            begin = time.perf_counter()
            sampled = by_us(path, plan, size)
            middle = time.perf_counter()
            reference = by_decoding_all(path, numbers, size)
            theirs.append(time.perf_counter() - middle)
            ours.append(middle - begin)
            np.testing.assert_array_equal(sampled, reference)
        kinds[name] = {
            "vl3edge_s": statistics.median(ours),
            "decode_all_s": statistics.median(theirs),
            "ratio": statistics.median(theirs) / statistics.median(ours),
            "num_source_frames": reader.num_source_frames,
        }
        print(name, kinds[name], flush=True)
    result = {"machine": describe(), "minutes": options.minutes, "frames": options.frames, "kinds": kinds}
    result["rounds"] = options.rounds
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
