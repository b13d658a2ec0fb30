"""Quantized bundles: what the runtime computes is what the solver decided, and every way in and out agrees."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vl3edge.export import cli, pipeline
from vl3edge.export.graphs.decoder import text_spec
from vl3edge.export.options import ExportOptions
from vl3edge.export.parity import Difference, load_session
from vl3edge.export.pipeline import export_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.quant.gptq_reader import GptqLinears
from vl3edge.quant.plan import QuantizationPlan
from vl3edge.runtime import GenerationConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.bundle.bundle import open_bundle
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import DecoderGraph
from vl3edge.runtime.prompt.splice import EmbeddingTable

TOKENS = 1500
EXACT = {"calibration_tokens": TOKENS, "activation_bits": 32, "precision": "fp32"}


@pytest.fixture(autouse=True, scope="module")
def vision_traced_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tracing takes seconds and is not what is tested here: a checkpoint's files are copied from its first export."""
    cache = tmp_path_factory.mktemp("vision")
    written: dict[tuple[str, str], tuple[Path, tuple[dict[str, Difference], Any]]] = {}
    original = pipeline.write_vision

    def write(checkpoint: Checkpoint, folder: Path, options: ExportOptions, *rest: Any) -> Any:
        assert options.vision_bits == 16  # the only kind cached here
        key = (str(checkpoint.folder), options.precision)
        if key not in written:
            result = original(checkpoint, folder, options, *rest)
            kept = Path(shutil.copytree(folder, cache / str(len(written))))
            written[key] = kept, result
        kept, (measured, encoder) = written[key]
        shutil.copytree(kept, folder, dirs_exist_ok=True)
        return dict(measured), encoder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "write_vision", write)
        yield


PLANS = {
    "gptq": QuantizationPlan(group_size=32),
    "asymmetric": QuantizationPlan(group_size=64, symmetric=False, head_bits=4),
    "eight": QuantizationPlan(bits=8, head_bits=None),
    "three": QuantizationPlan(bits=3, group_size=32),
    "mixed": QuantizationPlan(bits="auto", average_bits=5.0, group_size=32),
    "rtn": QuantizationPlan(method="rtn", group_size=32),
}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("preset", ["tiny-128", "tiny"])
def test_the_graph_computes_what_was_quantized(
    checkpoints: Callable[..., Path], tmp_path: Path, name: str, preset: str
) -> None:
    plan = PLANS[name]
    if preset == "tiny" and plan.group_size != 32:
        pytest.skip("widths of 96 and 160 take groups of 32 alone")
    checkpoint = Checkpoint.open(checkpoints(preset))
    report = export_bundle(checkpoint, tmp_path / "b", ExportOptions(plan=plan, **EXACT))
    difference = report.manifest.measured["decoder"]
    assert difference["max_abs_diff"] < 1e-4 * difference["max_abs"]
    facts = report.manifest.quantization
    assert facts["method"] == plan.method
    assert len(facts["layers"]) == checkpoint.config.text.num_layers + (plan.head_bits is not None)
    # Random weights at 3 bits lose much; still far from the log(vocabulary) of knowing nothing.
    assert 0 < facts["end_to_end"]["kl"] < 0.5 * np.log(checkpoint.config.text.vocab_size)
    if plan.method == "gptq":
        assert sum(layer["gptq"] for layer in facts["layers"].values()) < sum(
            layer["rtn"] for layer in facts["layers"].values()
        )
    model = VideoLlama3.load(tmp_path / "b", backend="cpu", num_threads=1)
    clip = model.encode(np.zeros((2, 56, 56, 3), np.uint8))
    assert model.ask(clip, "What?", GenerationConfig(max_new_tokens=4)).stats.generated_tokens > 0


@pytest.mark.parametrize("plan", [PLANS["gptq"], PLANS["asymmetric"]], ids=["8 bits", "4 bits with zero points"])
def test_a_tied_head_and_the_embeddings_are_one_matrix(
    checkpoints: Callable[..., Path], tmp_path: Path, plan: QuantizationPlan
) -> None:
    checkpoint = Checkpoint.open(checkpoints("tiny-128"))
    assert checkpoint.config.text.tie_word_embeddings
    export_bundle(checkpoint, tmp_path / "b", ExportOptions(plan=plan, **EXACT))
    text = checkpoint.config.text
    table = EmbeddingTable(tmp_path / "b" / "embeddings.safetensors", text.vocab_size, text.hidden_size)
    rows = table.rows(np.arange(text.vocab_size))
    original = checkpoint.tensor("model.language_model.embed_tokens.weight").float().numpy()
    error = np.abs(rows - original)
    assert 0 < error.max() < np.abs(original).max() * (0.02 if plan.head_bits == 8 else 0.3)
    np.testing.assert_array_equal(table.row(7), rows[7])
    # The head's logits are the same rows times what comes out of the last norm: differences of logits tell.
    decoder = Decoder(DecoderGraph(load_session(tmp_path / "b" / "decoder.onnx")), text_spec(text))
    logits = []
    for seed in range(text.hidden_size + 4):
        decoder.rewind(0)
        decoder.prefill(np.random.default_rng(seed).standard_normal((3, text.hidden_size)).astype(np.float32))
        logits.append(decoder.logits[0].copy())
    states, *_ = np.linalg.lstsq(rows, np.stack(logits).T, rcond=None)
    residual = np.abs(rows @ states - np.stack(logits).T)
    assert residual.max() < 1e-3, f"max {residual.max()}, mean {residual.mean()}"


