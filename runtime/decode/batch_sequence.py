"""One request of a batch: its prompt, what has been said of its answer, and who listens."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..config import GenerationConfig
from ..prompt.splice import SplicedPrompt
from ..prompt.tokenizer import Detokenizer, Tokenizer
from .answer_start import AnswerStart
from .generate import Answer, GenerationStats
from .sequence import Constraint, FinishReason, SequenceState


@dataclass(frozen=True)
class BatchRequest:
    """A prompt to be answered; key is what its answer is known by.

    listener: is told every token as it is chosen, the end token among them; and None between the chunks of a long
        prompt. When it says False, the answer ends there, with the finish_reason "cancelled", and its row is free for
        another.
    constraint: of the tokens that may be chosen.
    """

    key: Any
    prompt: SplicedPrompt
    config: GenerationConfig
    listener: Callable[[int | None], bool] | None = None
    constraint: Constraint | None = None


class BatchSequence:
    """A request in a row of the batch, or on its way back to one.

    start: what the answer begins with, which stands after the prompt.
    reused_tokens: of the prompt, which the row had already.
    """

    def __init__(self, request: BatchRequest, answer: SequenceState, start: AnswerStart) -> None:
        self.request = request
        self.answer = answer
        self._start = start
        self.reused_tokens = 0
        self._begin = self._first = time.perf_counter()

    @property
    def prompt(self) -> SplicedPrompt:
        """What has to be in the row: the request's prompt, and what was said before the row was lost."""
        return self.request.prompt.followed_by([*self._start.ids, *self.answer.tokens])

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for the first token."""
        return self.request.listener is None or self.request.listener(None)

    def prefilled(self, reused: int) -> None:
        """Notes the time at which the first token is known, and how much of the prompt was there already."""
        if not self.answer.tokens:
            self._first = time.perf_counter()
            self.reused_tokens = reused

    def choose(self, greedy: int, logits: Callable[[], np.ndarray]) -> FinishReason | None:
        """Takes the next token; why that ends the answer, None if it does not. Raises as `append_choice`."""
        token = self.answer.append_choice(greedy, logits)
        listens = self.request.listener is None or self.request.listener(token)
        return self.answer.finish_reason or (None if listens else "cancelled")

    def finished(self, tokenizer: Tokenizer, reason: FinishReason) -> Answer:
        """The answer, as far as it has come."""
        detokenizer = Detokenizer(tokenizer)
        tokens = self.answer.tokens
        shown = tokens[:-1] if reason == "stop" else tokens
        text = self._start.pushed(detokenizer) + "".join([detokenizer.push(token) for token in shown])
        prefill_s, decode_s = self._first - self._begin, time.perf_counter() - self._first
        counts = self.answer.prompt_length, self.reused_tokens, len(tokens)
        stats = GenerationStats(*counts, prefill_s, decode_s, self.answer.score)
        return Answer(text + detokenizer.flush(), reason, stats, (*self._start.ids, *shown))
