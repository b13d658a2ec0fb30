"""The demo bundle's decoder, composed of the kernels, gives ONNX Runtime's tokens, and nearly its logits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from vl3edge.runtime.prompt.splice import EmbeddingTable

pytest.importorskip("triton")

from composed import TRAIL, ComposedDecoder
from weights import assert_near

from vl3edge.export.parity import load_session
from vl3edge.models.demo.clips import write_clip
from vl3edge.models.demo.render import HELD_OUT_SEED
from vl3edge.runtime import SamplingPlan, VideoLlama3
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.manifest import DECODER_GRAPH, FP16_DECODER_GRAPH
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import DecoderGraph

STEPS = 6
CAPACITY = 128
QUESTIONS = ("What colour is the shape?", "Describe the video.")


@dataclass(frozen=True)
class Held:
    """A question on a held-out clip: embeddings float32 [n, hidden]; ONNX Runtime's greedy tokens and their logits."""

    embeddings: np.ndarray
    tokens: list[int]
    logits: np.ndarray


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> list[Held]:
    folder = tmp_path_factory.mktemp("clips")
    model = VideoLlama3.load(backend="cpu")
    result = []
    for seed, question in enumerate(QUESTIONS):
        path = folder / f"{seed}.mp4"
        write_clip(path, HELD_OUT_SEED + seed)
        clip = model.encode(path, SamplingPlan(max_frames=3 + seed))
        content = [{"type": "video", "video": str(path)}, {"type": "text", "text": question}]
        prompt = model.prompt([{"role": "user", "content": content}], [clip])
        result.append(answered(model, prompt.embeddings(EmbeddingTable.of(model.bundle))))
    return result


def answered(model: VideoLlama3, embeddings: np.ndarray) -> Held:
    """Both graphs of the bundle are asked, that for CPUs and that for GPUs; they agree in the tokens."""
    answers = []
    for graph in (DECODER_GRAPH, FP16_DECODER_GRAPH):
        session = load_session(DEMO_BUNDLE / graph, prepack=graph == FP16_DECODER_GRAPH)
        decoder = Decoder(DecoderGraph(session), model.bundle.manifest.text)
        decoder.prefill(embeddings)
        tokens, logits = [], []
        for _ in range(STEPS):
            tokens.append(decoder.token)
            logits.append(decoder.logits[0].copy())
            decoder.step(EmbeddingTable.of(model.bundle).rows(np.array(tokens[-1:])))
        answers.append(Held(embeddings, tokens, np.array(logits)))
    assert answers[0].tokens == answers[1].tokens
    return answers[1]


@pytest.fixture(scope="module")
def prefilled(held_out: list[Held]) -> ComposedDecoder:
    """Rows, each with a prompt, one of them in three calls; tests copy it."""
    decoder = ComposedDecoder(DEMO_BUNDLE, open_bundle(DEMO_BUNDLE).manifest.text, len(held_out), CAPACITY)
    for row, held in enumerate(held_out):
        start = 0
        for end in (1, 40) if row == 1 else ():
            decoder.prefill(row, held.embeddings[start:end], logits=False)
            start = end
        decoder.prefill(row, held.embeddings[start:])
    return decoder


@pytest.mark.parametrize("many", [False, True])
def test_steps_give_the_tokens_of_onnx_runtime(held_out: list[Held], prefilled: ComposedDecoder, many: bool) -> None:
    decoder = prefilled.copy()
    for step in range(STEPS):
        assert decoder.tokens.tolist() == [held.tokens[step] for held in held_out]
        assert_near(decoder.logits, np.array([held.logits[step] for held in held_out]), 1.5e-3)
        if step == 3:  # what a capture of a step would not notice: the cache is elsewhere, and larger
            decoder.grow(CAPACITY + 40)
        if step < STEPS - 1:
            decoder.step(many)
    for row, held in enumerate(held_out):
        places = (len(held.embeddings) + np.arange(STEPS)) % TRAIL
        assert decoder.trail[row, places].tolist() == held.tokens


def test_a_row_that_is_switched_off_does_not_disturb_the_others(
    held_out: list[Held], prefilled: ComposedDecoder
) -> None:
    decoder = prefilled.copy()
    decoder.lengths[0] = -1
    before = decoder.cache.copies()
    decoder.step()
    assert decoder.tokens[1] == held_out[1].tokens[1]
    assert decoder.lengths[0] == -1
    for buffer, old in zip(decoder.cache.buffers, before, strict=True):
        assert np.array_equal(buffer[0], old[0], equal_nan=True)
