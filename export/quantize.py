"""The quantization step of an export: quantize, resume after an interruption, and report the cost."""

from __future__ import annotations

import math
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.tensor_names import DECODER, LM_HEAD
from vl3edge.quant.calibration import CalibrationSet
from vl3edge.quant.comparison import compare
from vl3edge.quant.decoder import LayerProgress, quantize_decoder
from vl3edge.quant.dequantized import Linears
from vl3edge.quant.gptq_reader import GptqLinears
from vl3edge.quant.plan import QuantizationPlan

from .progress import Progress


@dataclass(frozen=True)
class Quantized:
    """A quantized decoder and what the manifest says about it."""

    linears: Linears
    report: dict[str, Any]


def work_folder(target: Path) -> Path:
    """Where an export to `target` keeps finished layers, so that the same command resumes after an interruption."""
    return target.resolve().parent / f".{target.name}.quantizing"


def existing_quantization(checkpoint: Checkpoint) -> Quantized:
    """The layers of a checkpoint that holds a GPTQ decoder already; raises QuantError for other methods."""
    linears = GptqLinears(checkpoint)
    facts = dict(checkpoint.config.quantization or {})
    kept = ("bits", "group_size", "sym", "desc_act")
    report = {"method": "gptq", "source": "the checkpoint", **{key: facts[key] for key in kept if key in facts}}
    return Quantized(linears, report)


def quantize(
    checkpoint: Checkpoint,
    data: CalibrationSet,
    plan: QuantizationPlan,
    media: Sequence[str],
    work: Path,
    progress: Progress,
) -> Quantized:
    """Quantizes the decoder by `plan`, layer by layer; an interrupted run resumes from `work`.

    data: to calibrate on. media: its source, for the report; empty means synthetic scenes.
    Raises QuantError.
    """

    def show(step: LayerProgress) -> None:
        progress(f"quantizing {step.name}, {step.seconds_left:.0f} s left,", step.done, step.total)

    sequences = data.calibration if plan.method == "gptq" else ()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    linears = quantize_decoder(checkpoint, sequences, plan, work, device=device, progress=show)
    cost = compare(checkpoint, linears, data.held_out, device)
    progress("comparing with float32", 1, 1)
    report = {
        **asdict(plan),
        "source": list(media) or "synthetic scenes",
        "calibration_tokens": data.num_tokens if sequences else 0,
        "fp16_bytes": _fp16_bytes(checkpoint),
        "end_to_end": asdict(cost),
        "layers": _layers(linears),
    }
    return Quantized(linears, report)


def discard_work(target: Path) -> None:
    """Removes what an export kept for resuming."""
    shutil.rmtree(work_folder(target), ignore_errors=True)


def _fp16_bytes(checkpoint: Checkpoint) -> int:
    """Bytes of the decoder with embeddings and head in float16; tied ones count once, as they are stored."""
    shapes = (checkpoint.shape(name) for name in checkpoint.names if name.startswith((DECODER, LM_HEAD)))
    return 2 * sum(math.prod(shape) for shape in shapes)


def _layers(linears: Linears) -> dict[str, dict[str, Any]]:
    """Per decoder layer, and the head: bits and relative squared error of outputs, of GPTQ and round-to-nearest."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    bits: dict[str, list[int]] = defaultdict(list)
    for name in linears.names:
        layer = name.removeprefix(DECODER).split(".self_attn")[0].split(".mlp")[0]
        bits[layer].append(linears.linear(name).bits)
        if (error := linears.errors.get(name)) is not None:
            for k, value in enumerate((error.gptq, error.rtn, error.signal)):
                sums[layer][k] += value
    report: dict[str, dict[str, Any]] = {}
    for layer, numbers in bits.items():
        report[layer] = {"bits": round(sum(numbers) / len(numbers), 2)}
        if layer in sums:
            gptq, rtn, signal = sums[layer]
            report[layer] |= {"gptq": gptq / signal, "rtn": rtn / signal}
    return report
