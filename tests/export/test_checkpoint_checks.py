"""What is wrong with a checkpoint is said before an export writes anything: weights, chat template, adapters."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vl3edge.export.cli import main
from vl3edge.export.errors import ExportError
from vl3edge.export.options import ExportOptions
from vl3edge.export.pipeline import export_bundle
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.errors import CheckpointError
from vl3edge.models.safetensors_reader import INDEX
from vl3edge.models.tensor_names import canonical_name
from vl3edge.quant.plan import QuantizationPlan

Checkpoints = Callable[..., Path]
BROKEN = {
    "encoder": "model.vision_model.encoder.layers.1.mlp.fc1.bias",
    "projector": "model.projector.readout.2.weight",
    "decoder": "model.language_model.layers.2.mlp.down_proj.weight",
    "embeddings": "model.language_model.embed_tokens.weight",
    "norm": "model.language_model.norm.weight",
}
MODES = {
    "none": ExportOptions(),
    "gptq": ExportOptions(plan=QuantizationPlan(group_size=32)),
    "rtn": ExportOptions(plan=QuantizationPlan(method="rtn", group_size=32)),
    "8-bit": ExportOptions(vision_bits=8, prefill_bits=8),
}


def damaged(source: Path, folder: Path, name: str, value: float, last: bool = False) -> Path:
    """A copy of a checkpoint with one wrong number in the tensor of this stored name."""
    shutil.copytree(source, folder)
    index = folder / INDEX
    shard = json.loads(index.read_text())["weight_map"][name] if index.is_file() else "model.safetensors"
    weights = load_file(folder / shard)
    weights[name].reshape(-1)[-1 if last else 0] = value
    save_file(weights, folder / shard)
    return folder


def refused(folder: Path, options: ExportOptions, match: str) -> None:
    """The export is refused, and there is nothing where it would have been written."""
    target = folder.parent / "out" / "bundle"
    with pytest.raises((CheckpointError, ExportError), match=match) as caught:
        export_bundle(Checkpoint.open(folder), target, options)
    assert "\n" not in str(caught.value)
    assert not target.parent.exists()


class Enough(Exception):
    """An export has come as far as the test wants."""


def until(
    checkpoint: Checkpoint, target: Path, options: ExportOptions | None = None, last: str = "weights read through"
) -> None:
    """Exports until the end of a stage, by default the last of the checks."""

    def progress(stage: str, done: int, total: int) -> None:
        if stage == last and done == total:
            raise Enough

    with pytest.raises(Enough):
        export_bundle(checkpoint, target, options, progress)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("part", BROKEN)
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_no_numbers(
    checkpoints: Checkpoints, tmp_path: Path, mode: str, part: str, value: float
) -> None:
    name = BROKEN[part]
    folder = damaged(checkpoints("tiny"), tmp_path / "c", name, value)
    refused(folder, MODES[mode], rf"{re.escape(name)} holds NaN or infinity")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.mm_projector.readout.0.weight", "model.layers.0.self_attn.q_proj.bias"]
)
def test_in_every_type_and_shard_by_the_names_of_the_file(
    checkpoints: Checkpoints, tmp_path: Path, dtype: str, name: str
) -> None:
    source = checkpoints("tiny-untied", "authors", dtype=dtype, shards=3)
    folder = damaged(source, tmp_path / "c", name, float("inf"), last=True)
    canonical = canonical_name(name, "authors")
    shown = canonical if canonical == name else f"{canonical} (stored as {name})"
    refused(folder, ExportOptions(), rf"{re.escape(shown)} holds NaN")


def test_every_bad_name_up_to_a_bound(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints("tiny"), tmp_path / "c"))
    weights = {name: tensor * float("nan") for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        export_bundle(Checkpoint.open(folder), tmp_path / "b")
    assert str(caught.value).count("holds NaN") == 10
    assert str(caught.value).endswith(f"; and {len(weights) - 10} more")


TOO_LARGE = [
    (ExportOptions(precision="fp16"), BROKEN["encoder"], True),
    (ExportOptions(precision="fp16"), BROKEN["norm"], True),
    (ExportOptions(plan=QuantizationPlan(group_size=32)), BROKEN["decoder"], True),
    (ExportOptions(targets=("cpu", "cuda")), BROKEN["decoder"], True),
    (ExportOptions(), BROKEN["projector"], False),
]


@pytest.mark.parametrize(("options", "name", "bad"), TOO_LARGE)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_that_turn_infinite_where_they_are_stored(
    checkpoints: Checkpoints, tmp_path: Path, options: ExportOptions, name: str, bad: bool, dtype: str
) -> None:
    folder = damaged(checkpoints("tiny", dtype=dtype), tmp_path / "c", name, -1e6)
    if bad:
        refused(folder, options, rf"{re.escape(name)} has values up to .*, above float16's limit of 65,504")
    else:
        until(Checkpoint.open(folder), tmp_path / "b", options)


@pytest.fixture(scope="module")
def gptq(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose decoder is quantized."""
    folder = tmp_path_factory.mktemp("gptq")
    options = ExportOptions(plan=QuantizationPlan(method="rtn", group_size=32), save_gptq=folder / "c")
    until(Checkpoint.open(checkpoints("tiny")), folder / "b", options, "GPTQ checkpoint")
    return folder / "c"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 7e4])
