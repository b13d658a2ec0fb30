"""The decoder's graph for GPUs, run by ONNX Runtime's float16 kernels on the CPU, against the float32 graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from cuda_kernels import without_kernel
from onnx import TensorProto, helper
from random_decoders import KINDS, write_decoder

from vl3edge.export.calibrate.fp16_range import Fp16Range
from vl3edge.export.decoder_parity import reference_logits
from vl3edge.export.errors import ExportError
from vl3edge.export.graphs.decoder import text_spec
from vl3edge.export.graphs.decoder_fp16 import write_fp16_decoder
from vl3edge.export.options import ExportOptions
from vl3edge.export.parity import load_session
from vl3edge.export.pipeline import export_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.file_names import DECODER_GRAPH, FP16_DECODER_GRAPH
from vl3edge.runtime.bundle.onnx_external import external_files
from vl3edge.runtime.bundle.specs import TextSpec
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import DecoderGraph
from vl3edge.runtime.decode.prefill_chunk import PREFILL_CHUNK


@pytest.fixture(scope="module", params=[(kind, preset) for kind in KINDS for preset in ("tiny", "tiny-128")], ids=str)
def exported(
    request: pytest.FixtureRequest, checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[TextSpec, Path]:
    """Folders with both graphs; the heads of "tiny" are widened in the cache."""
    kind, preset = request.param
    folder = tmp_path_factory.mktemp("half")
    return write_decoder(Checkpoint.open(checkpoints(preset)), KINDS[kind], folder), folder


def assert_near(half: np.ndarray, whole: np.ndarray) -> None:
    """As shares of the largest logit, where float16's own steps are 1e-3; random weights magnify them."""
    share = np.abs(half - whole) / np.abs(whole).max()
    assert share.max() < 1.5e-2, f"max {share.max():.2e}, mean {share.mean():.2e}"
    assert share.mean() < 3e-3, f"max {share.max():.2e}, mean {share.mean():.2e}"


def random_inputs(spec: TextSpec, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, spec.hidden_size)).astype(np.float32)


def test_prefills_steps_and_rewinds(exported: tuple[TextSpec, Path]) -> None:
    """In chunks, then step by step, back, and on."""
    spec, folder = exported
    half, whole = (
        Decoder(DecoderGraph(load_session(folder / name)), spec) for name in (FP16_DECODER_GRAPH, DECODER_GRAPH)
    )
    inputs = random_inputs(spec, PREFILL_CHUNK + 40)
    for decoder in (half, whole):
        decoder.prefill(inputs)
    assert_near(half.logits, whole.logits)
    for token in random_inputs(spec, 6, 1):
        half.step(token[None])
        whole.step(token[None])
        assert_near(half.logits, whole.logits)
    for decoder in (half, whole):
        decoder.rewind(30)
        decoder.prefill(inputs[:9])
    assert_near(half.logits, whole.logits)
    assert half.token == int(half.logits.argmax())
    assert half.cache.num_bytes * 2 == whole.cache.num_bytes
    assert half.cache.buffers[0].dtype == np.float16


def test_rows_of_a_batch_are_what_they_are_alone(exported: tuple[TextSpec, Path]) -> None:
    spec, folder = exported
    session = load_session(folder / FP16_DECODER_GRAPH)
    batch = Decoder(DecoderGraph(session), spec)
    batch.resize(3, 256)
    lengths = (7, 70, 33)
    for row, length in enumerate(lengths):
        batch.prefill(random_inputs(spec, length, row), row=row)
    tokens = random_inputs(spec, 3, 9)
    batch.step(tokens)
    for row, length in enumerate(lengths):
        alone = Decoder(DecoderGraph(session), spec)
        alone.prefill(random_inputs(spec, length, row))
        alone.step(tokens[row][None])
        assert_near(batch.logits[row], alone.logits[0])


