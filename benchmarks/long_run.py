"""Thousands of captions in one process: whether memory, file descriptors, threads and time per clip stay flat.

    python benchmarks/long_run.py --work FOLDER [--captions 10000] [--threads 1]

Writes benchmarks/results/long_run.json, anew after every round, so that a run that is stopped loses nothing. The clips
are a pool of 100 files (95 H.264 videos, 4 PNG pictures, 1 damaged video) under as many names as captions are wanted.
They go the way of `vl3edge caption DIR -o FILE.jsonl`: `CollectionCaptioner` with the demo bundle, every record on
disk before the next clip. A round is the whole pool, so every round is the same work.

Time is compared as CPU time of the process, which other work on the machine disturbs less than time on the wall; that
stands beside it.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe
from PIL import Image

from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.captions.captioner import CaptionRequest, CollectionCaptioner
from vl3edge.runtime.captions.jsonl import RecordFile
from vl3edge.runtime.host import current_bytes

RESULTS = Path(__file__).parent / "results" / "long_run.json"
POOL = 100
PICTURES = (24, 49, 74, 99)
DAMAGED = 50
MAX_FRAMES = 3
MAX_NEW_TOKENS = 8


@dataclass(frozen=True)
class Sample:
    """The process after so many captions; CPU and wall are milliseconds per caption of the round that ended."""

    captions: int
    errors: int
    resident_mb: float
    descriptors: int
    threads: int
    objects: int
    cpu_ms: float
    wall_ms: float


def pool_paths(folder: Path) -> list[Path]:
    return [folder / f"{number}{'.png' if number in PICTURES else '.mp4'}" for number in range(POOL)]


def write_pool(folder: Path) -> None:
    """Distinct clips of 112×112 pixels and 8 s or so, pictures of others, and one file cut off in the middle.

    To be run in a process of its own: what renders them loads torch, whose memory is not captioning's.
    """
    from vl3edge.models.demo.clips import encode_mp4
    from vl3edge.models.demo.render import HELD_OUT_SEED, random_scene, source_frames

    folder.mkdir()
    for number, path in enumerate(pool_paths(folder)):
        scene = random_scene(HELD_OUT_SEED + number)
        frames = source_frames(scene, 0.0, 0)
        if number in PICTURES:
            Image.fromarray(frames[0]).save(path)
        else:
            mp4 = encode_mp4(frames, scene.fps, preset="veryfast")
            path.write_bytes(mp4[: len(mp4) // 2] if number == DAMAGED else mp4)


def names(folder: Path, pool: list[Path], count: int) -> list[str]:
    """As many clips as captions are wanted: the files of the pool in turn, each under a name of its own."""
    folder.mkdir()
    links = []
    for number in range(count):
        source = pool[number % len(pool)]
        link = folder / f"{number:06}{source.suffix}"
        link.symlink_to(source)
        links.append(str(link))
    return links


def rounds(captioner: CollectionCaptioner, output: RecordFile, media: list[str]) -> Iterator[Sample]:
    """Captions the media; a sample after every round."""
    errors, cpu, wall = 0, time.process_time(), time.perf_counter()
    for number, result in enumerate(captioner.results(media, in_order=False), 1):
        output.write(result)
        errors += result.error is not None
        if number % POOL == 0:
            cpu_ms = 1e3 * (time.process_time() - cpu) / POOL
            wall_ms = 1e3 * (time.perf_counter() - wall) / POOL
            yield Sample(
                number,
                errors,
                (current_bytes() or 0) / 1e6,
                len(os.listdir("/proc/self/fd")),
                len(os.listdir("/proc/self/task")),
                len(gc.get_objects()),
                round(cpu_ms, 3),
                round(wall_ms, 3),
            )
            cpu, wall = time.process_time(), time.perf_counter()


def summary(samples: list[Sample]) -> dict[str, Any]:
    """The first tenth of the rounds against the last, medians; memory also from the second tenth on, as a slope."""
    tenth = max(1, len(samples) // 10)
    first, last = samples[:tenth], samples[-tenth:]

    def median(part: list[Sample], name: str) -> float:
        return round(float(np.median([getattr(sample, name) for sample in part])), 3)

    settled = samples[tenth:] if len(samples) > tenth + 1 else samples
    resident = [sample.resident_mb for sample in settled]
    count = [sample.captions for sample in settled]
    slope = float(np.polyfit(count, resident, 1)[0]) if len(settled) > 1 else 0.0
    return {
        "captions": samples[-1].captions,
        "errors": samples[-1].errors,
        **{
            name: {"first_tenth": median(first, name), "last_tenth": median(last, name)}
            for name in ("cpu_ms", "wall_ms", "resident_mb")
        },
        "cpu_ratio": round(median(last, "cpu_ms") / median(first, "cpu_ms"), 4),
        "resident_mb_range_after_first_tenth": [round(min(resident), 1), round(max(resident), 1)],
        "resident_bytes_per_caption_after_first_tenth": round(1e6 * slope, 1),
        "descriptors_range": [min(s.descriptors for s in samples), max(s.descriptors for s in samples)],
        "threads_range": [min(s.threads for s in samples), max(s.threads for s in samples)],
    }


def check(path: Path, media: list[str]) -> dict[str, int]:
    """What the record file holds in the end: every clip once; clips of one source always with one caption."""
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    captions: dict[int, set[str]] = {}
    for record in records:
        captions.setdefault(int(Path(record["media"]).stem) % POOL, set()).add(str(record.get("caption")))
    return {
        "records": len(records),
        "lost": len(set(media) - {record["media"] for record in records}),
        "duplicated": len(records) - len({record["media"] for record in records}),
        "sources_with_more_than_one_caption": sum(len(texts) > 1 for texts in captions.values()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Caption thousands of clips in one process and watch what it takes.")
    parser.add_argument("--captions", type=int, default=10_000, help=f"a multiple of {POOL} (default: 10000)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.captions < POOL or options.captions % POOL:
        parser.error(f"--captions must be a multiple of {POOL}")
    pool = options.work.resolve() / "pool"
    writer = multiprocessing.get_context("spawn").Process(target=write_pool, args=(pool,))
    writer.start()
    writer.join()
    if writer.exitcode:
        parser.error("the clips could not be made; see above")
    media = names(options.work / "clips", pool_paths(pool), options.captions)
    model = VideoLlama3.load(backend="cpu", num_threads=options.threads)
    request = CaptionRequest(
        SamplingPlan(max_frames=MAX_FRAMES), PruningConfig(), GenerationConfig(max_new_tokens=MAX_NEW_TOKENS)
    )
    records = options.work / "records.jsonl"
    report: dict[str, Any] = {
        "machine": describe(),
        "threads": options.threads,
        "pool": POOL,
        "max_frames": MAX_FRAMES,
        "max_new_tokens": MAX_NEW_TOKENS,
        "captions_wanted": options.captions,
    }
    samples: list[Sample] = []
    begin = time.perf_counter()
    with closing(RecordFile(records, keep=False, force=True)) as output:
        for sample in rounds(CollectionCaptioner(model, request, output, retry=False), output, media):
            samples.append(sample)
            report |= {"seconds": round(time.perf_counter() - begin, 1), "summary": summary(samples)}
            report["samples"] = [asdict(sample) for sample in samples]
            options.results.write_text(json.dumps(report, indent=1) + "\n")
            print(
                f"{sample.captions} captions: {sample.resident_mb:.1f} MB, {sample.descriptors} descriptors, "
                f"{sample.cpu_ms:.1f} ms CPU, {sample.wall_ms:.1f} ms wall",
                flush=True,
            )
    report["record_file"] = check(records, media)
    options.results.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
