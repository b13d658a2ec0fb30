"""Rows of a head that lacks tokens, as ids of the whole vocabulary; grammars over such a head."""

from __future__ import annotations

import json

import numpy as np
import pytest
from extras import needs_llguidance

from vl3edge.runtime import GenerationConfig
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.head_tokens import HeadTokens
from vl3edge.runtime.decode.json_grammar import JsonGrammar
from vl3edge.runtime.decode.sequence import SequenceState
from vl3edge.runtime.prompt.splice import SplicedPrompt
from vl3edge.runtime.prompt.tokenizer import Tokenizer

PROMPT = SplicedPrompt(np.arange(5), np.arange(5), ())


def test_rows_and_tokens() -> None:
    head = HeadTokens(np.array([0, 3, 4, 9], np.int32), 12)
    assert head.tokens(np.array([3, 0, 1])).tolist() == [9, 0, 3]
    rows = head.rows(np.array([9, 4]))
    assert rows is not None
    assert rows.tolist() == [3, 2]
    for absent in (1, 5, 10, 11, 400):
        assert head.rows(np.array([3, absent])) is None
    logits = head.logits(np.array([[1, 2, 3, 4], [5, 6, np.nan, 8]], np.float32))
    assert logits.shape == (2, 12)
    assert logits.dtype == np.float32
    assert logits[0, [0, 3, 4, 9]].tolist() == [1, 2, 3, 4]
    assert np.isnan(logits[1, 4])
    assert np.isneginf(logits[:, [1, 2, 5, 6, 7, 8, 10, 11]]).all()


class Only:
    """Allows these tokens."""

    def __init__(self, *tokens: int) -> None:
        self._allowed = np.isin(np.arange(12), tokens)
        self.said: list[int] = []

    def allowed(self) -> np.ndarray:
        return self._allowed

    def accept(self, token: int) -> None:
        self.said.append(token)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_grammar_gets_the_best_that_the_head_has_and_else_what_it_allows(temperature: float) -> None:
    logits = HeadTokens(np.array([0, 3, 4, 9]), 12).logits(np.array([0.0, 9.0, 2.0, 30.0], np.float32))
    config = GenerationConfig(max_new_tokens=5, temperature=temperature, seed=0)
    for allowed, expected in (((1, 4, 7), 4), ((7,), 7), ((3, 7, 9), 9)):
        constraint = Only(*allowed)
        state = SequenceState(PROMPT, config, {11}, 100, constraint=constraint)
        assert state.append_choice(int(logits.argmax()), lambda: logits) == expected
        assert constraint.said == [expected]


@needs_llguidance
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_json_of_a_schema_out_of_single_bytes(temperature: float) -> None:
    """Where every word was left out: names of keys are forced, and said though the head has none of them."""
    bundle = open_bundle(DEMO_BUNDLE)
    tokenizer, vocab_size = Tokenizer.of(bundle), bundle.manifest.text.vocab_size
    (eos,) = bundle.manifest.tokens.eos_ids
    head = HeadTokens(np.array([i for i in range(vocab_size) if i == eos or len(tokenizer.token(i)) == 1]), vocab_size)
    assert len(head.ids) == 257
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "moves to the left": {"type": "boolean"}},
        "required": ["colour", "moves to the left"],
        "additionalProperties": False,
    }
    for seed in range(4):
        constraint = JsonGrammar(bundle).constraint(schema)
        config = GenerationConfig(max_new_tokens=120, temperature=temperature, seed=seed)
        state = SequenceState(PROMPT, config, {eos}, 400, constraint=constraint)
        random = np.random.default_rng(seed)
        while state.finish_reason is None:
            logits = head.logits(random.standard_normal(len(head.ids)).astype(np.float32))
            state.append_choice(int(logits.argmax()), lambda logits=logits: logits)
        assert state.finish_reason == "stop"
        found = json.loads(tokenizer.decode(state.tokens[:-1]))
        assert set(found) == {"colour", "moves to the left"}
