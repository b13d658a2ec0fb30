"""Slimmed bundles: whole for the backend they are for, and an error that says so for every other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from vl3edge.runtime import VideoLlama3
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.file_names import DECODER_GRAPH, FP16_DECODER_GRAPH, fp16_file
from vl3edge.runtime.bundle.manifest import SlimTarget
from vl3edge.runtime.bundle.slim import slim
from vl3edge.runtime.cli.main import main
from vl3edge.runtime.errors import BackendError, BundleError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(DEMO_BUNDLE, tmp_path / "bundle"))


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and path.name != "bundle.json")


@pytest.mark.parametrize(
    ("target", "gone", "lost"),
    [
        (
            "cpu",
            {FP16_DECODER_GRAPH, *(fp16_file(g) for g in ("vision", "projector-image", "projector-video"))},
            "cuda",
        ),
        ("cuda", {DECODER_GRAPH, "vision.onnx", "projector-image.onnx", "projector-video.onnx"}, "cpu"),
    ],
)
def test_what_others_read_is_dropped(
    copy: Path, target: SlimTarget, gone: set[str], lost: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = open_bundle(copy).manifest
    size = on_disk(copy)
    report = slim(copy, target)
    bundle = open_bundle(copy)
    assert set(report.dropped) == gone == set(before.files) - set(bundle.manifest.files)
    assert report.lost == (lost,)
    assert on_disk(copy) == report.kept_bytes == size - report.dropped_bytes == bundle.num_bytes
    assert bundle.manifest.slim == target
    assert main(["info", str(copy)]) == 0
    assert f"slim         for {target} only" in capsys.readouterr().out
    assert slim(copy, target).dropped == ()  # once more changes nothing


def test_for_cpus_it_computes_what_it_computed(copy: Path) -> None:
    slim(copy, "cpu")
    models = [VideoLlama3.load(folder, backend="cpu", num_threads=1) for folder in (copy, DEMO_BUNDLE)]
    image = np.random.default_rng(0).integers(0, 256, (56, 70, 3), np.uint8)
    answers = [model.ask(model.encode(image), "Describe this image.").text for model in models]
    assert answers[0] == answers[1]


def test_another_backend_is_told_before_anything_runs(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slim(copy, "cuda")
    with pytest.raises(BundleError, match=r"was slimmed for cuda and has no vision\.onnx: use that backend, or a full"):
        VideoLlama3.load(copy, backend="cpu")
    with pytest.raises(BundleError, match=r"which cpu needs"):
        slim(copy, "cpu")
    assert main(["build", str(copy), "--target", "cuda"]) == 2
    assert "use --slim" in capsys.readouterr().err


@pytest.mark.parametrize("target", ["rtx", "jetson"])
def test_without_plans_nothing_is_dropped(copy: Path, target: SlimTarget) -> None:
    before = sorted(copy.rglob("*"))
    with pytest.raises(
        BackendError, match=rf"no plans for this device.*`vl3edge build BUNDLE --target {target}` first"
    ):
        slim(copy, target)
    assert sorted(copy.rglob("*")) == before
    assert not open_bundle(copy).manifest.slim


def test_a_damaged_bundle_is_refused(copy: Path) -> None:
    (copy / "vision.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"vision\.onnx has 0 bytes"):
        slim(copy, "cuda")
    assert (copy / DECODER_GRAPH).is_file()


def test_a_slim_bundle_is_still_checked(copy: Path) -> None:
    slim(copy, "cuda")
    (copy / "vision.onnx.data").unlink()
    with pytest.raises(BundleError, match=r"vision\.onnx\.data is missing"):
        open_bundle(copy)