def test_eight_bit_activations_cost_little_and_are_measured(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(checkpoints("tiny-128"))
    options = ExportOptions(plan=PLANS["gptq"], calibration_tokens=TOKENS, activation_bits=8)
    difference = export_bundle(checkpoint, tmp_path / "b", options).manifest.measured["decoder"]
    assert 1e-4 * difference["max_abs"] < difference["mean_abs_diff"] < 5e-2 * difference["max_abs"]


@pytest.mark.parametrize("layout", ["transformers", "authors"])
def test_a_saved_gptq_checkpoint_exports_to_the_same_decoder(
    checkpoints: Callable[..., Path], tmp_path: Path, media: Path, layout: str
) -> None:
    # The format stores biases as float16: a checkpoint of that type goes through it unchanged.
    checkpoint = Checkpoint.open(checkpoints("tiny-128", layout, dtype="float16"))
    plan = QuantizationPlan(group_size=32, head_bits=None)
    saved = tmp_path / "saved"
    export_bundle(checkpoint, tmp_path / "a", ExportOptions(plan=plan, save_gptq=saved, **EXACT))
    again = Checkpoint.open(saved)
    assert again.layout == layout
    report = export_bundle(again, tmp_path / "b", ExportOptions(plan=PLANS["eight"], **EXACT))
    assert report.manifest.quantization["source"] == "the checkpoint"
    texts = []
    for name in ("a", "b"):
        model = VideoLlama3.load(tmp_path / name, backend="cpu", num_threads=1)
        clip = model.encode(media / "nasa_13013.mp4", SamplingPlan(max_frames=3))
        texts.append(model.ask(clip, "What?", GenerationConfig(max_new_tokens=24)).text)
    assert texts[0] == texts[1]
    linears = GptqLinears(again)
    first = linears.linear(linears.names[0])
    assert torch.from_numpy(first.dequantized()).isfinite().all()


def test_an_interrupted_quantization_goes_on(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    """Killed after some layers, the same command ends with the same bytes as a run that was left alone."""
    arguments = [str(checkpoints("tiny-128")), "--group-size", "32", "--calibration-tokens", str(TOKENS)]
    arguments += ["--vision-bits", "16"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert cli.main([*arguments, "-o", str(whole)]) == 0
    code = """
import sys
from vl3edge.export import cli, progress
progress.INTERVAL_S = 0.0
sys.exit(cli.main(sys.argv[1:]))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "-o", str(resumed)], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "quantizing layers.1" in line:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    kept = list((tmp_path / ".resumed.quantizing").glob("layer-*.safetensors"))
    assert kept
    stamps = {path.name: path.stat().st_mtime_ns for path in kept if path.name == "layer-000.safetensors"}
    assert stamps
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "-o", str(resumed)], capture_output=True, text=True, check=True
    )
    assert "quantizing layers.0" not in done.stderr
    for name in ("decoder.onnx.data", "embeddings.safetensors", "decoder.onnx"):
        assert (whole / name).read_bytes() == (resumed / name).read_bytes(), name
    assert not (tmp_path / ".resumed.quantizing").exists()


REFUSED = {
    "group size": (["--group-size", "100"], "group"),
    "group that does not divide": (["--group-size", "128"], "128"),
    "no media": (["--group-size", "32", "--calibration", "EMPTY"], "EMPTY"),
    "missing media": (["--group-size", "32", "--calibration", "NOWHERE"], "NOWHERE"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_quantized_is_refused_in_one_line(
    checkpoints: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    empty = tmp_path / "EMPTY"
    empty.mkdir()
    (empty / "note.txt").write_text("no media here")
    arguments, word = REFUSED[name]
    arguments = [str(empty) if a == "EMPTY" else str(tmp_path / a) if a == "NOWHERE" else a for a in arguments]
    assert cli.main([str(checkpoints("tiny")), "-o", str(tmp_path / "b"), *arguments]) in (1, 2)
    err = capsys.readouterr().err.splitlines()
    errors = [line for line in err if line.startswith("vl3edge: error:")]
    assert len(errors) == 1
    assert word in errors[0]
    assert not (tmp_path / "b").exists()


def test_info_shows_the_report(
    checkpoints: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vl3edge.runtime.cli.main import main

    plan = QuantizationPlan(group_size=32)
    export_bundle(Checkpoint.open(checkpoints("tiny-128")), tmp_path / "b", ExportOptions(plan=plan, **EXACT))
    assert main(["info", str(tmp_path / "b")]) == 0
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "b" / "bundle.json").read_text())["quantization"]
    assert open_bundle(tmp_path / "b").manifest.quantization == report
    assert "quantization gptq" in out
    assert f"KL {report['end_to_end']['kl']:.2e}" in out
    assert "lm_head" in out
    assert f"its weights in fp16 {report['fp16_bytes'] / 1e6:.2f} MB" in out
    # Everything but the vision path, at two bytes a weight.
    decoder = Checkpoint.open(checkpoints("tiny-128"))
    counts = [
        decoder.tensor(name).numel() for name in decoder.names if "vision" not in name and "projector" not in name
    ]
    assert report["fp16_bytes"] == 2 * sum(counts)
