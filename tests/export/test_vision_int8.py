"""The 8-bit encoder: its products against plain integer arithmetic, its features against float32, its bundle in use."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch

from vl3edge.export import cli
from vl3edge.export.calibrate.smoothquant import Smoothing
from vl3edge.export.calibrate.vision import calibrate_vision, relative_error
from vl3edge.export.errors import ExportError
from vl3edge.export.graphs.vision import export_vision
from vl3edge.export.graphs.vision_int8 import quantize_products
from vl3edge.export.options import ExportOptions
from vl3edge.export.pipeline import export_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.demo.twin import write_outlier_twin
from vl3edge.models.vision import VisionEncoder
from vl3edge.runtime import PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.backends.onnxruntime import Backend
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import open_bundle
from vl3edge.runtime.bundle.manifest import Manifest
from vl3edge.runtime.bundle.specs import VisionQuantization
from vl3edge.runtime.errors import BackendError
from vl3edge.runtime.host import adds_8_bit_products_exactly
from vl3edge.runtime.vision.engines import VisionEngines


@pytest.fixture(scope="module")
def quantized(checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with an 8-bit encoder, calibrated on synthetic scenes."""
    folder = tmp_path_factory.mktemp("int8") / "bundle"
    export_bundle(Checkpoint.open(checkpoints("tiny")), folder, ExportOptions(vision_bits=8))
    return folder


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def features(folder: Path, frames: np.ndarray) -> np.ndarray:
    found: np.ndarray = session(folder / "vision.onnx").run(None, {"frames": frames})[0]
    return found


def random_frames(count: int, rows: int, columns: int) -> np.ndarray:
    shape = (count, rows * 14, columns * 14, 3)
    return np.random.default_rng(rows).integers(0, 256, shape, dtype=np.uint8)


