"""The vision path's graphs for GPUs, run by ONNX Runtime on the CPU, against the float32 torch modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cuda_kernels import without_kernel
from onnx import TensorProto

from vl3edge.export.errors import ExportError
from vl3edge.export.graphs.vision_fp16 import write_fp16_vision
from vl3edge.export.options import ExportOptions
from vl3edge.export.parity import load_session
from vl3edge.export.pipeline import export_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.projector import Projector
from vl3edge.models.vision import VisionEncoder
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.file_names import VISION_GRAPHS, fp16_file
from vl3edge.runtime.bundle.onnx_external import external_files

KINDS: dict[str, dict[str, Any]] = {
    "float32": {},
    "float16": {"precision": "fp16"},
    "8 bits": {"vision_bits": 8},
}
LIMITS = {"float32": 2e-3, "float16": 2e-3, "8 bits": 3e-2}


@pytest.fixture(scope="module", params=KINDS)
def exported(
    request: pytest.FixtureRequest, checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Checkpoint, Path]:
    """The kind of weights, the checkpoint and its bundle."""
    checkpoint = Checkpoint.open(checkpoints("tiny"))
    folder = tmp_path_factory.mktemp("half") / "bundle"
    export_bundle(checkpoint, folder, ExportOptions(targets=("cpu", "cuda"), **KINDS[request.param]))
    return request.param, checkpoint, folder


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize(("count", "rows", "columns"), [(3, 6, 8), (1, 2, 2), (2, 14, 4)])
def test_features_are_near_float32(exported: tuple[str, Checkpoint, Path], count: int, rows: int, columns: int) -> None:
    kind, checkpoint, folder = exported
    shape = (count, rows * 14, columns * 14, 3)
    frames = np.random.default_rng(rows).integers(0, 256, shape, np.uint8)
    with torch.inference_mode():
        expected = VisionEncoder.from_checkpoint(checkpoint)(torch.from_numpy(frames)).numpy()
    (features,) = load_session(folder / "vision-fp16.onnx").run(None, {"frames": frames})
    assert features.dtype == np.float16
    assert features.shape == expected.shape
    assert 1e-5 < relative(features, expected) < LIMITS[kind]
    if kind == "8 bits":  # what rounds activations as well is farther away
        (rounded,) = load_session(folder / "vision.onnx", prepack=True).run(None, {"frames": frames})
        assert relative(features, expected) < relative(rounded, expected)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_tokens_are_near_float32(exported: tuple[str, Checkpoint, Path], kind: str) -> None:
    _, checkpoint, folder = exported
    config = checkpoint.config
    merge = (config.image if kind == "image" else config.video).merge_size
    features = np.random.default_rng(0).standard_normal((2, 6, 8, config.vision.hidden_size)).astype(np.float16)
    keep = np.flatnonzero(np.random.default_rng(1).random(2 * 48 // merge**2) < 0.5)
    with torch.inference_mode():
        given = torch.from_numpy(features.astype(np.float32))
        expected = Projector.from_checkpoint(checkpoint, merge)(given, torch.from_numpy(keep)).numpy()
    (tokens,) = load_session(folder / f"projector-{kind}-fp16.onnx").run(None, {"features": features, "keep": keep})
    assert tokens.dtype == np.float32
    assert relative(tokens, expected) < 2e-3


def test_nothing_but_the_graphs_is_added(exported: tuple[str, Checkpoint, Path]) -> None:
    """They read the bytes that are there, and only operators that CUDA has, in float16 what is costly."""
    _, _, folder = exported
    for graph in VISION_GRAPHS:
        path = folder / fp16_file(graph)
        model = onnx.load(path, load_external_data=False)
        assert external_files(path) <= external_files(folder / f"{graph}.onnx")
        assert not list(folder.glob(f"{path.name}.*"))
        assert path.stat().st_size < 40_000
        assert without_kernel(model) == set()
        names = [name for node in model.graph.node for name in node.output if name]
        assert len(names) == len(set(names))
    assert open_bundle(folder).manifest.measured.keys() >= {Path(fp16_file(graph)).stem for graph in VISION_GRAPHS}


def test_where_float16_begins_and_ends(exported: tuple[str, Checkpoint, Path]) -> None:
    """Products and attention are float16; norms and what is added to the residual stream are float32."""
    _, checkpoint, folder = exported
    model = onnx.load(folder / "vision-fp16.onnx", load_external_data=False)
    dtypes = _dtypes(model)
    layers = checkpoint.config.vision.num_layers
    seen = Counter((node.op_type, dtypes.get(node.output[0])) for node in model.graph.node)
    assert seen["MultiHeadAttention", TensorProto.FLOAT16] == layers
    assert seen["RotaryEmbedding", TensorProto.FLOAT16] == 2 * layers
    assert seen["MatMul", TensorProto.FLOAT16] == 6 * layers + 1
    assert seen["Add", TensorProto.FLOAT16] == 6 * layers + 1
    assert seen["FastGelu", TensorProto.FLOAT16] == layers
    assert seen["LayerNormalization", TensorProto.FLOAT] == 2 * layers + 1
    assert seen["Add", TensorProto.FLOAT] == 2 * layers + 1  # the residual stream, and the pixels' offset


def _dtypes(model: onnx.ModelProto) -> dict[str, int]:
    """Types of floats by name, followed from casts and weights; a node has that of its first input."""
    graph = model.graph
    dtypes = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        to = [attribute.i for attribute in node.attribute if attribute.name == "to"]
        dtype = to[0] if to else dtypes.get(node.input[0], TensorProto.INT64)
        for name in node.output:
            dtypes[name] = dtype
    return dtypes


def test_bundles_for_cpus_have_none(bundle: Path) -> None:
    assert not {fp16_file(graph) for graph in VISION_GRAPHS} & set(open_bundle(bundle).manifest.files)


def test_the_demo_bundle_has_them() -> None:
    manifest = open_bundle(DEMO_BUNDLE).manifest
    graphs = [fp16_file(graph) for graph in VISION_GRAPHS]
    assert sum(manifest.files[name].bytes for name in graphs) < 32_000
    assert manifest.measured["vision-fp16"]["max_abs_diff"] < 2e-3 * manifest.measured["vision-fp16"]["max_abs"]


def test_an_operator_it_does_not_know_is_an_error(bundle: Path, tmp_path: Path) -> None:
    for graph in VISION_GRAPHS:
        model = onnx.load(bundle / f"{graph}.onnx", load_external_data=False)
        for node in model.graph.node:
            if node.op_type == "LayerNormalization":
                node.op_type = "Softplus"
        (tmp_path / f"{graph}.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=r"vision\.onnx has a node Softplus"):
        write_fp16_vision(tmp_path)
