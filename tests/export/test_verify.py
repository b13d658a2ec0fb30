"""`verify` passes what an export wrote, and names the stage in which a bundle was changed, that one first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper
from resealing import reseal

from vl3edge.export.options import ExportOptions
from vl3edge.export.pipeline import export_bundle
from vl3edge.export.verify import cli as cli_verify
from vl3edge.export.verify.graph_weights import GraphLinears
from vl3edge.export.verify.verify import VerifyOptions, verify_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.demo.evaluate import CHECKPOINT
from vl3edge.quant.gptq_reader import GptqLinears
from vl3edge.quant.plan import QuantizationPlan
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE

OPTIONS = VerifyOptions(frames=3, tokens=6, threads=1)
INT4 = ExportOptions(plan=QuantizationPlan(method="rtn", group_size=32))


@pytest.fixture(scope="module")
def exported(checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """exported(preset, layout, options): a bundle of a random checkpoint, written once; copied before it is changed."""
    written: dict[str, Path] = {}

    def make(preset: str, layout: str, options: ExportOptions) -> Path:
        key = f"{preset}-{layout}-{options}"
        if key not in written:
            written[key] = tmp_path_factory.mktemp("verify") / "bundle"
            export_bundle(Checkpoint.open(checkpoints(preset, layout)), written[key], options)
        return written[key]

    return make


@pytest.mark.parametrize("layout", ["transformers", "authors"])
@pytest.mark.parametrize("options", [ExportOptions(), ExportOptions(precision="fp16"), INT4], ids=["32", "16", "4"])
def test_exports_pass(
    checkpoints: Callable[..., Path], exported: Callable[..., Path], layout: str, options: ExportOptions
) -> None:
    report = verify_bundle(exported("tiny", layout, options), Checkpoint.open(checkpoints("tiny", layout)), OPTIONS)
    assert report.first_failure is None, report.table()
    stages = {stage.name: stage for stage in report.stages}
    assert ("weights" in stages) == (options.plan is not None)
    if options == ExportOptions():
        assert stages["tokens"].passed
        assert stages["tokens"].detail == ""


def test_the_demo_bundle_passes(capsys: pytest.CaptureFixture[str], tmp_path: Path, media: Path) -> None:
    """On real media, by the command."""
    clips = [str(media / "nasa_13013.mp4"), str(media / "cat.jpg")]
    command = [str(DEMO_BUNDLE), "--checkpoint", str(CHECKPOINT), "--media", *clips, "--json", str(tmp_path / "r.json")]
    assert cli_verify.main([*command, "--tokens", "6", "--threads", "1"]) == 0
    out, _ = capsys.readouterr()
    assert "FAIL" not in out
    assert out.rstrip().endswith("The bundle computes what the checkpoint says.")
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["passed"]
    assert report["first_failure"] is None
    assert report["media"] == clips
    quantization = next(stage for stage in report["stages"] if stage["name"] == "quantization")
    assert 0 < quantization["mean"] < 0.1


def change_largest(bundle: Path, graph: str, change: Callable[[np.ndarray], None]) -> None:
    """Changes the largest weight that has a file of its own beside the graph."""
    model = onnx.load(bundle / graph, load_external_data=False)
    found = []
    for tensor in model.graph.initializer:
        place = {entry.key: entry.value for entry in tensor.external_data}
        if place.get("location") == f"{graph}.data" and not tensor.name.startswith("rotary"):
            found.append((int(np.prod(tensor.dims)), tensor, place))
    _, tensor, place = max(found, key=lambda item: item[0])
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    array = np.memmap(bundle / f"{graph}.data", dtype, "r+", int(place["offset"]), tuple(tensor.dims))
    change(array)
    array.flush()


def half_as_much_again(array: np.ndarray) -> None:
    array[:] = array * array.dtype.type(1.5)


def other_codes(array: np.ndarray) -> None:
    array[:] = np.random.default_rng(0).integers(0, 256, array.shape, dtype=np.uint8)


def edit_row(bundle: Path) -> None:
    """One row of the embeddings takes the place of another."""
    path = bundle / "embeddings.safetensors"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    entry = header["embeddings" if "embeddings" in header else "codes"]
    begin, end = (start + offset for offset in entry["data_offsets"])
    row = (end - begin) // entry["shape"][0]
    content[begin + 7 * row : begin + 8 * row] = content[begin + 200 * row : begin + 201 * row]
    path.write_bytes(content)


def edit_template(bundle: Path) -> None:
    path = bundle / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant", "Assistant"))


def edit_tokenizer(bundle: Path) -> None:
    path = bundle / "tokenizer.json"
    settings = json.loads(path.read_text())
    settings["model"]["merges"] = settings["model"]["merges"][:3]
    path.write_text(json.dumps(settings))


EDITS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "vision weight": (lambda b: change_largest(b, "vision.onnx", half_as_much_again), "encoder"),
    # Both projectors read the same bytes: the video's is looked at first.
    "projectors": (lambda b: change_largest(b, "projector-image.onnx", half_as_much_again), "projector, video"),
    "embedding row": (edit_row, "embeddings"),
    "chat template": (edit_template, "prompt"),
    "tokenizer": (edit_tokenizer, "prompt"),
}


@pytest.mark.parametrize("name", EDITS)
@pytest.mark.parametrize("options", [ExportOptions(), INT4], ids=["32", "4"])
def test_the_stage_that_was_changed_is_named(
    checkpoints: Callable[..., Path], exported: Callable[..., Path], tmp_path: Path, name: str, options: ExportOptions
) -> None:
    bundle = Path(shutil.copytree(exported("tiny", "transformers", options), tmp_path / "b"))
    edit, stage = EDITS[name]
    edit(bundle)
    reseal(bundle)
    report = verify_bundle(bundle, Checkpoint.open(checkpoints("tiny")), OPTIONS)
    assert report.first_failure is not None
    assert report.first_failure.name == stage, report.table()


@pytest.mark.parametrize(("options", "change"), [(ExportOptions(), half_as_much_again), (INT4, other_codes)])
def test_a_changed_decoder_is_named(
    checkpoints: Callable[..., Path],
    exported: Callable[..., Path],
    tmp_path: Path,
    options: ExportOptions,
    change: Callable[[np.ndarray], None],
) -> None:
    bundle = Path(shutil.copytree(exported("tiny", "transformers", options), tmp_path / "b"))
    change_largest(bundle, "decoder.onnx", change)
    reseal(bundle)
    report = verify_bundle(bundle, Checkpoint.open(checkpoints("tiny")), OPTIONS)
    assert report.first_failure is not None
    assert report.first_failure.name == ("logits" if options.plan is None else "weights"), report.table()


SETTINGS: dict[str, tuple[Callable[[dict[str, Any]], Any], str, set[str]]] = {
    "merge size": (lambda d: d["processor"]["video"].update(merge_size=1), "processor.video.merge_size", {"pruning"}),
    "mean": (lambda d: d["processor"].update(mean=[0.4, 0.5, 0.5]), "processor.mean", set()),
    "std": (lambda d: d["processor"].update(std=[5000.0] * 3), "processor.std", {"pruning"}),
    "pixels": (lambda d: d["processor"]["image"].update(max_pixels=3136), "processor.image.max_pixels", {"pixels"}),
    "rate": (lambda d: d["processor"].update(fps=2.0), "processor.fps", set()),
    "pruning": (lambda d: d["processor"].update(token_compression=False), "processor.token_compression", {"pruning"}),
    "end token": (lambda d: d["tokens"].update(eos_ids=[3]), "tokens.eos_ids", set()),
    "layout": (lambda d: d.update(layout="authors"), "layout", {"prompt"}),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_edited_settings_are_named(
    checkpoints: Callable[..., Path], exported: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    """Each is found by its value, and by its effect in the stages where it has one."""
    bundle = Path(shutil.copytree(exported("tiny", "transformers", ExportOptions()), tmp_path / "b"))
    change, field, stages = SETTINGS[name]
    reseal(bundle, change)
    report = verify_bundle(bundle, Checkpoint.open(checkpoints("tiny")), OPTIONS)
    first = report.first_failure
    assert first is not None
    assert first.name == "settings"
    assert f"{field} is " in first.detail
    assert stages <= {stage.name for stage in report.stages if stage.passed is False}, report.table()


def test_another_checkpoint_fails_from_the_encoder_on(
    checkpoints: Callable[..., Path], exported: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command, with its exit status and the words at the end."""
    other = checkpoints("tiny", seed=5)
    bundle = exported("tiny", "transformers", INT4)
    assert cli_verify.main([str(bundle), "--checkpoint", str(other), "--tokens", "4", "--threads", "1"]) == 1
    out, _ = capsys.readouterr()
    failed = [line.split()[1] for line in out.splitlines() if line.startswith("FAIL")]
    assert failed[0] == "encoder"
    assert {"projector,", "embeddings", "weights"} <= set(failed)
    assert "The first stage that differs is encoder" in out