def product_graph(folder: Path, weight: np.ndarray, gelu: bool) -> Path:
    """x @ weight, or gelu(x) @ weight, in 8 bits."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["N", len(weight)]))
    w = ir.Value(name="w", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(weight.shape))
    w.const_value = ir.tensor(weight, name="w")
    nodes = [ir.node("Gelu", [x])] if gelu else []
    if gelu:
        nodes[0].outputs[0].name = "active"
    nodes.append(ir.node("MatMul", [nodes[0].outputs[0] if gelu else x, w]))
    result = ir.node("Identity", nodes[-1].outputs)
    result.outputs[0].name, result.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    nodes[-1].outputs[0].name = "product"
    graph = ir.Graph([x], result.outputs, nodes=[*nodes, result], initializers=[w], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    quantize_products(model, ["w"], lambda name: weight)
    ir.save(model, folder / "product.onnx")
    return folder / "product.onnx"


@pytest.mark.parametrize("gelu", [False, True])
def test_a_product_is_integer_arithmetic_with_a_scale_per_row_and_column(tmp_path: Path, gelu: bool) -> None:
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((40, 24)).astype(np.float32) * rng.uniform(0.1, 10, 24).astype(np.float32)
    x = rng.standard_normal((7, 40)).astype(np.float32) * np.array([[1e-3, 0, 1, 5, 0.1, 1e4, 1]], np.float32).T
    (y,) = session(product_graph(tmp_path, weight, gelu)).run(None, {"x": x})
    active = torch.nn.functional.gelu(torch.from_numpy(x)).numpy() if gelu else x
    columns = np.abs(weight).max(axis=0) / 127
    if gelu:
        rows = np.maximum(active.max(axis=1) / 239, 0.1701 / 16)
    else:
        rows = np.maximum(np.abs(active).max(axis=1) / 127, 1e-12)
    rounded = np.rint(active / rows[:, None]).astype(int)
    assert rounded.min() >= (-16 if gelu else -127)
    assert rounded.max() <= (239 if gelu else 127)
    expected = (rounded @ np.rint(weight / columns).astype(int)) * rows[:, None] * columns
    # A value exactly between two steps may fall either way; nothing else may differ.
    difference = np.abs(y - expected)
    bound = 1e-5 * np.abs(expected).max(axis=1, keepdims=True) + rows[:, None] * np.abs(weight).max()
    assert (difference <= bound).all(), f"max {difference.max():.2e}, mean {difference.mean():.2e}"
    assert np.median(difference / rows[:, None]) < 1e-3
    exact = active @ weight
    error = np.linalg.norm(y - exact, axis=1) / (np.linalg.norm(active, axis=1) * np.linalg.norm(weight) + 1e-9)
    assert error[2:].max() < 0.02, error  # the first rows are next to nothing after GELU, whose steps have a least size


@pytest.mark.parametrize("known", [True, False])
def test_sums_do_not_overflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool) -> None:
    """The largest products there are, added as this CPU is said to do it exactly, and as others have to."""
    if known and not adds_8_bit_products_exactly():
        pytest.skip("a CPU that is not known to add 8-bit products in 32 bits")
    monkeypatch.setattr("vl3edge.runtime.backends.onnxruntime.adds_8_bit_products_exactly", lambda: known)
    path = product_graph(tmp_path, np.ones((1152, 48), np.float32), gelu=False)
    for rows in (1, 64):
        (y,) = select_backend("cpu", 1).session(path).run(None, {"x": np.ones((rows, 1152), np.float32)})
        np.testing.assert_allclose(y, 1152, rtol=1e-5)


def test_a_weight_without_a_product_is_refused(tmp_path: Path) -> None:
    graph = ir.Graph([], [], nodes=[], opset_imports={"": 20})
    with pytest.raises(ExportError, match=r"no product with layers\.0\.mlp\.fc1\.weight"):
        quantize_products(ir.Model(graph, ir_version=10), ["layers.0.mlp.fc1.weight"], lambda name: np.zeros((1, 1)))


def test_features_are_near_float32_and_the_manifest_says_how_near(
    checkpoints: Callable[..., Path], bundle: Path, quantized: Path
) -> None:
    frames = random_frames(3, 6, 4)
    with torch.inference_mode():
        expected = VisionEncoder.from_checkpoint(Checkpoint.open(checkpoints("tiny")))(torch.from_numpy(frames)).numpy()
    difference = features(quantized, frames) - expected
    relative = np.linalg.norm(difference) / np.linalg.norm(expected)
    manifest, whole = open_bundle(quantized).manifest, open_bundle(bundle).manifest
    assert manifest.vision_quantization.bits == 8
    assert manifest.vision_quantization.calibration_frames > 20
    assert 1e-4 < relative < 2 * manifest.vision_quantization.relative_error < 0.05, f"{relative:.2e}"
    measured = manifest.measured["vision"]
    assert 100 * whole.measured["vision"]["max_abs_diff"] < measured["max_abs_diff"] < 0.1 * measured["max_abs"]
    assert np.abs(difference).max() < 3 * measured["max_abs_diff"]
    assert manifest.files["vision.onnx.data"].bytes < 0.6 * whole.files["vision.onnx.data"].bytes
    for name in set(whole.files) - {"vision.onnx", "vision.onnx.data"}:
        assert manifest.files[name] == whole.files[name], name


def test_a_frame_has_the_same_features_in_any_company(quantized: Path) -> None:
    """Scales belong to patches: a bright neighbour, another chunk size or an equal frame left out change nothing."""
    frames = random_frames(4, 5, 3)
    frames[1] //= 16
    together = features(quantized, frames)
    for index in range(4):
        difference = np.abs(features(quantized, frames[index : index + 1])[0] - together[index])
        assert difference.max() < 1e-4, f"max {difference.max():.2e}, mean {difference.mean():.2e}"


def test_outlier_channels_cost_nothing(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    """The twin computes the same, with channels up to 64 times as loud; smoothing takes them back."""
    source = Checkpoint.open(checkpoints("tiny"))
    twin = Checkpoint.open(write_outlier_twin(source, tmp_path / "twin", part="vision"))
    clips = [random_frames(2, rows, 4) for rows in (4, 5, 6)]
    errors = []
    for name, checkpoint in (("plain", source), ("loud", twin)):
        (tmp_path / name).mkdir()
        calibration = calibrate_vision(checkpoint, clips)
        export_vision(checkpoint, tmp_path / name, calibration=calibration)
        errors.append(relative_error(tmp_path / name / "vision.onnx", calibration.held_out))
    export_vision(twin, tmp_path, calibration=replace(calibration, smoothing=Smoothing({}, {})))
    unsmoothed = relative_error(tmp_path / "vision.onnx", calibration.held_out)
    assert errors[1] < 1.5 * errors[0] < 0.5 * unsmoothed, (errors, unsmoothed)


def test_the_runtime_prunes_and_counts_as_before(bundle: Path, quantized: Path, media: Path) -> None:
    clips = []
    for folder in (bundle, quantized):
        model = VideoLlama3.load(folder, backend="cpu", num_threads=1)
        clips.append(model.encode(media / "nasa_13013.mp4", SamplingPlan(max_frames=3), PruningConfig(5.0)))
        assert model.info["vision_bits"] == (8 if folder == quantized else 16)
    whole, eight = clips
    assert eight.tokens_per_frame == whole.tokens_per_frame
    assert eight.num_pruned == whole.num_pruned > 0
    relative = np.linalg.norm(eight.visual.tokens - whole.visual.tokens) / np.linalg.norm(whole.visual.tokens)
    assert 1e-4 < relative < 0.05, f"{relative:.2e}"


def test_float16_keeps_what_is_not_in_8_bits(checkpoints: Callable[..., Path], quantized: Path, tmp_path: Path) -> None:
    options = ExportOptions(vision_bits=8, precision="fp16")
    manifest = export_bundle(Checkpoint.open(checkpoints("tiny")), tmp_path / "bundle", options).manifest
    assert manifest.files["vision.onnx.data"].bytes < open_bundle(quantized).manifest.files["vision.onnx.data"].bytes
    difference = np.abs(
        features(tmp_path / "bundle", random_frames(1, 4, 4)) - features(quantized, random_frames(1, 4, 4))
    )
    assert 0 < difference.max() < manifest.measured["vision"]["max_abs_diff"]


def test_graph_is_loadable_by_old_runtimes(quantized: Path) -> None:
    model = onnx.load(quantized / "vision.onnx", load_external_data=False)
    assert model.ir_version <= 10
    assert {o.domain: o.version for o in model.opset_import}[""] <= 21
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MatMulIntegerToFloat") == 2 * 6  # q, k, v, output, two of the MLP, in each of two layers
    assert kinds.count("QuantizeLinear") == 2 * 4  # q, k and v read the same
    assert kinds.count("MatMul") == 1  # the patch embedding


def test_onnx_runtime_on_cuda_is_refused(quantized: Path, bundle: Path) -> None:
    cuda = Backend("cuda", ("CUDAExecutionProvider",), "1.0")
    with pytest.raises(BackendError, match="export it again with --target cuda, or use backend"):
        VisionEngines(open_bundle(quantized), cuda)
    VisionEngines(open_bundle(bundle), cuda)


def test_a_bundle_of_before_has_a_float_encoder(bundle: Path) -> None:
    data = json.loads((bundle / "bundle.json").read_text())
    data = {key: value for key, value in data.items() if key not in ("vision_quantization", "sha256")}
    manifest, problems = Manifest.from_json(data)
    assert problems == []
    assert manifest is not None
    assert manifest.vision_quantization == VisionQuantization(bits=16)


def test_the_command_line(
    checkpoints: Callable[..., Path], media: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(checkpoints("tiny")), "-o", str(tmp_path / "bundle"), "--quant", "none"]
    with pytest.raises(SystemExit):
        cli.main([*command, "--vision-bits", "4"])
    assert "--vision-bits: invalid choice" in capsys.readouterr().err
    with pytest.raises(ExportError, match="vision_bits must be 8 or 16, not 4"):
        export_bundle(Checkpoint.open(command[0]), tmp_path / "bundle", ExportOptions(vision_bits=4))  # type: ignore[arg-type]
    calibration = ["--calibration", str(media / "nasa_13013.mp4")]
    assert cli.main([*command, "--vision-bits", "8", *calibration]) == 0
    spec = open_bundle(tmp_path / "bundle").manifest.vision_quantization
    out = capsys.readouterr().out
    assert f"vision encoder in 8 bits, calibrated on {spec.calibration_frames} frames" in out
    assert f"{spec.relative_error:.2%}" in out
    assert spec.source == "the media given"
    assert cli.main([*command, "--force", "--vision-bits", "8", "--calibration", str(tmp_path / "nowhere.mp4")]) == 1
    assert "nowhere.mp4" in capsys.readouterr().err
