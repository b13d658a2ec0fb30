"""Answers generated together are those generated alone, whatever the rows, lengths, memory and failures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vl3edge.runtime import GenerationConfig
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.specs import TextSpec
from vl3edge.runtime.decode.batch import BatchGenerator, BatchRequest
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.generate import Answer, Generator, join
from vl3edge.runtime.decode.graph import DecoderGraph
from vl3edge.runtime.decode.kv_cache import bytes_per_row
from vl3edge.runtime.errors import BackendError, BatchWarning, ContextLengthError
from vl3edge.runtime.prompt.splice import EmbeddingTable, SplicedPrompt
from vl3edge.runtime.prompt.tokenizer import Tokenizer

CONTEXT = 600  # of the model with padded heads
PLENTY = 1 << 40


@dataclass
class Parts:
    """What batches are made of, from one bundle."""

    session: Any
    spec: TextSpec
    table: EmbeddingTable
    tokenizer: Tokenizer
    eos_ids: tuple[int, ...]

    def decoder(self, session: Any = None) -> Decoder:
        return Decoder(DecoderGraph(session or self.session), self.spec)

    def batch(
        self, rows: int, memory_bytes: int | None = PLENTY, session: Any = None, decoder: Decoder | None = None
    ) -> BatchGenerator:
        decoder = decoder or self.decoder(session)
        return BatchGenerator(decoder, self.table, self.tokenizer, self.eos_ids, rows, memory_bytes)

    def alone(self, request: BatchRequest) -> Answer:
        generator = Generator(self.decoder(), self.table, self.tokenizer, self.eos_ids)
        return join(generator.stream(request.prompt, request.config))


def demo_parts() -> Parts:
    bundle = open_bundle(DEMO_BUNDLE)
    text, eos_ids = bundle.manifest.text, bundle.manifest.tokens.eos_ids
    return parts_in(bundle.folder, text, eos_ids)


def random_parts(folder: Path, name: str, **changes: Any) -> Parts:
    """The decoder of a random checkpoint."""
    from vl3edge.export.graphs.decoder import DecoderBuilder, export_decoder, text_spec
    from vl3edge.export.graphs.embeddings import export_embeddings
    from vl3edge.export.tensor_source import Float32Source
    from vl3edge.models.checkpoint import Checkpoint
    from vl3edge.models.synthetic.random import preset, write_random_checkpoint

    config = preset(name)
    config = replace(config, text=replace(config.text, **changes))
    write_random_checkpoint(folder / "checkpoint", config)
    checkpoint = Checkpoint.open(folder / "checkpoint")
    table, source = export_embeddings(checkpoint, folder, "fp32"), Float32Source(checkpoint)
    export_decoder(
        lambda graph: DecoderBuilder(graph, config.text, source, "fp32"),
        folder,
        table if config.text.tie_word_embeddings else None,
    )
    (folder / "tokenizer.json").write_text(checkpoint.tokenizer_json(), encoding="utf-8")
    return parts_in(folder, text_spec(config.text), config.eos_token_ids)


def parts_in(folder: Path, spec: TextSpec, eos_ids: tuple[int, ...]) -> Parts:
    table = EmbeddingTable(folder / "embeddings.safetensors", spec.vocab_size, spec.hidden_size)
    session = select_backend("cpu", num_threads=1).session(folder / "decoder.onnx")
    return Parts(session, spec, table, Tokenizer(folder / "tokenizer.json"), eos_ids)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Parts]:
    """The quantized demo model; tied and untied heads, and head sizes that the graph pads."""
    folder = tmp_path_factory.mktemp
    return cache(
        lambda name: {
            "demo": demo_parts,
            "tied": lambda: random_parts(folder("tied"), "tiny"),
            "untied": lambda: random_parts(folder("untied"), "tiny-untied"),
            "padded": lambda: random_parts(folder("padded"), "tiny", head_dim=20, max_position_embeddings=CONTEXT),
        }[name]()
    )


@pytest.fixture(scope="module", params=["demo", pytest.param("tied", marks=pytest.mark.torch)])
def parts(request: pytest.FixtureRequest, models: Callable[[str], Parts]) -> Parts:
    return models(request.param)


def prompt_of(parts: Parts, length: int, seed: int) -> SplicedPrompt:
    """Text with visual tokens in its middle."""
    random = np.random.default_rng(seed)
    ids = random.integers(0, 256, length)
    visual = (random.standard_normal((length // 3, parts.spec.hidden_size)) * 0.3).astype(np.float32)
    return SplicedPrompt(ids, np.arange(length) - (seed << 20), ((length // 3, visual),))


def requests_of(parts: Parts, lengths: tuple[int, ...], **settings: Any) -> list[BatchRequest]:
    """Ragged in length of the prompt and of the answer; every third sampled, every third with a penalty."""
    kinds: list[dict[str, Any]] = [{}, {"temperature": 0.9, "top_k": 50}, {"repetition_penalty": 1.3}]
    requests = []
    for key, length in enumerate(lengths):
        wanted = {"max_new_tokens": 1 + 7 * key % 23, "seed": key, **kinds[key % 3], **settings}
        requests.append(BatchRequest(key, prompt_of(parts, length, key), GenerationConfig(**wanted)))
    return requests


def check_equal(parts: Parts, requests: list[BatchRequest], outcomes: list[tuple[Any, Any]]) -> None:
    assert sorted(key for key, _ in outcomes) == sorted(request.key for request in requests)
    found = dict(outcomes)
    for request in requests:
        alone, together = parts.alone(request), found[request.key]
        assert isinstance(together, Answer), together
        assert together.token_ids == alone.token_ids, f"prompt of {len(request.prompt)} tokens"
        assert (together.text, together.finish_reason) == (alone.text, alone.finish_reason)
        assert together.stats.prompt_tokens == len(request.prompt)
        assert together.stats.generated_tokens == alone.stats.generated_tokens


@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize(
    "name", ["demo", *(pytest.param(name, marks=pytest.mark.torch) for name in ("tied", "untied", "padded"))]
)
def test_answers_are_those_of_each_prompt_alone(models: Callable[[str], Parts], name: str, rows: int) -> None:
    parts = models(name)
    requests = requests_of(parts, (1, 40, 7, 2, 23, 90, 5, 61, 3, 34))
    check_equal(parts, requests, list(parts.batch(rows).answers(requests)))


@pytest.mark.torch
def test_logits_of_a_row_do_not_depend_on_the_others(models: Callable[[str], Parts]) -> None:
    """In float32: quantized products round what they read in the company of the rest of a prompt."""
    parts = models("tied")
    random = np.random.default_rng(0)
    inputs = (random.standard_normal((3, 30, parts.spec.hidden_size)) * 0.5).astype(np.float32)
    batch = Decoder(DecoderGraph(parts.session), parts.spec)
    batch.resize(3, 64)
    lengths = (5, 1, 17)
    for row, length in enumerate(lengths):
        batch.prefill(inputs[row, :length], row=row)
    for step in range(8):
        batch.step(np.stack([inputs[row, length + step] for row, length in enumerate(lengths)]))
        for row, length in enumerate(lengths):
            alone = Decoder(DecoderGraph(parts.session), parts.spec)
            alone.prefill(inputs[row, : length + step + 1])
            difference = np.abs(batch.logits[row] - alone.logits[0])
            assert difference.max() < 2e-5, f"row {row}: max {difference.max()}, mean {difference.mean()}"
            assert int(batch.tokens[row]) == alone.token
    assert batch.cache.lengths.tolist() == [length + 8 for length in lengths]


def test_a_row_cannot_run_past_its_capacity(parts: Parts) -> None:
    batch = Decoder(DecoderGraph(parts.session), parts.spec)
    batch.resize(2, 4)
    token = np.zeros((1, parts.spec.hidden_size), np.float32)
    for row, length in ((0, 4), (1, 2)):
        batch.prefill(np.repeat(token, length, axis=0), row=row)
    before = [buffer.read().copy() for buffer in batch.cache.buffers]
    with pytest.raises(ValueError, match="5 tokens do not fit"):
        batch.step(np.repeat(token, 2, axis=0))
    with pytest.raises(ValueError, match="5 tokens do not fit"):
        batch.prefill(np.repeat(token, 3, axis=0), row=1)
    assert all((a == b.read()).all() for a, b in zip(before, batch.cache.buffers, strict=True))


@pytest.mark.torch
def test_the_end_of_the_context_ends_one_answer_only(models: Callable[[str], Parts]) -> None:
    parts = models("padded")
    requests = requests_of(parts, (CONTEXT - 5, 10, CONTEXT - 1, CONTEXT, CONTEXT + 50, 20), max_new_tokens=30, seed=1)
    outcomes = dict(parts.batch(3).answers(requests))
    too_long = {3, 4}
    for key in too_long:
        assert isinstance(outcomes[key], ContextLengthError)
        assert str(len(requests[key].prompt)) in str(outcomes[key])
    fitting = [request for request in requests if request.key not in too_long]
    check_equal(parts, fitting, [(key, found) for key, found in outcomes.items() if key not in too_long])
    longest = outcomes[0]
    assert isinstance(longest, Answer)
    assert longest.finish_reason == "stop" or longest.stats.generated_tokens == 5


def test_requests_are_taken_when_there_is_a_row_for_them(parts: Parts) -> None:
    requests = requests_of(parts, tuple(range(3, 15)))
    taken = 0

    def source() -> Iterator[BatchRequest]:
        nonlocal taken
        for request in requests:
            taken += 1
            yield request

    finished = 0
    for _ in parts.batch(3).answers(source()):
        finished += 1
        assert taken <= finished + 3
    assert (taken, finished) == (12, 12)


class Recorded:
    """The sizes of a batch's cache over time."""

    def __init__(self, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[tuple[int, int]] = []
        resize = decoder.resize

        def recorded(rows: int, capacity: int) -> None:
            resize(rows, capacity)
            self.sizes.append((rows, capacity))

        monkeypatch.setattr(decoder, "resize", recorded)


def memory_for(parts: Parts, rows: int, capacity: int) -> int:
    return rows * (bytes_per_row(parts.spec, capacity) + capacity * parts.spec.hidden_size * 4)


def test_a_batch_that_does_not_fit_is_made_smaller_once_and_says_so(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = requests_of(parts, (20, 30, 40, 50, 60, 70, 80, 90), max_new_tokens=12)
    decoder = parts.decoder()
    batch = parts.batch(8, memory_for(parts, 3, 256) + 1, decoder=decoder)
    recorded = Recorded(decoder, monkeypatch)
    with pytest.warns(BatchWarning, match="batch of 8: continuing with 3 at a time") as caught:
        outcomes = list(batch.answers(requests))
    assert len(caught) == 1
    check_equal(parts, requests, outcomes)
    assert recorded.sizes == [(3, 256), (0, 0)]


def test_one_long_prompt_narrows_the_batch_while_it_lasts(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = (20, 30, 25, 900, 40, 50, 60, 70, 35)
    requests = requests_of(parts, lengths, max_new_tokens=12)
    decoder = parts.decoder()
    batch = parts.batch(4, memory_for(parts, 8, 256), decoder=decoder)  # rows of 1,024 tokens: two
    recorded = Recorded(decoder, monkeypatch)
    with pytest.warns(BatchWarning, match="continuing with 2 at a time"):
        outcomes = list(batch.answers(requests))
    check_equal(parts, requests, outcomes)
    assert recorded.sizes == [(4, 256), (2, 1024), (4, 256), (0, 0)]


def test_a_batch_is_never_below_one(parts: Parts) -> None:
    requests = requests_of(parts, (20, 30, 40))
    with pytest.warns(BatchWarning, match="continuing with 1 at a time"):
        outcomes = list(parts.batch(4, 1).answers(requests))
    check_equal(parts, requests, outcomes)
    assert [key for key, _ in outcomes] == [0, 1, 2]


def test_what_is_too_long_for_the_memory_alone_is_an_error_of_its_own(parts: Parts) -> None:
    def check(tokens: int) -> None:
        if tokens > 512:
            raise ContextLengthError(f"{tokens} tokens")

    requests = requests_of(parts, (20, 600, 30, 40), max_new_tokens=9)
    decoder = Decoder(DecoderGraph(parts.session), parts.spec)
    batch = BatchGenerator(decoder, parts.table, parts.tokenizer, parts.eos_ids, 3, PLENTY, check=check)
    outcomes = dict(batch.answers(requests))
    error = outcomes.pop(1)
    assert isinstance(error, ContextLengthError)
    assert str(error) == "768 tokens"
    check_equal(parts, [requests[i] for i in (0, 2, 3)], list(outcomes.items()))


class Failing:
    """A session whose runs fail when their batch is larger than `limit`, or when they are told to."""

    def __init__(self, session: Any, limit: int) -> None:
        self.limit = limit
        self._session = session

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any) -> None:
        rows = binding.get_outputs()[0].shape()[0]
        if rows > self.limit:
            raise RuntimeError("Failed to allocate memory for requested buffer")
        self._session.run_with_iobinding(binding)


def test_a_batch_that_fails_begins_again_half_as_large(parts: Parts) -> None:
    requests = requests_of(parts, (20, 30, 40, 1, 60, 70, 80), max_new_tokens=9)
    with pytest.warns(BatchWarning, match="Failed to allocate") as caught:
        outcomes = list(parts.batch(5, session=Failing(parts.session, 2)).answers(requests))
    assert [str(one.message).rpartition(" ")[2] for one in caught] == ["2"]
    check_equal(parts, requests, outcomes)


def test_what_fails_alone_costs_itself(parts: Parts) -> None:
    requests = requests_of(parts, (20, 30, 40))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BatchWarning)
        outcomes = list(parts.batch(2, session=Failing(parts.session, 0)).answers(requests))
    assert [key for key, _ in outcomes] == [0, 1, 2]
    assert all(isinstance(found, BackendError) for _, found in outcomes)


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_a_row_without_logits_costs_itself(parts: Parts, temperature: float) -> None:
    """NaN in one prompt fails its own request, not the one beside it, nor the one that gets its row."""
    config = GenerationConfig(max_new_tokens=6, temperature=temperature, seed=1)
    requests = [BatchRequest(key, prompt_of(parts, 40, key), config) for key in range(4)]
    ((start, visual),) = requests[1].prompt.spans
    spoiled = replace(requests[1].prompt, spans=((start, np.full_like(visual, np.nan)),))
    outcomes = dict(parts.batch(2).answers([replace(r, prompt=spoiled) if r.key == 1 else r for r in requests]))
    assert isinstance(outcomes.pop(1), BackendError)
    assert len(outcomes) == 3
    for key, answer in outcomes.items():
        assert answer.token_ids == parts.alone(requests[key]).token_ids


def test_running_out_of_memory_when_the_cache_is_made(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = requests_of(parts, (20, 300, 40, 30), max_new_tokens=9)
    decoder = parts.decoder()
    batch = parts.batch(4, decoder=decoder)
    real = decoder.cache.resize

    def scarce(rows: int, capacity: int) -> None:
        if rows * capacity > 1024:
            decoder.cache.clear()
            raise MemoryError
        real(rows, capacity)

    monkeypatch.setattr(decoder.cache, "resize", scarce)
    with pytest.warns(BatchWarning, match="2 at a time failed .out of memory.: continuing with 1"):
        outcomes = list(batch.answers(requests))
    check_equal(parts, requests, outcomes)


def test_stopping_early_gives_the_cache_back_and_leaves_a_usable_batch(parts: Parts) -> None:
    requests = requests_of(parts, (20, 30, 40, 50))
    decoder = parts.decoder()
    batch = parts.batch(2, decoder=decoder)
    answers = batch.answers(requests)
    next(answers)
    answers.close()  # type: ignore[attr-defined]
    assert decoder.cache.num_bytes == 0
    check_equal(parts, requests, list(batch.answers(requests)))
