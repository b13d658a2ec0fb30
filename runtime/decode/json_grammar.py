"""Answers that are JSON of a given schema: at every token, what the schema allows next is all that may be chosen.

The work is llguidance's, of the extra [schema]. The best token that is allowed is taken, so greedy stays greedy.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ..bundle.bundle import Bundle
from ..errors import ConfigError

INSTALL = "JSON schemas need llguidance: pip install 'vl3edge[schema]'"
_COMPACT: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}  # or it may never end
ANY_OBJECT: dict[str, Any] = {"type": "object"}


class JsonGrammar:
    """Makes constraints for one bundle's tokenizer, which llguidance reads when the first is asked for."""

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._vocab_size = bundle.manifest.text.vocab_size

    @cached_property
    def _library(self) -> Any:
        try:
            import llguidance
        except ImportError as e:
            raise ConfigError(INSTALL) from e
        return llguidance

    @cached_property
    def _tokenizer(self) -> Any:
        source = self._bundle.path("tokenizer.json").read_text(encoding="utf-8")
        eos = self._bundle.manifest.tokens.eos_ids[0]  # one way to end is enough
        return self._library.LLTokenizer(source, n_vocab=self._vocab_size, eos_token=eos)

    def constraint(self, schema: Mapping[str, Any]) -> JsonConstraint:
        """A new constraint, for one answer.

        Raises ConfigError where llguidance is not installed, and for a schema that cannot be used, saying why.
        """
        matcher = self._library.LLMatcher
        try:
            grammar = matcher.grammar_from_json_schema(json.dumps(schema), overrides=_COMPACT)
            problem = matcher.validate_grammar(grammar, self._tokenizer)
        except (ValueError, TypeError, RecursionError) as e:
            problem = str(e)
        if problem:
            raise ConfigError(f"the JSON schema cannot be used: {' '.join(problem.split())}")
        return JsonConstraint(matcher(self._tokenizer, grammar), self._vocab_size)


class JsonConstraint:
    """What may come next in one answer; a `Constraint`."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> np.ndarray:
        """Bool [vocab_size]. Raises ConfigError if the schema turns out to be too much for llguidance."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return np.unpackbits(bits, bitorder="little")[: self._vocab_size].astype(np.bool_)

    def accept(self, token: int) -> None:
        """Takes a token that is allowed."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise ConfigError(f"the JSON schema cannot be used: {' '.join(self._matcher.get_error().split())}")
