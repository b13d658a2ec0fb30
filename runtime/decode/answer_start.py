"""What an answer begins with, and what it may consist of, as the config of a call has it."""

from __future__ import annotations

from collections.abc import Iterator

from ..config import GenerationConfig
from ..errors import ConfigError
from ..prompt.splice import SplicedPrompt
from ..prompt.tokenizer import Detokenizer, Tokenizer
from .json_grammar import JsonGrammar
from .sequence import Constraint


class AnswerStart:
    """The prefix of one answer, and its constraint, which has taken the prefix already.

    ids: of the prefix's tokens. constraint: of the request; None is that of config.json_schema, if there is one.
    Raises ConfigError for a schema that cannot be used, and for a prefix that it does not allow.
    """

    def __init__(
        self,
        config: GenerationConfig,
        tokenizer: Tokenizer,
        grammar: JsonGrammar | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self.ids: tuple[int, ...] = tuple(tokenizer.encode(config.prefix).tolist()) if config.prefix else ()
        if constraint is None and config.json_schema is not None:
            if grammar is None:
                raise ConfigError("json_schema needs the bundle that the tokenizer belongs to")
            constraint = grammar.constraint(config.json_schema)
        self.constraint = constraint
        for token in self.ids if constraint is not None else ():
            assert constraint is not None
            if not constraint.allowed()[token]:
                raise ConfigError(f"an answer of this JSON schema cannot begin with the prefix {config.prefix!r}")
            constraint.accept(token)

    def after(self, prompts: Iterator[SplicedPrompt]) -> Iterator[SplicedPrompt]:
        """A prompt while it is being made, at last with the prefix after it."""
        prompt = None
        for prompt in prompts:
            yield prompt
        if self.ids and prompt is not None:
            yield prompt.followed_by(self.ids)

    def pushed(self, detokenizer: Detokenizer) -> str:
        """The prefix's text, as far as it is certain, from an answer's detokenizer."""
        return "".join([detokenizer.push(token) for token in self.ids])
