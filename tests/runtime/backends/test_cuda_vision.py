"""The vision path on a GPU, with the host in the GPU's place: what the same graphs give when they are simply run."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
from fake_tensorrt import FakeDevice

from vl3edge.export.parity import load_session
from vl3edge.runtime import PruningConfig, VideoLlama3
from vl3edge.runtime.backends.buffers import DeviceBuffer, DeviceMemory
from vl3edge.runtime.backends.cuda_vision import CudaEncoder, CudaProjector, cuda_engine
from vl3edge.runtime.backends.onnxruntime import Backend, Engine
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, open_bundle
from vl3edge.runtime.bundle.file_names import fp16_file
from vl3edge.runtime.errors import BackendError


class HostAsGpu(Backend):
    """What backend "cuda" makes of the vision path, in the fake device's memory; the decoder runs on the CPU."""

    def graph(self, bundle: Bundle, name: str) -> Engine:
        session = load_session(bundle.path(self.vision_file(bundle, name)))
        memory = DeviceMemory(self.device, "cpu")
        return CudaEncoder(session, memory, 14) if name == "vision" else CudaProjector(session, memory)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(DEMO_BUNDLE)


def frames_that_repeat(count: int, seed: int) -> np.ndarray:
    frames = np.random.default_rng(seed).integers(0, 256, (count, 56, 84, 3), np.uint8)
    frames[[1, 2, -1]] = frames[[0, 0, -2]]
    return frames


@pytest.mark.parametrize("kind", ["video", "image"])
def test_engines_give_what_the_graphs_give(bundle: Bundle, kind: str) -> None:
    device = FakeDevice()
    memory = DeviceMemory(device, "cpu")
    sessions = [load_session(bundle.path(fp16_file(name))) for name in ("vision", f"projector-{kind}")]
    encoder, projector = CudaEncoder(sessions[0], memory, 14), CudaProjector(sessions[1], memory)
    frames = frames_that_repeat(4, 3)
    (features,) = encoder.run({"frames": frames[:, ::-1]})  # not contiguous
    assert isinstance(features, DeviceBuffer)
    (expected,) = sessions[0].run(None, {"frames": frames[:, ::-1]})
    assert features.dtype == np.float16
    np.testing.assert_array_equal(features.read(), expected)
    device.downloaded.clear()
    keep = np.array([0, 5, 7])
    (tokens,) = projector.run({"features": features, "keep": keep})
    assert device.downloaded == []
    np.testing.assert_array_equal(tokens, sessions[1].run(None, {"features": expected, "keep": keep})[0])
    (again,) = projector.run({"features": expected.astype(np.float32), "keep": keep})  # from the host, as verify does
    np.testing.assert_array_equal(again, tokens)
    assert projector.run({"features": features, "keep": keep[:0]})[0].shape == (0, tokens.shape[1])
    del features
    gc.collect()
    assert device.memory == {}


@pytest.mark.parametrize("pruning", [PruningConfig(enabled=False), PruningConfig(threshold=0.1)])
def test_clips_are_those_of_the_float32_graphs_but_for_rounding(bundle: Bundle, pruning: PruningConfig) -> None:
    """Features stay on the device, also those of frames that equal the one before."""
    device = FakeDevice()
    model = VideoLlama3(bundle, HostAsGpu("cuda", ("CPUExecutionProvider",), "", 1, device))
    reference = VideoLlama3.load(DEMO_BUNDLE, backend="cpu", num_threads=1)
    frames = frames_that_repeat(9, 4)
    ours, theirs = (m.encode(frames, pruning=pruning) for m in (model, reference))
    assert ours.tokens_per_frame == theirs.tokens_per_frame
    difference = ours.visual.tokens - theirs.visual.tokens
    assert 0 < np.linalg.norm(difference) < 2e-3 * np.linalg.norm(theirs.visual.tokens)
    assert device.downloaded == []
    assert model.info["vision_graph"] == "vision-fp16.onnx"
    assert reference.info["vision_graph"] == "vision.onnx"


def test_a_device_without_room_is_an_error_of_ours(bundle: Bundle) -> None:
    class Full(FakeDevice):
        def allocate(self, num_bytes: int) -> int:
            raise BackendError("CUDA: out of memory (cudaErrorMemoryAllocation)")

    engine = cuda_engine(load_session(bundle.path(fp16_file("vision"))), Full(), "vision", 14)
    with pytest.raises(BackendError, match="out of memory"):
        engine.run({"frames": frames_that_repeat(4, 1)})


def test_what_the_graph_refuses_is_an_error_of_ours(bundle: Bundle) -> None:
    memory = DeviceMemory(FakeDevice(), "cpu")
    projector = CudaProjector(load_session(bundle.path(fp16_file("projector-image"))), memory)
    features = np.zeros((1, 2, 2, bundle.manifest.vision.hidden_size), np.float16)
    with pytest.raises(BackendError, match="ONNX Runtime failed"):
        projector.run({"features": features, "keep": np.array([99])})


def test_the_demo_captions_its_clip_the_same(bundle: Bundle) -> None:
    clip = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
    models = [
        VideoLlama3(bundle, HostAsGpu("cuda", ("CPUExecutionProvider",), "", 1, FakeDevice())),
        VideoLlama3.load(DEMO_BUNDLE, backend="cpu", num_threads=1),
    ]
    captions = [model.ask(model.encode(clip), "Describe this video.").text for model in models]
    assert captions[0] == captions[1] != ""
