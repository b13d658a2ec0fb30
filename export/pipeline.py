"""Checkpoint in, bundle out: the stages of an export, in order, each measured against the torch modules.

The manifest is written last, after every file it lists; `staging.py` sees to it that a bundle appears whole or not at
all.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnxruntime
import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.config import MediaProcessing, ModelConfig
from vl3edge.models.tensor_names import DECODER, LM_HEAD
from vl3edge.models.values import LARGEST_FP16, check_values
from vl3edge.quant.calibration import CalibrationSet
from vl3edge.quant.dequantized import DequantizedCheckpoint
from vl3edge.quant.gptq_writer import write_gptq_checkpoint
from vl3edge.quant.plan import QuantizationPlan
from vl3edge.runtime.bundle.bundle import MANIFEST_NAME, Bundle, hash_file
from vl3edge.runtime.bundle.manifest import (
    DECODER_GRAPH,
    PREFILL_GRAPH,
    FileEntry,
    Manifest,
    MediaSpec,
    PrefillQuantization,
    ProcessorSpec,
    TokenSpec,
    VisionQuantization,
    VisionSpec,
)
from vl3edge.runtime.media.discovery import expand

from .calibrate.prefill import CALIBRATION_TOKENS as PROMPT_TOKENS
from .calibrate.prefill import cache_error, calibrate_prefill
from .calibrate.sequences import calibration_set
from .calibrate.vision import VisionCalibration, calibrate_vision, calibration_clips, relative_error
from .decoder_parity import check_decoder
from .errors import ExportError
from .graphs.decoder import DecoderBuilder, StoredMatrix, export_decoder, text_spec
from .graphs.decoder_fp16 import write_fp16_decoder
from .graphs.decoder_int4 import HEAD, QuantizedDecoderBuilder, write_quantized_embeddings
from .graphs.decoder_prefill_int8 import write_prefill
from .graphs.embeddings import export_embeddings
from .graphs.vision import export_projectors, export_vision
from .graphs.vision_fp16 import check_fp16_vision, write_fp16_vision
from .kernels.stage import require_kernels, write_kernels
from .onnx_writer import GraphWriter
from .parity import Difference
from .prompt_files import try_chat_template, write_prompt_files
from .quantize import Quantized, discard_work, existing_quantization, quantize, work_folder
from .staging import check_target, staged_folder
from .tensorrt import TENSORRT_TARGETS, require_tensorrt, tensorrt_bytes, write_tensorrt

Progress = Callable[[str, int, int], None]
TARGETS = ("cpu", "cuda", *TENSORRT_TARGETS)
_LARGE_FILE_MARGIN = 64 << 20  # graphs, rotary tables, tokenizer


@dataclass(frozen=True)
class ExportOptions:
    """What to make of a checkpoint.

    targets: "cpu" is in every bundle; all others add float16 graphs for NVIDIA GPUs; "rtx" compiled TensorRT plans
        as well, "jetson" what `vl3edge build` compiles there.
    plan: how to quantize the decoder, or None to leave it whole. A checkpoint whose decoder is quantized already is
        exported as it is, whatever the plan.
    precision: of weights that are not quantized; "fp16" halves them on disk and is computed in float32 on a CPU. None
        is "fp32" without quantization, so that nothing is lost, and "fp16" with it.
    calibration: files, folders and patterns to calibrate on; none takes built-in synthetic scenes.
    calibration_tokens: how many to calibrate with, about.
    save_gptq: where to write the quantized decoder as an ordinary GPTQ checkpoint too.
    activation_bits: 8 computes quantized products with activations rounded to 8 bits, several times faster on a CPU;
        32 leaves the activations as they are.
    vision_bits: 8 computes the vision encoder's products with weights and activations in 8 bits, about twice as fast on
        a CPU and half the size, also in TensorRT plans; 16 leaves them in float.
    prefill_bits: 8 adds a prefill graph on CPUs, with the weights of the decoder's layers once more, in 8 bits; 16
        does not.
    name: what the bundle calls its model; None takes the checkpoint's name.
    kernels: for GPU targets, compiles the decoder's kernels too, which takes minutes and Triton. The command does.
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


