"""The TensorRT part of an export: ONNX files for the compiler, and for "rtx" the plans themselves.

The plans need no GPU to be compiled; those for Jetson are compiled on the device by `vl3edge build`, from the same ONNX
files. They are measured here with ONNX Runtime on the CPU, through the runtime's own adapters. That shows what float16
weights cost, but not float16 activations, which ONNX Runtime keeps in float32 between operators even where the graph
says otherwise: it would not even notice an overflow. So the values that TensorRT stores in float16 are checked in
torch, and `benchmarks/fp16_drift.py` measures their rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.projector import Projector
from vl3edge.models.tensor_names import PROJECTOR, VISION
from vl3edge.models.vision import VisionEncoder
from vl3edge.runtime.backends.features import on_host
from vl3edge.runtime.backends.onnxruntime import OrtEngine
from vl3edge.runtime.backends.tensorrt_build import BuildOptions, build_engines
from vl3edge.runtime.backends.tensorrt_library import import_tensorrt
from vl3edge.runtime.backends.tensorrt_vision import BlockProjector, PatchEncoder
from vl3edge.runtime.bundle.manifest import Manifest
from vl3edge.runtime.bundle.plans import tensorrt_graph
from vl3edge.runtime.bundle.profiles import Profile, projector_profiles, vision_profiles
from vl3edge.runtime.errors import Vl3EdgeError

from .calibrate.fp16_range import Fp16Range
from .calibrate.vision import VisionCalibration
from .errors import ExportError
from .graphs.stored_weights import stored_projector, stored_vision
from .graphs.vision_tensorrt import export_tensorrt_projector, export_tensorrt_vision
from .parity import Difference, load_session
from .tensor_source import TensorSource

TENSORRT_TARGETS = ("rtx", "jetson")
_CHECK_SIZE = (2, 4, 6)  # frames, rows, columns of patches


def require_tensorrt(targets: Sequence[str]) -> dict[str, str]:
    """Versions for the manifest; ExportError, before any work is done, if a requested plan cannot be built."""
    if "rtx" not in targets:
        return {}
    try:
        return {"tensorrt_rtx": str(import_tensorrt("rtx").__version__)}
    except Vl3EdgeError as e:
        raise ExportError(str(e)) from e


def tensorrt_bytes(checkpoint: Checkpoint, targets: Sequence[str]) -> int:
    """About how many bytes the stage adds: float16 weights in the plans; the graphs share existing weights."""
    if "rtx" not in targets:
        return 0
    names = [name for name in checkpoint.names if name.startswith((VISION, PROJECTOR))]
    return 2 * sum(int(np.prod(checkpoint.shape(name))) for name in names)


def write_tensorrt(
    checkpoint: Checkpoint,
    source: TensorSource,
    folder: Path,
    manifest: Manifest,
    progress: Callable[[str, int, int], None],
    calibration: VisionCalibration | None = None,
) -> dict[str, Difference]:
    """Writes what the manifest's targets need into `folder`; returns the differences from torch, by stage.

    folder: has `vision.onnx` and the projectors, whose weights are shared. calibration: for an 8-bit encoder.
    """
    if not set(TENSORRT_TARGETS) & set(manifest.targets):
        return {}
    config = checkpoint.config
    export_tensorrt_vision(source, config, folder, calibration=calibration, stored=stored_vision(config, folder))
    if config.has_decoder:
        export_tensorrt_projector(source, config, folder, stored=stored_projector(config, folder))
    measured = _measure(checkpoint, folder, manifest)
    progress("graphs for TensorRT", 1, 1)
    if "rtx" in manifest.targets:
        build_engines(
            folder,
            manifest,
            BuildOptions("rtx"),
            lambda name, done, total: progress(f"TensorRT plan of the {name}", done, total),
        )
    return measured


@torch.inference_mode()
def _measure(checkpoint: Checkpoint, folder: Path, manifest: Manifest) -> dict[str, Difference]:
    count, rows, columns = _CHECK_SIZE
    patch, profiles = manifest.vision.patch_size, vision_profiles(manifest)
    generator = torch.Generator().manual_seed(0)
    shape = (count, rows * patch, columns * patch, 3)
    frames = torch.randint(256, shape, dtype=torch.uint8, generator=generator)
    reference = VisionEncoder.from_checkpoint(checkpoint)
    fp16_range = Fp16Range()
    fp16_range.watch(reference)
    expected = reference(frames)
    del reference
    encoder = PatchEncoder(OrtEngine(load_session(folder / tensorrt_graph("vision"))), profiles, patch)
    (features,) = encoder.run({"frames": frames.numpy()})
    measured = {"vision-tensorrt": Difference.between(on_host(features), expected.numpy())}
    del encoder
    if checkpoint.config.has_decoder:
        measured |= _measure_projector(checkpoint, folder, manifest, profiles, generator, fp16_range)
    fp16_range.check("TensorRT plans run")
    return measured


def _measure_projector(
    checkpoint: Checkpoint,
    folder: Path,
    manifest: Manifest,
    vision: Sequence[Profile],
    generator: torch.Generator,
    fp16_range: Fp16Range,
) -> dict[str, Difference]:
    (count, rows, columns), width = _CHECK_SIZE, manifest.vision.hidden_size
    measured: dict[str, Difference] = {}
    projector = OrtEngine(load_session(folder / tensorrt_graph("projector")))
    for kind in ("image", "video"):
        merge_size: int = getattr(manifest.processor, kind).merge_size
        given = torch.randn(count, rows * merge_size, columns * merge_size, width, generator=generator)
        keep = torch.arange(0, count * rows * columns, 2)
        projector_in_torch = Projector.from_checkpoint(checkpoint, merge_size)
        fp16_range.watch(projector_in_torch, "projector.")
        tokens = projector_in_torch(given, keep).numpy()
        profiles = projector_profiles(manifest, vision)
        blocks = BlockProjector(projector, profiles, merge_size, manifest.text.hidden_size)
        (ours,) = blocks.run({"features": given.numpy(), "keep": keep.numpy()})
        measured[f"projector-{kind}-tensorrt"] = Difference.between(ours, tokens)
    return measured
