"""Embeddings that a decoder's graph for GPUs looks up itself: bit for bit those that the host looks up."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from cuda_kernels import without_kernel
from random_decoders import KINDS, Quantized, write_decoder

from vl3edge.export.parity import load_session
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.file_names import FP16_DECODER_GRAPH
from vl3edge.runtime.bundle.onnx_external import external_files
from vl3edge.runtime.bundle.specs import TextSpec
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import NEXT_LENGTHS, TOKENS_INPUT, DecoderGraph
from vl3edge.runtime.prompt.splice import EmbeddingTable

TABLE = "embeddings.safetensors"
UNTIED = Quantized(group=16)
LOOKED_UP = [kind for kind in KINDS if kind != "fp32"]


@pytest.fixture
def written(request: pytest.FixtureRequest, checkpoints: Callable[..., Path], tmp_path: Path) -> tuple[TextSpec, Path]:
    """The graph of a kind and a preset; "tiny" has an odd number of groups in a row."""
    kind, preset = request.param
    return write_decoder(
        Checkpoint.open(checkpoints(preset)), KINDS.get(kind, UNTIED), tmp_path
    ), tmp_path / FP16_DECODER_GRAPH


def hidden(path: Path, tokens: np.ndarray, embeddings: np.ndarray) -> np.ndarray:
    """What goes into the first layer: the part of the graph that makes it, alone."""
    model = onnx.load(path, load_external_data=False)
    wanted, nodes = {"hidden"}, []
    for node in reversed(model.graph.node):
        if wanted & set(node.output):
            wanted |= set(node.input)
            nodes.insert(0, node)
    inputs = [value for value in model.graph.input if value.name in wanted]
    kept = [tensor for tensor in model.graph.initializer if tensor.name in wanted]
    output = onnx.helper.make_tensor_value_info("hidden", onnx.TensorProto.FLOAT, ["b", "s", "h"])
    part = onnx.helper.make_graph(nodes, "lookup", inputs, [output], kept)
    model.graph.CopyFrom(part)
    alone = path.with_name("lookup.onnx")
    alone.write_bytes(model.SerializeToString())
    (result,) = load_session(alone).run(None, {"tokens": tokens, "inputs_embeds": embeddings})
    return np.asarray(result)


@pytest.mark.parametrize(
    "written", [(kind, preset) for kind in LOOKED_UP for preset in ("tiny", "tiny-128")], indirect=True, ids=str
)
def test_every_row_has_the_bits_of_the_tables(written: tuple[TextSpec, Path]) -> None:
    spec, path = written
    ids = np.arange(spec.vocab_size)
    rows = EmbeddingTable(path.with_name(TABLE), spec.vocab_size, spec.hidden_size).rows(ids)
    given = np.full((len(ids), 1, spec.hidden_size), np.nan, np.float32)
    found = hidden(path, ids[:, None], given)[:, 0]
    np.testing.assert_array_equal(found.view(np.uint32), rows.view(np.uint32))
    chosen = ids.copy()
    chosen[::3] = -1
    mixed = hidden(path, chosen[:, None], given)[:, 0]
    assert np.isnan(mixed[::3]).all()
    np.testing.assert_array_equal(mixed[1::3], rows[1::3])


@pytest.mark.parametrize("written", [("zero points, 4-bit head", "tiny"), ("fp16", "tiny-128")], indirect=True, ids=str)
def test_a_prompt_is_taken_as_it_is_given(written: tuple[TextSpec, Path]) -> None:
    """One negative token stands for all of its positions."""
    spec, path = written
    given = np.random.default_rng(0).standard_normal((1, 9, spec.hidden_size)).astype(np.float32)
    np.testing.assert_array_equal(hidden(path, np.array([[-1]]), given), given)


@pytest.mark.parametrize(
    "written", [("fp32", "tiny"), ("untied", "tiny-untied"), ("fp16", "tiny-untied")], indirect=True, ids=str
)
def test_no_table_is_copied_to_the_gpu(written: tuple[TextSpec, Path]) -> None:
    """A table that is not the head's, or not as the head wants it, stays on the host, which looks up."""
    spec, path = written
    graph = onnx.load(path, load_external_data=False).graph
    assert TOKENS_INPUT not in {value.name for value in graph.input}
    assert NEXT_LENGTHS not in {value.name for value in graph.output}
    decoder = Decoder(DecoderGraph(load_session(path)), spec)
    table = EmbeddingTable(path.with_name(TABLE), spec.vocab_size, spec.hidden_size)
    decoder.prefill(table.rows(np.arange(5)))
    decoder.advance(np.array([7]), table)
    assert decoder.length == 6


@pytest.mark.parametrize("written", [(kind, "tiny") for kind in LOOKED_UP], indirect=True, ids=str)
def test_what_a_step_reads_is_read_before_it_is_written(written: tuple[TextSpec, Path]) -> None:
    """A step's token and lengths are written where it has read them: every reader must be on the way to the writer."""
    _, path = written
    model = onnx.load(path, load_external_data=False)
    assert without_kernel(model) == set()
    assert external_files(path) <= external_files(path.with_name("decoder.onnx"))
    makers = {name: node for node in model.graph.node for name in node.output}

    def before(name: str) -> set[str]:
        """Names of the nodes that a value waits for."""
        waiting, found = [name], set()
        while waiting:
            node = makers.get(waiting.pop())
            if node is not None and node.name not in found:
                found.add(node.name)
                waiting += [*node.input]
        return found

    readers = {i: {node.name for node in model.graph.node if i in node.input} for i in (TOKENS_INPUT, "seqlens_k")}
    assert readers[TOKENS_INPUT] <= before("token")
    (last,) = readers["seqlens_k"] - before("token")
    assert makers[NEXT_LENGTHS].name == last
    assert before("token") < before(NEXT_LENGTHS)


def test_the_demo_bundle_looks_tokens_up() -> None:
    bundle = open_bundle(DEMO_BUNDLE)
    assert DecoderGraph(load_session(bundle.path(FP16_DECODER_GRAPH))).looks_up
