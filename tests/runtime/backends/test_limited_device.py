"""`--memory-limit` on a GPU: it bounds what is taken, by whomever, with the host in the GPU's place."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from fake_captures import Capturing
from fake_tensorrt import FakeDevice

from vl3edge.runtime import GenerationConfig, VideoLlama3
from vl3edge.runtime.backends.buffers import DeviceMemory
from vl3edge.runtime.backends.limited_device import limited
from vl3edge.runtime.backends.onnxruntime import Backend
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.backends.tensorrt import TensorRtBackend
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, open_bundle
from vl3edge.runtime.bundle.file_names import FP16_DECODER_GRAPH
from vl3edge.runtime.decode.batch import BatchRequest
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.generate import Answer
from vl3edge.runtime.decode.graph import DecoderGraph
from vl3edge.runtime.decode.kv_cache import bytes_per_row
from vl3edge.runtime.decode.prefill_chunk import LIMITED_CHUNKS, gpu_chunk, prefill_activation_bytes
from vl3edge.runtime.errors import BackendError, BatchWarning, ContextLengthError, MemoryLimitError
from vl3edge.runtime.kernels import select
from vl3edge.runtime.memory_estimate import gpu_weights_bytes, prefill_bytes
from vl3edge.runtime.prompt.splice import SplicedPrompt

SHORT = GenerationConfig(max_new_tokens=3)
TOTAL = 1 << 30


class Counting(FakeDevice):
    """A GPU with memory of which `others` is taken by somebody else."""

    others = 0

    def free_bytes(self) -> int:
        return TOTAL - self.others - sum(array.nbytes for array in self.memory.values())


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(DEMO_BUNDLE)


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> Any:
    return select_backend("cpu", 1).session(bundle.path(FP16_DECODER_GRAPH))


@pytest.fixture
def load(bundle: Bundle, session: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """load(limit): the demo model with its decoder on a stand-in."""

    def graph(backend: Backend, bundle: Bundle) -> DecoderGraph:
        calls = Capturing(session)
        calls.device = backend.device
        if backend.device is None:
            return DecoderGraph(session)
        return DecoderGraph(calls, DeviceMemory(backend.device, "cpu"), captures=True)

    monkeypatch.setattr(select, "load_decoder_graph", graph)
    backend = Backend("cpu", ("CPUExecutionProvider",), "1", 1, Counting())
    return lambda limit: VideoLlama3(bundle, backend, limit)


def test_what_is_free_is_what_the_limit_leaves() -> None:
    device = Counting()
    first = device.allocate(1000)
    small = limited(device, 5000)
    assert small.free_bytes() == 5000
    second = small.allocate(3000)
    assert small.free_bytes() == 2000
    device.others = 1500  # as ONNX Runtime's arenas
    assert small.free_bytes() == 500
    with pytest.raises(BackendError, match=r"501 bytes of GPU memory do not fit the 500 .* --memory-limit"):
        small.allocate(501)
    device.others = 9000
    assert small.free_bytes() == 0
    small.free(second)
    small.free(first)
    assert limited(device, 10 * TOTAL).free_bytes() == device.free_bytes()  # never more than there is
    assert small.name == device.name


def test_every_gpu_backend_is_limited() -> None:
    for backend in (
        Backend("cuda", ("CUDAExecutionProvider",), "1", device=Counting()),
        TensorRtBackend("rtx", (), "", 0, Counting(), "rtx", object()),
    ):
        small = backend.within(10**6)
        assert type(small) is type(backend)
        assert small.device is not None
        assert small.device.free_bytes() == 10**6
        assert backend.within(None) is backend
    cpu = Backend("cpu", ("CPUExecutionProvider",), "1")
    assert cpu.within(10**6) is cpu


def test_onnxruntime_is_told(monkeypatch: pytest.MonkeyPatch, bundle: Bundle) -> None:
    asked: list[Any] = []

    class Session:
        def __init__(self, path: str, options: Any, providers: Any) -> None:
            asked.append(providers[0][1].get("gpu_mem_limit"))

        def get_providers(self) -> list[str]:
            return ["CUDAExecutionProvider"]

    monkeypatch.setattr("onnxruntime.InferenceSession", Session)
    backend = Backend("cuda", ("CUDAExecutionProvider",), "1", device=Counting())
    for each in (backend, backend.within(7_000_000)):
        each.session(bundle.path(FP16_DECODER_GRAPH), captures=True)
    assert asked == [None, "7000000"]


def test_a_model_that_does_not_fit_is_refused_before_it_is_loaded(load: Any) -> None:
    with pytest.raises(MemoryLimitError, match=r"the model needs 0\.00 GB while it is loaded, more than 0\.00 GB"):
        load(1_000_000)


def test_the_weights_of_a_gpu_by_hand(bundle: Bundle) -> None:
    layer, encoder = 128 * 32 * (2 * 4 + 2 * 2) + 3 * 128 * 384, 3 * (4 * 96 * 96 + 2 * 96 * 384) + 3 * 14 * 14 * 96
    linears = 6 * (layer // 2 + layer // 32 * 2) + 448 * 128 + 448 * 128 // 32 * 2
    found = gpu_weights_bytes(bundle.manifest)
    assert found == linears + 2 * (encoder + 96 * 128 + 128 * 128 + 4096 * 32)
    whole = replace(bundle.manifest, quantization={})
    assert gpu_weights_bytes(whole) - found == 6 * layer * 2 + 448 * 128 * 2 - linears


def test_rungs_kept_sets_and_contexts_stay_within_the_limit(load: Any, bundle: Bundle) -> None:
    """A rung of 2,048 does not fit and gives way to what is enough; what would not fit at all is one clear line."""
    manifest = bundle.manifest
    rest = gpu_weights_bytes(manifest) + prefill_bytes(manifest, 512)
    limit = rest + bytes_per_row(manifest.text, 1600, 2)
    model = load(limit)
    device = model._backend.device
    reference = VideoLlama3.load(backend="cpu", num_threads=1)
    capacities = []
    for words in (3, 550, 20):
        question = "red " * words
        assert model.chat().ask(question, config=SHORT).text == reference.chat().ask(question, config=SHORT).text
        capacities.append(model._generator._decoder.capacity)
        taken = TOTAL - device._device.free_bytes()
        assert taken <= limit - gpu_weights_bytes(manifest)
    assert capacities[0] == 1024
    assert 1024 < capacities[1] < 2048
    with pytest.raises(ContextLengthError, match=r"a context of 1,792 tokens takes .* the limit given: use"):
        model.chat().ask("red " * 1000, config=SHORT)
    assert model.chat().ask("red", config=SHORT).text


def test_a_batch_has_fewer_rows(load: Any, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = bundle.manifest
    rest = gpu_weights_bytes(manifest) + prefill_bytes(manifest, 512)
    row = bytes_per_row(manifest.text, 256, 2) + 256 * manifest.text.hidden_size * 4
    model = load(rest + 2 * row + row // 2)
    sizes = []
    resize = Decoder.resize
    monkeypatch.setattr(Decoder, "resize", lambda self, *size: (sizes.append(size), resize(self, *size)))
    ids = np.arange(1, 90)
    requests = [BatchRequest(n, SplicedPrompt(ids, ids, ()), SHORT) for n in range(5)]
    with pytest.warns(BatchWarning, match="not enough memory for a batch of 8: continuing with 2"):
        answers = list(model._batch_generator(8, None).answers(requests))
    assert len(answers) == 5
    assert all(isinstance(answer, Answer) for _, answer in answers)
    assert max(sizes) == (2, 256)


def test_chunks_of_a_prompt_get_small(bundle: Bundle) -> None:
    text = bundle.manifest.text
    for chunk in LIMITED_CHUNKS:
        assert gpu_chunk(text, 8 * prefill_activation_bytes(text, chunk), chunks=LIMITED_CHUNKS) == chunk
    assert gpu_chunk(text, 1, chunks=LIMITED_CHUNKS) == 512
    assert gpu_chunk(text, 1) == 2048
