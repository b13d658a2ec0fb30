"""`export --preset`: what each means for each target, what explicit settings change, and what a bundle says of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vl3edge.export import cli
from vl3edge.export.options import ExportOptions
from vl3edge.export.pipeline import export_bundle
from vl3edge.export.presets import PRESETS, export_options, preset_settings
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.quant.plan import QuantizationPlan
from vl3edge.runtime import GenerationConfig, VideoLlama3
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.file_names import PREFILL_GRAPH
from vl3edge.runtime.bundle.manifest import Manifest
from vl3edge.runtime.bundle.specs import ExportSpec
from vl3edge.runtime.cli.main import main as runtime_main
from vl3edge.runtime.errors import ConfigError

CLIP = Path(__file__).parents[1] / "fixtures" / "demo_clip.mp4"
QUICK = ("--quant", "rtn", "--group-size", "32", "--calibration-tokens", "400")
MEANS = {  # decoder bits, head bits, encoder bits, prompt bits
    ("exact", ("cpu",)): (None, None, 16, 16),
    ("exact", ("cpu", "rtx")): (None, None, 16, 16),
    ("balanced", ("cpu",)): (4, 4, 8, 8),
    ("balanced", ("cuda",)): (4, 4, 16, 16),
    ("balanced", ("cpu", "jetson")): (4, 4, 16, 16),
    ("small", ("cpu",)): (4, 4, 8, 16),
    ("small", ("jetson",)): (4, 4, 8, 16),
    ("small", ("cpu", "cuda")): (4, 4, 16, 16),
    ("small", ("cuda", "rtx")): (4, 4, 16, 16),
}


def bits(options: ExportOptions) -> tuple[Any, ...]:
    plan = options.plan
    decoder = (None, None) if plan is None else (plan.bits, plan.head_bits)
    return (*decoder, options.vision_bits, options.prefill_bits)


@pytest.mark.parametrize(("preset", "targets"), MEANS)
def test_what_a_preset_means(preset: Any, targets: tuple[str, ...]) -> None:
    options = export_options(preset, targets)
    assert bits(options) == MEANS[preset, targets]
    assert (options.preset, options.changed, options.targets) == (preset, (), targets)
    if options.plan is not None:
        assert (options.plan.method, options.plan.group_size, options.plan.symmetric) == ("gptq", 128, True)


def test_which_preset_is_taken() -> None:
    assert export_options() == export_options("balanced")
    assert export_options(settings={"method": "none"}) == export_options("exact")
    assert bits(export_options("balanced", settings={"method": "none"})) == (None, None, 8, 8)
    with pytest.raises(ConfigError, match="preset must be one of exact, balanced, small, not 'tiny'"):
        export_options("tiny")  # type: ignore[arg-type]


CHANGES: dict[str, tuple[str, dict[str, Any], tuple[Any, ...], tuple[str, ...]]] = {
    "head": ("balanced", {"head_bits": 8}, (4, 8, 8, 8), ("head_bits 8",)),
    "whole head": ("small", {"head_bits": 16}, (4, None, 8, 16), ("head_bits 16",)),
    "layers": ("small", {"bits": "auto"}, ("auto", 4, 8, 16), ("bits auto",)),
    "encoder": ("balanced", {"vision_bits": 16, "bits": 4}, (4, 4, 16, 8), ("vision_bits 16",)),
    "prompts": ("small", {"prefill_bits": 8}, (4, 4, 8, 8), ("prefill_bits 8",)),
    "exact but the encoder": ("exact", {"vision_bits": 8}, (None, None, 8, 16), ("vision_bits 8",)),
    "exact no more": ("exact", {"method": "rtn"}, (4, 4, 16, 16), ("method rtn",)),
    "activations": ("balanced", {"activation_bits": 32}, (4, 4, 8, 16), ("activation_bits 32", "prefill_bits 16")),
    "the same": ("balanced", preset_settings("balanced"), (4, 4, 8, 8), ()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_explicit_settings_go_first(name: str) -> None:
    preset, settings, expected, changed = CHANGES[name]
    options = export_options(preset, settings=settings)  # type: ignore[arg-type]
    assert bits(options) == expected
    assert options.changed == changed


@pytest.mark.parametrize(
    "arguments", [["--preset", "exact", "--bits", "3"], ["--quant", "none", "--head-bits", "8"], ["--preset", "tiny"]]
)
def test_what_would_be_ignored_is_bad_usage(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(tmp_path / "nowhere"), "-o", str(tmp_path / "b"), *arguments]
    try:
        status = cli.main(command)
    except SystemExit as e:
        status = int(e.code or 0)
    assert status == 2
    assert {"bits", "head_bits", "--preset"} & set(capsys.readouterr().err.replace(":", " ").split())


def exported(checkpoint: Path, folder: Path, *arguments: str) -> Manifest:
    assert cli.main([str(checkpoint), "-o", str(folder), *arguments]) == 0
    return open_bundle(folder).manifest


def facts(manifest: Manifest) -> tuple[Any, ...]:
    decoder = (manifest.quantization.get("bits"), manifest.quantization.get("head_bits"))
    return (*decoder, manifest.vision_quantization.bits, manifest.prefill_quantization.bits)


def test_exact_writes_what_no_options_write(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    """Whose tokens are transformers', see test_parity.py."""
    plain = export_bundle(Checkpoint.open(checkpoints("tiny")), tmp_path / "plain", ExportOptions()).manifest
    assert plain.export == ExportSpec()
    for name, arguments in (("preset", ["--preset", "exact"]), ("none", ["--quant", "none"])):
        manifest = exported(checkpoints("tiny"), tmp_path / name, *arguments)
        assert manifest.files == plain.files
        assert manifest.export == ExportSpec("exact")
        assert manifest.precision == "fp32"


