"""What float16 costs the demo model: its answers on held-out clips, paired with those in float32.

    python benchmarks/fp16_accuracy.py [--part vision | decoder] [--clips 64]

Both sides are the bundle that ships. With "vision", the encoder and the projector of one side are computed in torch
with the roundings of the TensorRT graphs (see fp16_drift.py), of the other in ONNX Runtime in float32. With "decoder",
one side runs the decoder's graph for GPUs in ONNX Runtime's float16 kernels for CPUs, the other the float32 graph with
its activations not rounded. Writes benchmarks/results/fp16_accuracy.json or fp16_decoder.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fp16_drift import SHIPPED, VARIANTS, Encoder, half
from machine import describe
from torch.nn import functional as F

from vl3edge.export.parity import load_session
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.demo.evaluate import CHECKPOINT, evaluate, summarize
from vl3edge.models.demo.predictors import BundlePredictor
from vl3edge.models.projector import Projector
from vl3edge.models.vision import VisionEncoder
from vl3edge.models.weight_map import Linear
from vl3edge.runtime import VideoLlama3
from vl3edge.runtime.backends.onnxruntime import Backend, Engine
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, open_bundle
from vl3edge.runtime.bundle.file_names import DECODER_GRAPH, FP16_DECODER_GRAPH
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import load_decoder_graph

RESULTS = Path(__file__).parent / "results"
FILES = {"vision": "fp16_accuracy.json", "decoder": "fp16_decoder.json"}


class Fp16Encoder:
    def __init__(self, checkpoint: Checkpoint) -> None:
        (variant,) = (variant for variant in VARIANTS if variant.name == SHIPPED)
        self._encoder = Encoder(VisionEncoder.from_checkpoint(checkpoint), variant)

    @torch.inference_mode()
    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        frames = torch.from_numpy(np.ascontiguousarray(inputs["frames"]))
        rows, columns = (side // self._encoder.encoder.patch_size for side in frames.shape[1:3])
        return [self._encoder.run(frames)[-1].unflatten(1, (rows, columns)).numpy()]


class Fp16Projector:
    def __init__(self, checkpoint: Checkpoint, merge_size: int) -> None:
        self._projector = Projector.from_checkpoint(checkpoint, merge_size)

    @torch.inference_mode()
    def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        kept = self._projector.merge(torch.from_numpy(inputs["features"]))[torch.from_numpy(inputs["keep"])]
        hidden = F.gelu(self._product(self._projector.first, kept))
        return [self._product(self._projector.second, hidden).numpy()]

    @staticmethod
    def _product(dense: Linear, x: torch.Tensor) -> torch.Tensor:
        return half(half(x) @ half(dense.weight) + half(dense.bias))


class Fp16Backend(Backend):
    def graph(self, bundle: Bundle, name: str) -> Engine:
        checkpoint = Checkpoint.open(CHECKPOINT)
        if name == "vision":
            return Fp16Encoder(checkpoint)
        processing = checkpoint.config.image if name.endswith("image") else checkpoint.config.video
        return Fp16Projector(checkpoint, processing.merge_size)


@dataclass(frozen=True)
class DecoderBackend(Backend):
    """Runs one of the two decoder graphs on the CPU; the float32 one without rounding activations to 8 bits."""

    decoder: str = DECODER_GRAPH

    def session(self, path: Path, records: bool = False) -> Any:
        if path.name != DECODER_GRAPH:
            return super().session(path)
        return load_session(path.with_name(self.decoder), prepack=self.decoder == FP16_DECODER_GRAPH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=FILES, default="vision")
    parser.add_argument("--clips", type=int, default=64)
    options = parser.parse_args()
    reference, rounded = BundlePredictor(DEMO_BUNDLE), BundlePredictor(DEMO_BUNDLE)
    bundle = open_bundle(DEMO_BUNDLE)
    if options.part == "vision":
        rounded.model = VideoLlama3(bundle, Fp16Backend("cpu", ("CPUExecutionProvider",), "", 1))
    else:
        for predictor, graph in ((rounded, FP16_DECODER_GRAPH), (reference, DECODER_GRAPH)):
            backend = DecoderBackend("cpu", ("CPUExecutionProvider",), "", 1, decoder=graph)
            predictor.model = VideoLlama3(bundle, backend)
            predictor._decoder = Decoder(load_decoder_graph(backend, bundle), bundle.manifest.text)
    tokenizer = rounded._tokenizer
    lines = summarize(list(evaluate(rounded, tokenizer, range(options.clips), reference)))
    for name, line in lines.items():
        print(f"{name:20}{line.count:7}{line.exact:9.2%}{line.kl:11.2e}{line.lost:6}{line.gained:8}")
    result = {
        "machine": describe(),
        "clips": options.clips,
        "lines": {name: asdict(line) for name, line in lines.items() if name.startswith("[")},
    }
    (RESULTS / FILES[options.part]).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
