"""Steps are captured for a few capacities, once each, whatever clips, batches and sessions come; with a stand-in."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_captures import Capturing
from fake_tensorrt import FakeDevice

from vl3edge.runtime import CaptionJob, GenerationConfig, VideoLlama3
from vl3edge.runtime.backends.buffers import DeviceMemory
from vl3edge.runtime.backends.kept_buffers import BufferKind, KeptBuffers
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, open_bundle
from vl3edge.runtime.bundle.file_names import FP16_DECODER_GRAPH
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import DecoderGraph
from vl3edge.runtime.decode.kv_cache import bytes_per_row, capacity_for, rung_for, rungs
from vl3edge.runtime.errors import BackendError, ContextLengthError
from vl3edge.runtime.kernels import select
from vl3edge.runtime.memory_estimate import estimate

CLIP = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
SHORT = GenerationConfig(max_new_tokens=3)
WORDS = (3, 450, 20, 750, 3, 1050, 350, 5)  # of a question, two tokens each: contexts of three rungs
RUNGS = {1024, 2048, 4096}


@pytest.fixture(scope="module")
def session() -> Any:
    return select_backend("cpu", 1).session(DEMO_BUNDLE / FP16_DECODER_GRAPH)


@pytest.fixture
def calls(session: Any) -> Capturing:
    calls = Capturing(session)
    calls.device = FakeDevice()
    return calls


@pytest.fixture
def graph(calls: Capturing) -> DecoderGraph:
    return DecoderGraph(calls, DeviceMemory(calls.device, "cpu"), captures=True)


@pytest.fixture
def model(graph: DecoderGraph, monkeypatch: pytest.MonkeyPatch) -> VideoLlama3:
    """The demo model, whose decoder is on the stand-in."""
    monkeypatch.setattr(select, "load_decoder_graph", lambda *_: graph)
    return VideoLlama3.load(backend="cpu", num_threads=1)


@pytest.fixture(scope="module")
def reference() -> VideoLlama3:
    """The same graph in host memory, without captures."""
    with pytest.MonkeyPatch.context() as patch:
        made = DecoderGraph(select_backend("cpu", 1).session(DEMO_BUNDLE / FP16_DECODER_GRAPH))
        patch.setattr(select, "load_decoder_graph", lambda *_: made)
        return VideoLlama3.load(backend="cpu", num_threads=1)


def random_inputs(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 128)).astype(np.float32)


def captured_pairs(graph: DecoderGraph) -> list[tuple[int, int]]:
    """(capacity, rows of the step) of every capture."""
    shapes = ({name: shape for name, _, shape in baked[1:]} for baked in graph._ids)
    return [(shape["present.0.key"][2], shape["inputs_embeds"][0]) for shape in shapes]


def jobs() -> Iterator[CaptionJob]:
    for number, words in enumerate(WORDS):
        yield CaptionJob(np.full((28, 28, 3), 20 * number, np.uint8), question="red " * words, key=number)


def texts(model: VideoLlama3, batch: int) -> dict[int, str]:
    found = {}
    for result in model.caption_all(jobs(), SHORT, batch):
        assert result.answer is not None, result.error
        found[result.index] = result.answer.text
    return found


@pytest.mark.parametrize(("batch", "most"), [(1, 1), (3, 3)])
def test_a_folder_of_many_lengths(
    model: VideoLlama3, reference: VideoLlama3, graph: DecoderGraph, batch: int, most: int
) -> None:
    """Once, and again with nothing new; the answers are those without captures."""
    found = texts(model, batch)
    pairs = captured_pairs(graph)
    assert len(pairs) == len(set(pairs))
    assert {rung for rung, _ in pairs} <= RUNGS
    assert {rows for _, rows in pairs} <= set(range(1, most + 1))
    assert found == texts(reference, batch)
    before = len(pairs)
    texts(model, batch)
    again = captured_pairs(graph)
    assert len(again) == len(set(again))
    assert batch > 1 or len(again) == before  # which rows are left at the end depends on the order of the answers


def test_smaller_batches_take_the_rows_of_a_larger(model: VideoLlama3, graph: DecoderGraph) -> None:
    for batch in (3, 2, 3):
        texts(model, batch)
    pairs = captured_pairs(graph)
    assert len(pairs) == len(set(pairs))


def test_conversations_and_clips_in_turn(model: VideoLlama3, reference: VideoLlama3, graph: DecoderGraph) -> None:
    answers = []
    for asked in (model, reference):
        chat = asked.chat()
        said = [chat.ask("What is there?" + " red" * 200 * turn, config=SHORT).text for turn in range(4)]
        said.append(asked.ask(asked.begin(CLIP), "What?", SHORT).text)
        answers.append(said)
    assert answers[0] == answers[1]
    pairs = captured_pairs(graph)
    assert len(pairs) == len(set(pairs))


def test_sessions_one_after_the_other(model: VideoLlama3, reference: VideoLlama3, graph: DecoderGraph) -> None:
    """Each has its own cache, and the next one has the buffers of the one before."""
    answers = []
    for asked in (model, reference):
        for length in (4096, 2000, 4096):
            live = asked.open_session(max_tokens=length)
            for second in range(3):
                live.push(np.full((56, 56, 3), 60 * second, np.uint8), float(second))
                answers.append("".join(chunk.text for chunk in live.ask("What is there?", SHORT)))
            del live
            gc.collect()
    assert answers[:9] == answers[9:]
    assert sorted(captured_pairs(graph)) == [(2048, 1), (4096, 1)]


def test_two_sessions_at_once_have_a_capture_each(model: VideoLlama3, graph: DecoderGraph) -> None:
    first, second = model.open_session(max_tokens=1000), model.open_session(max_tokens=1000)
    for live in (first, second, first):
        live.push(np.zeros((56, 56, 3), np.uint8), 0.0)
        list(live.ask("What?", SHORT))
    assert captured_pairs(graph) == [(1024, 1)] * 2


def test_resizing_up_and_down(graph: DecoderGraph, session: Any) -> None:
    """Content, logits and captures stay."""
    spec = open_bundle(DEMO_BUNDLE).manifest.text
    decoders = ours, reference = Decoder(graph, spec), Decoder(DecoderGraph(session), spec)
    for decoder in decoders:
        decoder.prefill(random_inputs(30))
    for rows, capacity in ((1, 2048), (3, 1024), (1, 1024), (3, 1024), (1, 2048), (1, 2048), (2, 1024), (1, 1024)):
        for decoder in decoders:
            decoder.resize(rows, capacity)
            if rows == 1:
                decoder.step(random_inputs(1, capacity))
                decoder.step(random_inputs(1, rows))
            else:
                decoder.step(random_inputs(rows, 5))
        np.testing.assert_array_equal(ours.logits[:rows], reference.logits[:rows])
        np.testing.assert_array_equal(ours.cache.lengths, reference.cache.lengths)
    pairs = captured_pairs(graph)
    assert len(pairs) == len(set(pairs)), pairs


def test_logits_outlive_growing(graph: DecoderGraph, session: Any) -> None:
    spec = open_bundle(DEMO_BUNDLE).manifest.text
    ours, reference = Decoder(graph, spec), Decoder(DecoderGraph(session), spec)
    for decoder in (ours, reference):
        decoder.prefill(random_inputs(30))
        decoder.reserve(1500)
    np.testing.assert_array_equal(ours.logits, reference.logits)
    assert ours.token == reference.token


class Tight(FakeDevice):
    """A GPU with little memory."""

    def __init__(self, num_bytes: int) -> None:
        super().__init__()
        self.num_bytes = num_bytes

    def free_bytes(self) -> int:
        return self.num_bytes - sum(array.nbytes for array in self.memory.values())

    def allocate(self, num_bytes: int) -> int:
        if num_bytes > self.free_bytes():
            raise BackendError("CUDA: out of memory (cudaErrorMemoryAllocation)")
        return super().allocate(num_bytes)


def test_a_rung_that_does_not_fit_gives_way_to_what_is_enough(calls: Capturing, session: Any) -> None:
    """Its steps run kernel by kernel, and give the same."""
    spec = open_bundle(DEMO_BUNDLE).manifest.text
    device = calls.device = Tight(bytes_per_row(spec, 1024 + 1280, 2) + 200_000)
    graph = DecoderGraph(calls, DeviceMemory(device, "cpu"), captures=True)
    decoders = ours, reference = Decoder(graph, spec), Decoder(DecoderGraph(session), spec)
    for decoder in decoders:
        decoder.prefill(random_inputs(900))
        decoder.step(random_inputs(1, 1))
    assert (ours.capacity, captured_pairs(graph)) == (1024, [(1024, 1)])
    for decoder in decoders:
        decoder.reserve(1100)
        decoder.step(random_inputs(1, 2))
    assert (ours.capacity, calls.ids[-1]) == (1280, "-1")
    np.testing.assert_array_equal(ours.logits, reference.logits)


def test_a_rung_beyond_the_limit_gives_way(calls: Capturing, graph: DecoderGraph) -> None:
    spec = open_bundle(DEMO_BUNDLE).manifest.text

    def check(tokens: int) -> None:
        if tokens > 1600:
            raise ContextLengthError("too many")

    decoder = Decoder(graph, spec, check)
    decoder.reserve(1500)
    assert decoder.capacity == 1536
    decoder.resize(0, 0)
    decoder.reserve(1000)
    assert decoder.capacity == 1024
    with pytest.raises(ContextLengthError):
        decoder.reserve(1700)


def test_more_rows_go_before_a_rung(model: VideoLlama3, graph: DecoderGraph) -> None:
    """A batch takes the smallest capacity where fewer rows of a rung fit its memory."""
    spec = model.bundle.manifest.text
    sizes = []
    resize = Decoder.resize
    row = bytes_per_row(spec, 1280, 2) + 1280 * spec.hidden_size * 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "resize", lambda self, *size: (sizes.append(size), resize(self, *size)))
        long = (CaptionJob(np.zeros((28, 28, 3), np.uint8), question="red " * 560) for _ in range(3))
        results = list(model.caption_all(long, SHORT, 3, memory_bytes=3 * row))
    assert all(result.answer for result in results)
    assert sizes[0] == (3, 1280)


def test_idle_sets_make_way(session: Any) -> None:
    """They never take more than is left free, and go before a set that is asked for is refused."""
    kinds = [BufferKind((100,), "float32"), BufferKind((), "int64", staged=True)]
    size = 408
    device = Tight(10 * size)
    kept = KeptBuffers(DeviceMemory(device, "cpu"))
    first, second = kept.take(3, kinds), kept.take(2, kinds)
    assert first is not None
    assert second is not None
    assert kept.take(6, kinds) is None
    assert device.free_bytes() == 5 * size
    kept.give([first])
    assert kept.idle_bytes == 3 * size
    assert kept.take(2, kinds) is first  # the rows of a larger one
    kept.give([first, second])
    assert kept.idle_bytes == 5 * size
    taken = kept.take(7, kinds)
    assert taken is not None
    assert kept.idle_bytes <= device.free_bytes()
    kept.give([taken])
    assert kept.idle_bytes == 0  # seven rows would leave three
    kept.drop()
    del first, second, taken
    gc.collect()
    assert device.memory == {}


def test_what_was_kept_comes_back_empty() -> None:
    kept = KeptBuffers(DeviceMemory(FakeDevice(), "cpu"))
    kinds = [BufferKind((2, 3), "float16"), BufferKind((), "int32", staged=True)]
    first = kept.take(4, kinds)
    assert first is not None
    addresses = [buffer.address for buffer in first.buffers]
    for buffer in first.buffers:
        buffer.write(np.array(np.nan if buffer.dtype == np.float16 else 7))
    kept.give([first])
    again = kept.take(4, kinds)
    assert again is not None
    assert [buffer.address for buffer in again.buffers] == addresses
    assert not any(buffer.read().any() for buffer in again.buffers)


def test_all_memory_is_given_back_with_the_graph(calls: Capturing, session: Any) -> None:
    spec = open_bundle(DEMO_BUNDLE).manifest.text
    graph = DecoderGraph(session, DeviceMemory(calls.device, "cpu"), captures=True)
    decoder = Decoder(graph, spec)
    for tokens in (10, 1500, 3000):
        decoder.reserve(tokens)
    del decoder
    gc.collect()
    assert calls.device.memory
    del graph
    gc.collect()
    assert (calls.device.memory, calls.device.pins) == ({}, {})


def test_rungs(changed_context: Callable[[int], Bundle]) -> None:
    text = changed_context(32768).manifest.text
    assert rungs(text) == [1024, 2048, 4096, 8192, 16384, 32768]
    assert [rung_for(text, tokens) for tokens in (1, 1024, 1025, 16384, 30000)] == [1024, 1024, 2048, 16384, 32768]
    with pytest.raises(ContextLengthError):
        rung_for(text, 32769)
    assert rungs(changed_context(600).manifest.text) == [600]
    odd = changed_context(5000).manifest.text
    assert rungs(odd) == [1024, 2048, 4096, 5000]
    assert capacity_for(odd, 4097) == 4352


def test_the_estimate_has_the_rungs() -> None:
    manifest = open_bundle(DEMO_BUNDLE).manifest
    asked = {"frames": 1, "size": (28, 28), "context_tokens": 1500, "batch": 2}
    found = estimate(manifest, captures=True, **asked)
    assert found.kv_bytes == 2 * bytes_per_row(manifest.text, 1024 + 2048, 2)
    assert estimate(manifest, **asked).kv_bytes == 2 * bytes_per_row(manifest.text, 1536)


@pytest.fixture
def changed_context() -> Callable[[int], Bundle]:
    from dataclasses import replace

    bundle = open_bundle(DEMO_BUNDLE)

    def changed(tokens: int) -> Bundle:
        text = replace(bundle.manifest.text, max_position_embeddings=tokens)
        return replace(bundle, manifest=replace(bundle.manifest, text=text))

    return changed
