"""The decoder stage of an export: calibration, quantization, the prefill graph, the decoder graphs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.quant.calibration import CalibrationSet
from vl3edge.quant.dequantized import DequantizedCheckpoint
from vl3edge.quant.gptq_writer import write_gptq_checkpoint
from vl3edge.runtime.bundle.bundle import Bundle
from vl3edge.runtime.bundle.file_names import DECODER_GRAPH, PREFILL_GRAPH
from vl3edge.runtime.bundle.specs import PrefillQuantization

from .calibrate.prefill import CALIBRATION_TOKENS as PROMPT_TOKENS
from .calibrate.prefill import cache_error, calibrate_prefill
from .calibrate.sequences import calibration_set
from .decoder_parity import check_decoder
from .graphs.decoder import DecoderBuilder, StoredMatrix, export_decoder
from .graphs.decoder_fp16 import write_fp16_decoder
from .graphs.decoder_int4 import HEAD, QuantizedDecoderBuilder, write_quantized_embeddings
from .graphs.decoder_prefill_int8 import write_prefill
from .onnx_writer import GraphWriter
from .options import ExportOptions
from .parity import Difference
from .progress import Progress
from .quantize import Quantized, existing_quantization, quantize, work_folder
from .tensor_source import Float32Source


def calibration_data(
    checkpoint: Checkpoint, engines: Bundle, options: ExportOptions, progress: Progress
) -> CalibrationSet | None:
    """Calibration sequences, made by the engines just written; None if nothing needs calibration."""
    quantizes = options.quantizes(checkpoint.config)
    if not quantizes and options.prefill_bits == 16:
        return None
    limit = options.calibration_tokens
    data = calibration_set(engines, options.calibration, limit if quantizes else min(limit, PROMPT_TOKENS))
    progress("calibration data", 1, 1)
    return data


def quantized_decoder(
    checkpoint: Checkpoint, data: CalibrationSet | None, options: ExportOptions, target: Path, progress: Progress
) -> Quantized | None:
    """The quantized decoder: the checkpoint's own, or a new one by the plan; None if it stays whole."""
    if checkpoint.config.quantization is not None:
        return existing_quantization(checkpoint)
    if options.plan is None or data is None:
        return None
    quantized = quantize(checkpoint, data, options.plan, options.calibration, work_folder(target), progress)
    if options.save_gptq is not None:
        write_gptq_checkpoint(checkpoint, quantized.linears, options.save_gptq)
        progress("GPTQ checkpoint", 1, 1)
    return quantized


def write_prefill_graph(
    checkpoint: Checkpoint,
    data: CalibrationSet | None,
    folder: Path,
    options: ExportOptions,
    quantized: Quantized | None,
    progress: Progress,
) -> PrefillQuantization:
    """Writes the prefill graph, if possible from the original weights: rounding 4-bit codes to 8 bits loses more."""
    if options.prefill_bits == 16 or data is None:
        return PrefillQuantization()
    original: Checkpoint | DequantizedCheckpoint = checkpoint
    if quantized is not None and checkpoint.config.quantization is not None:  # only the codes exist
        original = DequantizedCheckpoint(checkpoint, quantized.linears)
    checkpoint.release()
    calibration = calibrate_prefill(original, data, partial(progress, "calibrating prompts"))
    source, text = Float32Source(original), checkpoint.config.text
    write_prefill(text, source, calibration.smoothing, folder, partial(progress, "prefill graph"))
    checkpoint.release()
    error = cache_error(folder / PREFILL_GRAPH, calibration.held_out)
    return PrefillQuantization(8, options.calibration_source, calibration.num_tokens, error)


def write_decoder(
    checkpoint: Checkpoint,
    folder: Path,
    options: ExportOptions,
    table: StoredMatrix,
    quantized: Quantized | None,
    progress: Progress,
    head_ids: np.ndarray | None = None,
) -> dict[str, Difference]:
    """Writes the decoder's graphs; returns their differences from torch by file stem.

    table: of a head tied to the embeddings. head_ids: int64 [n], the rows that the output head has; None is all.
    """
    config, precision = checkpoint.config.text, options.stored_precision
    source = Float32Source(checkpoint)
    tied = config.tie_word_embeddings
    reference: Checkpoint | DequantizedCheckpoint = checkpoint
    if quantized is None:

        def make_builder(graph: GraphWriter) -> DecoderBuilder:
            return DecoderBuilder(graph, config, source, precision, head_ids)
    else:
        linears = quantized.linears
        reference = DequantizedCheckpoint(checkpoint, linears)
        shared = None
        if tied and HEAD in linears.names:
            shared = write_quantized_embeddings(linears.linear(HEAD), folder, head_ids)
        accuracy_level = 4 if options.activation_bits == 8 else 0

        def make_builder(graph: GraphWriter) -> DecoderBuilder:
            return QuantizedDecoderBuilder(graph, config, source, precision, linears, shared, accuracy_level, head_ids)

    export_decoder(make_builder, folder, table if tied else None, lambda done, total: progress("decoder", done, total))
    graphs = [DECODER_GRAPH]
    if options.for_gpus:
        graphs.append(write_fp16_decoder(folder).name)
    checked = partial(progress, "checking the decoder")
    return check_decoder(reference, folder, checked, graphs, head_ids)
