"""The 8-bit encoder for TensorRT: quantized as its compiler wants it, near float32, and really compiled to int8."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from vl3edge.export.calibrate.smoothquant import Smoothing
from vl3edge.export.calibrate.vision import VisionCalibration, calibrate_vision, calibration_clips
from vl3edge.export.graphs.stored_weights import stored_vision
from vl3edge.export.graphs.vision import export_projectors, export_vision
from vl3edge.export.graphs.vision_tensorrt import export_tensorrt_vision
from vl3edge.export.manifest import make_manifest
from vl3edge.export.options import ExportOptions
from vl3edge.export.parity import load_session
from vl3edge.export.tensor_source import Float32Source
from vl3edge.export.tensorrt import write_tensorrt
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.demo.twin import write_outlier_twin
from vl3edge.runtime.backends.onnxruntime import OrtEngine
from vl3edge.runtime.backends.tensorrt_build import BuildOptions, compile_plan
from vl3edge.runtime.backends.tensorrt_library import import_tensorrt
from vl3edge.runtime.backends.tensorrt_vision import PatchEncoder
from vl3edge.runtime.bundle.profiles import vision_profiles
from vl3edge.runtime.errors import BackendError


@pytest.fixture(scope="module")
def checkpoint(checkpoints: Callable[..., Path]) -> Checkpoint:
    return Checkpoint.open(checkpoints("tiny"))


@pytest.fixture(scope="module")
def calibration(checkpoint: Checkpoint) -> VisionCalibration:
    return calibrate_vision(checkpoint, calibration_clips(make_manifest(checkpoint.config, ExportOptions(), None)))


def rtx() -> Any:
    try:
        return import_tensorrt("rtx")
    except BackendError as e:
        pytest.skip(str(e))


def error(checkpoint: Checkpoint, calibration: VisionCalibration, folder: Path, fp16: bool = True) -> float:
    """Relative error of the features of held-out frames."""
    folder.mkdir()
    export_tensorrt_vision(Float32Source(checkpoint), checkpoint.config, folder, fp16=fp16, calibration=calibration)
    profiles = vision_profiles(make_manifest(checkpoint.config, ExportOptions(), None))
    encoder = PatchEncoder(OrtEngine(load_session(folder / "vision.onnx", prepack=True)), profiles, 14)
    pairs = [(encoder.run({"frames": part.frames})[0], part.features) for part in calibration.held_out]
    found, expected = (np.concatenate([values.reshape(-1) for values in side]) for side in zip(*pairs, strict=True))
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("fp16", [True, False])
def test_features_are_near_float32(
    checkpoint: Checkpoint, calibration: VisionCalibration, tmp_path: Path, fp16: bool
) -> None:
    assert 1e-3 < error(checkpoint, calibration, tmp_path / "graph", fp16) < 0.06
    model = onnx.load(tmp_path / "graph" / "vision.onnx")
    weights = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert {o.domain: o.version for o in model.opset_import}[""] == 17
    quantizers = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    assert len(quantizers) == 2 * 6
    for node in quantizers:
        assert weights[node.input[1]].size == 1  # TensorRT takes one scale per tensor of activations
        assert weights[node.input[2]].dtype == np.int8
        assert weights[node.input[2]] == 0
    stored = [name for name in weights if weights[name].dtype == np.int8 and weights[name].ndim == 2]
    assert len(stored) == 2 * 6
    for name in stored:
        assert np.abs(weights[name].astype(int)).max(axis=0).tolist() == [127] * weights[name].shape[1]
        assert weights[f"{name}.scale"].shape == weights[name].shape[1:]


def test_outlier_channels_are_smoothed(checkpoint: Checkpoint, calibration: VisionCalibration, tmp_path: Path) -> None:
    twin = Checkpoint.open(write_outlier_twin(checkpoint, tmp_path / "twin", part="vision"))
    clips = calibration_clips(make_manifest(twin.config, ExportOptions(), None))
    loud = calibrate_vision(twin, clips)
    plain = error(checkpoint, calibration, tmp_path / "a")
    smooth = error(twin, loud, tmp_path / "b")
    rough = error(twin, replace(loud, smoothing=Smoothing({}, {})), tmp_path / "c")
    # Factors are powers of two, which leaves a channel up to √2 louder: with one scale per tensor all others pay.
    assert smooth < 2 * plain < 0.2 * rough, (plain, smooth, rough)


def test_the_stage_measures_it(checkpoint: Checkpoint, calibration: VisionCalibration, tmp_path: Path) -> None:
    manifest = make_manifest(checkpoint.config, ExportOptions(targets=("cpu", "jetson")), None)
    source = Float32Source(checkpoint)
    measured = []
    for name, given in (("eight", calibration), ("half", None)):
        (tmp_path / name).mkdir()
        export_vision(checkpoint, tmp_path / name, "fp16", calibration=given)
        export_projectors(checkpoint, tmp_path / name, "fp16")
        stages = write_tensorrt(checkpoint, source, tmp_path / name, manifest, lambda *_: None, given)
        measured.append(stages["vision-tensorrt"])
        assert not list((tmp_path / name).glob("*-tensorrt.onnx.data"))
    assert 5 * measured[1].max_abs_diff < measured[0].max_abs_diff < 0.2 * measured[0].max_abs


def test_codes_and_scales_are_those_of_the_cpus_graph(
    checkpoint: Checkpoint, calibration: VisionCalibration, tmp_path: Path
) -> None:
    """With every weight shared the graph computes the same as with weights of its own."""
    export_vision(checkpoint, tmp_path, calibration=calibration)
    stored = stored_vision(checkpoint.config, tmp_path)
    (tmp_path / "own").mkdir()
    source, config = Float32Source(checkpoint), checkpoint.config
    paths = [
        export_tensorrt_vision(source, config, folder, calibration=calibration, stored=given)[0]
        for folder, given in ((tmp_path, stored), (tmp_path / "own", {}))
    ]
    inputs = {
        "patches": np.random.default_rng(0).integers(0, 256, (2, 6, 588), np.uint8),
        "positions": np.array([(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)], np.int32),
    }
    shared, own = (load_session(path).run(None, inputs)[0] for path in paths)
    np.testing.assert_array_equal(shared, own)


def test_tensorrt_for_rtx_multiplies_int8(
    checkpoint: Checkpoint, calibration: VisionCalibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built for real, without a GPU; the compiler's log lists the products with their types."""
    trt = rtx()
    export_tensorrt_vision(Float32Source(checkpoint), checkpoint.config, tmp_path, calibration=calibration)
    log: list[str] = []
    listen = "vl3edge.runtime.backends.tensorrt_build._Notes.listen"
    monkeypatch.setattr(listen, lambda notes, message: log.append(message))
    profiles = vision_profiles(make_manifest(checkpoint.config, ExportOptions(), None))[:1]
    plan, _ = compile_plan(trt, tmp_path / "vision.onnx", profiles, BuildOptions("rtx"))
    assert plan.nbytes > 0
    products = {line.split(",")[0] for message in log for line in message.splitlines() if "LayerType: gemm" in line}
    int8 = {
        line.split(",")[0]
        for message in log
        for line in message.splitlines()
        if "LayerType: gemm" in line and line.split("Outputs:")[0].count("Datatype: Int8") == 2
    }
    # Queries, keys and values become one product, so a layer has four; the patch embedding stays float16.
    assert len(products) == 2 * 4 + 1, products
    assert len(int8) == 2 * 4, int8
