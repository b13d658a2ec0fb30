"""A batch that never ends: requests come and go, are listened to, cancelled and constrained, and leave their rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from extras import needs_llguidance

from vl3edge.runtime import GenerationConfig, VideoLlama3
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.decode.batch import BatchGenerator
from vl3edge.runtime.decode.batch_sequence import BatchRequest
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.generate import Answer, Generator, join
from vl3edge.runtime.decode.graph import DecoderGraph
from vl3edge.runtime.decode.json_grammar import JsonGrammar
from vl3edge.runtime.errors import BatchWarning, ConfigError
from vl3edge.runtime.prompt.splice import EmbeddingTable, SplicedPrompt
from vl3edge.runtime.prompt.tokenizer import Tokenizer

PLENTY = 1 << 40
CONFIG = GenerationConfig(max_new_tokens=12)


class Parts:
    """Decoders and batches of the demo bundle."""

    def __init__(self) -> None:
        self.bundle = open_bundle(DEMO_BUNDLE)
        self.spec, self.eos_ids = self.bundle.manifest.text, self.bundle.manifest.tokens.eos_ids
        self.table, self.tokenizer = EmbeddingTable.of(self.bundle), Tokenizer.of(self.bundle)
        self.session = select_backend("cpu", num_threads=1).session(DEMO_BUNDLE / "decoder.onnx")

    def batch(self, rows: int, keep_rows: bool = False, session: Any = None) -> BatchGenerator:
        decoder = Decoder(DecoderGraph(session or self.session), self.spec)
        return BatchGenerator(decoder, self.table, self.tokenizer, self.eos_ids, rows, PLENTY, keep_rows=keep_rows)

    def alone(self, request: BatchRequest) -> Answer:
        decoder = Decoder(DecoderGraph(self.session), self.spec)
        generator = Generator(decoder, self.table, self.tokenizer, self.eos_ids)
        return join(generator.stream(request.prompt, request.config))


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts()


def text_prompt(length: int, seed: int) -> SplicedPrompt:
    ids = np.random.default_rng(seed).integers(0, 256, length)
    return SplicedPrompt(ids, ids, ())


def continued(prompt: SplicedPrompt, length: int, seed: int) -> SplicedPrompt:
    more = text_prompt(length, seed)
    return SplicedPrompt(np.append(prompt.ids, more.ids), np.append(prompt.keys, more.keys), prompt.spans)


def outcomes_of(batch: BatchGenerator, requests: Any) -> dict[Any, Any]:
    return dict(outcome for outcome in batch.steps(requests) if outcome is not None)


@pytest.mark.parametrize("keep_rows", [False, True])
def test_listeners_hear_every_token_once_and_in_order(parts: Parts, keep_rows: bool) -> None:
    heard: dict[int, list[int]] = {key: [] for key in range(5)}

    def listen(key: int, token: int | None) -> bool:
        heard[key] += [] if token is None else [token]
        return True

    requests = [BatchRequest(k, text_prompt(9 + k, k), CONFIG, partial(listen, k)) for k in range(5)]
    found = outcomes_of(parts.batch(2, keep_rows), requests)
    for request in requests:
        alone = parts.alone(request)
        assert found[request.key].token_ids == alone.token_ids
        ended = [parts.eos_ids[0]] if alone.finish_reason == "stop" else []
        assert heard[request.key] == [*alone.token_ids, *ended]


@pytest.mark.parametrize(("leaves", "after"), [(0, 1), (1, 3), (2, 5)])
def test_whoever_stops_listening_frees_the_row_at_once(parts: Parts, leaves: int, after: int) -> None:
    left: list[int] = []

    def listen(token: int | None) -> bool:
        assert token is not None  # the prompt is short
        left.append(token)
        return len(left) < after

    config = GenerationConfig(max_new_tokens=12, temperature=0.7, seed=3)
    requests = [BatchRequest(k, text_prompt(11 + k, 7 + k), config) for k in range(4)]
    requests[leaves] = replace(requests[leaves], listener=listen)
    found = outcomes_of(parts.batch(2, keep_rows=True), requests)
    assert found[leaves].finish_reason == "cancelled"
    assert found[leaves].token_ids == tuple(left)
    assert len(left) == after
    for request in requests:
        if request.key != leaves:
            assert found[request.key].token_ids == parts.alone(request).token_ids


def test_a_listener_that_fails_costs_its_own_answer(parts: Parts) -> None:
    def fail(token: int | None) -> bool:
        raise RuntimeError("the listener fell over")

    requests = [BatchRequest(k, text_prompt(9, k), CONFIG, fail if k == 1 else None) for k in range(3)]
    found = outcomes_of(parts.batch(3), requests)
    assert isinstance(found.pop(1), RuntimeError)
    assert all(found[k].token_ids == parts.alone(requests[k]).token_ids for k in found)


def test_requests_come_while_others_are_answered(parts: Parts) -> None:
    requests = [BatchRequest(k, text_prompt(20 - k, k), CONFIG) for k in range(4)]
    batch = parts.batch(3)
    active: list[int] = []

    def source() -> Iterator[BatchRequest | None]:
        for request in requests:
            yield request
            for _ in range(3):  # steps of those under way
                active.append(batch.num_active)
                yield None

    found = outcomes_of(batch, source())
    assert max(active) > 1
    assert all(found[r.key].token_ids == parts.alone(r).token_ids for r in requests)


def test_others_go_on_while_a_long_prompt_is_read(parts: Parts) -> None:
    """Between its chunks each has a step, some end, and what is read is then moved; all answers are right."""
    told: list[int] = []
    config = GenerationConfig(max_new_tokens=6)
    long = text_prompt(2000, 99)

    def listen(token: int | None) -> bool:
        if token is not None:
            told.append(token)
        return True

    short = [BatchRequest(k, text_prompt(10 + k, k), replace(config, max_new_tokens=3 + k), listen) for k in range(3)]
    batch = parts.batch(4, keep_rows=True)
    before: list[int] = []  # tokens of the others when the long prompt's first comes

    def first(token: int | None) -> bool:
        if token is not None and not before:
            before.append(len(told))
        return True

    requests = [*short, BatchRequest("long", long, config, first), BatchRequest("after", text_prompt(9, 9), config)]
    found = outcomes_of(batch, requests)
    assert before[0] > 3  # the first ones of the three came before the prompt was begun
    assert all(found[r.key].token_ids == parts.alone(r).token_ids for r in requests)


def test_a_long_prompt_is_given_up_between_its_chunks(parts: Parts) -> None:
    asked = 0

    def leave(token: int | None) -> bool:
        nonlocal asked
        asked += 1
        assert token is None
        return asked < 2

    requests = [
        BatchRequest("long", text_prompt(2000, 5), CONFIG, leave),
        BatchRequest("next", text_prompt(8, 6), CONFIG),
    ]
    found = outcomes_of(parts.batch(2, keep_rows=True), requests)
    assert (found["long"].finish_reason, found["long"].token_ids) == ("cancelled", ())
    assert asked == 2
    assert found["next"].token_ids == parts.alone(requests[1]).token_ids


@pytest.mark.parametrize("run", [6, 7, 8, 9])
def test_a_failure_while_a_long_prompt_is_read(parts: Parts, run: int) -> None:
    short = [BatchRequest(k, text_prompt(9 + k, k), CONFIG) for k in range(2)]
    requests = [*short, BatchRequest("long", text_prompt(1800, 7), CONFIG)]
    with pytest.warns(BatchWarning, match="Failed to allocate"):
        found = outcomes_of(parts.batch(4, True, FailingOnce(parts.session, run)), requests)
    assert all(found[r.key].token_ids == parts.alone(r).token_ids for r in requests)


def test_an_idle_batch_waits_for_its_source(parts: Parts) -> None:
    request = BatchRequest("late", text_prompt(10, 1), CONFIG)
    steps = parts.batch(2).steps(iter([None, None, None, request]))
    assert [next(steps) for _ in range(3)] == [None] * 3
    ((key, answer),) = [outcome for outcome in steps if outcome is not None]
    assert key == "late"
    assert answer.token_ids == parts.alone(request).token_ids


def test_a_second_question_costs_its_own_tokens(parts: Parts) -> None:
    clips = [text_prompt(120, seed) for seed in range(3)]
    requests = [BatchRequest((n, k), continued(clips[k], 10, 50 + n), CONFIG) for n in range(2) for k in range(3)]
    found = outcomes_of(parts.batch(4, keep_rows=True), [*requests[:3], requests[5], requests[3], requests[4]])
    for request in requests:
        answer = found[request.key]
        assert answer.token_ids == parts.alone(request).token_ids
        assert answer.stats.reused_tokens >= 120 if request.key[0] == 1 else answer.stats.reused_tokens < 120


def test_the_beginning_of_an_answer_under_way_is_shared(parts: Parts) -> None:
    clip = text_prompt(150, 5)
    requests = [BatchRequest(k, continued(clip, 8, k), CONFIG) for k in range(3)]
    found = outcomes_of(parts.batch(3, keep_rows=True), requests)
    assert [found[k].stats.reused_tokens >= 150 for k in range(3)] == [False, True, True]
    assert all(found[r.key].token_ids == parts.alone(r).token_ids for r in requests)


def test_kept_rows_survive_longer_and_shorter_prompts(parts: Parts) -> None:
    """The cache is resized for 900 tokens and for many short ones; what is reused is right, whatever remains."""
    lengths = (30, 900, 25, 40, 700, 30, 20)
    requests = [BatchRequest(k, text_prompt(n, 20 + k), CONFIG) for k, n in enumerate(lengths)]
    again = [BatchRequest(10 + r.key, continued(r.prompt, 6, r.key), CONFIG) for r in requests]
    found = outcomes_of(parts.batch(3, keep_rows=True), [*requests, *reversed(again)])
    assert all(found[r.key].token_ids == parts.alone(r).token_ids for r in [*requests, *again])
    assert any(found[r.key].stats.reused_tokens for r in again)


class FailingOnce:
    """A session that fails at its n-th run."""

    def __init__(self, session: Any, run: int) -> None:
        self._session, self._left = session, run

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any) -> None:
        self._left -= 1
        if self._left == 0:
            raise RuntimeError("Failed to allocate memory for requested buffer")
        self._session.run_with_iobinding(binding)


@pytest.mark.parametrize("run", [3, 5, 9])
def test_after_a_failure_nothing_is_said_twice(parts: Parts, run: int) -> None:
    heard: dict[int, list[int]] = {key: [] for key in range(4)}

    def listen(key: int, token: int | None) -> bool:
        heard[key] += [] if token is None else [token]
        return True

    requests = [BatchRequest(k, text_prompt(9 + k, k), CONFIG, partial(listen, k)) for k in range(4)]
    with pytest.warns(BatchWarning, match="Failed to allocate"):
        found = outcomes_of(parts.batch(4, True, FailingOnce(parts.session, run)), requests)
    for request in requests:
        alone = parts.alone(request)
        assert found[request.key].token_ids == alone.token_ids
        assert tuple(heard[request.key][: len(alone.token_ids)]) == alone.token_ids


SCHEMAS: list[tuple[dict[str, Any], Callable[[Any], bool]]] = [
    (
        {"type": "object", "properties": {"colour": {"enum": ["red", "green"]}}, "required": ["colour"],
         "additionalProperties": False},
        lambda found: found["colour"] in ("red", "green"),
    ),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}, lambda found: len(found) == 2),
    ({"type": "boolean"}, lambda found: found in (True, False)),
]  # fmt: skip


@needs_llguidance
@pytest.mark.parametrize(("schema", "fits"), SCHEMAS, ids=["object", "array", "boolean"])
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_schema_is_kept_to(parts: Parts, schema: Any, fits: Callable[[Any], bool], temperature: float) -> None:
    grammar = JsonGrammar(parts.bundle)
    config = GenerationConfig(max_new_tokens=60, temperature=temperature, seed=1, top_p=0.9 if temperature else None)
    requests = [BatchRequest(k, text_prompt(20, k), config, None, grammar.constraint(schema)) for k in range(3)]
    for answer in outcomes_of(parts.batch(2), requests).values():
        if answer.finish_reason == "stop":
            assert fits(json.loads(answer.text)), answer.text
        else:  # an integer may be of any length
            assert schema["type"] == "array", answer.text


@needs_llguidance
def test_what_the_model_says_by_itself_is_not_changed_by_a_schema_that_allows_it(parts: Parts) -> None:
    """Greedy stays greedy: with everything allowed, the answer is the model's own."""
    model = VideoLlama3.load(num_threads=1)
    clip = model.encode(np.zeros((112, 112, 3), np.uint8))
    own = model.ask(clip, "What shape is it?")
    schema = {"type": "string", "enum": ["square", own.text]}
    prompt = model.prompt([{"role": "user", "content": [{"type": "image", "image": clip},
                          {"type": "text", "text": "What shape is it?"}]}], [clip])  # fmt: skip

    class Free:
        """Allows everything."""

        def allowed(self) -> np.ndarray:
            return np.ones(parts.spec.vocab_size, np.bool_)

        def accept(self, token: int) -> None:
            pass

    requests = [
        BatchRequest("free", prompt, CONFIG, None, Free()),
        BatchRequest("schema", prompt, CONFIG, None, JsonGrammar(parts.bundle).constraint(schema)),
    ]
    found = outcomes_of(parts.batch(2), requests)
    assert found["free"].token_ids == own.token_ids
    assert json.loads(found["schema"].text) in ("square", own.text)


@needs_llguidance
@pytest.mark.parametrize("schema", [{"type": "nonsense"}, {"type": "object", "properties": 5}, {"$ref": "#/nowhere"}])
def test_a_schema_that_cannot_be_used_is_refused(parts: Parts, schema: Any) -> None:
    with pytest.raises(ConfigError, match="JSON schema cannot be used"):
        JsonGrammar(parts.bundle).constraint(schema)
