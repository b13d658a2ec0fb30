"""What it costs to decode in a process of its own, which `--isolate` does: to start it, and for each clip.

    python benchmarks/isolation.py CLIP …

Every clip is sampled once a second and resized, in this process and in another, in turn; the best of five counts. A
generated clip of 1080p is added, whose frames are the largest that commonly have to come through the socket. Writes
benchmarks/results/isolation.json.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

from machine import describe
from memory import write_noise

from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.media.isolated import ReaderProcess, ask
from vl3edge.runtime.media.limits import MediaLimits, ReadingClock
from vl3edge.runtime.media.resize import PixelBudget, target_size
from vl3edge.runtime.media.video import open_video

RESULTS = Path(__file__).parent / "results" / "isolation.json"
BUDGET = PixelBudget(14, 2, 56 * 56, 12_845_056)
REPEATS = 5


def read_s(path: Path, limits: MediaLimits) -> tuple[float, int, str]:
    begin = time.perf_counter()
    reader = open_video(path, SamplingPlan(fps=1), limits=limits)
    size = target_size(reader.height, reader.width, BUDGET, reader.num_frames)
    count = sum(1 for _ in reader.frames(size))
    return time.perf_counter() - begin, count, f"{reader.width}×{reader.height}"


def start_s(path: Path, limits: MediaLimits) -> float:
    """From starting a process to its first answer, less what the answer itself takes."""
    request = ("open", str(path), None, MediaLimits())
    begin = time.perf_counter()
    process = ReaderProcess(limits.max_isolated_bytes)
    next(process.ask(ReadingClock(str(path), limits), str(path), request))
    started = time.perf_counter()
    process.kill()
    begin_again = time.perf_counter()
    next(ask(str(path), limits, request))  # of a process that is there
    return started - begin - (time.perf_counter() - begin_again)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, nargs="+")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    isolated = MediaLimits(isolate=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        large = Path(folder) / "noise-1080p.mp4"
        write_noise(large, 20, 1440)  # as many pixels as 1920×1080, in a square
        for clip in (*options.clips, large):
            read_s(clip, isolated)  # the process is there
            pairs = [(read_s(clip, MediaLimits()), read_s(clip, isolated)) for _ in range(REPEATS)]
            _, frames, size = pairs[0][0]
            here, there = (min(pair[side][0] for pair in pairs) for side in (0, 1))
            row = {"clip": clip.name, "size": size, "frames": frames}
            row |= {"in_process_s": round(here, 3), "isolated_s": round(there, 3)}
            rows.append(row | {"per_frame_ms": round(1000 * (there - here) / frames, 2)})
        starting = min(start_s(options.clips[0], isolated) for _ in range(3))
    result = {"machine": describe(), "start_s": round(starting, 2), "rows": rows}
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
