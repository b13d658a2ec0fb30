"""The vision encoder and the projectors as ONNX files, traced from the torch modules of `models/`.

`vision.onnx`: `frames` uint8 [F, H, W, 3] -> `features` float32 [F, h, w, C]; F, H and W are dynamic, H and W multiples
of the patch size. `projector-image.onnx`, `projector-video.onnx`: `features` and `keep` int64 [K], flat indices into
the merged grid -> `tokens` float32 [K, D].

Attention comes in two flavours. "microsoft" is for ONNX Runtime: MultiHeadAttention, which processes patches in tiles
on a CPU, so that memory grows linearly with their number, and RotaryEmbedding. "standard" uses only operators of the
ONNX standard, for compilers that fuse attention themselves, such as TensorRT.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.projector import Projector
from vl3edge.models.vision import TORCH_OPS, VisionEncoder, VisionOps

from ..calibrate.fp16_range import Fp16Range
from ..calibrate.vision import VisionCalibration
from ..parity import Difference, input_dtype, load_session
from .trace import Precision, Signature, microsoft_op, trace_to_file

Attention = Literal["microsoft", "standard"]
_CHECK_GRID = (4, 6)  # merged and unmerged rows and columns, of two frames; not the sizes that are traced


def export_vision(
    checkpoint: Checkpoint,
    folder: Path,
    precision: Precision = "fp32",
    attention: Attention = "microsoft",
    progress: Callable[[int, int], None] = lambda done, total: None,
    calibration: VisionCalibration | None = None,
) -> Difference:
    """Writes vision.onnx and vision.onnx.data into `folder`; returns its difference from the float32 torch module.

    precision: see `trace_to_file`. progress: called with (weights written, weights in all). calibration: the inputs of
        the layers' products, which are then smoothed (`smoothquant.py`) and computed in 8 bits (`vision_int8.py`).
    """
    path = folder / "vision.onnx"
    patch, width = checkpoint.config.vision.patch_size, checkpoint.config.vision.hidden_size
    with torch.device("meta"):
        encoder = VisionEncoder(checkpoint.config, MICROSOFT_OPS if attention == "microsoft" else TORCH_OPS)
    rows, columns = torch.export.Dim("h"), torch.export.Dim("w")
    signature = Signature(
        examples={"frames": torch.zeros(2, 3 * patch, 5 * patch, 3, dtype=torch.uint8)},
        sizes={"frames": {0: torch.export.Dim("F"), 1: patch * rows, 2: patch * columns}},
        inputs={"frames": ("F", "H", "W", 3)},
        outputs={"features": ("F", "h", "w", width)},
    )
    sources, eight_bit = encoder.sources(), []
    if calibration is not None:
        sources = calibration.smoothing.sources(sources)
        eight_bit = [f"{name}.weight" for name in calibration.products]
    trace_to_file(encoder, sources, checkpoint, signature, path, precision, progress, eight_bit)
    return check_vision(checkpoint, path)


def export_projectors(checkpoint: Checkpoint, folder: Path, precision: Precision = "fp32") -> dict[str, Difference]:
    """Writes both projectors, whose weights are the same, into `folder`; returns each one's difference from torch, by
    the file's stem.
    """
    config = checkpoint.config
    merge_sizes = {"projector-image": config.image.merge_size, "projector-video": config.video.merge_size}
    for stem, merge_size in merge_sizes.items():
        path = folder / f"{stem}.onnx"
        with torch.device("meta"):
            projector = Projector(config, merge_size)
        rows, columns = torch.export.Dim("rows"), torch.export.Dim("columns")
        features = torch.zeros(2, 3 * merge_size, 5 * merge_size, config.vision.hidden_size)
        signature = Signature(
            examples={"features": features, "keep": torch.zeros(7, dtype=torch.int64)},
            sizes={
                "features": {0: torch.export.Dim("F"), 1: merge_size * rows, 2: merge_size * columns},
                "keep": {0: torch.export.Dim("K")},
            },
            inputs={"features": ("F", "h", "w", config.vision.hidden_size), "keep": ("K",)},
            outputs={"tokens": ("K", config.text.hidden_size)},
        )
        trace_to_file(projector, projector.sources(), checkpoint, signature, path, precision)
    share_data(*(folder / f"{stem}.onnx" for stem in merge_sizes))
    return {
        stem: check_projector(checkpoint, folder / f"{stem}.onnx", merge_size)
        for stem, merge_size in merge_sizes.items()
    }


def share_data(first: Path, second: Path) -> None:
    """Makes the second graph read the first's data file if its own is identical, and removes the latter."""
    kept, other = (path.with_name(f"{path.name}.data") for path in (first, second))
    if kept.read_bytes() != other.read_bytes():
        return
    model = onnx.load(second, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = kept.name
    second.write_bytes(model.SerializeToString())
    other.unlink()


def check_vision(checkpoint: Checkpoint, path: Path, fp16_range: Fp16Range | None = None) -> Difference:
    """Features of the file against those of the float32 torch module, for two frames of noise.

    fp16_range: observes the module's products.
    """
    patch = checkpoint.config.vision.patch_size
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(
        256, (2, _CHECK_GRID[0] * patch, _CHECK_GRID[1] * patch, 3), dtype=torch.uint8, generator=generator
    )
    encoder = VisionEncoder.from_checkpoint(checkpoint)
    if fp16_range is not None:
        fp16_range.watch(encoder)
    with torch.inference_mode():
        reference = encoder(frames).numpy()
    del encoder  # its weights and the session's need not be in memory together
    (features,) = load_session(path).run(None, {"frames": frames.numpy()})
    return Difference.between(features, reference)


def check_projector(
    checkpoint: Checkpoint, path: Path, merge_size: int, fp16_range: Fp16Range | None = None
) -> Difference:
    """Tokens of the file against those of the float32 torch module, for normal features and half of the tokens.
    fp16_range: as for `check_vision`.
    """
    generator = torch.Generator().manual_seed(0)
    rows, columns = _CHECK_GRID
    features = torch.randn(
        2,
        rows * merge_size,
        columns * merge_size,
        checkpoint.config.vision.hidden_size,
        generator=generator,
    )
    keep = torch.arange(0, 2 * rows * columns, 2)
    projector = Projector.from_checkpoint(checkpoint, merge_size)
    if fp16_range is not None:
        fp16_range.watch(projector, "projector.")
    with torch.inference_mode():
        reference = projector(features, keep).numpy()
    session = load_session(path)
    given: np.ndarray = features.numpy().astype(input_dtype(session, "features"))
    (tokens,) = session.run(None, {"features": given, "keep": keep.numpy()})
    return Difference.between(tokens, reference)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
    return microsoft_op("MultiHeadAttention", (q, k, v), q, num_heads=num_heads)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int) -> torch.Tensor:
    # Its tables hold one row per position; ours hold one per patch, so patch n is at "position" n, starting at 0.
    start = torch.zeros(1, dtype=torch.int64)
    return microsoft_op("RotaryEmbedding", (x, start, cos, sin), x, num_heads=num_heads)


MICROSOFT_OPS = VisionOps(_attend, _rotate)
