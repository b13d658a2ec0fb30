"""The tokens of one answer: how the next is chosen from what the decoder says, and when the answer ends."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Literal, Protocol

import numpy as np

from ..bundle.specs import GREEDY, GenerationSpec
from ..config import GenerationConfig
from ..errors import ContextLengthError
from ..prompt.splice import SplicedPrompt
from .sampler import Sampler, check_logits, log_probability

FinishReason = Literal["stop", "length", "cancelled"]


class Constraint(Protocol):
    """Which tokens an answer may consist of, token by token."""

    def allowed(self) -> np.ndarray:
        """Bool [vocab_size], the tokens that may come next, at least one."""
        ...

    def accept(self, token: int) -> None:
        """Takes one of them."""
        ...


def too_long(prompt: int, media: int, limit: int) -> str:
    """The message for a prompt that leaves no room in a context, with advice.

    prompt, limit: in tokens. media: how many of the prompt's are `SplicedPrompt.media_tokens`.
    """
    text = prompt - media
    advice = "use fewer frames (max_frames) or a higher pruning threshold"
    if text > media:
        advice = "shorten the question, the system text or the earlier turns"
    parts = f"{media:,} of media and {text:,} of text"
    return f"the prompt has {prompt} tokens, {parts}, but the model's context is {limit}: {advice}"


def check_room(prompt: SplicedPrompt, limit: int) -> None:
    """Raises ContextLengthError if a prompt, or as much of one as there is, leaves no room for an answer."""
    if len(prompt) >= limit:
        raise ContextLengthError(too_long(len(prompt), prompt.media_tokens, limit))


class SequenceState:
    """A prompt's ids and the tokens chosen after them.

    limit: of the model's context, in tokens. model: what the config leaves open. constraint: of what may be chosen.
    Raises ContextLengthError if the prompt leaves no room for an answer, in the context or the model's max_length.
    """

    def __init__(
        self,
        prompt: SplicedPrompt,
        config: GenerationConfig,
        eos_ids: Set[int],
        limit: int,
        model: GenerationSpec = GREEDY,
        constraint: Constraint | None = None,
    ) -> None:
        self.prompt_length = len(prompt)
        check_room(prompt, limit)
        self._sampler = Sampler(config, model)
        self._penalized_from = 0 if model.penalize_prompt else self.prompt_length
        self._eos_ids = eos_ids
        self._constraint = constraint
        self._is_scored = config.best_of > 1
        self._log_probability = 0.0
        wanted = config.new_tokens(model, self.prompt_length)
        if wanted < 1:
            raise ContextLengthError(
                f"the prompt has {self.prompt_length} tokens, and the model's generation_config.json allows "
                f"{model.max_length} with the answer (max_length): set max_new_tokens (--max-new-tokens)"
            )
        room = np.zeros(min(wanted, limit - self.prompt_length), np.int64)
        self._history = np.concatenate([prompt.ids, room])
        self.length = self.prompt_length

    @property
    def max_length(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self._history)

    @property
    def tokens(self) -> list[int]:
        """The tokens chosen so far, including the end token if there was one."""
        chosen: list[int] = self._history[self.prompt_length : self.length].tolist()
        return chosen

    @property
    def last(self) -> int:
        """The token chosen last."""
        return int(self._history[self.length - 1])

    @property
    def score(self) -> float | None:
        """Mean log-probability of the tokens chosen, as the model has it; None where nothing is compared."""
        return self._log_probability / max(1, len(self.tokens)) if self._is_scored else None

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer has ended: the end token came, or there is no room for more; None while it has not."""
        if self.length > self.prompt_length and self.last in self._eos_ids:
            return "stop"
        return "length" if self.length == self.max_length else None

    def append_choice(self, greedy: int, logits: Callable[[], np.ndarray]) -> int:
        """The next token, from the decoder's own greedy choice or its logits float32 [vocab], asked for if needed.

        Raises BackendError for logits that are NaN or infinite; what is cached then must not be used again.
        """
        token = greedy
        allowed = None if self._constraint is None else self._constraint.allowed()
        if self._sampler.needs_logits or (allowed is not None and not allowed[greedy]):
            scores = logits()
            if allowed is not None:
                check_logits(scores)
                scores = _allowed_scores(scores, allowed[: len(scores)])
            token = self._sampler.sample(scores, self._history[self._penalized_from : self.length])
        elif greedy == 0:  # what argmax says of nothing but NaN
            check_logits(logits())
        if self._constraint is not None:
            self._constraint.accept(token)
        if self._is_scored:
            self._log_probability += log_probability(logits(), token)
        self._history[self.length] = token
        self.length += 1
        return token


def _allowed_scores(scores: np.ndarray, allowed: np.ndarray) -> np.ndarray:
    """Logits of the tokens that are allowed, else minus infinity; all alike where the head has none of them.

    A grammar may leave one token, which the head need not have to have it said: anything can be read.
    """
    found = np.where(allowed, scores, -np.inf)
    return found if found.max() > -np.inf else np.where(allowed, 0.0, -np.inf)
