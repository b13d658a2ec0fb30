"""The options of an export, checked before any work is done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vl3edge.models.config import ModelConfig
from vl3edge.models.tensor_names import DECODER, LM_HEAD
from vl3edge.models.values import LARGEST_FP16
from vl3edge.quant.plan import QuantizationPlan
from vl3edge.runtime.media.discovery import expand

from .errors import ExportError
from .tensorrt import TENSORRT_TARGETS

TARGETS = ("cpu", "cuda", *TENSORRT_TARGETS)


@dataclass(frozen=True)
class ExportOptions:
    """How to export a checkpoint; as they stand the options quantize nothing. `presets.py` has the command's.

    targets: "cpu" is in every bundle; all others add float16 graphs for NVIDIA GPUs; "rtx" compiled TensorRT plans as
        well, "jetson" what `vl3edge build` compiles there.
    plan: how to quantize the decoder, or None not to. A decoder that is already quantized is exported unchanged,
        whatever the plan.
    precision: of weights that are not quantized; "fp16" halves their size on disk, and CPUs still compute in float32.
        None is "fp32" without quantization, so that nothing is lost, and "fp16" with it.
    calibration: files, folders and patterns to calibrate on; empty uses built-in synthetic scenes.
    calibration_tokens: about how many tokens to calibrate on.
    save_gptq: where to write the quantized decoder as an ordinary GPTQ checkpoint too.
    activation_bits: 8 computes quantized products with activations rounded to 8 bits, several times faster on a CPU;
        32 leaves the activations as they are.
    vision_bits: 8 computes the vision encoder's products with weights and activations in 8 bits, about twice as fast on
        a CPU and half the size, also in TensorRT plans; 16 leaves them in float.
    prefill_bits: 8 adds a prefill graph for CPUs, which stores the layers' weights again in 8 bits; 16 does not.
    vocabulary: a file of the texts that will be said, or "corpus": the output head keeps their tokens and what anything
        can be spelled with (`vocabulary/`). Not lossless; None keeps all.
    preset, changed: for the manifest: which preset these options follow, "" for none, and what differs from it
        (`presets.py`).
    name: the model's name in the bundle; None takes the checkpoint's name.
    kernels: for GPU targets, also compile the decoder's kernels, which takes minutes and needs Triton. The command line
        does so by default.
    """

    targets: tuple[str, ...] = ("cpu",)
    plan: QuantizationPlan | None = None
    precision: Literal["fp32", "fp16"] | None = None
    calibration: tuple[str, ...] = ()
    calibration_tokens: int = 32768
    save_gptq: Path | None = None
    activation_bits: Literal[8, 32] = 8
    vision_bits: Literal[8, 16] = 16
    prefill_bits: Literal[8, 16] = 16
    vocabulary: str | None = None
    preset: Literal["", "exact", "balanced", "small"] = ""
    changed: tuple[str, ...] = ()
    name: str | None = None
    force: bool = False
    kernels: bool = False

    @property
    def stored_precision(self) -> Literal["fp32", "fp16"]:
        return self.precision or ("fp32" if self.plan is None else "fp16")

    @property
    def for_gpus(self) -> bool:
        """Whether the bundle gets graphs for NVIDIA GPUs."""
        return bool(set(self.targets) - {"cpu"})

    @property
    def compiles_kernels(self) -> bool:
        return self.kernels and self.for_gpus

    @property
    def calibration_source(self) -> str:
        """What the manifest says about the calibration data."""
        return "the media given" if self.calibration else "synthetic scenes"

    def quantizes(self, config: ModelConfig) -> bool:
        """Whether the export quantizes the decoder; an already quantized one stays as it is."""
        return self.plan is not None and config.quantization is None and config.has_decoder

    def check(self, config: ModelConfig) -> None:
        """Raises now what would otherwise fail, or silently be ignored, after minutes of work.

        Raises ExportError; QuantError for a plan that does not fit the decoder; MediaError for missing media.
        """
        for option, bits in (("vision_bits", self.vision_bits), ("prefill_bits", self.prefill_bits)):
            if bits not in (8, 16):
                raise ExportError(f"{option} must be 8 or 16, not {bits}")
        if not config.has_decoder:
            given = not self.preset or "prefill_bits 8" in self.changed  # of a preset's settings it takes those it can
            asked = {
                "save_gptq": self.save_gptq is not None,
                "prefill_bits 8": self.prefill_bits == 8 and given,
                "vocabulary": self.vocabulary is not None,
            }
            if names := [name for name, is_asked in asked.items() if is_asked]:
                raise ExportError(f"the checkpoint holds only a vision encoder: leave out {' and '.join(names)}")
        quantizes = self.quantizes(config)
        if self.save_gptq is not None and not quantizes:
            why = "is already quantized" if config.quantization is not None else "will not be quantized"
            raise ExportError(f"there is no GPTQ checkpoint to save: the decoder {why}")
        if self.prefill_bits == 8 and self.activation_bits == 32:
            raise ExportError("prefill_bits 8 needs 8-bit activations and excludes activation_bits 32: leave one out")
        if self.plan is not None and quantizes:
            self.plan.check(config.text)
        if self.calibration_tokens < 1:
            raise ExportError(f"calibration_tokens must be at least 1, not {self.calibration_tokens}")
        if quantizes or 8 in (self.vision_bits, self.prefill_bits):
            expand(self.calibration)  # raises MediaError for missing media

    def largest_storable(self, name: str) -> float:
        """The largest value that the bundle can store for a tensor: the limit of float16, or infinity for float32."""
        decodes, is_norm = name.startswith((DECODER, LM_HEAD)), "norm" in name
        fp16 = self.stored_precision == "fp16" or name.endswith(".scales")
        if decodes and not is_norm:
            fp16 = fp16 or self.plan is not None or set(self.targets) != {"cpu"}
        elif not is_norm:
            fp16 = fp16 or bool(set(self.targets) & set(TENSORRT_TARGETS))
        return LARGEST_FP16 if fp16 else math.inf
