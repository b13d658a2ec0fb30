"""The best of several answers: those their seeds give alone, by the model's own probabilities, after one prefill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vl3edge.runtime import Answer, CaptionJob, Clip, ConfigError, GenerationConfig, VideoLlama3
from vl3edge.runtime.decode.decoder import Decoder

CLIP = Path(__file__).resolve().parents[2] / "fixtures" / "demo_clip.mp4"
QUESTION = "Describe this video."
SETTINGS: dict[str, Any] = {"temperature": 4.0, "top_k": 12, "max_new_tokens": 12}  # hot, so that answers differ


@pytest.fixture(scope="module")
def model() -> VideoLlama3:
    return VideoLlama3.load(num_threads=1)


@pytest.fixture(scope="module")
def clips(model: VideoLlama3) -> list[Clip]:
    noise = np.random.default_rng(0).integers(0, 256, (112, 112, 3), np.uint8)
    return [model.encode(CLIP), model.encode(noise), model.encode(CLIP)]


def score_of(model: VideoLlama3, clip: Clip, answer: Answer) -> float:
    """Mean log-probability per token, each from a prefill of everything before it."""
    eos = [model.bundle.manifest.tokens.eos_ids[0]] if answer.finish_reason == "stop" else []
    content = [{"type": clip.kind, clip.kind: clip}, {"type": "text", "text": QUESTION}]
    prompt = model.prompt([{"role": "user", "content": content}], [clip])
    total = 0.0
    chosen = [*answer.token_ids, *eos]
    for place, token in enumerate(chosen):
        model.decoder.rewind(0)
        model.decoder.prefill(prompt.followed_by(chosen[:place]).embeddings(model._table))
        scores = model.decoder.logits[0].astype(np.float64)
        total += scores[token] - np.logaddexp.reduce(scores)
    return total / len(chosen)


def alone(model: VideoLlama3, clip: Clip, seeds: range) -> list[tuple[Answer, float]]:
    answers = [model.ask(clip, QUESTION, GenerationConfig(seed=seed, **SETTINGS)) for seed in seeds]
    return [(answer, score_of(model, clip, answer)) for answer in answers]


@pytest.mark.parametrize("seed", [5, 40])
def test_the_likeliest_of_the_answers_that_the_seeds_give_wins(
    model: VideoLlama3, clips: list[Clip], seed: int
) -> None:
    each = alone(model, clips[0], range(seed, seed + 4))
    assert len({answer.text for answer, _ in each}) == 4
    expected, score = max(each, key=lambda pair: pair[1])
    config = GenerationConfig(seed=seed, best_of=4, **SETTINGS)
    for found in (model.ask(clips[0], QUESTION, config), *answers(model, clips[:1], config, batch=1)):
        assert found.token_ids == expected.token_ids
        assert found.stats.score == pytest.approx(score, abs=1e-4)
        assert found.stats.generated_tokens == expected.stats.generated_tokens
    assert model.ask(clips[0], QUESTION, GenerationConfig(seed=seed, **SETTINGS)).stats.score is None


def answers(model: VideoLlama3, clips: list[Clip], config: GenerationConfig, batch: int) -> list[Answer]:
    results = list(model.caption_all([CaptionJob(clip, QUESTION) for clip in clips], config, batch))
    if batch == 1:
        assert [result.index for result in results] == list(range(len(clips)))
    found = {result.index: result for result in results}
    for result in results:
        assert result.answer is not None
        assert result.score == result.answer.stats.score
    return [found[index].answer for index in range(len(clips))]  # type: ignore[misc]


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_a_batch_gives_each_clip_its_own_best(model: VideoLlama3, clips: list[Clip], batch: int) -> None:
    config = GenerationConfig(seed=11, best_of=3, **SETTINGS)
    expected = [max(alone(model, clip, range(11, 14)), key=lambda pair: pair[1])[0].text for clip in clips]
    assert [answer.text for answer in answers(model, clips, config, batch)] == expected


def test_a_prompt_is_prefilled_once(model: VideoLlama3, clips: list[Clip], monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    plain = Decoder.prefill

    def counting(self: Decoder, embeddings: np.ndarray, logits: bool = True, row: int = 0) -> None:
        counted.append(len(embeddings))
        plain(self, embeddings, logits, row)

    monkeypatch.setattr(Decoder, "prefill", counting)
    config = GenerationConfig(seed=2, best_of=5, **SETTINGS)
    model.ask(clips[1], QUESTION, GenerationConfig(max_new_tokens=1))  # another prompt is in the cache
    counted.clear()
    stats = model.ask(clips[0], QUESTION, config).stats
    assert sum(counted) + stats.reused_tokens == stats.prompt_tokens + 4  # its last token again, for the logits
    counted.clear()
    (found,) = answers(model, clips[:1], config, batch=1)
    assert sum(counted) == found.stats.prompt_tokens + 4
    assert found.stats.reused_tokens == 0


def test_little_memory_draws_them_one_after_another(model: VideoLlama3, clips: list[Clip]) -> None:
    config = GenerationConfig(seed=11, best_of=3, **SETTINGS)
    expected = [answer.text for answer in answers(model, clips[:2], config, 1)]
    jobs = [CaptionJob(clip, QUESTION) for clip in clips[:2]]
    with pytest.warns(UserWarning, match="not enough memory for a batch of 3"):
        found = list(model.caption_all(jobs, config, memory_bytes=1))
    assert [result.caption for result in found] == expected


@pytest.mark.parametrize("temperature", [None, 0.0])
def test_answers_that_cannot_differ_are_refused(
    model: VideoLlama3, clips: list[Clip], temperature: float | None
) -> None:
    config = GenerationConfig(best_of=2, temperature=temperature)
    with pytest.raises(ConfigError, match="set a temperature above 0"):
        model.stream(clips[0], QUESTION, config)
    with pytest.raises(ConfigError, match="set a temperature above 0"):
        model.caption_all([], config)
    for wrong in (0, -1, 1.5, True):
        with pytest.raises(ConfigError, match="best_of"):
            GenerationConfig(best_of=wrong)  # type: ignore[arg-type]


def test_chats_and_sessions_go_on_after_the_best(model: VideoLlama3, clips: list[Clip]) -> None:
    config = GenerationConfig(seed=5, best_of=3, **SETTINGS)
    chat = model.chat()
    first = chat.ask(QUESTION, clips[0], config=config)
    assert chat.turns[0].answer_ids == first.token_ids
    again = model.chat()
    again.ask(QUESTION, clips[0], config=config)
    greedy = GenerationConfig(max_new_tokens=6)
    assert chat.ask("And then?", config=greedy).text == again.ask("And then?", config=greedy).text
    session = model.open_session(frames_expected=4)
    session.push(np.zeros((112, 112, 3), np.uint8), 0.0)
    (chunk,) = session.ask(QUESTION, config)
    assert chunk.stats is not None
    assert chunk.stats.score is not None
