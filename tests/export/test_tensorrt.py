"""TensorRT plans, really compiled, without a GPU; and the graphs they are compiled from, run by ONNX Runtime.

What cannot be done here is to run a plan. Its inputs, profiles, memory and fused attention are read back from the
network and from what the compiler reports.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from vl3edge.export.calibrate import fp16_range as fp16_range
from vl3edge.export.errors import ExportError
from vl3edge.export.graphs.stored_weights import stored_projector, stored_vision
from vl3edge.export.graphs.trace import Precision
from vl3edge.export.graphs.vision import export_projectors, export_vision
from vl3edge.export.graphs.vision_tensorrt import export_tensorrt_projector, export_tensorrt_vision
from vl3edge.export.manifest import make_manifest
from vl3edge.export.options import ExportOptions
from vl3edge.export.parity import load_session
from vl3edge.export.pipeline import export_bundle
from vl3edge.export.tensor_source import Float32Source
from vl3edge.export.tensorrt import write_tensorrt
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.synthetic.random import preset, write_random_checkpoint
from vl3edge.models.vision import VisionEncoder
from vl3edge.runtime import VideoLlama3
from vl3edge.runtime.backends.onnxruntime import Backend, Engine, OrtEngine
from vl3edge.runtime.backends.tensorrt_build import BuildOptions, build_engines, compile_plan
from vl3edge.runtime.backends.tensorrt_library import import_tensorrt
from vl3edge.runtime.backends.tensorrt_vision import BlockProjector, PatchEncoder
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, Bundle, open_bundle
from vl3edge.runtime.bundle.onnx_external import external_files
from vl3edge.runtime.bundle.plans import TensorSpec, read_engine_sets, tensorrt_graph
from vl3edge.runtime.bundle.profiles import Profile, ShapeRange, projector_profiles, vision_profiles
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.errors import BackendError, BundleError, ConfigError

needs_tensorrt = pytest.mark.skipif(
    all(importlib.util.find_spec(name) is None for name in ("tensorrt_rtx", "tensorrt_rtx_bindings")),
    reason="TensorRT for RTX is not installed (its wheels are for x86-64 alone)",
)


ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Two layers with heads of 72, as in the released models."""
    config = preset("tiny", "authors")
    config = replace(config, vision=replace(config.vision, hidden_size=144, num_heads=2))
    return Checkpoint.open(write_random_checkpoint(tmp_path_factory.mktemp("checkpoint"), config, seed=3))


