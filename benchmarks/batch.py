"""Tokens per second of decoding 1, 2, 4 and 8 sequences together.

    python benchmarks/batch.py [BUNDLE [--label NAME]] [--sizes 1 2 4 8] [--prompt 300] [--steps 12] [--rounds 4]

The demo bundle is always measured. In every round each size takes `--steps` steps after prompts of random tokens,
ragged by a tenth, and the sizes take turns, so that whatever else the machine does meets them all alike; figures are
medians over the rounds, ratios are taken within a round. Time is that of the steps alone: embeddings looked up, graph
run, tokens read. Results of other bundles stay in benchmarks/results/batch.json.

Kernels sum in another order for several rows than for one, and activations rounded to 8 bits make more of it. So the
logits of a step of four are also compared with those of each sequence alone; beside it stands what the
same token's logits differ by when it is prefilled instead of stepped, which is the same rounding in the ordinary path.
Both are means of absolute differences in standard deviations of the logits. On random weights both are far larger than
on trained ones.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe

from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, open_bundle
from vl3edge.runtime.bundle.specs import TextSpec
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import DecoderGraph
from vl3edge.runtime.prompt.splice import EmbeddingTable

RESULTS = Path(__file__).parent / "results" / "batch.json"


@dataclass
class Model:
    """A bundle's decoder and what it takes."""

    session: Any
    spec: TextSpec
    table: EmbeddingTable

    @classmethod
    def of(cls, bundle: Bundle) -> Model:
        text = bundle.manifest.text
        table = EmbeddingTable.of(bundle)
        return cls(select_backend("cpu").session(bundle.path("decoder.onnx")), text, table)


@dataclass
class Rows:
    """Sequences decoded together from prompts of their own."""

    model: Model
    decoder: Decoder
    lengths: list[int]

    @classmethod
    def prefilled(cls, model: Model, prompts: list[np.ndarray], steps: int) -> Rows:
        decoder = Decoder(DecoderGraph(model.session), model.spec)
        decoder.resize(len(prompts), max(map(len, prompts)) + steps)
        for row, ids in enumerate(prompts):
            decoder.prefill(model.table.rows(ids), row=row)
        return cls(model, decoder, [len(ids) for ids in prompts])

    def first(self, size: int) -> Rows:
        """A decoder of its own with copies of the first rows."""
        decoder = Decoder(DecoderGraph(self.model.session), self.model.spec)
        decoder.resize(size, self.decoder.cache.capacity)
        for buffer, source in zip(decoder.cache.buffers, self.decoder.cache.buffers, strict=True):
            buffer.write(source.rows(0, size).read())
        decoder.cache.lengths[:] = self.decoder.cache.lengths[:size]
        return Rows(self.model, decoder, self.lengths[:size])

    def generate(self, first: np.ndarray, steps: int) -> float:
        """Seconds of so many greedy steps after the tokens int64 [rows] that follow the prompts."""
        for row, length in enumerate(self.lengths):
            self.decoder.cache.rewind(row, length)
        tokens = first
        begin = time.perf_counter()
        for _ in range(steps):
            self.decoder.step(self.model.table.rows(tokens))
            tokens = self.decoder.tokens
        return time.perf_counter() - begin


def random_prompts(spec: TextSpec, size: int, longest: int) -> list[np.ndarray]:
    """Token ids, ragged by a tenth."""
    lengths = [longest - longest // 10 * row // size for row in range(size)]
    return [np.random.default_rng(row).integers(0, spec.vocab_size, length) for row, length in enumerate(lengths)]


def differences(model: Model, size: int) -> dict[str, float]:
    """How far the logits of a step in a batch, and those of the same token prefilled, are from those of it alone."""
    prompts = random_prompts(model.spec, size, 30)
    together = Rows.prefilled(model, [ids[:-1] for ids in prompts], 1).decoder
    together.step(model.table.rows(np.array([ids[-1] for ids in prompts])))
    batched, prefilled = [], []
    for row, ids in enumerate(prompts):
        alone = Rows.prefilled(model, [ids[:-1]], 1).decoder
        alone.step(model.table.rows(ids[-1:]))
        expected = alone.logits[0]
        batched.append(np.abs(together.logits[row] - expected).mean() / expected.std())
        whole = Rows.prefilled(model, [ids], 0).decoder
        prefilled.append(np.abs(whole.logits[0] - expected).mean() / expected.std())
    return {"step_in_batch": float(np.mean(batched)), "prefill_instead_of_step": float(np.mean(prefilled))}


def measure(bundle: Bundle, sizes: list[int], prompt: int, steps: int, rounds: int) -> dict[str, Any]:
    model = Model.of(bundle)
    text = model.spec
    largest = Rows.prefilled(model, random_prompts(text, max(sizes), prompt), steps)
    first = largest.decoder.tokens.copy()
    batches = {size: largest.first(size) for size in sizes}
    rates: dict[int, list[float]] = {size: [] for size in sizes}
    for number in range(rounds + 1):
        for size, rows in batches.items():
            seconds = rows.generate(first[:size], steps)
            if number:  # the first round warms up
                rates[size].append(size * steps / seconds)
        print(f"{bundle.manifest.name}: round {number} of {rounds}", file=sys.stderr, flush=True)
    ratios = {size: [rate / one for rate, one in zip(rates[size], rates[sizes[0]], strict=True)] for size in sizes}
    return {
        "bundle": bundle.manifest.name,
        "quantization": bundle.manifest.quantization.get("method", "none"),
        "hidden_size": text.hidden_size,
        "num_layers": text.num_layers,
        "prompt_tokens": prompt,
        "steps": steps,
        "rounds": rounds,
        "batches": [
            {
                "batch": size,
                "tokens_per_s": round(statistics.median(rates[size]), 2),
                "tokens_per_s_range": [round(min(rates[size]), 2), round(max(rates[size]), 2)],
                f"times_batch_{sizes[0]}": round(statistics.median(ratios[size]), 2),
                "ms_per_step": round(1000 * size / statistics.median(rates[size]), 2),
            }
            for size in sizes
        ],
        "logit_differences": differences(model, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", nargs="?", type=Path, metavar="BUNDLE")
    parser.add_argument("--label", help="what BUNDLE is called in the results (default: its own name)")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 2, 4, 8], metavar="N")
    parser.add_argument("--prompt", type=int, default=300, metavar="TOKENS")
    parser.add_argument("--steps", type=int, default=12, metavar="N")
    parser.add_argument("--rounds", type=int, default=4, metavar="N")
    options = parser.parse_args()
    found = json.loads(RESULTS.read_text(encoding="utf-8"))["bundles"] if RESULTS.exists() else []
    bundles = [(open_bundle(DEMO_BUNDLE), None)]
    if options.bundle is not None:
        bundles.append((open_bundle(options.bundle), options.label))
    for bundle, label in bundles:
        result = measure(bundle, options.sizes, options.prompt, options.steps, options.rounds)
        result["bundle"] = label or result["bundle"]
        found = [other for other in found if other["bundle"] != result["bundle"]] + [result]
    RESULTS.write_text(json.dumps({"machine": describe(), "bundles": found}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
