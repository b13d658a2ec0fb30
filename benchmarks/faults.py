"""Captioning runs killed at random moments, and what was lost: nothing may be.

    python benchmarks/faults.py --work FOLDER [--kills 60] [--clips 12] [--seed 0]

Writes benchmarks/results/faults.json. Real runs of `vl3edge caption` over synthetic clips with the demo bundle, each
killed (SIGKILL) at a moment drawn at random, half of them right after a write to the output, and started again with the
same command until it ends by itself. After every kill the files are checked; at the end they must equal those of a run
that nobody disturbed. Six ways of writing are tried:

    resume     JSON lines, --resume
    retry      the same file with an error record of every clip, --retry-failed
    sidecar    one file beside each clip, --sidecar --resume
    segments   one video in pieces to WebVTT, --resume
    parquet    a Parquet file, made from the JSON lines beside it, --resume
    batch      JSON lines, --resume, three captions together
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from machine import describe

from vl3edge.models.demo.clips import encode_mp4, write_clip
from vl3edge.models.demo.render import HELD_OUT_SEED, random_scene, source_frames

RESULTS = Path(__file__).parent / "results" / "faults.json"
COMMAND = [sys.executable, "-m", "vl3edge.runtime.cli.main", "caption", "--threads", "1", "--backend", "cpu"]
KINDS = ("resume", "retry", "sidecar", "segments", "parquet", "batch")
ENDINGS = {"segments": ".vtt", "parquet": ".parquet"}


@dataclass
class Tally:
    """kills: of runs; runs: those that ended by themselves; clips: pieces that each run had to caption.

    lost: records that were there before a kill and not after it, or missing at the end. duplicated: second records of
    a piece, at any time. torn: lines or files that were not whole when a run had been killed and that the next one did
    not put right. changed: captions that differ from the undisturbed run.
    """

    kills: int = 0
    runs: int = 0
    clips: int = 0
    lost: int = 0
    duplicated: int = 0
    torn: int = 0
    changed: int = 0
    moments_s: list[float] = field(default_factory=list)

    @property
    def faults(self) -> int:
        return self.lost + self.duplicated + self.torn + self.changed


class Scene:
    """Clips to caption in one of the ways of writing, and what a run that nobody disturbs writes."""

    def __init__(self, folder: Path, kind: str, num_clips: int) -> None:
        self.kind = kind
        self.clips = folder / kind
        self.clips.mkdir(parents=True)
        self.output = folder / f"{kind}{ENDINGS.get(kind, '.jsonl')}"
        if kind == "segments":
            _write_long_clip(self.clips / "long.mp4", num_clips)
        else:
            for number in range(num_clips):
                write_clip(self.clips / f"{number}.mp4", number)
        self.num_clips = num_clips
        self.command = [*COMMAND, *self._arguments()]
        self.reset()
        begin = time.perf_counter()
        subprocess.run(self.command, check=True, capture_output=True)
        self.duration_s = time.perf_counter() - begin
        self.wanted = self.result()
        assert len(self.wanted) == (1 if kind == "segments" else num_clips), self.wanted
        self.reset()

    def _arguments(self) -> list[str]:
        if self.kind == "sidecar":
            return [str(self.clips), "--sidecar", "--resume"]
        if self.kind == "segments":
            return [str(self.clips / "long.mp4"), "--segment", "3", "-o", str(self.output), "--resume"]
        names = [str(self.clips / f"{number}.mp4") for number in range(self.num_clips)]
        if self.kind == "batch":
            names += ["--batch", "3"]
        return [*names, "-o", str(self.output), "--retry-failed" if self.kind == "retry" else "--resume"]

    def reset(self) -> None:
        """As before the first run: nothing written, or an error record of every clip."""
        for path in (self.output, self._records, *self.clips.glob("*.txt")):
            path.unlink(missing_ok=True)
        if self.kind == "retry":
            away = self.clips.rename(self.clips.with_name("away"))
            subprocess.run([*COMMAND, *self._arguments()], check=False, capture_output=True)
            away.rename(self.clips)
            assert len(self._lines()) == self.num_clips

    @property
    def _records(self) -> Path:
        return self.output.with_name(f"{self.output.name}.jsonl") if self.kind in ENDINGS else self.output

    def _lines(self) -> list[dict[str, object]]:
        """Records of the whole lines."""
        content = self._records.read_bytes() if self._records.exists() else b""
        return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]

    def is_running(self) -> bool:
        """Whether there are records to look at: those of finished subtitles are deleted."""
        return self.kind != "segments" or not self.output.exists() or self._records.exists()

    def state(self) -> Counter[str]:
        """What is written so far: "piece error" or "piece captioned", counted. Raises ValueError for a broken line."""
        if self.kind == "sidecar":
            return Counter(f"{path.stem} captioned" for path in self.clips.glob("*.txt"))
        return Counter(
            f"{line['media']} {line.get('segment', '')} {'error' if 'error' in line else 'captioned'}"
            for line in self._lines()
        )

    def result(self) -> dict[str, str]:
        """Captions by clip, or the subtitles."""
        if self.kind == "sidecar":
            return {path.name: path.read_text() for path in self.clips.glob("*.txt")}
        if self.kind == "segments":
            return {self.output.name: self.output.read_text()} if self.output.exists() else {}
        if self.kind == "parquet":
            import pyarrow.parquet

            rows = pyarrow.parquet.read_table(self.output).to_pylist() if self.output.exists() else []
            assert len({row["media"] for row in rows}) == len(rows), rows
            return {row["media"]: row["caption"] for row in rows}
        return {str(line["media"]): str(line.get("caption")) for line in self._lines()}

    def size(self) -> int:
        """Grows or changes with every write."""
        if self.kind == "sidecar":
            return len(list(self.clips.glob("*.txt")))
        return self._records.stat().st_ino + self._records.stat().st_size if self._records.exists() else 0


def _write_long_clip(path: Path, num_pieces: int) -> None:
    scenes = [random_scene(HELD_OUT_SEED + number) for number in range(num_pieces)]
    frames = np.concatenate([source_frames(scene, 0.0, 0) for scene in scenes])[: num_pieces * 12]
    path.write_bytes(encode_mp4(frames, 4, preset="veryfast"))


def torment(scene: Scene, kills: int, rng: random.Random) -> Tally:
    """Kills runs of the scene `kills` times, beginning anew whenever one has ended by itself."""
    tally = Tally(clips=scene.num_clips)
    before: Counter[str] = Counter()
    while tally.kills < kills or before:
        ended = _run_and_kill(scene, rng, tally) if tally.kills < kills else _run(scene)
        before = _check(scene, before, tally)
        if ended:
            tally.runs += 1
            result = scene.result()
            tally.lost += len(scene.wanted.keys() - result.keys())
            tally.changed += sum(result.get(name, text) != text for name, text in scene.wanted.items())
            scene.reset()
            before = Counter()
    return tally


def _run(scene: Scene) -> bool:
    subprocess.run(scene.command, check=True, capture_output=True)
    return True


def _run_and_kill(scene: Scene, rng: random.Random, tally: Tally) -> bool:
    """Whether the run ended before it could be killed."""
    begin = time.perf_counter()
    process = subprocess.Popen(scene.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        if rng.random() < 0.5:
            process.wait(timeout=rng.uniform(0.0, 1.1 * scene.duration_s))
        else:
            _wait_for_write(scene, process, rng)
        return process.wait(timeout=0) == 0
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        tally.kills += 1
        tally.moments_s.append(round(time.perf_counter() - begin, 3))
        return False


def _wait_for_write(scene: Scene, process: subprocess.Popen[bytes], rng: random.Random) -> None:
    """Returns within 20 ms after one of the next writes, or when the run has ended."""
    size = scene.size()
    for _ in range(rng.randint(1, 4)):
        while scene.size() == size and process.poll() is None:
            time.sleep(0.0005)
        size = scene.size()
    time.sleep(rng.uniform(0.0, 0.02))


def _check(scene: Scene, before: Counter[str], tally: Tally) -> Counter[str]:
    """What is written now; counts what is wrong with it compared with `before`."""
    try:
        now = scene.state() if scene.is_running() else before
    except ValueError:
        tally.torn += 1
        return before
    pieces = Counter(key.rsplit(" ", 1)[0] for key in now.elements())
    had = {key.rsplit(" ", 1)[0] for key in before}
    tally.duplicated += sum(count - 1 for count in pieces.values())
    tally.lost += len(had - pieces.keys())
    tally.lost += sum(key.endswith(" captioned") and key not in now for key in before)
    if scene.kind == "sidecar":
        texts = scene.result()
        tally.torn += sum(scene.wanted[name] != text for name, text in texts.items())
    return now


def measure(folder: Path, kinds: Sequence[str], kills: int, num_clips: int, seed: int) -> Iterator[tuple[str, Tally]]:
    """A tally for each way of writing, with an equal share of the kills."""
    rng = random.Random(seed)
    for number, kind in enumerate(kinds):
        share = kills * (number + 1) // len(kinds) - kills * number // len(kinds)
        yield kind, torment(Scene(folder, kind, num_clips), share, rng)


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill captioning runs at random moments and count what is lost.")
    parser.add_argument("--kills", type=int, default=60)
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    begin = time.perf_counter()
    tallies = {}
    for kind, tally in measure(options.work, KINDS, options.kills, options.clips, options.seed):
        tallies[kind] = tally
        print(f"{kind}: {tally.kills} kills, {tally.runs} runs that ended, {tally.faults} faults", flush=True)
    report = {
        "machine": describe(),
        "seconds": round(time.perf_counter() - begin, 1),
        "kills": sum(tally.kills for tally in tallies.values()),
        "runs_completed": sum(tally.runs for tally in tallies.values()),
        "faults": sum(tally.faults for tally in tallies.values()),
        "ways": {kind: asdict(tally) for kind, tally in tallies.items()},
    }
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