def test_a_checkpoint_of_other_sizes_is_one_line(
    checkpoints: Callable[..., Path], exported: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its stages could not even be run on the bundle's graphs."""
    bundle = exported("tiny", "transformers", INT4)
    assert cli_verify.main([str(bundle), "--checkpoint", str(checkpoints("tiny-untied"))]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert "is not a bundle of" in line
    assert "vision.hidden_size is 80, the checkpoint's is 48" in line


def test_what_cannot_be_compared_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli_verify.main([str(tmp_path), "--checkpoint", str(CHECKPOINT)]) == 1
    assert cli_verify.main([str(DEMO_BUNDLE), "--checkpoint", str(tmp_path)]) == 1
    assert cli_verify.main([str(DEMO_BUNDLE), "--checkpoint", str(CHECKPOINT), "--media", "nowhere.mp4"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 3
    assert "is not a bundle" in errors[0]
    assert "config.json" in errors[1]
    assert "nowhere.mp4" in errors[2]


def test_layers_read_from_the_graph_are_those_that_were_written(
    checkpoints: Callable[..., Path], tmp_path: Path
) -> None:
    """Against the same codes in an ordinary GPTQ checkpoint."""
    checkpoint = Checkpoint.open(checkpoints("tiny"))
    plan = QuantizationPlan(method="rtn", group_size=32, symmetric=False)
    export_bundle(checkpoint, tmp_path / "b", ExportOptions(plan=plan, save_gptq=tmp_path / "gptq"))
    graph = GraphLinears(tmp_path / "b" / "decoder.onnx", checkpoint.config.text)
    written = GptqLinears(Checkpoint.open(tmp_path / "gptq"))
    assert set(written.names) <= set(graph.names)
    for name in written.names:
        assert np.array_equal(graph.linear(name).dequantized(), written.linear(name).dequantized()), name
