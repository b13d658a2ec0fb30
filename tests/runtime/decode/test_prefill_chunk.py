"""Prompts in chunks of any size give the same answers, and a GPU gets the chunk that its memory takes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_tensorrt import FakeDevice

from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.backends.buffers import DeviceMemory
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle, read_manifest
from vl3edge.runtime.bundle.file_names import DECODER_GRAPH, FP16_DECODER_GRAPH
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import DecoderGraph
from vl3edge.runtime.decode.prefill_chunk import PREFILL_CHUNK, gpu_chunk, prefill_activation_bytes
from vl3edge.runtime.memory_estimate import estimate, prefill_bytes

CLIP = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
TEXT = read_manifest(DEMO_BUNDLE).text
RELEASED = replace(TEXT, hidden_size=1536, intermediate_size=8960)  # the 2B model's


@pytest.fixture(scope="module", params=[DECODER_GRAPH, FP16_DECODER_GRAPH])
def session(request: pytest.FixtureRequest) -> Any:
    return select_backend("cpu", 1).session(open_bundle(DEMO_BUNDLE).path(request.param))


@pytest.mark.parametrize("chunk", [1, 64, 100, 512])
def test_small_chunks_give_what_one_gives(session: Any, chunk: int) -> None:
    """But for rounding, over keys and values of 700 tokens and the steps after them."""
    count = 700 if chunk > 1 else 30
    inputs = np.random.default_rng(chunk).standard_normal((count + 4, TEXT.hidden_size)).astype(np.float32)
    memory = DeviceMemory(FakeDevice(), "cpu")
    small = Decoder(DecoderGraph(session, memory, prefill_chunk=chunk), TEXT)
    whole = Decoder(DecoderGraph(session, memory, prefill_chunk=4096), TEXT)
    scale = 0.0
    for decoder in (small, whole):
        decoder.prefill(inputs[:count])
    for step in range(5):
        scale = max(scale, float(np.abs(whole.logits).max()))
        np.testing.assert_allclose(small.logits, whole.logits, atol=2e-2 * scale)
        assert small.token == whole.token
        if step < 4:
            for decoder in (small, whole):
                decoder.step(inputs[None, count + step])
    assert small.length == whole.length == count + 4


@pytest.mark.parametrize("chunk", [48, 200, 4096])
def test_growing_prompts_are_whole_ones_to_the_bit(chunk: int) -> None:
    model = VideoLlama3.load(backend="cpu", num_threads=1)
    model.decoder.graph.prefill_chunk = chunk
    plan, config = (SamplingPlan(fps=8.0, max_frames=100), PruningConfig(enabled=False)), GenerationConfig(12)
    decoder = model.decoder
    whole = model.ask(model.encode(CLIP, *plan), "Describe this video.", config)
    logits = decoder.logits.copy()
    decoder.rewind(0)
    grown = model.ask(model.begin(CLIP, *plan), "Describe this video.", config)
    assert grown.token_ids == whole.token_ids
    np.testing.assert_array_equal(decoder.logits, logits)


def test_a_gpu_takes_the_chunk_that_its_memory_has_room_for() -> None:
    assert prefill_activation_bytes(RELEASED, 4096) == 4096 * 4 * (5 * 8960 + 12 * 1536)
    assert gpu_chunk(RELEASED, 80 * 10**9) == 4096
    assert gpu_chunk(RELEASED, 8 * prefill_activation_bytes(RELEASED, 4096)) == 4096
    assert gpu_chunk(RELEASED, 8 * prefill_activation_bytes(RELEASED, 4096) - 1) == 2048
    assert gpu_chunk(RELEASED, 10**9) == gpu_chunk(RELEASED, None) == 2048


def test_the_estimate_has_the_chunk() -> None:
    manifest = replace(read_manifest(DEMO_BUNDLE), text=RELEASED)
    asked: dict[str, Any] = {"frames": 1, "size": (28, 28), "context_tokens": 3000}
    assert estimate(manifest, **asked).prefill_bytes == prefill_bytes(manifest, PREFILL_CHUNK)
    assert estimate(manifest, prefill_chunk=4096, **asked).prefill_bytes == prefill_bytes(manifest, 3000)
