"""What a GPU does first is done while a clip is being read, and changes nothing; with the host in the GPU's place."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_captures import Capturing
from fake_tensorrt import FakeDevice

from vl3edge.runtime import GenerationConfig, VideoLlama3
from vl3edge.runtime.backends.buffers import DeviceMemory
from vl3edge.runtime.backends.onnxruntime import Backend, PatchLimit
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.backends.warm_up import WarmUp
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, open_bundle
from vl3edge.runtime.bundle.file_names import FP16_DECODER_GRAPH
from vl3edge.runtime.decode.decoder import Decoder, run_once
from vl3edge.runtime.decode.generate import Generator
from vl3edge.runtime.decode.graph import DecoderGraph
from vl3edge.runtime.errors import BackendError
from vl3edge.runtime.prompt.splice import EmbeddingTable, SplicedPrompt
from vl3edge.runtime.prompt.tokenizer import Tokenizer
from vl3edge.runtime.vision.engines import VisionEngines


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(DEMO_BUNDLE)


class Engines(Backend):
    """Engines that note their inputs; the first to be loaded takes its time."""

    def graph(self, bundle: Bundle, name: str) -> Any:
        assert self.device is None or self.device.lock.held  # type: ignore[attr-defined]
        time.sleep(0.05)
        if name in broken:
            raise BackendError(f"{name} is broken")
        loaded.append((name, threading.current_thread().name))

        class Engine:
            def run(self, inputs: Any) -> list[np.ndarray]:
                shapes.append((name, *(value.shape for value in inputs.values())))
                return [np.zeros((1, 2, 2, 96), np.float32)]

        return Engine()

    def frame_limits(self, bundle: Bundle) -> PatchLimit:
        return PatchLimit()


loaded: list[tuple[str, str]] = []
shapes: list[Any] = []
broken: set[str] = set()


@pytest.fixture(autouse=True)
def _nothing_yet() -> None:
    for notes in (loaded, shapes, broken):
        notes.clear()


def test_engines_are_loaded_once_and_waited_for(bundle: Bundle) -> None:
    engines = VisionEngines(bundle, Engines("cuda", ("CPUExecutionProvider",), "", device=FakeDevice()))
    engines.warm_up()
    engines.features(np.zeros((3, 56, 84, 3), np.uint8))
    assert loaded == [("vision", "warm-up"), ("projector-video", "warm-up")]
    assert shapes[0] == ("vision", (1, 28, 28, 3))
    assert shapes[-1] == ("vision", (3, 56, 84, 3))
    engines.tokens(np.zeros((1, 2, 2, 96), np.float32), "image", np.ones((1, 4), np.bool_))
    assert loaded[2:] == [("projector-image", "MainThread")]


@pytest.mark.parametrize("name", ["cpu", "rtx"])
def test_other_backends_load_at_first_use(bundle: Bundle, name: str) -> None:
    engines = VisionEngines(bundle, Engines(name, ("CPUExecutionProvider",), ""))
    engines.warm_up()
    engines.wait()
    assert loaded == []


def test_what_fails_fails_where_it_is_needed(bundle: Bundle) -> None:
    broken.add("projector-video")
    engines = VisionEngines(bundle, Engines("cuda", ("CPUExecutionProvider",), "", device=FakeDevice()))
    engines.warm_up()
    features = engines.features(np.zeros((1, 28, 28, 3), np.uint8))
    with pytest.raises(BackendError, match="projector-video is broken"):
        engines.tokens(features, "video", np.ones((1, 1), np.bool_))


def test_the_first_answer_needs_no_capture_and_is_the_same(bundle: Bundle) -> None:
    """It waits for the capture that is under way, and takes the buffers that it was made with."""
    text = bundle.manifest.text
    session = select_backend("cpu", 1).session(bundle.path(FP16_DECODER_GRAPH))
    table = EmbeddingTable(bundle.path("embeddings.safetensors"), text.vocab_size, text.hidden_size)
    tokenizer = Tokenizer(bundle.path("tokenizer.json"))
    ids = np.arange(1, 60)
    prompt, config = SplicedPrompt(ids, ids, ()), GenerationConfig(max_new_tokens=12)
    calls = Capturing(session)
    calls.device = FakeDevice()
    graph = DecoderGraph(calls, DeviceMemory(calls.device, "cpu"), captures=True)
    released = threading.Event()
    graph.warming = WarmUp(released.wait, lambda: run_once(graph, text))
    generator = Generator(Decoder(graph, text), table, tokenizer, ())
    timer = threading.Timer(0.1, released.set)
    timer.start()
    found = list(generator.tokens(prompt, config))
    assert calls.ids[:4] == ["-1", "1", "1", "-1"], "the answer did not wait"  # a captured step begins anew
    assert list(calls.captured) == ["1"]
    plain = Generator(Decoder(DecoderGraph(session), text), table, tokenizer, ())
    assert found == list(plain.tokens(prompt, config))


def test_a_decoder_that_fails_to_warm_up_is_told_at_its_use(bundle: Bundle) -> None:
    class Full(FakeDevice):
        def allocate(self, num_bytes: int) -> int:
            if num_bytes > 1000:
                raise BackendError("CUDA: out of memory (cudaErrorMemoryAllocation)")
            return super().allocate(num_bytes)

    session = select_backend("cpu", 1).session(bundle.path(FP16_DECODER_GRAPH))
    graph = DecoderGraph(session, DeviceMemory(Full(), "cpu"), captures=True)
    graph.warming = WarmUp(lambda: run_once(graph, bundle.manifest.text))
    with pytest.raises(BackendError, match="out of memory"):
        Decoder(graph, bundle.manifest.text).prefill(np.zeros((3, 128), np.float32))


def test_a_cpu_begins_nothing() -> None:
    before = threading.active_count()
    model = VideoLlama3.load(backend="cpu", num_threads=1)
    assert threading.active_count() == before
    assert model.decoder.graph.warming is None
    clip = model.encode(Path(__file__).parents[1] / "fixtures" / "demo_clip.mp4")
    assert model.ask(clip, "What?", GenerationConfig(max_new_tokens=2)).token_ids
