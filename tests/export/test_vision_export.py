"""vision.onnx and the projectors in ONNX Runtime equal the torch modules and transformers, at sizes never
traced.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from reference import VisualInput, load_reference, reference_tokens

from vl3edge.export.errors import ExportError
from vl3edge.export.graphs.vision import export_projectors, export_vision
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.projector import Projector
from vl3edge.models.safetensors_writer import write_tensors
from vl3edge.models.synthetic.random import preset, write_random_checkpoint
from vl3edge.models.vision import VisionEncoder

TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """One layer with heads of 72, as in the released models; weights that float16 holds exactly."""
    config = preset("tiny", "authors")
    config = replace(config, vision=replace(config.vision, hidden_size=144, num_heads=2, num_layers=1))
    folder = tmp_path_factory.mktemp("checkpoint")
    return Checkpoint.open(write_random_checkpoint(folder, config, seed=3, dtype="float16"))


@pytest.fixture(scope="module")
def bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    difference = export_vision(checkpoint, folder)
    assert difference.max_abs_diff < TOLERANCE < difference.max_abs
    for stem, projector in export_projectors(checkpoint, folder).items():
        assert projector.max_abs_diff < TOLERANCE < projector.max_abs, stem
    return folder


@pytest.fixture(scope="module")
def standard(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("standard")
    export_vision(checkpoint, folder, attention="standard")
    return folder


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def random_frames(count: int, rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    shape = (count, rows * 14, columns * 14, 3)
    return np.random.default_rng(rows).integers(0, 256, shape, dtype=np.uint8)


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    difference = np.abs(actual - expected)
    worst = difference.max(initial=0)
    assert worst < TOLERANCE, f"max {worst:.2e}, mean {difference.mean():.2e}"


@pytest.mark.parametrize("flavour", ["bundle", "standard"])
@pytest.mark.parametrize(("count", "grid"), [(1, (1, 1)), (1, (1, 9)), (5, (7, 2)), (2, (12, 10)), (9, (2, 3))])
def test_features_equal_torch(
    checkpoint: Checkpoint, request: pytest.FixtureRequest, flavour: str, count: int, grid: tuple[int, int]
) -> None:
    path = request.getfixturevalue(flavour) / "vision.onnx"
    frames = random_frames(count, *grid)
    with torch.inference_mode():
        expected = VisionEncoder.from_checkpoint(checkpoint)(torch.from_numpy(frames)).numpy()
    assert_close(session(path).run(None, {"frames": frames})[0], expected)


def test_positions_come_from_the_shape(bundle: Path) -> None:
    """The same patches in another arrangement, 2 × 6 instead of 3 × 4, give other features."""
    wide, tall = random_frames(1, 2, 6), np.zeros((1, 3 * 14, 4 * 14, 3), np.uint8)
    patches = wide.reshape(2, 14, 6, 14, 3).transpose(0, 2, 1, 3, 4).reshape(3, 4, 14, 14, 3)
    tall[0] = patches.transpose(0, 2, 1, 3, 4).reshape(42, 56, 3)
    vision = session(bundle / "vision.onnx")
    first, second = (vision.run(None, {"frames": frames})[0].reshape(12, -1) for frames in (wide, tall))
    assert np.abs(first - second).max() > 0.1


@pytest.mark.parametrize(("kind", "merge_size"), [("image", 1), ("video", 2)])
def test_tokens_equal_transformers(checkpoint: Checkpoint, bundle: Path, kind: str, merge_size: int) -> None:
    frames = random_frames(4, 6, 10)
    mask = np.random.default_rng(0).random((4, 6 // merge_size, 10 // merge_size)) < 0.5
    (features,) = session(bundle / "vision.onnx").run(None, {"frames": frames})
    keep = np.flatnonzero(mask)
    (tokens,) = session(bundle / f"projector-{kind}.onnx").run(None, {"features": features, "keep": keep})
    model = load_reference(checkpoint.folder)
    assert_close(tokens, reference_tokens(model, checkpoint.config, VisualInput(frames, merge_size, mask)))


@pytest.mark.parametrize("kept", [0, 1])
def test_projector_takes_few_tokens(checkpoint: Checkpoint, bundle: Path, kept: int) -> None:
    features = np.random.default_rng(0).standard_normal((1, 2, 4, 144), dtype=np.float32)
    keep = np.arange(kept)
    (tokens,) = session(bundle / "projector-video.onnx").run(None, {"features": features, "keep": keep})
    with torch.inference_mode():
        projector = Projector.from_checkpoint(checkpoint, 2)
        expected = projector(torch.from_numpy(features), torch.from_numpy(keep)).numpy()
    assert_close(tokens, expected)


def test_fp16_is_fp32_arithmetic_with_rounded_weights(checkpoint: Checkpoint, bundle: Path, tmp_path: Path) -> None:
    """float16 holds this checkpoint's weights exactly, so both precisions must agree in every bit."""
    export_vision(checkpoint, tmp_path, "fp16")
    export_projectors(checkpoint, tmp_path, "fp16")
    frames, keep = random_frames(2, 4, 6), np.arange(0, 12, 2)
    (features,) = session(bundle / "vision.onnx").run(None, {"frames": frames})
    assert np.array_equal(session(tmp_path / "vision.onnx").run(None, {"frames": frames})[0], features)
    inputs = {"features": features, "keep": keep}
    for name in ("projector-image.onnx", "projector-video.onnx"):
        first, second = (session(folder / name).run(None, inputs)[0] for folder in (bundle, tmp_path))
        assert np.array_equal(first, second), name
    sizes = {folder: (folder / "vision.onnx.data").stat().st_size for folder in (bundle, tmp_path)}
    assert sizes[tmp_path] < 0.55 * sizes[bundle]


