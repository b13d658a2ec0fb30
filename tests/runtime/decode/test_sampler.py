"""The sampler against transformers' own logits processors."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from vl3edge.runtime import GenerationConfig
from vl3edge.runtime.bundle.specs import GREEDY
from vl3edge.runtime.decode.sampler import Sampler, filtered_probabilities, penalize_repetition
from vl3edge.runtime.errors import BackendError


def reference_probabilities(logits: np.ndarray, history: np.ndarray, config: GenerationConfig) -> np.ndarray:
    import torch
    from reference import transformers_module

    transformers = transformers_module()
    ids, scores = torch.from_numpy(history)[None], torch.from_numpy(logits)[None].double()
    config = config.filled(GREEDY)
    chain = [transformers.RepetitionPenaltyLogitsProcessor(config.repetition_penalty)]
    chain.append(transformers.TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        chain.append(transformers.TopKLogitsWarper(config.top_k))
    if config.top_p is not None and config.top_p < 1:
        chain.append(transformers.TopPLogitsWarper(config.top_p))
    for processor in chain:
        scores = processor(ids, scores)
    return scores.softmax(-1)[0].numpy()


@pytest.mark.torch
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.3, "top_k": 5},
        {"temperature": 1.7, "top_p": 0.9},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.5, "repetition_penalty": 1.3},
        {"temperature": 1.0, "top_p": 0.01},
        {"temperature": 2.5, "top_k": 1},
        {"temperature": 1.0, "top_k": 9999, "repetition_penalty": 0.7},
    ],
)
def test_distribution_equals_transformers(settings: dict[str, float], seed: int) -> None:
    random = np.random.default_rng(seed)
    logits = (random.standard_normal(777) * 4).astype(np.float32)
    history = random.integers(0, 777, 60)
    config = GenerationConfig(**settings)
    ours = filtered_probabilities(penalize_repetition(logits, history, config.repetition_penalty), config)
    reference = reference_probabilities(logits, history, config)
    # float64 on both sides, but the reference penalizes in float64 where the engine's logits are float32.
    np.testing.assert_allclose(ours, reference, atol=1e-6)
    assert ((ours > 0) == (reference > 0)).all()


@pytest.mark.parametrize(("shift", "temperature"), [(1000.0, 1.0), (-1000.0, 1.0), (500.0, 0.25)])
def test_logits_far_from_zero_are_a_distribution_all_the_same(shift: float, temperature: float) -> None:
    logits = np.array([0.0, 2.0, 1.0, -3.0], np.float32)
    weights = np.exp(logits.astype(np.float64) / temperature)
    found = filtered_probabilities(logits + np.float32(shift), GenerationConfig(temperature=temperature))
    np.testing.assert_allclose(found, weights / weights.sum(), rtol=1e-12)


def test_top_p_that_half_of_the_tokens_reach_exactly_keeps_half() -> None:
    found = filtered_probabilities(np.zeros(4, np.float32), GenerationConfig(temperature=1.0, top_p=0.5))
    assert sorted(found.tolist()) == [0.0, 0.0, 0.5, 0.5]


def test_draws_follow_the_distribution_and_the_seed() -> None:
    random = np.random.default_rng(0)
    logits = random.standard_normal(50).astype(np.float32) * 2
    config = GenerationConfig(temperature=1.0, top_k=10, seed=3)
    history = np.zeros(0, np.int64)
    sampler, again = Sampler(config), Sampler(config)
    draws = [sampler.sample(logits, history) for _ in range(20_000)]
    assert draws == [again.sample(logits, history) for _ in range(20_000)]
    assert draws[:50] != [
        Sampler(GenerationConfig(temperature=1.0, top_k=10, seed=s)).sample(logits, history) for s in range(50)
    ]
    frequencies = np.bincount(draws, minlength=50) / len(draws)
    np.testing.assert_allclose(frequencies, filtered_probabilities(logits, config), atol=0.012)


@pytest.mark.parametrize("seed", range(20))
def test_top_k_keeps_the_k_best(seed: int) -> None:
    scores = np.random.default_rng(seed).standard_normal(777).astype(np.float32)
    for k in (*range(1, 120), 776, 777, 778):  # partitions that are off by one are right nearly always
        found = filtered_probabilities(scores, GenerationConfig(temperature=1.0, top_k=k))
        assert set(np.flatnonzero(found)) == set(np.argsort(scores)[-k:]), k


def test_the_greatest_draw_is_the_last_token_although_the_sum_is_below_one() -> None:
    config = GenerationConfig(temperature=1.0)
    logits = np.random.default_rng(9).standard_normal(1000).astype(np.float32)
    assert np.cumsum(filtered_probabilities(logits, config))[-1] < 1 - 2**-50
    sampler = Sampler(config)
    sampler._random = SimpleNamespace(random=lambda: 1 - 2**-53)  # type: ignore[assignment]
    assert sampler.sample(logits, np.zeros(0, np.int64)) == 999


def test_penalties_push_scores_of_either_sign_away() -> None:
    logits = np.array([3.0, 0.5, 0.0, -0.5, -3.0, 7.0], np.float32)
    found = penalize_repetition(logits, np.array([0, 1, 2, 3, 4, 4]), 2.0)
    assert found.tolist() == [1.5, 0.25, 0.0, -1.0, -6.0, 7.0]
    assert logits[0] == 3.0


@pytest.mark.parametrize(
    ("settings", "needed"),
    [
        ({}, False),
        ({"temperature": 0.1}, True),
        ({"temperature": 2.0}, True),
        ({"repetition_penalty": 0.7}, True),
        ({"repetition_penalty": 1.3}, True),
    ],
)
def test_logits_are_read_only_where_they_decide(settings: dict[str, float], needed: bool) -> None:
    assert Sampler(GenerationConfig(**settings)).needs_logits is needed


def test_greedy_with_a_penalty_takes_the_best_penalized() -> None:
    logits = np.array([1.0, 3.0, 2.9, -1.0], np.float32)
    sampler = Sampler(GenerationConfig(repetition_penalty=2.0))
    assert sampler.sample(logits, np.array([1])) == 2
    assert sampler.sample(logits, np.array([1, 2])) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("config", [GenerationConfig(temperature=1.0), GenerationConfig(repetition_penalty=1.1)])
def test_logits_that_are_no_numbers_are_an_error(config: GenerationConfig, value: float) -> None:
    """A draw from them would be an id beyond the vocabulary."""
    logits = np.full(5, value, np.float32)
    with pytest.raises(BackendError, match="NaN or infinite"):
        Sampler(config).sample(logits, np.array([0]))
    masked = np.array([-np.inf, 1.0, -np.inf], np.float32)
    assert Sampler(config).sample(masked, np.array([0])) == 1
