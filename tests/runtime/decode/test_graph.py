"""The decoder in a GPU's memory, with the host in the GPU's place: bit for bit what it is in host memory."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_captures import Capturing
from fake_tensorrt import FakeDevice

from vl3edge.runtime.backends.buffers import HOST, DeviceMemory, Memory
from vl3edge.runtime.backends.onnxruntime import Backend
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, open_bundle
from vl3edge.runtime.bundle.file_names import DECODER_GRAPH, FP16_DECODER_GRAPH, PREFILL_GRAPH, fp16_file
from vl3edge.runtime.bundle.manifest import FileEntry
from vl3edge.runtime.config import GenerationConfig
from vl3edge.runtime.decode import graph as decoder_graph
from vl3edge.runtime.decode.batch import BatchGenerator, BatchRequest
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.generate import Generator
from vl3edge.runtime.decode.graph import DecoderGraph, load_decoder_graph
from vl3edge.runtime.decode.prefill_chunk import PREFILL_CHUNK
from vl3edge.runtime.errors import BackendError, BackendWarning, BundleError
from vl3edge.runtime.prompt.splice import EmbeddingTable, SplicedPrompt
from vl3edge.runtime.prompt.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(DEMO_BUNDLE)


@pytest.fixture(scope="module", params=[DECODER_GRAPH, FP16_DECODER_GRAPH])
def session(request: pytest.FixtureRequest, bundle: Bundle) -> Any:
    return select_backend("cpu").session(bundle.path(request.param))


def on_device(session: Any, device: FakeDevice, captures: bool = False) -> DecoderGraph:
    return DecoderGraph(session, DeviceMemory(device, "cpu"), captures)


def both(session: Any, bundle: Bundle, device: FakeDevice) -> tuple[Decoder, Decoder]:
    spec = bundle.manifest.text
    return Decoder(on_device(session, device), spec), Decoder(DecoderGraph(session), spec)


def random_inputs(bundle: Bundle, count: int, seed: int = 0) -> np.ndarray:
    shape = (count, bundle.manifest.text.hidden_size)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_same(ours: Decoder, reference: Decoder) -> None:
    np.testing.assert_array_equal(ours.logits, reference.logits)
    assert ours.token == reference.token
    assert ours.length == reference.length


def test_prefills_steps_growing_and_rewinding(session: Any, bundle: Bundle) -> None:
    device = FakeDevice()
    decoders = ours, reference = both(session, bundle, device)
    for count in (PREFILL_CHUNK + 7, 1, 300):  # the last makes the cache grow, with content
        for decoder in decoders:
            decoder.prefill(random_inputs(bundle, count, count))
        assert_same(ours, reference)
        for token in random_inputs(bundle, 3, 1):
            for decoder in decoders:
                decoder.step(token[None])
            assert_same(ours, reference)
    for decoder in decoders:
        decoder.rewind(40)
        decoder.prefill(random_inputs(bundle, 9, 2))
    assert_same(ours, reference)


def test_dropping_tokens_from_the_middle(session: Any, bundle: Bundle) -> None:
    """Over more positions than are moved at once, some of them onto one another."""
    decoders = ours, reference = both(session, bundle, FakeDevice())
    for decoder in decoders:
        decoder.prefill(random_inputs(bundle, 2500))
        decoder.discard(10, 70)
        decoder.replace(200, 50, random_inputs(bundle, 20, 3))
        decoder.step(random_inputs(bundle, 1, 4))
    assert_same(ours, reference)


def test_batches_with_rows_that_move(session: Any, bundle: Bundle) -> None:
    """Whole answers of prompts of several lengths, more than there are rows."""
    spec, eos = bundle.manifest.text, bundle.manifest.tokens.eos_ids
    table = EmbeddingTable.of(bundle)
    tokenizer = Tokenizer.of(bundle)
    prompts = [np.random.default_rng(n).integers(0, 400, 20 + 30 * n) for n in range(7)]
    device = FakeDevice()
    answers = []
    for graph in (on_device(session, device), DecoderGraph(session)):
        requests = [
            BatchRequest(n, SplicedPrompt(ids, ids, ()), GenerationConfig(max_new_tokens=5 + 9 * (n % 3)))
            for n, ids in enumerate(prompts)
        ]
        generator = BatchGenerator(Decoder(graph, spec), table, tokenizer, eos, 3)
        answers.append({key: answer.token_ids for key, answer in generator.answers(requests)})
    assert answers[0] == answers[1]
    assert len(answers[0]) == 7


@pytest.mark.parametrize(("temperature", "downloads"), [(0.0, 1), (0.7, 2)])
def test_logits_stay_on_the_device_unless_they_are_sampled_from(
    session: Any, bundle: Bundle, temperature: float, downloads: int
) -> None:
    """A step brings one token id to the host; up go an embedding and a length, or no more than a token drawn."""
    spec = bundle.manifest.text
    device = FakeDevice()
    table = EmbeddingTable.of(bundle)
    tokenizer = Tokenizer.of(bundle)
    config = GenerationConfig(max_new_tokens=8, temperature=temperature, seed=1)
    ids = np.arange(1, 30)
    prompt = SplicedPrompt(ids, ids, ())
    graph = on_device(session, device)
    generator = Generator(Decoder(graph, spec), table, tokenizer, ())
    tokens = generator.tokens(prompt, config)
    found = [next(tokens)]
    device.downloaded.clear()
    device.uploaded.clear()
    found += list(tokens)
    assert len(device.downloaded) == 7 * downloads
    assert min(device.downloaded) == 8
    if graph.looks_up:
        assert set(device.uploaded) == ({8} if temperature else set())
    else:
        assert sorted(set(device.uploaded)) == [4, 4 * spec.hidden_size]
    on_host = Generator(Decoder(DecoderGraph(session), spec), table, tokenizer, ())
    assert found == list(on_host.tokens(prompt, config))


def test_all_memory_is_given_back(session: Any, bundle: Bundle) -> None:
    device = FakeDevice()
    decoder = Decoder(on_device(session, device), bundle.manifest.text)
    decoder.prefill(random_inputs(bundle, 300))
    before = len(device.memory)
    decoder.reserve(2000)
    assert len(device.memory) == before
    assert sum(array.nbytes for array in device.memory.values()) > decoder.cache.num_bytes
    del decoder
    gc.collect()
    assert (device.memory, device.pins) == ({}, {})


def test_a_cache_that_does_not_fit_leaves_nothing(session: Any, bundle: Bundle) -> None:
    class Small(FakeDevice):
        def allocate(self, num_bytes: int) -> int:
            if num_bytes > 400_000:
                raise BackendError("CUDA: out of memory (cudaErrorMemoryAllocation)")
            return super().allocate(num_bytes)

    device = Small()
    decoder = Decoder(on_device(session, device), bundle.manifest.text)
    decoder.prefill(random_inputs(bundle, 40))
    with pytest.raises(BackendError, match="out of memory"):
        decoder.reserve(4000)
    assert decoder.length == decoder.capacity == 0
    decoder.prefill(random_inputs(bundle, 40))
    assert decoder.length == 40


@pytest.mark.parametrize("captures", [False, True])
@pytest.mark.parametrize("error", [MemoryError(), BackendError("CUDA: out of memory"), KeyboardInterrupt()])
@pytest.mark.parametrize("beside", ["logits", "inputs"])
def test_results_that_do_not_fit_leave_no_rows(
    session: Any, bundle: Bundle, captures: bool, error: BaseException, beside: str
) -> None:
    """The cache alone would have room: its rows must not outnumber those of what is beside it."""
    spec = bundle.manifest.text
    refused = 2 * 4 * (spec.vocab_size if beside == "logits" else spec.hidden_size)

    class Full(FakeDevice):
        def allocate(self, num_bytes: int) -> int:
            if num_bytes == refused:
                raise error
            return super().allocate(num_bytes)

    graph = capturing(session, Full())[1] if captures else on_device(session, Full())
    decoder = Decoder(graph, spec)
    decoder.prefill(random_inputs(bundle, 40))
    with pytest.raises(type(error)):
        decoder.resize(2, 1024)
    assert (decoder.cache.rows, decoder.length, decoder.capacity) == (0, 0, 0)
    decoder.prefill(random_inputs(bundle, 40))
    assert decoder.length == 40
    decoder.resize(3, 1024)
    decoder.prefill(random_inputs(bundle, 5), row=2)
    assert decoder.cache.lengths.tolist() == [40, 0, 5]


def capturing(session: Any, device: FakeDevice) -> tuple[Capturing, DecoderGraph]:
    ours = Capturing(session)
    ours.device = device
    return ours, on_device(ours, device, captures=True)


def test_captured_steps_are_the_steps(session: Any, bundle: Bundle) -> None:
    """One capture serves all lengths; growing to a rung makes another; only making one holds the device."""
    spec, device = bundle.manifest.text, FakeDevice()
    calls, graph = capturing(session, device)
    decoders = ours, reference = Decoder(graph, spec), Decoder(DecoderGraph(session), spec)
    for decoder in decoders:
        decoder.prefill(random_inputs(bundle, 30))
    for _ in range(2):
        for token in random_inputs(bundle, 5, 1):
            for decoder in decoders:
                decoder.step(token[None])
            assert_same(ours, reference)
        for decoder in decoders:
            decoder.reserve(1100)
    again = graph.looks_up  # a step that was captured begins anew, as it has run more than once
    assert calls.ids == ["-1", *["1"] * (5 + again), *["2"] * (5 + again)]
    assert calls.exclusive == [False, *([True] + [False] * (4 + again)) * 2]


def test_each_number_of_rows_has_its_capture(session: Any, bundle: Bundle) -> None:
    spec, device = bundle.manifest.text, FakeDevice()
    calls, graph = capturing(session, device)
    batches = [Decoder(graph, spec), Decoder(DecoderGraph(session), spec)]
    for batch in batches:
        batch.resize(3, 1024)
        for row in range(3):
            batch.prefill(random_inputs(bundle, 10 + 20 * row, row), row=row)
    for rows in (3, 3, 2, 3, 1):
        for batch in batches:
            batch.step(random_inputs(bundle, rows, 7))
        np.testing.assert_array_equal(batches[0].logits[:rows], batches[1].logits[:rows])
    again = graph.looks_up
    assert calls.ids[3:] == [*["1"] * (2 + again), *["2"] * (1 + again), "1", *["3"] * (1 + again)]


def test_decoders_of_one_session_share_no_capture(session: Any, bundle: Bundle) -> None:
    spec, device = bundle.manifest.text, FakeDevice()
    calls, graph = capturing(session, device)
    first, second, reference = Decoder(graph, spec), Decoder(graph, spec), Decoder(DecoderGraph(session), spec)
    for decoder, seed in ((first, 0), (second, 5)):
        decoder.prefill(random_inputs(bundle, 20, seed))
        decoder.step(random_inputs(bundle, 1, 1))
    for decoder in (first, second):
        decoder.step(random_inputs(bundle, 1, 2))
    again = graph.looks_up
    assert calls.ids == ["-1", *["1"] * (1 + again), "-1", *["2"] * (1 + again), "1", "2"]
    reference.prefill(random_inputs(bundle, 20, 5))
    for seed in (1, 2):
        reference.step(random_inputs(bundle, 1, seed))
    assert_same(second, reference)


def test_there_is_a_limit_to_captures(session: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoder_graph, "MAX_CAPTURES", 1)
    spec, device = bundle.manifest.text, FakeDevice()
    calls, graph = capturing(session, device)
    decoders = ours, reference = Decoder(graph, spec), Decoder(DecoderGraph(session), spec)
    for capacity in (100, 1100):
        for decoder in decoders:
            decoder.reserve(capacity)
            decoder.step(random_inputs(bundle, 1))
        assert_same(ours, reference)
    assert calls.ids == [*["1"] * (1 + graph.looks_up), "-1"]


def test_a_bundle_without_the_graph_says_how_to_get_it(bundle: Bundle) -> None:
    files = {name: entry for name, entry in bundle.manifest.files.items() if name != FP16_DECODER_GRAPH}
    without = replace(bundle, manifest=replace(bundle.manifest, files=files))
    backend = Backend("cuda", ("CUDAExecutionProvider",), "1.2", device=FakeDevice())
    with pytest.raises(BundleError, match=r"no decoder for NVIDIA GPUs: export it with --target cuda"):
        load_decoder_graph(backend, without)


@pytest.mark.parametrize("prompts", [False, True])
def test_the_gpu_runs_the_fp16_graph_in_the_one_stream(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, prompts: bool
) -> None:
    """Whether or not the bundle has a prefill graph, which is for CPUs."""
    if prompts:
        files = bundle.manifest.files | {PREFILL_GRAPH: FileEntry(1, "")}
        bundle = replace(bundle, manifest=replace(bundle.manifest, files=files))
    asked: list[Any] = []

    class Session:
        def __init__(self, path: str, options: Any, providers: Any) -> None:
            asked.append((Path(path).name, providers))

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider"]

        def get_outputs(self) -> list[Any]:
            return [SimpleNamespace(name="features", type="tensor(float16)", shape=["F", "h", "w", 96])]

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    backend = Backend("cuda", ("CUDAExecutionProvider", "CPUExecutionProvider"), "1.2", device=FakeDevice())
    graph = load_decoder_graph(backend, bundle)
    backend.graph(bundle, "vision")
    files = {name: entry for name, entry in bundle.manifest.files.items() if name != fp16_file("vision")}
    backend.graph(replace(bundle, manifest=replace(bundle.manifest, files=files)), "vision")
    stream = {"user_compute_stream": str(FakeDevice.stream)}
    assert asked == [
        (FP16_DECODER_GRAPH, [("CUDAExecutionProvider", stream | {"enable_cuda_graph": "1"}), "CPUExecutionProvider"]),
        (fp16_file("vision"), [("CUDAExecutionProvider", stream), "CPUExecutionProvider"]),
        ("vision.onnx", [("CUDAExecutionProvider", stream), "CPUExecutionProvider"]),  # of an older bundle
    ]
    assert (graph.captures, graph.memory.kind, graph.prompts, graph.prefill_chunk) == (True, "cuda", None, 4096)


def test_a_gpu_that_refuses_captures_is_told_and_runs(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def __init__(self, path: str, options: Any, providers: Any) -> None:
            if "enable_cuda_graph" in providers[0][1]:
                raise RuntimeError("not all nodes are on CUDA")

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider"]

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    backend = Backend("cuda", ("CUDAExecutionProvider", "CPUExecutionProvider"), "1.2", device=FakeDevice())
    with pytest.warns(BackendWarning, match="cannot be captured: .* not all nodes are on CUDA"):
        graph = load_decoder_graph(backend, bundle)
    assert not graph.captures


@pytest.mark.parametrize("memory", [HOST, DeviceMemory(FakeDevice(), "cpu")], ids=["host", "device"])
def test_buffers(memory: Memory) -> None:
    """Rows and positions of one buffer, against numpy."""
    expected = np.random.default_rng(0).standard_normal((3, 2, 7, 4)).astype(np.float16)
    for staged in (False, True):
        buffer = memory.zeros(expected.shape, np.float16, staged)
        assert not buffer.read().any()
        buffer.write(expected.astype(np.float32))
        np.testing.assert_array_equal(buffer.read(), expected)
        part = buffer.rows(1, 3)
        assert part.address == buffer.address + expected[0].nbytes
        np.testing.assert_array_equal(part.read(), expected[1:])
        np.testing.assert_array_equal(buffer.read_positions(2, 3, 4), expected[2, :, 3:])
        part.write_positions(0, 5, np.ones((2, 2, 4), np.float32))
        changed = expected.copy()
        changed[1, :, 5:] = 1
        wider = memory.zeros((2, 2, 9, 4), np.float16)
        wider.copy_positions(1, buffer, 1, 6)
        np.testing.assert_array_equal(buffer.read(), changed)
        np.testing.assert_array_equal(wider.read()[1, :, :6], changed[1, :, :6])
        assert not wider.read()[1, :, 6:].any()
        assert not wider.read()[0].any()