def test_scales_of_a_quantized_checkpoint(gptq: Path, tmp_path: Path, value: float) -> None:
    saved = Path(shutil.copytree(gptq, tmp_path / "c"))
    weights = load_file(saved / "model.safetensors")
    name = "model.language_model.layers.1.mlp.up_proj.scales"
    weights[name] = weights[name].to(torch.float32)
    weights[name][-1, -1] = value
    save_file(weights, saved / "model.safetensors")
    refused(saved, ExportOptions(), rf"{re.escape(name)} (has|holds)")


BAD_TEMPLATES = {
    "{% for m in messages %}{{ m['role'] }}": "cannot be compiled",
    "{% include 'x' %}": "Include statements are not allowed in chat templates",
    "{{ messages[0]['content'] + 1 }}": "TypeError",
    "{{ nothing.here }}": "'nothing' is undefined",
    "{% for m in messages %}{{ m['role'] }}{% endfor %}": "placed 0 of 3 frames and images",
    "{% break %}": "cannot be compiled",
    "{{ raise_exception('not\ntoday') }}": "not today",
    "{% if messages[0]['role'] == 'system' %}{{ 1 / 0 }}{% endif %}": "ZeroDivisionError",
    "{% if messages | length > 2 %}{{ messages[2].missing.key }}{% endif %}": "has no attribute 'missing'",
    "{{ messages | tojson(indent=100000) }}": "tojson indents by",
}


@pytest.mark.parametrize("template", BAD_TEMPLATES)
def test_templates_that_fail_are_found_before_anything_is_written(
    checkpoints: Checkpoints, tmp_path: Path, template: str
) -> None:
    folder = Path(shutil.copytree(checkpoints("tiny"), tmp_path / "c"))
    (folder / "chat_template.jinja").write_text(template)
    refused(folder, ExportOptions(), f"prompts cannot be made: .*{re.escape(BAD_TEMPLATES[template])}")


def test_a_template_without_system_messages_is_usable(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints("tiny"), tmp_path / "c"))
    file = folder / "chat_template.jinja"
    refusal = "{%- if messages[0]['role'] == 'system' -%}{{ raise_exception('no instructions') }}{%- endif -%}"
    file.write_text(refusal + file.read_text())
    with pytest.warns(UserWarning, match="does not accept system messages: no instructions"):
        until(Checkpoint.open(folder), tmp_path / "b")


def one_line_of(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(folder), "-o", str(folder.parent / "bundle")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: f"base_model.model.{name}",
        lambda name: name.replace("q_proj.", "q_proj.base_layer."),
        lambda name: name.replace("q_proj.weight", "q_proj.lora_A.default.weight"),
    ],
)
def test_unmerged_peft_models_are_named(
    checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str], rename: Callable[[str], str]
) -> None:
    folder = Path(shutil.copytree(checkpoints("tiny"), tmp_path / "c"))
    weights = load_file(folder / "model.safetensors")
    save_file({rename(name): tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    line = one_line_of(folder, capsys)
    assert "a PEFT model that was not merged" in line
    assert "merge_and_unload()" in line


@pytest.mark.parametrize("with_config", [False, True])
def test_an_adapter_alone_is_named(
    checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str], with_config: bool
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({name: torch.zeros(4, 96)}, folder / "adapter_model.safetensors")
    if with_config:
        shutil.copy(checkpoints("tiny") / "config.json", folder)
    line = one_line_of(folder, capsys)
    assert "holds a PEFT adapter (adapter_config.json) without the model" in line
    assert line.endswith(f"give that model as the checkpoint, with --lora {folder}")


def test_unknown_names_are_one_bounded_message(checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints("tiny"), tmp_path / "c"))
    weights = load_file(folder / "model.safetensors")
    save_file({f"module.{name}": tensor for name, tensor in weights.items()}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"and \d+ more$") as caught:
        Checkpoint.open(folder)
    assert len(str(caught.value).splitlines()) <= 12