def test_nothing_but_the_graph_is_added(exported: tuple[TextSpec, Path]) -> None:
    """No branch, no weight of its own, only operators that CUDA has, and in half what it computes in half alone."""
    _, folder = exported
    path = folder / FP16_DECODER_GRAPH
    model = onnx.load(path, load_external_data=False)
    assert model.ir_version == 10
    assert not list(folder.glob(f"{FP16_DECODER_GRAPH}.*"))
    assert external_files(path) <= external_files(folder / DECODER_GRAPH)
    assert path.stat().st_size < 1.5 * (folder / DECODER_GRAPH).stat().st_size
    graph = model.graph
    ops = {node.op_type for node in graph.node}
    assert "If" not in ops
    assert without_kernel(model) == set()
    cache = [value for value in (*graph.input, *graph.output) if "past" in value.name or "present" in value.name]
    assert {value.type.tensor_type.elem_type for value in cache} == {TensorProto.FLOAT16}
    names = [name for node in graph.node for name in node.output if name]
    assert len(names) == len(set(names))
    scales = {tensor.name: tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            assert scales[node.input[2]] == TensorProto.FLOAT16  # as stored, without a cast
            assert "accuracy_level" not in {attribute.name for attribute in node.attribute}


def test_the_nodes_of_a_step(exported: tuple[TextSpec, Path]) -> None:
    """Four casts a layer, on either side of its norms; beside the layers a handful, most of them for the token.

    For a token's embedding there are 12 where the head is symmetric, 5 where it is whole, and 3 for the next length.
    """
    spec, folder = exported
    graph = onnx.load(folder / FP16_DECODER_GRAPH, load_external_data=False).graph
    stored = {tensor.name for tensor in graph.initializer}
    nodes = [node for node in graph.node if not {name for name in node.input if name} <= stored]
    beside = Counter(node.name.split(".")[0] for node in nodes)
    looked_up = beside["lookup"], beside["hidden"], beside["next_seqlens_k"]
    assert looked_up in {(0, 0, 0), (4, 1, 3), (11, 1, 3), (18, 1, 3)}
    ops = Counter(node.op_type for node in nodes if not node.name.startswith(("lookup.", "next_seqlens_k")))
    for op in ("GroupQueryAttention", "QuickGelu", "Mul"):
        assert ops[op] == spec.num_layers, op
    assert ops["SkipSimplifiedLayerNormalization"] == 2 * spec.num_layers
    assert ops["Cast"] == 4 * spec.num_layers + 2  # the head's input, and the logits
    assert ops["Identity"] == 0
    token = ("IsNaN", "Where", "Reshape", "TopK", "GatherElements")
    assert [ops[op] for op in token] == [1, 1 + looked_up[1], 2, 2, 1]  # the head's input is reshaped, too


def test_the_nodes_of_the_demo_model() -> None:
    """All there are, in 6 layers: 15 each, two casts of the rotary tables, which are folded at load, and 30 more."""
    graph = onnx.load(DEMO_BUNDLE / FP16_DECODER_GRAPH, load_external_data=False).graph
    assert len(graph.node) == 6 * 15 + 2 + 30


class Greedy:
    """The token that the GPU's graph takes from logits float32 [B, vocabulary]."""

    def __init__(self, folder: Path, vocabulary: int) -> None:
        shapes = {"x": ["batch", 1, vocabulary], "logits": ["batch", vocabulary], "token": ["batch"]}
        given, logits, token = (
            helper.make_tensor_value_info(name, TensorProto.INT64 if name == "token" else TensorProto.FLOAT, shape)
            for name, shape in shapes.items()
        )
        nodes = [
            helper.make_node("Squeeze", ["x", "one"], ["logits"]),
            helper.make_node("ArgMax", ["logits"], ["token"], axis=-1, keepdims=0),
        ]
        one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
        graph = helper.make_graph(nodes, "decoder", [given], [logits, token], [one])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        (folder / DECODER_GRAPH).write_bytes(model.SerializeToString())
        self.path = write_fp16_decoder(folder)
        self._session = load_session(self.path)

    def __call__(self, logits: np.ndarray) -> list[int]:
        returned, tokens = self._session.run(None, {"x": logits[:, None]})
        np.testing.assert_array_equal(returned, logits)
        return list(tokens)


@pytest.mark.parametrize(("vocabulary", "rows"), [(151936, 1187), (152064, 594), (448, 2), (200, None), (1009, None)])
def test_the_token_is_the_first_of_the_largest(tmp_path: Path, vocabulary: int, rows: int | None) -> None:
    """Ties within a row of the vocabulary's and between rows; the 2B, the 7B and the demo model's, and a prime."""
    greedy = Greedy(tmp_path, vocabulary)
    starts = [t for t in onnx.load(greedy.path).graph.initializer if t.name == "token.starts"]
    assert [len(onnx.numpy_helper.to_array(tensor)) for tensor in starts] == ([] if rows is None else [rows])
    rng = np.random.default_rng(vocabulary)
    logits = rng.standard_normal((6, vocabulary)).astype(np.float32)
    logits[1] = np.round(logits[1])  # many ties for the largest
    logits[2] = -7.0
    logits[3, [vocabulary - 1, vocabulary // 2, vocabulary // 2 + 1]] = 9.0
    logits[4] = -np.inf
    logits[4, vocabulary - 2] = -1e30
    logits[5, 3] = np.inf
    assert greedy(logits) == logits.argmax(axis=1).tolist()


@pytest.mark.parametrize("vocabulary", [151936, 448, 1009])
@pytest.mark.parametrize("sign", [np.nan, -np.nan])
def test_nan_is_never_the_token(tmp_path: Path, vocabulary: int, sign: float) -> None:
    """Of nothing but NaN it is 0, where the runtime looks; elsewhere the largest number, in whatever row NaN stands."""
    greedy = Greedy(tmp_path, vocabulary)
    logits = np.random.default_rng(1).standard_normal((4, vocabulary)).astype(np.float32)
    logits[0] = sign
    best = vocabulary - 5
    logits[1:, best] = 8.0
    logits[1, :-6] = sign
    logits[2, [0, best - 1, best + 1]] = sign
    logits[3, ::2] = sign
    logits[3, best] = 8.0
    assert greedy(logits) == [0, best, best, best]


def test_the_manifest_says_how_near_it_is(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    export_bundle(Checkpoint.open(checkpoints("tiny")), tmp_path / "b", ExportOptions(targets=("cuda",)))
    manifest = open_bundle(tmp_path / "b").manifest
    assert manifest.targets == ("cuda",)
    assert FP16_DECODER_GRAPH in manifest.files
    half, whole = manifest.measured["decoder-fp16"], manifest.measured["decoder"]
    assert whole["max_abs_diff"] < half["max_abs_diff"] < 1.5e-2 * half["max_abs"]


def test_bundles_for_cpus_have_none(bundle: Path) -> None:
    assert FP16_DECODER_GRAPH not in open_bundle(bundle).manifest.files


@pytest.mark.parametrize("part", ["decoder", "vision path"])
def test_values_beyond_float16_are_refused(
    checkpoints: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def too_large(self: Fp16Range, what: str) -> None:
        if part in what:
            self.largest["layers.1.mlp.down_proj"] = 1e5
        checked(self, what)

    checked = Fp16Range.check
    monkeypatch.setattr(Fp16Range, "check", too_large)
    message = rf"the {part} for GPUs runs in float16, which cannot hold some values: layers\.1\.mlp\.down_proj"
    with pytest.raises(ExportError, match=message):
        export_bundle(Checkpoint.open(checkpoints("tiny")), tmp_path / "b", ExportOptions(targets=("cuda",)))
    assert not (tmp_path / "b").exists()


def test_products_of_every_layer_are_watched(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(checkpoints("tiny"))
    seen = Fp16Range()
    spec = text_spec(checkpoint.config.text)
    reference_logits(checkpoint, [torch.from_numpy(random_inputs(spec, 5))], [1], fp16_range=seen)
    assert len(seen.largest) == 7 * spec.num_layers
    assert all(0 < value < 1e3 for value in seen.largest.values())


def test_an_operator_it_does_not_know_is_an_error(bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(bundle / DECODER_GRAPH, load_external_data=False)
    model.graph.node[-1].op_type = "Softplus"
    (tmp_path / DECODER_GRAPH).write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match="Softplus"):
        write_fp16_decoder(tmp_path)