def test_fp16_refuses_what_it_cannot_hold(checkpoint: Checkpoint, tmp_path: Path) -> None:
    shapes = {name: checkpoint.shape(name) for name in checkpoint.names}
    weights = {name: checkpoint.tensor(name).float() for name in checkpoint.names}
    weights["model.projector.readout.2.bias"][0] = 1e5
    config = replace(checkpoint.config, layout="transformers", image=preset("tiny").image, video=preset("tiny").video)
    write_random_checkpoint(tmp_path, config)
    write_tensors(tmp_path, shapes, lambda name, shape: weights[name], torch.float32)
    with pytest.raises(ExportError, match=r"use fp32: model\.projector\.readout\.2\.bias \(up to 1e\+05\)"):
        export_projectors(Checkpoint.open(tmp_path), tmp_path, "fp16")


def test_unknown_precision_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="fp32, fp16"):
        export_projectors(checkpoint, tmp_path, "int8")  # type: ignore[arg-type]


def test_files_are_loadable_anywhere(bundle: Path, standard: Path) -> None:
    """Old enough for ONNX Runtime 1.23, free of this machine's paths, weights outside, sizes named."""
    for path in (*bundle.glob("*.onnx"), *standard.glob("*.onnx")):
        model = onnx.load(path, load_external_data=False)
        assert model.ir_version <= 10
        assert {entry.domain: entry.version for entry in model.opset_import}[""] <= 21
        assert b".py" not in path.read_bytes()
        locations = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
        assert locations == {f"{path.name}.data".replace("video", "image")}  # the projectors' weights are the same
        assert path.stat().st_size < 40_000
    vision = onnx.load(bundle / "vision.onnx", load_external_data=False)
    frames = vision.graph.input[0].type.tensor_type
    assert frames.elem_type == onnx.TensorProto.UINT8
    assert [dim.dim_param or dim.dim_value for dim in frames.shape.dim] == ["F", "H", "W", 3]
    plain = onnx.load(standard / "vision.onnx", load_external_data=False)
    assert {node.domain for node in plain.graph.node} == {""}


_PEAK = """
import resource, sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
def run(side):
    session.run(None, {"frames": numpy.zeros((1, side * 14, side * 14, 3), numpy.uint8)})
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
small = run(8)
print(run(64) - small)
"""


def test_memory_does_not_grow_with_the_square_of_patches(bundle: Path) -> None:
    """4,096 patches: one matrix of their attention alone would be 64 MiB, and each of the two heads has
    one.
    """
    command = [sys.executable, "-c", _PEAK, str(bundle / "vision.onnx")]
    grown_kib = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert grown_kib < 4096 * 4096 * 4 // 1024


def test_progress_counts_every_weight(tmp_path: Path) -> None:
    """Also the small ones, which stay inside the graph's file."""
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path, preset("tiny-untied")))
    calls: list[tuple[int, int]] = []
    export_vision(checkpoint, tmp_path, progress=lambda done, total: calls.append((done, total)))
    total = len(VisionEncoder(checkpoint.config).sources())
    assert calls == [(done, total) for done in range(1, total + 1)]
