"""The best of several answers to one prompt: they are drawn with different seeds, and the likeliest is given.

The rule is the mean log-probability per token; the sum would favour short answers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..bundle.specs import GenerationSpec
from ..config import GenerationConfig
from ..errors import ConfigError

if TYPE_CHECKING:  # they build on this module
    from .batch import BatchGenerator, Outcome
    from .batch_sequence import BatchRequest
    from .generate import Answer


def attempts(config: GenerationConfig, model: GenerationSpec) -> list[GenerationConfig]:
    """The config of each answer: seed, seed + 1, …. Raises ConfigError where all of them would be the same answer."""
    if config.best_of > 1 and not config.filled(model).temperature:
        raise ConfigError(
            f"the best of {config.best_of} answers needs answers that differ: set a temperature above 0 (--temperature)"
        )
    seeds = [None if config.seed is None else config.seed + number for number in range(config.best_of)]
    return [replace(config, seed=seed) for seed in seeds]


def best(answers: Sequence[Answer]) -> Answer:
    """The one with the highest score, of equals the first; what the prompt cost is the first one's."""
    chosen = max(answers, key=lambda answer: answer.stats.score or 0.0)
    first = answers[0].stats
    return replace(chosen, stats=replace(chosen.stats, reused_tokens=first.reused_tokens, prefill_s=first.prefill_s))


def best_answers(
    generator: BatchGenerator, requests: Iterable[BatchRequest], model: GenerationSpec
) -> Iterator[Outcome]:
    """`generator.answers`, each the best of as many as its request's config wants; an error of one is the request's.

    Answers to one prompt are rows of the batch. A generator that keeps rows prefills it for the first alone.
    """
    so_far: dict[Any, dict[int, Answer | Exception]] = {}

    def rows() -> Iterator[BatchRequest]:
        for request in requests:
            for number, config in enumerate(attempts(request.config, model)):
                yield replace(request, key=(request.key, number, request.config.best_of), config=config)

    for (key, number, wanted), outcome in generator.answers(rows()):
        found = so_far.setdefault(key, {})
        found[number] = outcome
        if len(found) == wanted:
            ordered = [found[each] for each in sorted(so_far.pop(key))]
            errors = [each for each in ordered if isinstance(each, Exception)]
            yield key, errors[0] if errors else best([each for each in ordered if not isinstance(each, Exception)])