@pytest.mark.parametrize("preset", ["balanced", "small"])
def test_a_bundle_says_its_preset(
    preset: str, checkpoints: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Balanced is what is exported where nothing is said."""
    arguments = [] if preset == "balanced" else ["--preset", preset]
    manifest = exported(checkpoints("tiny"), tmp_path / "b", *arguments, *QUICK)
    assert facts(manifest) == MEANS[preset, ("cpu",)]
    assert manifest.export == ExportSpec(preset, ("method rtn", "group_size 32"))  # type: ignore[arg-type]
    assert (PREFILL_GRAPH in manifest.files) == (preset == "balanced")
    capsys.readouterr()
    assert runtime_main(["info", str(tmp_path / "b")]) == 0
    line = (
        f"preset       {preset} but method rtn, group_size 32: encoder 8 bits; decoder 4 bits in groups of 32, head 4"
    )
    assert f"{line}{'; prompts 8 bits' if preset == 'balanced' else ''}\n" in capsys.readouterr().out
    model = VideoLlama3.load(tmp_path / "b", num_threads=1)
    assert model.ask(model.encode(CLIP), "What?", GenerationConfig(max_new_tokens=4)).stats.generated_tokens > 0


def test_a_bundle_for_gpus(
    checkpoints: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = ("--target", "cuda", "--no-kernels", "--activation-bits", "32")
    manifest = exported(checkpoints("tiny"), tmp_path / "b", *target, *QUICK)
    assert facts(manifest) == MEANS["balanced", ("cuda",)]
    assert (manifest.export.preset, manifest.export.activation_bits) == ("balanced", 32)
    capsys.readouterr()
    assert runtime_main(["info", str(tmp_path / "b")]) == 0
    assert "head 4, activations whole\n" in capsys.readouterr().out


def test_bundles_from_before_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert runtime_main(["info", str(DEMO_BUNDLE)]) == 0
    assert "preset  " not in capsys.readouterr().out


def test_a_damaged_preset_is_named() -> None:
    data = open_bundle(DEMO_BUNDLE).manifest.to_json()
    for export, message in (({"preset": "huge"}, "export.preset is 'huge'"), ({"changed": 1}, "export.changed")):
        _, problems = Manifest.from_json({k: v for k, v in data.items() if k != "sha256"} | {"export": export})
        assert any(message in problem for problem in problems)


def test_the_plan_of_presets_is_a_plan_of_the_api() -> None:
    assert export_options("small").plan == QuantizationPlan(head_bits=4)
    assert {export_options(name).preset for name in PRESETS} == set(PRESETS)
