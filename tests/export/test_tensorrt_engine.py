"""The TensorRT backend with ONNX Runtime in TensorRT's place: the same tokens, chunks that fit, clear errors."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fake_tensorrt import FakeDevice, FakeTensorRt

from vl3edge.export.graphs.vision_tensorrt import export_tensorrt_projector, export_tensorrt_vision
from vl3edge.export.tensor_source import Float32Source
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.projector import Projector
from vl3edge.runtime import PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.backends.buffers import DeviceMemory
from vl3edge.runtime.backends.tensorrt import TensorRtBackend
from vl3edge.runtime.backends.tensorrt_engine import TensorRtEngine
from vl3edge.runtime.backends.tensorrt_vision import BlockProjector, PatchEncoder
from vl3edge.runtime.bundle.bundle import hash_file, open_bundle, read_manifest
from vl3edge.runtime.bundle.plans import EngineSet, PlanSpec, TensorSpec, read_engine_sets
from vl3edge.runtime.bundle.profiles import activation_bytes, max_patches, projector_profiles, vision_profiles
from vl3edge.runtime.errors import BackendError, BundleError, MediaWarning

FAKE_VERSION = FakeTensorRt.__version__


def install(folder: Path, patches: int, version: str = FAKE_VERSION, **changes: Any) -> EngineSet:
    """Writes an engine set for the fake library into a bundle that has the ONNX files; profiles for so many patches."""
    manifest = read_manifest(folder)
    vision = vision_profiles(manifest, patches * activation_bytes(manifest.vision))
    profiles = {"vision": vision, "projector": projector_profiles(manifest, vision)}
    width, hidden = manifest.vision.hidden_size, manifest.text.hidden_size
    tensors = {
        "vision": (
            (TensorSpec("patches", "uint8", (-1, -1, 588)), TensorSpec("positions", "int32", (-1, 2))),
            (TensorSpec("features", "float32", (-1, -1, width)),),
        ),
        "projector": (
            (TensorSpec("features", "float32", (-1, width)), TensorSpec("blocks", "int32", (-1, -1))),
            (TensorSpec("tokens", "float32", (-1, hidden)),),
        ),
    }
    plans = {name: PlanSpec(*tensors[name], profiles[name], (), 0) for name in profiles}
    names = [f"engines/{name}.onnx{suffix}" for name in profiles for suffix in ("", ".data")]
    sources = {name: hash_file(folder / name) for name in names}
    spec = EngineSet("rtx", version, "portable", (), patches << 20, plans, sources, {})
    spec = replace(spec, **changes)
    place = folder / "engines" / spec.target / spec.key
    place.mkdir(parents=True)
    for name in profiles:
        (place / f"{name}.plan").write_text(str((folder / "engines" / f"{name}.onnx").resolve()))
    spec = replace(spec, files={f"{name}.plan": hash_file(place / f"{name}.plan") for name in profiles})
    (place / "engines.json").write_text(json.dumps(spec.to_json()))
    return spec


@pytest.fixture(scope="module")
def prepared(bundle: Path, checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny bundle with TensorRT's ONNX files, in float32."""
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("tensorrt") / "bundle"))
    (folder / "engines").mkdir()
    checkpoint = Checkpoint.open(checkpoints("tiny"))
    export_tensorrt_vision(Float32Source(checkpoint), checkpoint.config, folder / "engines", fp16=False)
    export_tensorrt_projector(Float32Source(checkpoint), checkpoint.config, folder / "engines", fp16=False)
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "bundle"))


def backend(spec: EngineSet, device: FakeDevice | None = None) -> TensorRtBackend:
    library = FakeTensorRt({name: plan.profiles for name, plan in spec.plans.items()})
    cpu = ("CPUExecutionProvider",)
    return TensorRtBackend("rtx", cpu, "1.2", 1, device or FakeDevice(), spec.target, library)


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape
    difference = np.abs(actual - expected)
    assert difference.max(initial=0) < 1e-4, f"max {difference.max():.2e}, mean {difference.mean():.2e}"