@dataclass(frozen=True)
class ExportReport:
    """What an export wrote: its folder and its manifest."""

    folder: Path
    manifest: Manifest


@dataclass(frozen=True)
class Float32Source:
    """A checkpoint's tensors as float32 arrays, one at a time."""

    checkpoint: Checkpoint | DequantizedCheckpoint

    def array(self, name: str) -> np.ndarray:
        return self.checkpoint.tensor(name, torch.float32).numpy()


def export_bundle(
    checkpoint: Checkpoint,
    target: Path,
    options: ExportOptions | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> ExportReport:
    """Exports a checkpoint to the folder `target`.

    progress: called with (stage, steps done, steps in all).
    Raises ExportError (target exists, disk full, a chat template that fails, …), CheckpointError (from reading, weights
    that are no numbers), QuantError (a plan that does not fit the decoder), MediaError (calibration media).
    """
    options = options or ExportOptions()
    for option, bits in (("vision_bits", options.vision_bits), ("prefill_bits", options.prefill_bits)):
        if bits not in (8, 16):
            raise ExportError(f"{option} must be 8 or 16, not {bits}")
    _check_quantization(checkpoint, options)
    check_target(target.resolve(), options.force)
    precision = options.stored_precision
    draft = make_manifest(checkpoint.config, options, checkpoint.commit)
    try_chat_template(checkpoint, draft)
    check_values(checkpoint, partial(_largest_storable, options))
    progress("weights read through", 1, 1)
    compilers = require_tensorrt(options.targets)
    if options.compiles_kernels:
        require_kernels()
    needed = _estimated_bytes(checkpoint, precision) + tensorrt_bytes(checkpoint, options.targets)
    needed += _prefill_bytes(checkpoint, options)
    with staged_folder(target, options.force, needed) as folder:
        draft = replace(draft, versions=draft.versions | compilers)
        calibration = _vision_calibration(checkpoint, options, draft, progress)
        measured, encoder = _write_vision(checkpoint, folder, options, calibration, progress)
        measured |= write_tensorrt(checkpoint, Float32Source(checkpoint), folder, draft, progress, calibration)
        table = export_embeddings(checkpoint, folder, precision)
        progress("embeddings", 1, 1)
        engines = Bundle(folder, _listing(draft, folder))
        data = _calibration_data(checkpoint, engines, options, progress)
        quantized = _quantized(checkpoint, data, options, target, progress)
        prefill = _write_prefill(checkpoint, data, folder, options, quantized, progress)
        measured |= _write_decoder(checkpoint, folder, options, table, quantized, progress)
        if options.compiles_kernels:
            write_kernels(folder, draft.text, progress)
        manifest = replace(
            _listing(draft, folder, hash_file),
            measured={stage: asdict(difference) for stage, difference in measured.items()},
            quantization={"method": "none"} if quantized is None else quantized.report,
            vision_quantization=encoder,
            prefill_quantization=prefill,
        )
        (folder / MANIFEST_NAME).write_text(manifest.to_text(), encoding="utf-8")
    discard_work(target)
    return ExportReport(target, manifest)


def _check_quantization(checkpoint: Checkpoint, options: ExportOptions) -> None:
    """What would be found out, or left out, after the vision encoder and the calibration only."""
    quantizes = options.plan is not None and checkpoint.config.quantization is None
    if options.save_gptq is not None and not quantizes:
        why = "is already quantized" if checkpoint.config.quantization is not None else "will not be quantized"
        raise ExportError(f"there is no GPTQ checkpoint to save: the decoder {why}")
    if options.prefill_bits == 8 and options.activation_bits == 32:
        raise ExportError(
            "prefill_bits 8 needs activations in 8 bits, so it excludes activation_bits 32: leave one out"
        )
    if options.plan is not None and quantizes:
        options.plan.check(checkpoint.config.text)
    if options.calibration_tokens < 1:
        raise ExportError(f"calibration_tokens must be at least 1, not {options.calibration_tokens}")
    if quantizes or 8 in (options.vision_bits, options.prefill_bits):
        expand(options.calibration)  # raises MediaError for what does not exist


def _largest_storable(options: ExportOptions, name: str) -> float:
    """The largest value that the bundle can hold of a tensor: float16's, or float32's for what stays in it."""
    decodes, is_norm = name.startswith((DECODER, LM_HEAD)), "norm" in name
    fp16 = options.stored_precision == "fp16" or name.endswith(".scales")
    if decodes and not is_norm:
        fp16 = fp16 or options.plan is not None or set(options.targets) != {"cpu"}
    elif not is_norm:
        fp16 = fp16 or bool(set(options.targets) & set(TENSORRT_TARGETS))
    return LARGEST_FP16 if fp16 else math.inf


def _vision_calibration(
    checkpoint: Checkpoint, options: ExportOptions, draft: Manifest, progress: Progress
) -> VisionCalibration | None:
    if options.vision_bits == 16:
        return None
    clips = calibration_clips(draft, options.calibration)
    return calibrate_vision(checkpoint, clips, lambda done, total: progress("calibrating vision", done, total))


def _write_vision(
    checkpoint: Checkpoint,
    folder: Path,
    options: ExportOptions,
    calibration: VisionCalibration | None,
    progress: Progress,
) -> tuple[dict[str, Difference], VisionQuantization]:
    precision, quantization = options.stored_precision, VisionQuantization()
    write_prompt_files(checkpoint, folder)
    progress("vision", 0, 1)
    measured = {"vision": export_vision(checkpoint, folder, precision, calibration=calibration)}
    if calibration is not None:
        source = _calibration_source(options)
        error = relative_error(folder / "vision.onnx", calibration.held_out)
        quantization = VisionQuantization(8, source, calibration.num_frames, error)
    progress("vision", 1, 1)
    measured |= export_projectors(checkpoint, folder, precision)
    if options.for_gpus:
        write_fp16_vision(folder)
        measured |= check_fp16_vision(checkpoint, folder)
    progress("projectors", 1, 1)
    return measured, quantization


def _calibration_data(
    checkpoint: Checkpoint, engines: Bundle, options: ExportOptions, progress: Progress
) -> CalibrationSet | None:
    """What the decoder reads of the calibration media, through the engines just written, if anything wants it."""
    quantizes = options.plan is not None and checkpoint.config.quantization is None
    if not quantizes and options.prefill_bits == 16:
        return None
    limit = options.calibration_tokens
    data = calibration_set(engines, options.calibration, limit if quantizes else min(limit, PROMPT_TOKENS))
    progress("calibration data", 1, 1)
    return data


def _quantized(
    checkpoint: Checkpoint, data: CalibrationSet | None, options: ExportOptions, target: Path, progress: Progress
) -> Quantized | None:
    if checkpoint.config.quantization is not None:
        return existing_quantization(checkpoint)
    if options.plan is None or data is None:
        return None
    quantized = quantize(checkpoint, data, options.plan, options.calibration, work_folder(target), progress)
    if options.save_gptq is not None:
        write_gptq_checkpoint(checkpoint, quantized.linears, options.save_gptq)
        progress("GPTQ checkpoint", 1, 1)
    return quantized


def _write_prefill(
    checkpoint: Checkpoint,
    data: CalibrationSet | None,
    folder: Path,
    options: ExportOptions,
    quantized: Quantized | None,
    progress: Progress,
) -> PrefillQuantization:
    """The prefill graph, from the checkpoint's own weights: 8 bits lose less of them than of their 4-bit codes."""
    if options.prefill_bits == 16 or data is None:
        return PrefillQuantization()
    original: Checkpoint | DequantizedCheckpoint = checkpoint
    if quantized is not None and checkpoint.config.quantization is not None:  # the codes are all there is
        original = DequantizedCheckpoint(checkpoint, quantized.linears)
    checkpoint.release()
    calibration = calibrate_prefill(original, data, partial(progress, "calibrating prompts"))
    source, text = Float32Source(original), checkpoint.config.text
    write_prefill(text, source, calibration.smoothing, folder, partial(progress, "prefill graph"))
    checkpoint.release()
    error = cache_error(folder / PREFILL_GRAPH, calibration.held_out)
    return PrefillQuantization(8, _calibration_source(options), calibration.num_tokens, error)


def _calibration_source(options: ExportOptions) -> str:
    return "the media given" if options.calibration else "synthetic scenes"


def _write_decoder(
    checkpoint: Checkpoint,
    folder: Path,
    options: ExportOptions,
    table: StoredMatrix,
    quantized: Quantized | None,
    progress: Progress,
) -> dict[str, Difference]:
    config, precision = checkpoint.config.text, options.stored_precision
    source = Float32Source(checkpoint)
    tied = config.tie_word_embeddings
    reference: Checkpoint | DequantizedCheckpoint = checkpoint
    if quantized is None:

        def make_builder(graph: GraphWriter) -> DecoderBuilder:
            return DecoderBuilder(graph, config, source, precision)
    else:
        linears = quantized.linears
        reference = DequantizedCheckpoint(checkpoint, linears)
        shared = write_quantized_embeddings(linears.linear(HEAD), folder) if tied and HEAD in linears.names else None
        accuracy_level = 4 if options.activation_bits == 8 else 0

        def make_builder(graph: GraphWriter) -> DecoderBuilder:
            return QuantizedDecoderBuilder(graph, config, source, precision, linears, shared, accuracy_level)

    export_decoder(make_builder, folder, table if tied else None, lambda done, total: progress("decoder", done, total))
    graphs = [DECODER_GRAPH]
    if options.for_gpus:
        graphs.append(write_fp16_decoder(folder).name)
    return check_decoder(reference, folder, lambda done, total: progress("checking the decoder", done, total), graphs)


def _listing(
    manifest: Manifest, folder: Path, describe: Callable[[Path], FileEntry] = lambda path: FileEntry(0, "")
) -> Manifest:
    """The manifest with every file that is in the folder now."""
    files = {
        path.relative_to(folder).as_posix(): describe(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    return replace(manifest, files=files)


def make_manifest(config: ModelConfig, options: ExportOptions, commit: str | None) -> Manifest:
    """The manifest of a bundle made from a checkpoint of this configuration, before anything is measured or written."""
    vision, text = config.vision, config.text
    return Manifest(
        name=options.name or config.name,
        layout=config.layout,
        source=f"{config.name}@{commit}" if commit else config.name,
        precision=options.stored_precision,
        targets=options.targets,
        vision=VisionSpec(
            vision.hidden_size,
            vision.num_layers,
            vision.num_heads,
            vision.intermediate_size,
            vision.patch_size,
        ),
        text=text_spec(text),
        processor=ProcessorSpec(
            rule=config.layout,
            image=_media_spec(config.image, vision.patch_size),
            video=_media_spec(config.video, vision.patch_size),
            mean=_three(config.image_mean),
            std=_three(config.image_std),
            fps=config.fps,
            max_frames=config.max_frames,
            token_compression=config.use_token_compression,
        ),
        tokens=TokenSpec(config.image_token_id, config.video_token_id, config.eos_token_ids),
        generation=replace(config.generation, penalize_prompt=config.layout == "transformers"),
        quantization={},
        measured={},
        versions={
            "vl3edge": version("vl3edge"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
    )


def _media_spec(processing: MediaProcessing, patch_size: int) -> MediaSpec:
    """Budgets in pixels; the authors' layout counts merged tokens."""
    unit = 1 if processing.rule == "transformers" else (patch_size * processing.merge_size) ** 2
    return MediaSpec(processing.merge_size, processing.minimum * unit, processing.maximum * unit)


def _three(values: tuple[float, ...]) -> tuple[float, float, float]:
    red, green, blue = values
    return red, green, blue


def _prefill_bytes(checkpoint: Checkpoint, options: ExportOptions) -> int:
    """Of the prefill graph: a byte for each weight of the decoder's layers."""
    if options.prefill_bits == 16:
        return 0
    text = checkpoint.config.text
    heads = text.head_dim * (2 * text.num_heads + 2 * text.num_kv_heads)
    return text.num_layers * text.hidden_size * (heads + 3 * text.intermediate_size)


def _estimated_bytes(checkpoint: Checkpoint, precision: str) -> int:
    """Bytes of all weights in the precision asked for, and a little more for graphs and rotary tables."""
    width = 2 if precision == "fp16" else 4
    elements = sum(int(np.prod(checkpoint.shape(name))) for name in checkpoint.names)
    return elements * width + _LARGE_FILE_MARGIN
