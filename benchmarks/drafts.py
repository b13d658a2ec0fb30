"""Does prompt lookup pay? Answers with drafts against the same answers without, in turns.

    python benchmarks/drafts.py [--bundle DIR] [--rounds 5] [--json benchmarks/results/drafts.json]

Segments are one question about pieces of films, as `caption --segment` and `watch` ask it; questions are different ones
about different clips; of drawn answers, to the same questions at a temperature of 2, next to nothing can be foretold.
Each run's model has said nothing before. The clips are of the demo's world, held out. Decoding alone is timed
(`GenerationStats.decode_s`); passes are runs of the decoder.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from machine import describe

from vl3edge.models.demo.clips import write_clip
from vl3edge.models.demo.questions import VIDEO_KINDS, ask_video
from vl3edge.runtime import GenerationConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.config import MAX_DRAFTS
from vl3edge.runtime.vision.clip import Clip

_CLIPS, _SEGMENTS = 8, 16
_DRAWN = GenerationConfig(temperature=2.0, seed=0, max_new_tokens=48)
Asked = list[tuple[Clip, str]]


def asked(model: VideoLlama3, folder: Path) -> Iterator[tuple[str, Asked, GenerationConfig]]:
    films, questions = [], []
    for number in range(_CLIPS):
        path = folder / f"{number}.mp4"
        scene = write_clip(path, number)
        clip = model.encode(path)
        questions += [(clip, ask_video(scene, kind).text) for kind in VIDEO_KINDS]
        films += [(model.encode(path, SamplingPlan(start_s=float(s), end_s=s + 3.0)), "") for s in range(2)]
    yield "segments", [(clip, "Describe this video.") for clip, _ in films][:_SEGMENTS], GenerationConfig()
    yield "questions", questions, GenerationConfig()
    yield "drawn", questions, _DRAWN


def measure(bundle: str | None, questions: Asked, config: GenerationConfig) -> tuple[float, int, list[Any]]:
    """Seconds of decoding, passes, answers; of a model that has said nothing before."""
    model, passes = VideoLlama3.load(bundle, num_threads=1), 0
    for name in ("advance", "verify"):
        run = getattr(model.decoder, name)

        def counted(*arguments: Any, run: Any = run) -> None:
            nonlocal passes
            passes += 1
            run(*arguments)

        setattr(model.decoder, name, counted)
    answers = [model.ask(clip, text, config) for clip, text in questions]
    return sum(a.stats.decode_s for a in answers), passes, [a.token_ids for a in answers]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", help="default: the demo bundle")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model = VideoLlama3.load(options.bundle, num_threads=1)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, questions, config in asked(model, Path(folder)):
            runs: dict[int, list[tuple[float, int, list[Any]]]] = {0: [], MAX_DRAFTS: []}
            for _ in range(options.rounds):
                for drafts, found in runs.items():
                    found.append(measure(options.bundle, questions, replace(config, draft_tokens=drafts)))
            plain, drafted = (statistics.median(seconds for seconds, _, _ in found) for found in runs.values())
            assert all(found[2] == runs[0][0][2] for found in (*runs[0], *runs[MAX_DRAFTS])), "an answer changed"
            rows[name] = {
                "tokens": sum(map(len, runs[0][0][2])),
                "passes": runs[0][-1][1],
                "passes_drafted": runs[MAX_DRAFTS][-1][1],
                "seconds": round(plain, 4),
                "seconds_drafted": round(drafted, 4),
                "ratio": round(plain / drafted, 3),
            }
            print(name, rows[name])
    if options.json:
        options.json.write_text(json.dumps({"machine": describe(), "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
