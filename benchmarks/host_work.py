"""What a step of decoding costs besides the graph: Python, the embedding's row, bindings.

    python benchmarks/host_work.py BUNDLE [--steps 2000]

The graph is replaced by one that does nothing, so that what is left is ours. Median of the steps, in µs. Adds an entry
named after the bundle to benchmarks/results/host_work.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from machine import describe

from vl3edge.runtime import GenerationConfig, VideoLlama3
from vl3edge.runtime.decode.generate import Generator

RESULTS = Path(__file__).parent / "results" / "host_work.json"
CLIP = Path(__file__).parent.parent / "tests" / "fixtures" / "demo_clip.mp4"


class NoGraph:
    """An inference session whose runs return at once."""

    def __init__(self, session: Any) -> None:
        self._session = session

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        """Leaves the outputs as they are."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--steps", type=int, default=1500)
    options = parser.parse_args()
    model = VideoLlama3.load(options.bundle)
    clip = model.encode(CLIP)
    generator: Generator = model._generator
    generator._eos_ids = frozenset()
    graph = generator._decoder.graph
    graph.session = NoGraph(graph.session)
    prompt = model.prompt([{"role": "user", "content": [{"type": "video", "video": clip}]}], [clip])
    times = []
    tokens = generator.tokens(prompt, GenerationConfig(max_new_tokens=options.steps))
    next(tokens)
    begin = time.perf_counter()
    for _ in tokens:
        now = time.perf_counter()
        times.append((now - begin) * 1e6)
        begin = now
    entry = {"machine": describe(), "steps": len(times), "median_us": round(statistics.median(times), 1)}
    results = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    results[model.bundle.manifest.name] = entry
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(entry)


if __name__ == "__main__":
    main()
