"""The tokens of one answer: how the next is chosen from what the decoder says, and when the answer ends."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Literal

import numpy as np

from .config import GenerationConfig
from .errors import ContextLengthError
from .manifest import GREEDY, GenerationSpec
from .sampling import Sampler, check_logits

FinishReason = Literal["stop", "length"]


class Continuation:
    """A prompt's ids and the tokens chosen after them.

    prompt_ids: int64 [S]. limit: of the model's context, in tokens. model: what the config leaves open.
    Raises ContextLengthError if the prompt leaves no room for an answer.
    """

    def __init__(
        self,
        prompt_ids: np.ndarray,
        config: GenerationConfig,
        eos_ids: Set[int],
        limit: int,
        model: GenerationSpec = GREEDY,
    ) -> None:
        self.prompt_length = len(prompt_ids)
        if self.prompt_length >= limit:
            raise ContextLengthError(
                f"the prompt has {self.prompt_length} tokens, the model's context is {limit}: use fewer frames "
                "(max_frames) or a higher pruning threshold."
            )
        self._sampler = Sampler(config, model)
        self._penalized_from = 0 if model.penalize_prompt else self.prompt_length
        self._eos_ids = eos_ids
        room = np.zeros(min(config.max_new_tokens, limit - self.prompt_length), np.int64)
        self._history = np.concatenate([prompt_ids, room])
        self.length = self.prompt_length

    @property
    def max_length(self) -> int:
        """Tokens of the prompt and the longest answer."""
        return len(self._history)

    @property
    def tokens(self) -> list[int]:
        """Those chosen so far, with the end token if one came."""
        chosen: list[int] = self._history[self.prompt_length : self.length].tolist()
        return chosen

    @property
    def last(self) -> int:
        """The token chosen last."""
        return int(self._history[self.length - 1])

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer has ended: the end token came, or there is no room for more; None while it has not."""
        if self.length > self.prompt_length and self.last in self._eos_ids:
            return "stop"
        return "length" if self.length == self.max_length else None

    def choose(self, greedy: int, logits: Callable[[], np.ndarray]) -> int:
        """The next token, from the decoder's own greedy choice or its logits float32 [vocab], asked for if needed.

        Raises BackendError for logits that are NaN or infinite; what is cached then must not be used again.
        """
        token = greedy
        if self._sampler.needs_logits:
            token = self._sampler.choose(logits(), self._history[self._penalized_from : self.length])
        elif greedy == 0:  # what argmax says of nothing but NaN
            check_logits(logits())
        self._history[self.length] = token
        self.length += 1
        return token
