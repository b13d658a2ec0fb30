"""Drafts change no answer, whatever is drafted; and wrong ones cost little."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import FakeDevice
from hypothesis import given, settings
from hypothesis import strategies as st

from vl3edge.runtime import GenerationConfig, VideoLlama3
from vl3edge.runtime.backends.buffers import DeviceMemory
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.file_names import FP16_DECODER_GRAPH
from vl3edge.runtime.config import MAX_DRAFTS
from vl3edge.runtime.decode import drafts
from vl3edge.runtime.decode.cached_decoder import CachedDecoder
from vl3edge.runtime.decode.drafts import Corpus, DraftAccount
from vl3edge.runtime.decode.graph import DecoderGraph
from vl3edge.runtime.errors import ConfigError
from vl3edge.runtime.kernels import select
from vl3edge.runtime.prompt.splice import EmbeddingTable

CLIP = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
QUESTIONS = [
    "Describe this video.",
    "What is there?",
    "Describe this video.",
    "red red red red red red",
    "What is there?",
]
CONFIGS = {
    "greedy": GenerationConfig(max_new_tokens=24, draft_tokens=8),
    "no room": GenerationConfig(max_new_tokens=1, draft_tokens=8),
    "little room": GenerationConfig(max_new_tokens=5, draft_tokens=8),
    "drawn": GenerationConfig(max_new_tokens=24, temperature=0.9, seed=7, draft_tokens=8),
    "drawn from few": GenerationConfig(max_new_tokens=24, temperature=1.5, top_k=5, top_p=0.9, seed=3, draft_tokens=8),
    "penalty": GenerationConfig(max_new_tokens=24, repetition_penalty=1.3, draft_tokens=8),
}
Draft = Callable[[Any, int], list[int]]


@pytest.fixture(scope="module")
def model() -> VideoLlama3:
    return VideoLlama3.load(num_threads=1)


@pytest.fixture(scope="module")
def clip(model: VideoLlama3) -> Any:
    return model.encode(CLIP)


def said(model: VideoLlama3, clip: Any, config: GenerationConfig) -> list[tuple[int, ...]]:
    return [model.ask(clip, question, config).token_ids for question in QUESTIONS]


def repeated(corpus: Any, limit: int) -> list[int]:
    """The last token again and again: hardly ever right."""
    return [corpus._text.tokens[-1]] * limit


def always(monkeypatch: pytest.MonkeyPatch, draft: Draft | None = None) -> list[int]:
    """Drafts are tried whenever there are some; returns how many tokens each check had."""
    checks: list[int] = []
    verify = CachedDecoder.verify

    def counted(self: CachedDecoder, ids: np.ndarray, table: Any) -> None:
        checks.append(len(ids))
        verify(self, ids, table)

    monkeypatch.setattr(CachedDecoder, "verify", counted)
    monkeypatch.setattr(DraftAccount, "open", True)
    if draft is not None:
        monkeypatch.setattr(Corpus, "continuation", draft)
    return checks


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("draft", [None, repeated])
def test_answers_are_those_without_drafts(
    model: VideoLlama3, clip: Any, name: str, draft: Draft | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CONFIGS[name]
    wanted = said(model, clip, GenerationConfig(**{**vars(config), "draft_tokens": 0}))
    checks = always(monkeypatch, draft)
    assert said(model, clip, config) == wanted
    assert all(2 <= count <= 1 + MAX_DRAFTS for count in checks)
    assert bool(checks) == (config.max_new_tokens > 1)
    if draft is None and name == "greedy":
        assert len(checks) < sum(map(len, wanted)) / 3  # or none was right


def test_what_was_said_before_is_drafted(model: VideoLlama3, clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that comes a second time takes about a ninth of the passes."""
    first = model.ask(clip, "Describe this video.", CONFIGS["greedy"])
    checks = always(monkeypatch)
    assert model.ask(clip, "Describe this video.", CONFIGS["greedy"]).token_ids == first.token_ids
    assert len(checks) <= -(-len(first.token_ids) // MAX_DRAFTS)


def test_none_where_they_are_switched_off(model: VideoLlama3, clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    checks = always(monkeypatch)
    model.ask(clip, "Describe this video.", GenerationConfig())
    assert not checks
    model.ask(clip, "Describe this video.", GenerationConfig(draft_tokens=2))
    assert max(checks) == 3


def test_the_cache_holds_what_was_said(model: VideoLlama3, clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Conversations go on from answers with drafts, also from one that was left in the middle."""
    config = CONFIGS["greedy"]
    chat, plain = model.chat(), GenerationConfig(max_new_tokens=24, draft_tokens=0)
    wanted = [chat.ask(question, config=plain).token_ids for question in QUESTIONS]
    always(monkeypatch, repeated)
    chat = model.chat()
    found = []
    for question in QUESTIONS:
        next(iter(model.stream(clip, question, config)))  # and no more of it
        found.append(chat.ask(question, config=config).token_ids)
    assert found == wanted


def test_on_a_gpu(model: VideoLlama3, clip: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU's graph, with host memory in its place."""
    session = select_backend("cpu", 1).session(DEMO_BUNDLE / FP16_DECODER_GRAPH)
    monkeypatch.setattr(
        select, "load_decoder_graph", lambda *_: DecoderGraph(session, DeviceMemory(FakeDevice(), "cpu"))
    )
    ours = VideoLlama3.load(num_threads=1)
    wanted = said(ours, clip, GenerationConfig(max_new_tokens=24, draft_tokens=0))
    checks = always(monkeypatch)
    assert said(ours, clip, CONFIGS["greedy"]) == wanted
    assert checks


def test_a_check_is_as_many_steps(model: VideoLlama3) -> None:
    """What is chosen after each token, and what is cached; then on as if nothing had been."""
    decoder, table, ids = model.decoder, EmbeddingTable.of(open_bundle(DEMO_BUNDLE)), np.arange(20, 40)
    logits, caches = [], []
    for counts in ([1] * 9, [2, 7], [9]):
        decoder.rewind(0)
        decoder.prefill(table.rows(ids))
        rows, start = [], 100
        for count in counts:
            tokens = np.arange(start, start + count)
            (decoder.verify if count > 1 else decoder.advance)(tokens, table)
            assert decoder.tokens.tolist() == decoder.logits.argmax(axis=1).tolist()
            rows.append(decoder.logits.copy())
            start += count
        decoder.advance(np.array([7]), table)
        logits.append(np.concatenate([*rows, decoder.logits]))
        caches.append([buffer.read_positions(0, 0, decoder.length) for buffer in decoder.cache.buffers])
    for found, cache in zip(logits[1:], caches[1:], strict=True):
        np.testing.assert_allclose(found, logits[0], atol=2e-2 * np.abs(logits[0]).max())
        for ours, theirs in zip(cache, caches[0], strict=True):
            np.testing.assert_allclose(ours, theirs, atol=2e-2 * np.abs(theirs).max())


@pytest.mark.parametrize("count", [-1, 9])
def test_as_many_as_one_pass_takes(count: int) -> None:
    with pytest.raises(ConfigError, match="draft_tokens must be 0 to 8"):
        GenerationConfig(draft_tokens=count)


def looked_up(earlier: list[list[int]], text: list[int], limit: int) -> list[int]:
    """`Corpus.continuation` by searching."""
    for length in range(min(4, len(text)), 1, -1):
        gram = text[-length:]
        for tokens in (text, *reversed(earlier)):
            for end in range(len(tokens) - 1, length - 1, -1):
                if tokens[end - length : end] == gram:
                    return tokens[end : end + limit]
    return []


WORDS = st.lists(st.integers(0, 3), max_size=30)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4), st.integers(1, 8))
def test_lookup_is_that_of_a_search(answers: list[tuple[list[int], list[int]]], limit: int) -> None:
    corpus, earlier = Corpus(), []
    for prompt, answer in answers:
        corpus.begin(prompt)
        for count, token in enumerate(answer):
            corpus.append(token)
            assert corpus.continuation(limit) == looked_up(earlier, prompt + answer[: count + 1], limit)
        if len(kept := (prompt + answer)[max(0, len(prompt) - 4) :]) > 4:
            earlier.append(kept)


def test_old_answers_are_forgotten() -> None:
    corpus = Corpus()
    for number in range(drafts._REMEMBERED + 2):
        corpus.begin([])
        for token in (number, 1000, 1001, 1002, number):
            corpus.append(token)
    corpus.begin([0, 1000])
    assert corpus.continuation(3) == []
    corpus.begin([5, 1000])
    assert corpus.continuation(3) == [1001, 1002, 5]


def test_wrong_drafts_cost_a_small_share() -> None:
    account, spent, plain = DraftAccount(), 0.0, 0.0
    for _ in range(5000):
        if account.open:
            account.checked(2.5, 1)  # never right
            spent += 2.5
        else:
            account.stepped(1.0)
            spent += 1.0
        plain += 1.0
    assert spent <= 1.025 * plain
    assert spent > plain  # it is tried again now and then


def test_right_drafts_go_on() -> None:
    account = DraftAccount()
    assert not account.open  # what a step takes is not known yet
    account.stepped(1.0)
    for _ in range(100):
        assert account.open
        account.checked(2.0, 4)
    for _ in range(40):  # and what was gained is not lost again
        if account.open:
            account.checked(2.0, 1)
    assert not account.open