@pytest.mark.parametrize("patches", [256, 40, 7_000])
def test_clips_equal_those_of_onnx_runtime(folder: Path, media: Path, patches: int) -> None:
    spec = install(folder, patches)
    ours = backend(spec)
    model = VideoLlama3(open_bundle(folder), ours)
    reference = VideoLlama3.load(folder, backend="cpu", num_threads=1)
    video = [m.encode(media / "nasa_13013.mp4", SamplingPlan(max_frames=5)) for m in (model, reference)]
    assert_close(video[0].visual.tokens, video[1].visual.tokens)
    assert video[0].tokens_per_frame == video[1].tokens_per_frame
    assert model.info["vision_runtime"] == f"TensorRT for RTX {FAKE_VERSION} on Fake GPU"
    image = np.random.default_rng(0).integers(0, 256, (56, 70, 3), dtype=np.uint8)
    clips = [m.encode(image) for m in (model, reference)]
    assert_close(clips[0].visual.tokens, clips[1].visual.tokens)
    vision, projector = (context.used for context in ours.library.contexts)
    assert set(vision) <= set(range(len(spec.plans["vision"].profiles)))
    assert projector == [0, 1]


def test_features_stay_on_the_device(folder: Path) -> None:
    """All that comes down is tokens; frames that repeat are copied on the device."""
    spec, device = install(folder, 40), FakeDevice()
    model = VideoLlama3(open_bundle(folder), backend(spec, device))
    reference = VideoLlama3.load(folder, backend="cpu", num_threads=1)
    frames = np.random.default_rng(2).integers(0, 256, (9, 28, 56, 3), dtype=np.uint8)
    frames[[1, 2, 7]] = frames[[0, 0, 6]]
    for pruning in (PruningConfig(enabled=False), PruningConfig(threshold=0.1)):
        device.downloaded.clear()
        clips = [m.encode(frames, pruning=pruning) for m in (model, reference)]
        assert_close(clips[0].visual.tokens, clips[1].visual.tokens)
        assert sum(device.downloaded) == clips[0].visual.tokens.nbytes


def test_an_output_goes_only_where_it_fits(folder: Path) -> None:
    device = FakeDevice()
    engine = backend(install(folder, 40), device).plan(read_engine_sets(folder)[0], "vision")
    inputs = {"patches": np.zeros((1, 4, 588), np.uint8), "positions": np.zeros((4, 2), np.int32)}
    (expected,) = engine.run(inputs)
    fitting = DeviceMemory(device).zeros(expected.shape, np.float32)
    assert engine.run(inputs, into={"features": fitting}) == []
    np.testing.assert_array_equal(fitting.read(), expected)
    with pytest.raises(BackendError, match=r"output features is float32 \[1, 4, 80\], its buffer is for"):
        engine.run(inputs, into={"features": DeviceMemory(device).zeros((1, 5, 80), np.float32)})


