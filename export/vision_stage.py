"""The vision stage of an export: encoder and projectors, for GPUs also in float16, each measured."""

from __future__ import annotations

from pathlib import Path

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.runtime.bundle.file_names import ENCODER_GRAPH, VISION_GRAPHS
from vl3edge.runtime.bundle.manifest import Manifest
from vl3edge.runtime.bundle.specs import VisionQuantization

from .calibrate.vision import VisionCalibration, calibrate_vision, calibration_clips, relative_error
from .graphs.vision import export_projectors, export_vision
from .graphs.vision_fp16 import check_fp16_vision, write_fp16_vision
from .options import ExportOptions
from .parity import Difference
from .progress import Progress


def vision_calibration(
    checkpoint: Checkpoint, options: ExportOptions, draft: Manifest, progress: Progress
) -> VisionCalibration | None:
    """The inputs of the encoder's products on the calibration media; None unless it is quantized to 8 bits."""
    if options.vision_bits == 16:
        return None
    clips = calibration_clips(draft, options.calibration)
    return calibrate_vision(checkpoint, clips, lambda done, total: progress("calibrating vision", done, total))


def write_vision(
    checkpoint: Checkpoint,
    folder: Path,
    options: ExportOptions,
    calibration: VisionCalibration | None,
    progress: Progress,
) -> tuple[dict[str, Difference], VisionQuantization]:
    """Writes the graphs; returns their differences from torch by file stem, and the encoder's quantization."""
    precision, quantization = options.stored_precision, VisionQuantization()
    progress("vision", 0, 1)
    measured = {"vision": export_vision(checkpoint, folder, precision, calibration=calibration)}
    if calibration is not None:
        error = relative_error(folder / "vision.onnx", calibration.held_out)
        quantization = VisionQuantization(8, options.calibration_source, calibration.num_frames, error)
    progress("vision", 1, 1)
    graphs: tuple[str, ...] = (ENCODER_GRAPH,)
    if checkpoint.config.has_decoder:
        measured |= export_projectors(checkpoint, folder, precision)
        progress("projectors", 1, 1)
        graphs = VISION_GRAPHS
    if options.for_gpus:
        write_fp16_vision(folder, graphs)
        measured |= check_fp16_vision(checkpoint, folder, graphs)
        progress("graphs for GPUs", 1, 1)
    return measured, quantization
