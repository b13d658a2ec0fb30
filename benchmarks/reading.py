"""Sampling frames from a long video against decoding all of it, which is what a plain loop over PyAV's frames does.

    python benchmarks/reading.py --work FOLDER [--source CLIP] [--minutes 10] [--frames 32] [--rounds 3] [--note TEXT]

The video is 1080p H.264: an easy one, FFmpeg's test picture at 25 frames a second with a keyframe every 2 s; and, where
CLIP is given, that scaled up, at 30 frames a second, once with a keyframe every 2 s, as cameras write, and once with
x264's default of at most one in 250. Some seconds are encoded and their packets repeated.
Both ways resize to the size the model would see and give the same pixels, which is checked; the plain loop decodes with
as many threads as PyAV likes. Takes turns; the median of the rounds' ratios counts. What is measured replaces its
entry in benchmarks/results/reading.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from machine import describe

from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.media.resize import PixelBudget, resize_rgb, target_size
from vl3edge.runtime.media.video import open_video

RESULTS = Path(__file__).parent / "results" / "reading.json"


@dataclass(frozen=True)
class Kind:
    """A video of `fps` frames a second; options: of x264; encoded: frames until the packets repeat, whole groups of
    pictures."""

    fps: int
    options: dict[str, str]
    encoded: int
    is_easy: bool = False


EASY = "easy, keyframe every 2 s"
KINDS = {
    EASY: Kind(25, {"g": "50", "keyint_min": "50", "sc_threshold": "0"}, 500, is_easy=True),
    "keyframe every 2 s": Kind(30, {"g": "60", "keyint_min": "60", "sc_threshold": "0"}, 600),
    "x264's default": Kind(30, {}, 750),
}


def test_picture(fps: int) -> Iterator[av.VideoFrame]:
    """FFmpeg's, at 1080p: it stands but for a clock, a bar and a ball."""
    graph = av.filter.Graph()
    graph.link_nodes(graph.add("testsrc", f"size=1920x1080:rate={fps}"), graph.add("buffersink")).configure()
    while True:
        yield graph.pull()


def repeated(source: Path) -> Iterator[av.VideoFrame]:
    while True:
        with av.open(str(source)) as container:
            yield from container.decode(video=0)


def make_video(path: Path, frames: Iterator[av.VideoFrame], kind: Kind, minutes: int) -> None:
    """The first frames at 1080p, repeated to fill the minutes."""
    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as sink:
        stream = sink.add_stream("libx264", kind.fps, options={"preset": "veryfast", **kind.options})
        stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
        for count, frame in enumerate(islice(frames, kind.encoded)):
            scaled = frame.reformat(1920, 1080, "yuv420p")
            scaled.pict_type = av.video.frame.PictureType.NONE  # or x264 makes a keyframe where the source had one
            scaled.pts, scaled.time_base = count, Fraction(1, kind.fps)
            sink.mux(stream.encode(scaled))
        sink.mux(stream.encode(None))
    with av.open(str(path), "w") as sink:
        target = None
        shift = 0
        while shift < minutes * 60 * kind.fps:
            with av.open(str(part)) as container:
                stream = container.streams.video[0]
                target = target or sink.add_stream_from_template(stream)
                tick = int(1 / (kind.fps * stream.time_base))
                for packet in container.demux(stream):
                    if packet.dts is not None:
                        packet.pts, packet.dts = packet.pts + shift * tick, packet.dts + shift * tick
                        packet.stream = target
                        sink.mux(packet)
            shift += kind.encoded
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
    parser.add_argument("--source", type=Path)
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", help="what else ran on the machine")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    plan = SamplingPlan(fps=1.0, max_frames=options.frames)
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    for name, kind in KINDS.items():
        if not (kind.is_easy or options.source):
            continue
        path = options.work / f"{''.join(c for c in name if c.isalnum())}-{options.minutes}.mp4"
        if not path.exists():
            frames = test_picture(kind.fps) if kind.is_easy else repeated(options.source)
            make_video(path, frames, kind, options.minutes)
        reader = open_video(path, plan)
        size = target_size(reader.height, reader.width, PixelBudget(14, 2, 1, 16384 * 28**2), reader.num_frames)
        numbers = reader._indices.tolist()
        ours, theirs, our_cpu, their_cpu = [], [], [], []
        for _ in range(options.rounds):
            begin, begin_cpu = time.perf_counter(), time.process_time()
            sampled = by_us(path, plan, size)
            middle, middle_cpu = time.perf_counter(), time.process_time()
            reference = by_decoding_all(path, numbers, size)
            theirs.append(time.perf_counter() - middle)
            their_cpu.append(time.process_time() - middle_cpu)
            ours.append(middle - begin)
            our_cpu.append(middle_cpu - begin_cpu)
            np.testing.assert_array_equal(sampled, reference)
        result["kinds"][name] = {
            "machine": describe(),
            "minutes": options.minutes,
            "frames": options.frames,
            "rounds": options.rounds,
            "vl3edge_s": statistics.median(ours),
            "decode_all_s": statistics.median(theirs),
            "ratio": statistics.median(slow / fast for slow, fast in zip(theirs, ours, strict=True)),
            "vl3edge_cpu_s": statistics.median(our_cpu),
            "decode_all_cpu_s": statistics.median(their_cpu),
            "num_source_frames": reader.num_source_frames,
            **({"note": options.note} if options.note else {}),
        }
        print(name, result["kinds"][name], flush=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