def test_frames_go_in_chunks_that_fit(folder: Path) -> None:
    spec = install(folder, 100)
    profiles = spec.plans["vision"].profiles
    calls: list[tuple[int, ...]] = []

    class Recorder:
        def run(self, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            calls.append(inputs["patches"].shape)
            sums = inputs["patches"].sum(axis=2, keepdims=True, dtype=np.float32)
            return [sums + 1000 * inputs["positions"].sum(axis=1)[None, :, None]]

    frames = np.random.default_rng(1).integers(0, 256, (7, 28, 70, 3), dtype=np.uint8)
    (features,) = PatchEncoder(Recorder(), profiles, 14).run({"frames": frames})
    assert [shape[0] for shape in calls] == [3, 3, 1]
    expected = frames.reshape(7, 2, 14, 5, 14, 3).sum(axis=(2, 4, 5), dtype=np.float32)
    expected += 1000 * np.add.outer(np.arange(2), np.arange(5))
    assert np.array_equal(features[..., 0], expected)


def test_an_image_that_is_too_large_is_made_smaller_and_that_is_said(folder: Path) -> None:
    spec = install(folder, 40)
    model = VideoLlama3(open_bundle(folder), backend(spec))
    image = np.random.default_rng(0).integers(0, 256, (140, 210, 3), dtype=np.uint8)
    with pytest.warns(MediaWarning, match=r"182×126 pixels exceed what the engine was built for \(40 patches\)"):
        clip = model.encode(image)
    assert clip.height_px * clip.width_px <= 40 * 14 * 14 < 182 * 126
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode(image[:84, :84])


def test_frames_beyond_every_profile_never_reach_the_engine(folder: Path) -> None:
    spec = install(folder, 40)
    limit = max_patches(spec.plans["vision"].profiles)
    encoder = PatchEncoder(object(), spec.plans["vision"].profiles, 14)  # type: ignore[arg-type]
    with pytest.raises(BackendError, match=rf"140×140 pixels has 100 patches, the plan takes {limit} at most"):
        encoder.run({"frames": np.zeros((1, 140, 140, 3), np.uint8)})
    engine = backend(spec).plan(read_engine_sets(folder)[0], "vision")
    for shape in ((1, 41), (9, 40)):
        inputs = {"patches": np.zeros((*shape, 588), np.uint8), "positions": np.zeros((shape[1], 2), np.int32)}
        with pytest.raises(BackendError, match="fits no profile"):
            engine.run(inputs)


@pytest.mark.parametrize("merge_size", [1, 2, 3])
def test_blocks_are_the_projectors_merge(checkpoints: Callable[..., Path], folder: Path, merge_size: int) -> None:
    """Against the torch module, in chunks of one frame, for tokens in any order."""
    checkpoint = Checkpoint.open(checkpoints("tiny"))
    manifest = read_manifest(folder)
    sizes = replace(manifest.processor.video, merge_size=merge_size)
    manifest = replace(manifest, processor=replace(manifest.processor, video=sizes))
    profiles = projector_profiles(manifest, vision_profiles(manifest, 80 * activation_bytes(manifest.vision)))
    spec = PlanSpec(
        (TensorSpec("features", "float32", (-1, 80)), TensorSpec("blocks", "int32", (-1, -1))),
        (TensorSpec("tokens", "float32", (-1, 96)),),
        profiles,
        (),
        0,
    )
    plan = folder / "projector.plan"
    plan.write_text(str(folder / "engines" / "projector.onnx"))
    engine = TensorRtEngine(FakeTensorRt({"projector": profiles}), FakeDevice(), plan, spec)
    generator = np.random.default_rng(merge_size)
    features = generator.standard_normal((3, 6, 12, 80), dtype=np.float32)
    keep = generator.permutation(3 * (6 // merge_size) * (12 // merge_size))[:7]
    (tokens,) = BlockProjector(engine, profiles, merge_size, 96).run({"features": features, "keep": keep})
    with torch.inference_mode():
        projector = Projector.from_checkpoint(checkpoint, merge_size)
        expected = projector(torch.from_numpy(features), torch.from_numpy(keep)).numpy()
    assert_close(tokens, expected)
    (none,) = BlockProjector(engine, profiles, merge_size, 96).run({"features": features, "keep": keep[:0]})
    assert none.shape == (0, 96)


def test_memory_grows_with_the_largest_call_and_is_all_given_back(folder: Path) -> None:
    spec, device = install(folder, 256), FakeDevice()
    engine = backend(spec, device).plan(read_engine_sets(folder)[0], "vision")
    results = []
    for frames, patches in ((1, 4), (2, 16), (1, 4)):
        inputs = {
            "patches": np.full((frames, patches, 588), 9, np.uint8),
            "positions": np.zeros((patches, 2), np.int32),
        }
        results.append(engine.run(inputs)[0])
        assert device.pending == 0
        assert len(device.memory) == len(device.pins) == 3
    assert max(array.nbytes for array in device.memory.values()) == 2 * 16 * 588
    assert_close(results[0], results[2])  # the first result is not overwritten by the calls after it
    engine.close()
    assert device.memory == {}
    assert device.pins == {}


def test_wrong_inputs_are_named(folder: Path) -> None:
    engine = backend(install(folder, 40)).plan(read_engine_sets(folder)[0], "vision")
    positions = np.zeros((4, 2), np.int32)
    with pytest.raises(BackendError, match="input patches must be uint8, not float32"):
        engine.run({"patches": np.zeros((1, 4, 588), np.float32), "positions": positions})
    with pytest.raises(BackendError, match="input patches must be uint8, not nothing"):
        engine.run({"positions": positions})


def test_kernels_compiled_at_run_time_are_kept(folder: Path, tmp_path: Path) -> None:
    spec = install(folder, 40)
    (engines,) = read_engine_sets(folder)
    path = engines.folder / "vision.runtime.cache"
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    path.symlink_to(victim)
    inputs = {"patches": np.zeros((1, 4, 588), np.uint8), "positions": np.zeros((4, 2), np.int32)}
    backend(spec).plan(engines, "vision").run(inputs)
    assert victim.read_bytes() == b"precious"
    assert (path.is_symlink(), path.read_bytes()) == (False, b"+")
    backend(spec).plan(engines, "vision").run(inputs)
    assert path.read_bytes() == b"++"
    open_bundle(folder)  # the cache is not among the files that are checked


def test_a_plan_that_does_not_load_gives_tensorrts_reason(folder: Path) -> None:
    spec = install(folder, 40)
    (engines,) = read_engine_sets(folder)
    engines.plan_path("vision").write_text("damaged")
    with pytest.raises(BackendError, match=r"vision\.plan cannot be loaded: the engine plan is incompatible"):
        backend(spec).plan(engines, "vision")


MISFITS: dict[str, tuple[dict[str, Any], str]] = {
    "version": ({"version": "9.9"}, r"no plans for TensorRT for RTX 1\.2\.3 on Fake GPU \(9\.9-.* is for version 9\.9"),
    "capability": ({"compute_capabilities": ("12.0",)}, r"is for compute capability 12\.0, not 8\.9"),
    "other GPU": ({"device": "Orin"}, "is for Orin"),
    "other target": ({"target": "jetson"}, "no plans for TensorRT for RTX"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_plans_for_something_else_say_what_to_run(folder: Path, name: str) -> None:
    changes, message = MISFITS[name]
    ours = replace(backend(install(folder, 40, **changes)), target="rtx")
    with pytest.raises(BackendError, match=message) as e:
        VideoLlama3(open_bundle(folder), ours)
    assert "run `vl3edge build BUNDLE --target rtx` on this machine" in str(e.value)


def test_the_set_with_the_most_memory_is_used(folder: Path) -> None:
    install(folder, 40)
    spec = install(folder, 100)
    assert backend(spec).frame_limits(open_bundle(folder)).max_patches == 100


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "future version": (lambda d: d.update(format_version=2), "not a vl3edge-engines manifest of version 1"),
    "missing plan": (lambda d: d["plans"].pop("vision"), "plans.vision is missing"),
    "wrong type": (lambda d: d.update(memory_bytes="1"), "memory_bytes is '1', not int"),
    "other folder": (lambda d: d.update(tensorrt="7"), "it belongs in engines/rtx/7-portable-40mib"),
    "no profile": (lambda d: d["plans"]["vision"].update(profiles=[]), "plans.vision has no profile"),
    "path up": (lambda d: d["files"].update({"../../../x": d["files"]["vision.plan"]}), "not a path inside"),
    "unordered": (
        lambda d: d["plans"]["vision"]["profiles"][0]["inputs"]["positions"].update(min=[99, 2]),
        "profile 'video' does not match the inputs",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_manifest_that_cannot_be_trusted_is_refused(folder: Path, name: str) -> None:
    install(folder, 40)
    change, message = DAMAGE[name]
    (path,) = folder.glob("engines/rtx/*/engines.json")
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(BundleError) as e:
        open_bundle(folder)
    assert message in str(e.value)


def test_changed_plans_and_sources_are_found(folder: Path) -> None:
    install(folder, 40)
    (plan,) = folder.glob("engines/rtx/*/vision.plan")
    plan.write_bytes(plan.read_bytes()[::-1])
    (folder / "engines" / "projector.onnx.data").unlink()
    with pytest.raises(BundleError) as e:
        open_bundle(folder)
    assert "vision.plan was changed" in str(e.value)
    assert "engines/projector.onnx.data is missing" in str(e.value)
