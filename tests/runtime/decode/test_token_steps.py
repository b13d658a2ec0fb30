"""Steps that find their token and lengths where the step before wrote them, with the host in the GPU's place.

The reference is the same graph, given every embedding by the host.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fake_captures import Capturing
from fake_tensorrt import FakeDevice

from vl3edge.runtime.backends.buffers import DeviceMemory
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, open_bundle
from vl3edge.runtime.bundle.file_names import FP16_DECODER_GRAPH
from vl3edge.runtime.config import GenerationConfig
from vl3edge.runtime.decode.batch import BatchGenerator, BatchRequest
from vl3edge.runtime.decode.cached_decoder import CachedDecoder
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.generate import Generator
from vl3edge.runtime.decode.graph import DecoderGraph, check_fit
from vl3edge.runtime.errors import BackendError, BundleError
from vl3edge.runtime.prompt.splice import EmbeddingTable, SplicedPrompt
from vl3edge.runtime.prompt.tokenizer import Tokenizer


class GivenEmbeddings(Decoder):
    """Looks every token up on the host."""

    def advance(self, ids: np.ndarray, table: EmbeddingTable) -> None:
        CachedDecoder.advance(self, ids, table)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(DEMO_BUNDLE)


@pytest.fixture(scope="module")
def table(bundle: Bundle) -> EmbeddingTable:
    return EmbeddingTable.of(bundle)


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Any:
    return select_backend("cpu", 1).session(bundle.path(FP16_DECODER_GRAPH))


@pytest.fixture
def device() -> FakeDevice:
    return FakeDevice()


@pytest.fixture(params=["captured", "kernel by kernel"])
def graph(request: pytest.FixtureRequest, session: Any, device: FakeDevice) -> DecoderGraph:
    if request.param != "captured":
        return DecoderGraph(session, DeviceMemory(device, "cpu"))
    calls = Capturing(session)
    calls.device = device
    return DecoderGraph(calls, DeviceMemory(device, "cpu"), captures=True)


@pytest.fixture
def both(graph: DecoderGraph, session: Any, bundle: Bundle) -> tuple[Decoder, Decoder]:
    spec = bundle.manifest.text
    return Decoder(graph, spec), GivenEmbeddings(DecoderGraph(session), spec)


def prompt(length: int, seed: int = 0) -> SplicedPrompt:
    ids = np.random.default_rng(seed).integers(0, 440, length)
    return SplicedPrompt(ids, ids, ())


def assert_same(both: tuple[Decoder, Decoder], rows: int = 1) -> None:
    ours, reference = both
    np.testing.assert_array_equal(ours.logits[:rows], reference.logits[:rows])
    np.testing.assert_array_equal(ours.tokens[:rows], reference.tokens[:rows])
    np.testing.assert_array_equal(ours.cache.lengths, reference.cache.lengths)


@pytest.mark.parametrize("rows", [1, 3])
def test_what_crosses_the_bus_in_a_greedy_step(
    graph: DecoderGraph, device: FakeDevice, bundle: Bundle, table: EmbeddingTable, rows: int
) -> None:
    """Up nothing, down a token of 8 bytes for each row; one wait."""
    decoder = Decoder(graph, bundle.manifest.text)
    decoder.resize(rows, 1024)
    for row in range(rows):
        decoder.prefill(prompt(20 + row).embeddings(table), row=row)
    decoder.advance(decoder.tokens, table)
    for _ in range(3):
        tokens = decoder.tokens
        device.uploaded.clear()
        device.downloaded.clear()
        device.waits = 0
        decoder.advance(tokens, table)
        tokens = decoder.tokens
        assert (device.uploaded, device.downloaded, device.waits) == ([], [8 * rows], 1)


def test_tokens_that_are_not_the_greedy_ones(both: tuple[Decoder, Decoder], table: EmbeddingTable) -> None:
    for decoder in both:
        decoder.prefill(prompt(30).embeddings(table))
    for drawn in (None, 7, None, 439, 7, None):
        token = np.array([both[1].token if drawn is None else drawn])
        for decoder in both:
            decoder.advance(token, table)
        assert_same(both)


def test_going_back_and_growing(both: tuple[Decoder, Decoder], table: EmbeddingTable) -> None:
    """Lengths and tokens that the last step left are not those of the next: after each change there are steps."""
    embeddings = prompt(60, 1).embeddings(table)

    def steps() -> None:
        for _ in range(3):
            assert_same(both)
            token = np.array([both[1].token])
            for decoder in both:
                decoder.advance(token, table)

    changes = (
        lambda decoder: decoder.prefill(embeddings),
        lambda decoder: (decoder.rewind(40), decoder.prefill(embeddings[:3])),
        lambda decoder: (decoder.discard(5, 9), decoder.advance(np.array([3]), table)),
        lambda decoder: (decoder.replace(10, 6, embeddings[:4]), decoder.advance(np.array([4]), table)),
        lambda decoder: decoder.reserve(1500),
        lambda decoder: decoder.step(embeddings[7:8]),
        lambda decoder: (decoder.prefill(embeddings[:20], logits=False), decoder.prefill(embeddings[:1])),
        lambda decoder: (decoder.wipe(), decoder.prefill(embeddings[:11])),
    )
    for change in changes:
        for decoder in both:
            change(decoder)
        steps()
    assert both[0].length > 10


def test_steps_without_reading(both: tuple[Decoder, Decoder], table: EmbeddingTable) -> None:
    """What is chosen is not known then, nor is what was sent there yet: it is waited for."""
    for decoder in both:
        decoder.prefill(prompt(30).embeddings(table))
        for token in (5, 9, 200, 200):
            decoder.advance(np.array([token]), table)
    assert_same(both)


def test_fewer_rows_and_rows_that_move(both: tuple[Decoder, Decoder], table: EmbeddingTable) -> None:
    for decoder in both:
        decoder.resize(3, 1024)
        for row in range(3):
            decoder.prefill(prompt(15 + 20 * row, row).embeddings(table), row=row)
    for rows, moved in ((3, None), (3, (2, 0)), (2, None), (2, (1, 0)), (1, None), (1, None)):
        if moved:
            for decoder in both:
                decoder.cache.move_row(*moved)
        tokens = both[1].tokens[:rows].copy()
        for decoder in both:
            decoder.advance(tokens, table)
        assert_same(both, rows)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_batches(graph: DecoderGraph, session: Any, bundle: Bundle, table: EmbeddingTable, temperature: float) -> None:
    spec, tokenizer = bundle.manifest.text, Tokenizer.of(bundle)
    answers = []
    for decoder in (Decoder(graph, spec), GivenEmbeddings(DecoderGraph(session), spec)):
        configs = [GenerationConfig(max_new_tokens=4 + 7 * (n % 3), temperature=temperature, seed=n) for n in range(7)]
        requests = [BatchRequest(n, prompt(20 + 30 * n, n), config) for n, config in enumerate(configs)]
        generator = BatchGenerator(decoder, table, tokenizer, (), 3)
        answers.append({key: answer.token_ids for key, answer in generator.answers(requests)})
    assert answers[0] == answers[1]
    assert len(answers[0]) == 7


def test_a_run_that_fails_is_forgotten(session: Any, bundle: Bundle, device: FakeDevice, table: EmbeddingTable) -> None:
    """What it has written is not known."""

    class Failing(Capturing):
        fails = False

        def run_with_iobinding(self, binding: Any, options: Any) -> None:
            super().run_with_iobinding(binding, options)
            if self.fails:
                raise RuntimeError("a launch failed")

    calls = Failing(session)
    calls.device = device
    spec = bundle.manifest.text
    ours = Decoder(DecoderGraph(calls, DeviceMemory(device, "cpu"), captures=True), spec)
    reference = GivenEmbeddings(DecoderGraph(session), spec)
    for decoder in (ours, reference):
        decoder.prefill(prompt(30).embeddings(table))
        decoder.advance(np.array([decoder.token]), table)
    token = np.array([ours.token])
    calls.fails = True
    with pytest.raises(BackendError, match="a launch failed"):
        ours.advance(token, table)
    calls.fails = False
    for decoder in (ours, reference):
        decoder.advance(token, table)
    assert_same((ours, reference))


def test_no_capture_runs_beyond_the_capacity(
    session: Any, bundle: Bundle, device: FakeDevice, table: EmbeddingTable
) -> None:
    """A capture runs more than once, each time a position further: a row that is nearly full has none made."""
    calls = Capturing(session)
    calls.device = device
    decoder = Decoder(DecoderGraph(calls, DeviceMemory(device, "cpu"), captures=True), bundle.manifest.text)
    decoder.prefill(np.tile(prompt(255).embeddings(table), (4, 1)))
    decoder.reserve(1024)
    for _ in range(1024 - 1020):
        decoder.advance(np.array([decoder.token]), table)
    assert (decoder.capacity, decoder.length) == (1024, 1024)
    assert set(calls.ids) == {"-1"}
    decoder.rewind(1019)
    for _ in range(5):
        decoder.advance(np.array([decoder.token if decoder.length > 1019 else 3]), table)
    assert calls.ids[-6:] == ["1"] * 6


def test_a_graph_with_one_of_the_two_is_refused(session: Any, bundle: Bundle) -> None:
    class Half:
        def get_inputs(self) -> Any:
            return session.get_inputs()

        def get_outputs(self) -> Any:
            return [value for value in session.get_outputs() if value.name != "next_seqlens_k"]

    with pytest.raises(BundleError, match="has other inputs, outputs or sizes"):
        check_fit(DecoderGraph(Half()), bundle.manifest.text)


def test_whole_answers(graph: DecoderGraph, session: Any, bundle: Bundle, table: EmbeddingTable) -> None:
    """Through a rung's end, with a prompt that shares a beginning."""
    spec, tokenizer, answers = bundle.manifest.text, Tokenizer.of(bundle), []
    for decoder in (Decoder(graph, spec), GivenEmbeddings(DecoderGraph(session), spec)):
        generator = Generator(decoder, table, tokenizer, ())
        found = []
        for length, new in ((1000, 40), (900, 3), (20, 30)):
            found += list(generator.tokens(prompt(length), GenerationConfig(max_new_tokens=new)))
        answers.append(found)
    assert answers[0] == answers[1]
