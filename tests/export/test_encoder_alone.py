"""The vision encoder by itself: exported from both published forms, equal to transformers', and refused where words are
wanted."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from clips import picture, write_clip
from commands import run
from encoders import random_encoder, reference_map, write_encoder
from PIL import Image

from vl3edge.export.errors import ExportError
from vl3edge.export.options import ExportOptions
from vl3edge.export.pipeline import export_bundle
from vl3edge.export.verify.verify import VerifyOptions, verify_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.errors import CheckpointError
from vl3edge.quant.plan import QuantizationPlan
from vl3edge.runtime import BundleError, SamplingPlan, VideoLlama3, VideoLlama3Encoder
from vl3edge.runtime.bundle.bundle import open_bundle
from vl3edge.runtime.bundle.plans import read_engine_sets
from vl3edge.runtime.bundle.slim import slim
from vl3edge.runtime.bundle.specs import NO_TEXT

FORMS = ("transformers", "authors")
pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def make(form: str) -> Path:
        if form not in made:
            folder = tmp_path_factory.mktemp("encoder")
            checkpoint = write_encoder(folder / "checkpoint", form)
            options = ExportOptions(targets=("cpu", "cuda", "jetson"))
            made[form] = export_bundle(Checkpoint.open(checkpoint), folder / "bundle", options).folder
        return made[form]

    return make


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("height", "width"), [(84, 112), (57, 203), (90, 31)])
def test_features_are_those_of_transformers(bundles: Callable[[str], Path], form: str, height: int, width: int) -> None:
    encoder = VideoLlama3Encoder.load(bundles(form), "cpu", 1)
    reference = random_encoder()
    frames = np.stack([picture(n, height, width) for n in (0, 7, 7, 30)])
    for media, kind, merge in ((frames[0], "image", 1), (frames, "video", 2)):
        found = encoder.features(media, kind=kind, tokens=True)
        assert found.kind == kind
        # What the encoder saw, resized by readers and rules that have tests of their own.
        opened = encoder.open(media, kind=kind)
        seen = np.stack([f.pixels for f in opened.reader.frames((found.height_px, found.width_px), rule(encoder))])
        wanted = reference_map(reference, seen, merge).numpy()
        assert found.tokens is not None
        assert found.tokens.shape == wanted.shape
        np.testing.assert_allclose(found.tokens, wanted, atol=2e-5 * np.abs(wanted).max())
        means = wanted.mean(axis=(1, 2))
        np.testing.assert_allclose(found.vectors, means / np.linalg.norm(means, axis=1, keepdims=True), atol=2e-5)
    assert np.array_equal(found.vectors[1], found.vectors[2])
    assert not np.allclose(found.vectors[0], found.vectors[3], atol=1e-3)


def rule(encoder: VideoLlama3Encoder) -> str:
    return encoder.bundle.manifest.processor.rule


@pytest.mark.parametrize("prefix", ["vision_encoder.", "model.vision_encoder.", "model.vision_encoder.vision_encoder."])
def test_names_that_a_trainer_writes(tmp_path: Path, prefix: str) -> None:
    plain, prefixed = (
        Checkpoint.open(write_encoder(tmp_path / n, "authors", prefix=p)) for n, p in (("a", ""), ("b", prefix))
    )
    assert plain.names == prefixed.names
    assert len(plain.names) == 2 + 2 * 16 + 2
    assert not plain.config.has_decoder


def test_sizes_without_processor_files_are_those_of_the_classes(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "c", "transformers")
    (folder / "processor_config.json").unlink()
    with pytest.warns(UserWarning, match="no preprocessor_config.json"):
        config = Checkpoint.open(folder).config
    assert (config.image.merge_size, config.video.merge_size) == (1, 2)
    assert (config.image.maximum, config.video.minimum) == (28 * 28 * 1280, 28 * 28 * 128)
    # An image processor's file alone says nothing of the sizes of videos.
    (folder / "preprocessor_config.json").write_text('{"merge_size": 1, "max_pixels": 4000, "image_std": [1, 1, 1]}')
    config = Checkpoint.open(folder).config
    assert (config.image.maximum, config.video.maximum, config.video.merge_size) == (4000, 28 * 28 * 768, 2)
    assert config.image_std == (1.0, 1.0, 1.0)


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = write_encoder(tmp_path / "c", "authors")
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layers.1.mlp.fc2.bias"]
    save_file(tensors | {"head.weight": tensors["post_layernorm.bias"].clone()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"2 tensors .*\n.*missing: .*mlp\.fc2\.bias\n.*unexpected: head\.weight"):
        Checkpoint.open(folder)


def test_what_the_bundle_holds(bundles: Callable[[str], Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = bundles("authors")
    bundle = open_bundle(folder, decoder=False)
    assert bundle.manifest.kind == "encoder"
    assert bundle.manifest.text == NO_TEXT
    stems = ("vision.onnx", "vision-fp16.onnx", "vision-tensorrt.onnx")
    assert set(stems) <= set(bundle.manifest.files)
    assert not [name for name in bundle.manifest.files if "vision" not in name]
    assert set(bundle.manifest.measured) == {"vision", "vision-fp16", "vision-tensorrt"}
    status, out, _ = run(capsys, "info", folder)
    assert status == 0
    assert "none: this is a vision encoder alone" in out


@pytest.mark.parametrize("form", FORMS)
def test_verify(bundles: Callable[[str], Path], form: str, tmp_path: Path) -> None:
    folder = bundles(form)
    report = verify_bundle(folder, Checkpoint.open(folder.parent / "checkpoint"), VerifyOptions(threads=1))
    names = ["settings", "pixels", "pruning", "encoder", "encoder for GPUs"]
    assert [stage.name for stage in report.stages] == names
    assert report.first_failure is None
    other = Checkpoint.open(write_encoder(tmp_path / "other", form, seed=1))
    failure = verify_bundle(folder, other, VerifyOptions(threads=1)).first_failure
    assert failure is not None
    assert failure.name == "encoder"


def test_eight_bits(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(write_encoder(tmp_path / "c", "authors"))
    plan = QuantizationPlan()  # of the decoder, as on the command line: there is none
    folder = export_bundle(checkpoint, tmp_path / "b", ExportOptions(plan=plan, vision_bits=8)).folder
    encoder = VideoLlama3Encoder.load(folder, "cpu", 1)
    frames = np.stack([picture(n, 84, 112) for n in range(3)])
    found = encoder.features(frames, kind="video", tokens=True)
    wanted = reference_map(random_encoder(), frames, 2).numpy()
    assert found.tokens is not None
    error = np.sqrt(np.square(found.tokens - wanted).mean() / np.square(wanted).mean())
    assert 1e-4 < error < 0.1
    assert encoder.info["vision_bits"] == 8


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (ExportOptions(prefill_bits=8), "prefill_bits 8"),
        (ExportOptions(plan=QuantizationPlan(), save_gptq=Path("gptq")), "save_gptq"),
    ],
)
def test_options_of_a_decoder_are_refused(tmp_path: Path, options: ExportOptions, named: str) -> None:
    checkpoint = Checkpoint.open(write_encoder(tmp_path / "c", "authors"))
    with pytest.raises(ExportError, match=f"holds only a vision encoder: leave out {named}"):
        export_bundle(checkpoint, tmp_path / "b", options)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    "command",
    [
        ["caption", "{clip}", "-m", "{bundle}", "-o", "{folder}/out.jsonl"],
        ["ask", "{clip}", "-q", "What?", "-m", "{bundle}"],
        ["watch", "{clip}", "-q", "What?", "-m", "{bundle}"],
        ["inspect", "{clip}", "-m", "{bundle}", "-o", "{folder}/out"],
        ["bench", "{bundle}"],
        ["tune", "{bundle}"],
    ],
    ids=lambda command: command[0],
)
def test_commands_that_need_words_say_so_in_a_line(
    bundles: Callable[[str], Path], command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", range(4))
    places = {"clip": clip, "bundle": bundles("authors"), "folder": tmp_path}
    capsys.readouterr()  # of the export, if this is the first test that asks for it
    status, _, err = run(capsys, *(part.format(**places) for part in command))
    assert status == 1
    (line,) = err.splitlines()
    assert line.endswith("which answers nothing: use `vl3edge embed`, or the bundle of a whole model.")
    assert [path.name for path in tmp_path.iterdir()] == ["clip.mp4"]


def test_the_python_api_says_so_too(bundles: Callable[[str], Path]) -> None:
    with pytest.raises(BundleError, match="holds only a vision encoder"):
        VideoLlama3.load(bundles("authors"))


def test_slim(bundles: Callable[[str], Path], tmp_path: Path) -> None:
    picture_ = Image.fromarray(picture(3, 84, 112))
    whole = VideoLlama3Encoder.load(bundles("authors"), "cpu", 1).features(picture_)
    folder = Path(shutil.copytree(bundles("authors"), tmp_path / "bundle"))
    report = slim(folder, "cpu")
    assert set(report.dropped) >= {"vision-fp16.onnx", "vision-tensorrt.onnx"}
    left = {path.name for path in folder.iterdir()} - {".bundle-seal.json"}
    assert left == {"bundle.json", "vision.onnx", "vision.onnx.data"}
    slimmed = VideoLlama3Encoder.load(folder, "cpu", 1)
    np.testing.assert_array_equal(slimmed.features(picture_).vectors, whole.vectors)
    other = Path(shutil.copytree(bundles("authors"), tmp_path / "gpu"))
    slim(other, "cuda")
    assert open_bundle(other, decoder=False).manifest.slim == "cuda"
    assert (other / "vision-fp16.onnx").exists()
    assert not (other / "vision.onnx").exists()


@pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="TensorRT for RTX is not installed")
def test_build(bundles: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(shutil.copytree(bundles("transformers"), tmp_path / "bundle"))
    status, out, err = run(capsys, "build", folder, "--target", "rtx")
    assert status == 0, err
    assert "projector" not in out
    (engines,) = read_engine_sets(folder)
    assert list(engines.spec.plans) == ["vision"]
    assert open_bundle(folder, decoder=False).manifest.kind == "encoder"


def test_a_manifest_that_contradicts_itself_is_refused(bundles: Callable[[str], Path], bundle: Path) -> None:
    from dataclasses import replace

    manifest = open_bundle(bundle).manifest
    _, problems = type(manifest).from_json(replace(manifest, kind="encoder").to_json())
    assert problems == ["kind is encoder, but text and tokens describe a decoder"]
    alone = open_bundle(bundles("authors"), decoder=False).manifest
    _, problems = type(alone).from_json(replace(alone, kind="model").to_json())
    assert "text.hidden_size is 0, out of bounds" in problems


@pytest.mark.parametrize("layout", FORMS)
def test_a_whole_model_gives_the_features_of_its_encoder(
    checkpoints: Callable[..., Path], tiny_bundle: Path, authors_bundle: Path, layout: str
) -> None:
    """Those that its own clips are made of: at the size of a clip of so many frames, before the projector."""
    folder = tiny_bundle if layout == "transformers" else authors_bundle
    model, encoder = VideoLlama3.load(folder, "cpu", 1), VideoLlama3Encoder.load(folder, "cpu", 1)
    frames = np.stack([picture(n, 90, 130) for n in range(5)])
    clip = model.encode(frames)
    found = model.features(frames, tokens=True, frames_expected=5)
    assert (found.height_px, found.width_px, found.num_frames) == (clip.height_px, clip.width_px, 5)
    same = encoder.features(frames, SamplingPlan(), tokens=True, frames_expected=5)
    np.testing.assert_array_equal(same.tokens, found.tokens)