@pytest.fixture(scope="module")
def exported(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """exported(fp16, pad): a folder with both graphs."""
    written: dict[tuple[bool, bool], Path] = {}

    def make(fp16: bool = True, pad: bool = False) -> Path:
        if (fp16, pad) not in written:
            folder = tmp_path_factory.mktemp("graphs")
            export_tensorrt_vision(Float32Source(checkpoint), checkpoint.config, folder, fp16, pad)
            export_tensorrt_projector(Float32Source(checkpoint), checkpoint.config, folder, fp16)
            written[fp16, pad] = folder
        return written[fp16, pad]

    return make


def write_vision(checkpoint: Checkpoint, folder: Path, precision: Precision = "fp32") -> None:
    """The graphs for ONNX Runtime, whose weights a bundle's graphs for TensorRT read."""
    export_vision(checkpoint, folder, precision)
    export_projectors(checkpoint, folder, precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("fp16", [False, True])
def test_weights_are_shared(
    checkpoint: Checkpoint, exported: Callable[..., Path], tmp_path: Path, precision: Precision, fp16: bool
) -> None:
    """No file but the graphs, which read what is there; what float16 rounds when it is stored, they get rounded."""
    write_vision(checkpoint, tmp_path, precision)
    source, config = Float32Source(checkpoint), checkpoint.config
    stored = [stored_vision(config, tmp_path), stored_projector(config, tmp_path)]
    written = export_tensorrt_vision(source, config, tmp_path, fp16, stored=stored[0])
    written += export_tensorrt_projector(source, config, tmp_path, fp16, stored=stored[1])
    assert written == [tmp_path / "vision-tensorrt.onnx", tmp_path / "projector-tensorrt.onnx"]
    assert [external_files(path) for path in written] == [{"vision.onnx.data"}, {"projector-image.onnx.data"}]
    assert max(path.stat().st_size for path in written) < 64 << 10
    frames = random_frames(2, 5, 4)
    positions = np.stack(np.divmod(np.arange(20, dtype=np.int32), np.int32(4)), axis=1)
    patches = PatchEncoder(OrtEngine(None), [], 14)._patches(frames)
    inputs = [
        {"patches": patches, "positions": positions},
        {
            "features": np.random.default_rng(0).standard_normal((40, 144)).astype(np.float32),
            "blocks": np.arange(40, dtype=np.int32).reshape(10, 4),
        },
    ]
    for name, path, given in zip(("vision", "projector"), written, inputs, strict=True):
        own = load_session(exported(fp16) / f"{name}.onnx").run(None, given)[0]
        (shared,) = load_session(path).run(None, given)
        if precision == "fp32":
            np.testing.assert_array_equal(shared, own)
        else:
            assert np.linalg.norm(shared - own) < 2e-3 * np.linalg.norm(own)


def features(folder: Path, frames: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(folder / "vision.onnx"), providers=["CPUExecutionProvider"])
    anything = Profile("any", {"patches": ShapeRange((1, 1, 588), (1, 1, 588), (99, 999, 588))})
    return PatchEncoder(OrtEngine(session), [anything], 14).run({"frames": frames})[0]


def random_frames(count: int, rows: int, columns: int) -> np.ndarray:
    shape = (count, rows * 14, columns * 14, 3)
    return np.random.default_rng(rows).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("grid", [(1, 1), (7, 2), (3, 9)])
@pytest.mark.parametrize("fp16", [False, True])
def test_features_equal_torch(
    checkpoint: Checkpoint, exported: Callable[..., Path], grid: tuple[int, int], fp16: bool
) -> None:
    frames = random_frames(3, *grid)
    with torch.inference_mode():
        expected = VisionEncoder.from_checkpoint(checkpoint)(torch.from_numpy(frames)).numpy()
    actual = features(exported(fp16), frames)
    difference = np.abs(actual - expected)
    limit = 2e-2 if fp16 else 1e-4
    worst = difference.max()
    assert worst < limit < np.abs(expected).max(), f"max {worst:.2e}, mean {difference.mean():.2e}"
    assert not fp16 or worst > 1e-4  # products are float16


@pytest.mark.parametrize("fp16", [False, True])
def test_wider_heads_change_no_bit(exported: Callable[..., Path], fp16: bool) -> None:
    frames = random_frames(2, 5, 4)
    narrow, wide = (features(exported(fp16, pad), frames) for pad in (False, True))
    assert np.array_equal(narrow, wide), f"max {np.abs(narrow - wide).max():.2e}"
    graph = onnx.load(exported(fp16, True) / "vision.onnx", load_external_data=False).graph
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    assert shapes["model.vision_model.encoder.layers.0.self_attn.q_proj.weight"] == [144, 160]


def test_the_graphs_use_nothing_that_older_tensorrt_lacks(exported: Callable[..., Path]) -> None:
    plain = {"Add", "Cast", "Concat", "Cos", "Erf", "Gather", "Identity", "LayerNormalization", "MatMul", "Mul"}
    plain |= {"ReduceMean", "Reshape", "Sin", "Softmax", "Split", "Sub", "Tanh", "Transpose", "Unsqueeze"}
    for path in exported().glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        assert {entry.version for entry in model.opset_import if entry.domain == ""} == {17}
        assert {node.op_type for node in model.graph.node} <= plain
        assert {node.domain for node in model.graph.node} == {""}


def test_weights_that_float16_cannot_hold_are_named(checkpoint: Checkpoint, tmp_path: Path) -> None:
    class Source(Float32Source):
        def array(self, name: str) -> np.ndarray:
            return super().array(name) + np.float32(1e5 if name.endswith("readout.2.bias") else 0)

    with pytest.raises(ExportError, match=r"projector\.readout\.2\.bias \(up to 1e\+05\)"):
        export_tensorrt_projector(Source(checkpoint), checkpoint.config, tmp_path)


def test_activations_that_overflow_float16_are_named(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime would not notice; a small number stands for the largest that float16 holds."""
    manifest = replace(make_manifest(checkpoint.config, ExportOptions(), None), targets=("jetson",))
    write_vision(checkpoint, tmp_path)
    monkeypatch.setattr(fp16_range, "LARGEST_FP16", 4.0)
    with pytest.raises(ExportError, match=r"float16, which cannot hold some values: .*layers\.0\.mlp\.fc1 \(\d") as e:
        write_tensorrt(checkpoint, Float32Source(checkpoint), tmp_path, manifest, lambda stage, done, total: None)
    assert "patch_embedding" not in str(e.value)


@pytest.fixture(scope="module")
def rtx_bundle(checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rtx") / "bundle"
    export_bundle(Checkpoint.open(checkpoints("tiny")), folder, ExportOptions(targets=("rtx",)))
    return folder


@needs_tensorrt
def test_a_bundle_for_rtx_has_plans_that_match_its_manifest(rtx_bundle: Path) -> None:
    bundle = open_bundle(rtx_bundle)
    manifest = bundle.manifest
    (engines,) = read_engine_sets(rtx_bundle)
    spec = engines.spec
    library = import_tensorrt("rtx")
    assert (spec.target, spec.device, spec.tensorrt) == ("rtx", "portable", library.__version__)
    assert manifest.versions["tensorrt_rtx"] == library.__version__
    assert engines.folder.name == f"{library.__version__}-portable-1024mib"
    stem = engines.folder.relative_to(rtx_bundle).as_posix()
    for name, entry in {**{f"{stem}/{name}": e for name, e in spec.files.items()}, **spec.sources}.items():
        assert manifest.files[name] == entry

    vision, projector = spec.plans["vision"], spec.plans["projector"]
    width, hidden = manifest.vision.hidden_size, manifest.text.hidden_size
    assert vision.inputs == (TensorSpec("patches", "uint8", (-1, -1, 588)), TensorSpec("positions", "int32", (-1, 2)))
    assert vision.outputs == (TensorSpec("features", "float32", (-1, -1, width)),)
    assert projector.inputs == (TensorSpec("features", "float32", (-1, width)), TensorSpec("blocks", "int32", (-1, -1)))
    assert projector.outputs == (TensorSpec("tokens", "float32", (-1, hidden)),)
    assert vision.profiles == vision_profiles(manifest)
    assert projector.profiles == projector_profiles(manifest, vision.profiles)
    for plan in (vision, projector):
        assert len(plan.activation_bytes) == len(plan.profiles)
        assert all(0 < size < spec.memory_bytes for size in plan.activation_bytes)
    assert vision.fused_attentions == manifest.vision.num_layers * len(vision.profiles)
    for stage in ("vision-tensorrt", "projector-image-tensorrt", "projector-video-tensorrt"):
        assert 0 < manifest.measured[stage]["max_abs_diff"] < 2e-2 * manifest.measured[stage]["max_abs"]


@needs_tensorrt
def test_plans_are_rebuilt_with_other_settings(
    rtx_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(rtx_bundle, tmp_path / "bundle"))
    before = (folder / "bundle.json").read_bytes()
    command = ["build", str(folder), "--target", "rtx", "--memory-mb", "1", "--compute-capability", "8.9"]
    assert main(command) == 0
    assert "plans: " in capsys.readouterr().out
    assert (folder / "bundle.json").read_bytes() == before
    old, new = sorted(read_engine_sets(folder), key=lambda engines: -engines.spec.memory_bytes)
    assert new.spec.compute_capabilities == ("8.9",)
    large, small = (engines.spec.plans["vision"].profiles[0].inputs["patches"].max[0] for engines in (old, new))
    assert small < large
    assert open_bundle(folder).manifest.targets == ("rtx",)
    assert main(command) == 0  # replaces its own
    assert len(read_engine_sets(folder)) == 2
    assert main([*command, "--compute-capability", "9.0"]) == 2
    assert "compute capability 9.0; it knows 7.5, 8.0" in capsys.readouterr().err
    assert {p.name for p in (folder / "engines" / "rtx").iterdir()} == {old.folder.name, new.folder.name}


@needs_tensorrt
def test_a_slim_bundle_has_its_plans_and_no_graphs_of_them(
    rtx_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the plans for this TensorRT all are kept; of others, here made up, none."""
    folder = Path(shutil.copytree(rtx_bundle, tmp_path / "bundle"))
    (engines,) = read_engine_sets(folder)
    other = shutil.copytree(engines.folder, folder / "engines" / "rtx" / engines.folder.name.replace("1.", "0.", 1))
    text = (other / "engines.json").read_text()
    (other / "engines.json").write_text(text.replace(f'"{engines.spec.tensorrt}"', f'"0.{engines.spec.tensorrt[2:]}"'))
    open_bundle(folder)
    assert main(["build", str(folder), "--target", "rtx", "--slim"]) == 0
    out = capsys.readouterr().out
    assert "No longer available: --backend cpu, --backend cuda." in out
    assert "deleted  vision.onnx.data" in out
    assert [each.folder for each in read_engine_sets(folder)] == [engines.folder]
    bundle = open_bundle(folder)
    assert bundle.manifest.slim == "rtx"
    assert {"vision.onnx", "vision-tensorrt.onnx", "vision-fp16.onnx"}.isdisjoint(bundle.manifest.files)
    assert {path.name for path in folder.glob("*.onnx")} == {"decoder-fp16.onnx"}
    assert main(["build", str(folder), "--target", "rtx"]) == 1
    assert "was slimmed for rtx: compile plans from a full copy" in capsys.readouterr().err
    engines.plan_path("vision").unlink()
    with pytest.raises(BundleError, match=r"vision\.plan is missing"):
        open_bundle(folder)


@needs_tensorrt
def test_a_failed_build_leaves_nothing(rtx_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(rtx_bundle, tmp_path / "bundle"))
    manifest = open_bundle(folder).manifest
    before = sorted(folder.rglob("*"))
    graph = onnx.load(folder / "projector-tensorrt.onnx", load_external_data=False)
    graph.graph.node[-1].op_type = "Nonsense"
    (folder / "projector-tensorrt.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(BundleError, match=r"projector-tensorrt\.onnx was changed"):
        build_engines(folder, manifest, BuildOptions("rtx"))
    unlisted = replace(manifest, files={})
    with pytest.raises(BackendError, match=r"TensorRT for RTX .* cannot read projector-tensorrt\.onnx: "):
        build_engines(folder, unlisted, BuildOptions("rtx", memory_bytes=1 << 20))
    with pytest.raises(ConfigError, match="give at least"):
        build_engines(folder, unlisted, BuildOptions("rtx", memory_bytes=1 << 10))
    (folder / "projector-tensorrt.onnx").write_bytes(b"\x08\x08not a graph")
    with pytest.raises(BundleError, match=r"projector-tensorrt\.onnx is not an ONNX file"):
        build_engines(folder, unlisted, BuildOptions("rtx"))
    assert sorted(folder.rglob("*")) == before


@needs_tensorrt
@pytest.mark.parametrize("pad", [False, True])
def test_attention_is_fused_and_its_memory_is_linear(exported: Callable[..., Path], pad: bool) -> None:
    """Heads of 72 as they are and widened to 80; one matrix of 16,384 patches would take 512 MiB a head."""
    sizes = (4096, 16384)
    profiles = [
        Profile(
            str(size),
            {
                "patches": ShapeRange((1, 1, 588), (1, size, 588), (1, size, 588)),
                "positions": ShapeRange((1, 2), (size, 2), (size, 2)),
            },
        )
        for size in sizes
    ]
    path = exported(True, pad) / "vision.onnx"
    plan, spec = compile_plan(
        import_tensorrt("rtx"), path, profiles, BuildOptions("rtx", compute_capabilities=("8.6",))
    )
    assert b"Ampere_hmma_fp32_traits" in bytes(plan)  # how the kernel's source says that scores sum in float32
    assert spec.fused_attentions == 2 * len(profiles)
    small, large = spec.activation_bytes
    assert large < 4.5 * small
    assert large < 128 << 20


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo bundle with TensorRT's graphs of the demo checkpoint."""
    folder = Path(shutil.copytree(DEMO_BUNDLE, tmp_path_factory.mktemp("demo") / "bundle"))
    (folder / "engines").mkdir()
    checkpoint = Checkpoint.open(ROOT / "models" / "demo" / "checkpoint")
    export_tensorrt_vision(Float32Source(checkpoint), checkpoint.config, folder / "engines")
    export_tensorrt_projector(Float32Source(checkpoint), checkpoint.config, folder / "engines")
    return folder


@needs_tensorrt
def test_the_demo_model_is_compiled(demo: Path) -> None:
    manifest = open_bundle(demo).manifest
    folder = build_engines(demo, manifest, BuildOptions("rtx"))
    (engines,) = read_engine_sets(demo)
    assert engines.folder == folder
    vision = engines.spec.plans["vision"]
    assert vision.profiles == vision_profiles(manifest)
    assert vision.fused_attentions == manifest.vision.num_layers * len(vision.profiles)
    assert vision.outputs[0].shape == (-1, -1, manifest.vision.hidden_size)


def test_the_demo_model_says_the_same_with_float16_weights(demo: Path) -> None:
    """Its caption of the committed clip, with TensorRT's graphs run by ONNX Runtime, which rounds the weights alone."""
    manifest = open_bundle(demo).manifest
    vision = vision_profiles(manifest)
    patches = PatchEncoder(OrtEngine(load_session(demo / "engines" / "vision.onnx")), vision, 14)
    blocks = BlockProjector(
        OrtEngine(load_session(demo / "engines" / "projector.onnx")),
        projector_profiles(manifest, vision),
        manifest.processor.video.merge_size,
        manifest.text.hidden_size,
    )

    class Fp16Backend(Backend):
        def graph(self, bundle: Bundle, name: str) -> Engine:
            return patches if name == "vision" else blocks

    models = [
        VideoLlama3(open_bundle(demo), backend("cpu", ("CPUExecutionProvider",), "", 1))
        for backend in (Backend, Fp16Backend)
    ]
    clips = [model.encode(ROOT / "tests" / "fixtures" / "demo_clip.mp4") for model in models]
    difference = np.abs(clips[0].visual.tokens - clips[1].visual.tokens)
    assert 0 < difference.max() < 2e-2 * np.abs(clips[0].visual.tokens).max(), f"max {difference.max():.2e}"
    captions = [model.ask(clip, "Describe this video.").text for model, clip in zip(models, clips, strict=True)]
    assert captions[0] == captions[1] != ""


@needs_tensorrt
@pytest.mark.long  # a quarter of a minute
def test_a_stack_of_the_released_width(tmp_path: Path) -> None:
    """Two of the 27 layers, 1,152 wide with 16 heads of 72, and the projector of the 2B model, stored in float32."""
    config = preset("2b")
    config = replace(
        config,
        vision=replace(config.vision, num_layers=2),
        text=replace(config.text, num_layers=1, vocab_size=512, intermediate_size=256),
    )
    checkpoint = Checkpoint.open(write_random_checkpoint(tmp_path / "checkpoint", config, dtype="float16"))
    write_vision(checkpoint, tmp_path, "fp32")
    source = Float32Source(checkpoint)
    manifest = make_manifest(checkpoint.config, ExportOptions(), None)
    export_tensorrt_vision(source, config, tmp_path, stored=stored_vision(config, tmp_path))
    export_tensorrt_projector(source, config, tmp_path, stored=stored_projector(config, tmp_path))
    vision = vision_profiles(manifest)
    stored = {"vision": "vision.onnx.data", "projector": "projector-image.onnx.data"}
    for name, profiles in (("vision", vision), ("projector", projector_profiles(manifest, vision))):
        path = tmp_path / tensorrt_graph(name)
        plan, spec = compile_plan(import_tensorrt("rtx"), path, profiles, BuildOptions("rtx"))
        weights = (tmp_path / stored[name]).stat().st_size // 2  # the compiler casts them
        assert weights < plan.nbytes < weights + (32 << 20)
        assert max(spec.activation_bytes) < 1 << 30
        assert spec.fused_attentions == (2 * len(profiles) if name == "vision" else 0)


def test_without_tensorrt_an_export_for_rtx_does_not_begin(
    checkpoints: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("vl3edge.runtime.backends.tensorrt_library.importlib.import_module", missing)
    checkpoint = Checkpoint.open(checkpoints("tiny"))
    with pytest.raises(ExportError, match=r"pip install 'vl3edge\[rtx\]'"):
        export_bundle(checkpoint, tmp_path / "bundle", ExportOptions(targets=("cpu", "rtx")))
    assert list(tmp_path.iterdir()) == []


def test_for_jetson_there_is_what_is_compiled_on_it(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """The graphs, measured, and no plan; for the CPU alone there is nothing."""
    manifest = make_manifest(checkpoint.config, ExportOptions(targets=("cpu", "jetson")), None)
    write_vision(checkpoint, tmp_path)
    before = set(tmp_path.rglob("*"))
    measured = write_tensorrt(checkpoint, Float32Source(checkpoint), tmp_path, manifest, lambda *_: None)
    added = {path.relative_to(tmp_path).as_posix() for path in set(tmp_path.rglob("*")) - before}
    assert added == {"vision-tensorrt.onnx", "projector-tensorrt.onnx"}
    assert set(measured) == {"vision-tensorrt", "projector-image-tensorrt", "projector-video-tensorrt"}
    for stage, difference in measured.items():
        assert 0 < difference.max_abs_diff < 2e-2 * difference.max_abs, stage
    manifest = replace(manifest, targets=("cpu",))
    assert write_tensorrt(checkpoint, Float32Source(checkpoint), tmp_path / "cpu", manifest, lambda *_: None) == {}
