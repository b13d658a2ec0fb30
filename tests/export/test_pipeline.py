"""Exports: what is written, what is measured, and that nothing half-written is ever taken for a bundle."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.torch import load_file, save_file

from vl3edge.export import cli, decoder_stage, staging
from vl3edge.export.errors import ExportError
from vl3edge.export.options import ExportOptions
from vl3edge.export.pipeline import export_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.quant.plan import QuantizationPlan
from vl3edge.runtime import GenerationConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.bundle.bundle import open_bundle


def test_both_precisions_are_close_to_torch(checkpoints: Callable[..., Path], bundle: Path, tmp_path: Path) -> None:
    whole = open_bundle(bundle).manifest
    for stage, difference in whole.measured.items():
        assert difference["max_abs_diff"] < 1e-4 * max(1, difference["max_abs"]), stage
    fp16_folder = tmp_path / "half"
    export_bundle(Checkpoint.open(checkpoints("tiny")), fp16_folder, ExportOptions(precision="fp16"))
    half = open_bundle(fp16_folder).manifest
    assert half.precision == "fp16"
    for stage, difference in half.measured.items():
        assert 0 < difference["max_abs_diff"] < 2e-2 * difference["max_abs"], stage
    for name in ("vision.onnx.data", "embeddings.safetensors"):
        assert half.files[name].bytes < 0.6 * whole.files[name].bytes


def test_fp16_equals_fp32_of_rounded_weights(
    checkpoints: Callable[..., Path], bundle: Path, media: Path, tmp_path: Path
) -> None:
    """Storing halves changes the weights and nothing else."""
    source = checkpoints("tiny")
    rounded = tmp_path / "rounded"
    shutil.copytree(source, rounded)
    tensors = {name: tensor.half().float() for name, tensor in load_file(rounded / "model.safetensors").items()}
    # The decoder's norms keep float32 in both precisions.
    exact = load_file(source / "model.safetensors")
    tensors |= {name: exact[name] for name in tensors if "language_model" in name and "norm" in name}
    save_file(tensors, rounded / "model.safetensors")
    export_bundle(Checkpoint.open(rounded), tmp_path / "a", ExportOptions(precision="fp32"))
    export_bundle(Checkpoint.open(source), tmp_path / "b", ExportOptions(precision="fp16"))
    clips = []
    for name in ("a", "b"):
        model = VideoLlama3.load(tmp_path / name, backend="cpu", num_threads=1)
        clip = model.encode(media / "nasa_13013.mp4", SamplingPlan(max_frames=3))
        clips.append((clip.visual.tokens, model.ask(clip, "What?", GenerationConfig(max_new_tokens=20)).text))
    difference = np.abs(clips[0][0] - clips[1][0])
    assert difference.max() < 1e-5, f"max {difference.max()}, mean {difference.mean()}"
    assert clips[0][1] == clips[1][1]


def test_graphs_are_loadable_by_old_runtimes(bundle: Path) -> None:
    for path in bundle.glob("*.onnx"):
        model = onnx.load(path, load_external_data=False)
        assert model.ir_version <= 10, path
        assert {o.domain: o.version for o in model.opset_import if o.domain == ""}[""] <= 21, path
        assert {o.domain for o in model.opset_import} <= {"", "com.microsoft"}, path


def test_an_existing_bundle_is_replaced_by_force_alone(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(checkpoints("tiny"))
    target = tmp_path / "bundle"
    export_bundle(checkpoint, target)
    before = (target / "bundle.json").read_bytes()
    with pytest.raises(ExportError, match="--force"):
        export_bundle(checkpoint, target, ExportOptions(precision="fp16"))
    assert (target / "bundle.json").read_bytes() == before
    export_bundle(checkpoint, target, ExportOptions(precision="fp16", force=True))
    assert open_bundle(target).manifest.precision == "fp16"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_force_does_not_delete_what_is_no_bundle(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_text("precious")
    (tmp_path / "file").write_text("precious")
    checkpoint = Checkpoint.open(checkpoints("tiny"))
    for name in ("photos", "file"):
        with pytest.raises(ExportError, match="choose another name"):
            export_bundle(checkpoint, tmp_path / name, ExportOptions(force=True))
    assert (tmp_path / "photos" / "one.jpg").read_text() == "precious"
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_keeps_the_old_bundle(
    checkpoints: Callable[..., Path], bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    target = Path(shutil.copytree(bundle, tmp_path / "bundle"))

    def full(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(decoder_stage, "export_decoder", full)
    with pytest.raises(ExportError, match="disk is full"):
        export_bundle(Checkpoint.open(checkpoints("tiny")), target, ExportOptions(force=True))
    assert open_bundle(target).num_bytes == open_bundle(bundle).num_bytes
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_too_little_space_is_said_before_anything_is_written(
    checkpoints: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(ExportError, match=r"needs about 0\.1 GB"):
        export_bundle(Checkpoint.open(checkpoints("tiny")), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_export_leaves_no_bundle(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    command = [sys.executable, "-c", "import sys; from vl3edge.export.cli import main; sys.exit(main(sys.argv[1:]))"]
    process = subprocess.Popen(
        [*command, str(checkpoints("tiny")), "-o", str(tmp_path / "bundle")], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "vision" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    assert not (tmp_path / "bundle").exists()
    for left in tmp_path.iterdir():
        assert left.name.startswith(".")
        assert not (left / "bundle.json").exists()


def test_the_command_says_in_one_go_what_a_checkpoint_lacks(
    checkpoints: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = Path(shutil.copytree(checkpoints("tiny"), tmp_path / "broken"))
    tensors = load_file(broken / "model.safetensors")
    missing = "model.projector.readout.0.weight"
    shrunk = "model.language_model.layers.0.mlp.up_proj.weight"
    tensors[shrunk] = tensors[shrunk][1:].clone()
    tensors["model.extra"] = tensors.pop(missing)
    save_file(tensors, broken / "model.safetensors")
    assert cli.main([str(broken), "-o", str(tmp_path / "bundle")]) == 1
    err = capsys.readouterr().err
    for name in (missing, shrunk, "model.extra"):
        assert name in err
    assert "Traceback" not in err
    assert not (tmp_path / "bundle").exists()
    assert cli.main([str(tmp_path / "nowhere"), "-o", str(tmp_path / "bundle")]) == 1
    assert "nowhere" in capsys.readouterr().err


BAD_OPTIONS = {
    "no groups": (["--group-size", "0"], "group_size must be positive"),
    "no tokens": (["--calibration-tokens", "0"], "--calibration-tokens must be at least 1"),
    "too many bits": (["--bits", "auto", "--average-bits", "99"], "average_bits must be from 4 to 8"),
    "nothing to save": (["--quant", "none", "--save-gptq", "x"], "--save-gptq and --quant none are mutually exclusive"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_usage(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Is told before the checkpoint is looked at."""
    arguments, message = BAD_OPTIONS[name]
    assert cli.main([str(tmp_path / "nowhere"), "-o", str(tmp_path / "bundle"), *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


BAD_FITS = {
    "not divided": (["--group-size", "100"], "groups of 100 do not fit"),
    "too small": (["--group-size", "8"], "take 16, 32"),
    "no such media": (["--group-size", "32", "--calibration", "nowhere.mp4"], "nowhere.mp4"),
}


@pytest.mark.parametrize("name", BAD_FITS)
def test_what_cannot_be_quantized_is_told_before_anything_is_written(
    name: str, checkpoints: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, message = BAD_FITS[name]
    assert cli.main([str(checkpoints("tiny")), "-o", str(tmp_path / "bundle"), *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()  # no stage was begun
    assert message in line
    assert not list(tmp_path.iterdir())


def test_a_quantized_checkpoint_is_not_saved_as_another(
    checkpoints: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its own codes are exported, and the command says so."""
    plan = QuantizationPlan(method="rtn", group_size=32, head_bits=None)
    source = Checkpoint.open(checkpoints("tiny-128"))
    export_bundle(source, tmp_path / "first", ExportOptions(plan=plan, save_gptq=tmp_path / "gptq"))
    command = [str(tmp_path / "gptq"), "-o", str(tmp_path / "second"), "--bits", "8"]
    assert cli.main([*command, "--save-gptq", str(tmp_path / "again")]) == 1
    assert "the decoder is already quantized" in capsys.readouterr().err
    assert cli.main(command) == 0
    assert "is already quantized: exported unchanged" in capsys.readouterr().err
    assert open_bundle(tmp_path / "second").manifest.quantization["bits"] == 4


def test_the_table_at_the_end(
    checkpoints: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([str(checkpoints("tiny", "authors")), "-o", str(tmp_path / "bundle"), "--quant", "none"]) == 0
    out, err = capsys.readouterr()
    manifest = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    for name in manifest["files"]:
        assert name in out
    for stage, difference in manifest["measured"].items():
        assert stage in out
        assert f"{difference['max_abs_diff']:.3g}" in out
    assert "decoder 3/3" in err
