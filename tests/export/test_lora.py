"""`--lora`: a bundle is that of the model with its adapters, and says so; work kept for resuming is not shared."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters import ALL_PARTS, LINEAR, peft_answering, peft_merged, peft_module, quietly, save_adapter
from PIL import Image
from reference import load_processor, reference_generate
from safetensors.torch import load_file, save_file

from vl3edge.export import cli
from vl3edge.export.evaluate import main as reference_main
from vl3edge.export.verify import cli as verify_cli
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.lora.adapter import WEIGHTS, LoraAdapter
from vl3edge.models.lora.merged import merge_adapters
from vl3edge.models.tensor_names import EMBEDDINGS, LM_HEAD
from vl3edge.quant.decoder import quantize_decoder
from vl3edge.quant.dequantized import DequantizedCheckpoint
from vl3edge.quant.plan import QuantizationPlan
from vl3edge.runtime import GenerationConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.bundle.bundle import hash_file, open_bundle
from vl3edge.runtime.cli.main import main as runtime_main
from vl3edge.runtime.media.resize import PixelBudget, target_size
from vl3edge.runtime.media.video import open_video

Checkpoints = Callable[..., Path]
Q_BIAS = "model.language_model.layers.0.self_attn.q_proj.bias"


@pytest.fixture(scope="module", autouse=True)
def _peft() -> None:
    peft_module()


def export(checkpoint: Path, target: Path, *options: str) -> Path:
    assert cli.main([str(checkpoint), "-o", str(target), *options]) == 0
    return target


def answered(model: VideoLlama3, parts: list[dict[str, Any]], plan: SamplingPlan) -> str:
    config = GenerationConfig(max_new_tokens=24, temperature=0.0)
    return model.generate([{"role": "user", "content": parts}], config, plan).text


def test_answers_are_those_of_transformers_and_peft(checkpoints: Checkpoints, tmp_path: Path, media: Path) -> None:
    """The adapter beside the model, as it was trained, and a bundle in which nothing of it is left to add."""
    checkpoint = checkpoints("tiny")
    adapter = save_adapter(checkpoint, tmp_path / "fine", target_modules=ALL_PARTS, r=4, lora_alpha=6, use_dora=True)
    model = VideoLlama3.load(export(checkpoint, tmp_path / "b", "--quant", "none", "--lora", str(adapter)))
    reference, processor = peft_answering(checkpoint, adapter), load_processor(checkpoint)
    plan, spec = SamplingPlan(max_frames=4), model.bundle.manifest.processor
    video, question = media / "nasa_13013.mp4", {"type": "text", "text": "What happens?"}
    reader = open_video(video, plan)
    budget = PixelBudget(14, spec.video.merge_size, spec.video.min_pixels, spec.video.max_pixels, spec.rule)
    frames = reader.read(target_size(reader.height, reader.width, budget, reader.num_frames), spec.rule).frames
    picture = np.random.default_rng(3).integers(0, 255, (84, 112, 3), np.uint8)
    Image.fromarray(picture).save(tmp_path / "picture.png")
    cases = (
        ({"type": "video", "video": str(video)}, {"type": "video", "video": frames, "timestamps": reader.timestamps_s}),
        ({"type": "image", "image": str(tmp_path / "picture.png")}, {"type": "image", "image": picture}),
    )
    for ours, theirs in cases:
        messages = [{"role": "user", "content": [theirs, question]}]
        run = reference_generate(checkpoint, messages, 24, False, reference, processor)
        expected = processor.tokenizer.decode(run.new_ids, skip_special_tokens=True)
        assert answered(model, [ours, question], plan) == expected
        plain = reference_generate(checkpoint, messages, 24, False, processor=processor)
        assert plain.new_ids != run.new_ids


def test_all_of_the_export_follows(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Byte for byte the bundle of the checkpoint that PEFT's merge wrote: graphs, GPTQ, calibration and 8-bit parts."""
    checkpoint = checkpoints("tiny-128")
    adapter = save_adapter(checkpoint, tmp_path / "fine", target_modules=LINEAR, r=4, bias="lora_only")
    saved = Path(shutil.copytree(checkpoint, tmp_path / "merged"))
    theirs = peft_merged(checkpoint, [(adapter, 0.5)])
    names = load_file(saved / "model.safetensors")
    save_file({name: theirs[name].clone() for name in names}, saved / "model.safetensors", {"format": "pt"})
    options = ["--group-size", "32", "--calibration-tokens", "600", "--vision-bits", "8", "--prefill-bits", "8"]
    ours = export(checkpoint, tmp_path / "ours", *options, "--lora", f"{adapter}:0.5", "--name", "x")
    other = export(saved, tmp_path / "other", *options, "--name", "x")
    files, expected = open_bundle(ours).manifest.files, open_bundle(other).manifest.files
    assert files == expected
    assert len(files) > 8


@pytest.fixture(scope="module")
def exported(checkpoints: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A tied checkpoint, an adapter that unties it, and their bundle in 4 bits with another, weighted adapter."""
    folder, checkpoint = tmp_path_factory.mktemp("lora"), checkpoints("tiny")
    adapter = save_adapter(checkpoint, folder / "fine", 1, target_modules=["lm_head", "fc1"], r=4)
    second = save_adapter(checkpoint, folder / "se:cond", 2, target_modules=["up_proj"], r=2, use_rslora=True)
    options = ["--quant", "rtn", "--group-size", "32", "--save-gptq", str(folder / "gptq")]
    export(checkpoint, folder / "bundle", *options, "--lora", str(adapter), "--lora", f"{second}:-0.25")
    return checkpoint, adapter, folder / "bundle"


def test_the_manifest_names_them(exported: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, adapter, bundle = exported
    first, second = open_bundle(bundle).manifest.adapters
    assert (first.name, first.weight, second.name, second.weight) == ("fine", 1.0, "se:cond", -0.25)
    assert first.sha256 == hash_file(adapter / WEIGHTS).sha256
    assert first.config_sha256 == hash_file(adapter / "adapter_config.json").sha256
    assert str(adapter.parent) not in (bundle / "bundle.json").read_text()
    assert runtime_main(["info", str(bundle)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("adapter ")]
    assert lines == [
        f"adapter      fine, weight 1, sha256 {first.sha256[:16]}",
        f"adapter      se:cond, weight -0.25, sha256 {second.sha256[:16]}",
    ]


def test_verify_wants_the_same_adapters(exported: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, adapter, bundle = exported
    command = [str(bundle), "--checkpoint", str(checkpoint), "--tokens", "3", "--frames", "2"]
    given = ["--lora", str(adapter), "--lora", f"{adapter.parent / 'se:cond'}:-0.25"]
    assert verify_cli.main([*command, *given]) == 0
    assert "FAIL" not in capsys.readouterr().out
    assert verify_cli.main(command) == 1
    assert "adapters (--lora) is fine, weight 1" in (out := capsys.readouterr().out)
    assert "the checkpoint's is none" in out


def test_the_gptq_checkpoint_is_untied_too(exported: tuple[Path, Path, Path]) -> None:
    checkpoint, adapter, bundle = exported
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved = Checkpoint.open(bundle.parent / "gptq")
    with quietly():
        merged = merge_adapters(Checkpoint.open(checkpoint), [LoraAdapter.open(adapter)])
    assert not saved.config.text.tie_word_embeddings
    for name in (LM_HEAD, EMBEDDINGS, "model.vision_model.encoder.layers.0.mlp.fc1.weight"):
        assert torch.equal(saved.tensor(name, torch.float32), merged.tensor(name, torch.float32))
    assert not torch.equal(saved.tensor(LM_HEAD), saved.tensor(EMBEDDINGS))


def test_the_reference_answers_with_them(
    exported: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, adapter, _ = exported
    Image.fromarray(np.random.default_rng(5).integers(0, 255, (56, 84, 3), np.uint8)).save(tmp_path / "p.png")
    (tmp_path / "set.jsonl").write_text(
        json.dumps({"media": str(tmp_path / "p.png"), "question": "What?", "answer": "x"}) + "\n"
    )
    command = [str(checkpoint), "--data", str(tmp_path / "set.jsonl"), "--max-new-tokens", "6"]
    for name, given in (("plain", []), ("fine", ["--lora", str(adapter)])):
        assert reference_main([*command, "-o", str(tmp_path / f"{name}.jsonl"), *given]) == 0
    (settings, fine), (other, plain) = (
        [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("fine", "plain")
    )
    assert settings["settings"]["adapters"][0]["name"] == "fine"
    assert "adapters" not in other["settings"]
    assert fine != plain
    assert reference_main([*command, "-o", str(tmp_path / "fine.jsonl"), "--resume"]) != 0  # not of these settings


def test_work_is_not_shared_between_adapters(checkpoints: Checkpoints, tmp_path: Path) -> None:
    """Codes kept for resuming are of one adapter, one weight and one scale; the small tensors are the same in all."""
    checkpoint = Checkpoint.open(checkpoints("tiny"))
    plan = QuantizationPlan(method="rtn", group_size=32)
    one = save_adapter(checkpoint.folder, tmp_path / "one", 1, target_modules=["q_proj"])
    two = save_adapter(checkpoint.folder, tmp_path / "two", 2, target_modules=["q_proj"])
    louder = Path(shutil.copytree(one, tmp_path / "louder"))
    config = json.loads((louder / "adapter_config.json").read_text())
    (louder / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 99}))
    name = "model.language_model.layers.2.self_attn.q_proj.weight"
    seen = []
    for adapters in ([], [(one, 1.0)], [(two, 1.0)], [(one, 0.5)], [(louder, 1.0)], [(one, 1.0), (two, 1.0)]):
        merged = merge_adapters(checkpoint, [LoraAdapter.open(*adapter) for adapter in adapters])
        assert torch.equal(merged.tensor(Q_BIAS), checkpoint.tensor(Q_BIAS))
        linears = quantize_decoder(merged, (), plan, tmp_path / "work")
        codes = DequantizedCheckpoint(merged, linears).tensor(name)
        assert float((codes - merged.tensor(name)).abs().max()) < 0.2 * float(codes.abs().max())
        assert not any(torch.equal(codes, other) for other in seen)
        seen.append(codes)


BAD_OPTIONS = {
    "nowhere": ("{folder}/nowhere", 1, "nowhere does not exist"),
    "weight": ("{folder}:nan", 2, "must be a finite number"),
    "no adapter": ("{checkpoint}", 1, "adapter_config.json does not exist"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_a_bad_adapter_is_one_line_before_anything_is_written(
    checkpoints: Checkpoints, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    text, status, message = BAD_OPTIONS[name]
    lora = text.format(folder=tmp_path, checkpoint=checkpoints("tiny"))
    assert cli.main([str(checkpoints("tiny")), "-o", str(tmp_path / "b"), "--lora", lora]) == status
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not list(tmp_path.iterdir())


def test_a_quantized_checkpoint_takes_none(exported: tuple[Path, Path, Path], tmp_path: Path) -> None:
    checkpoint, _, bundle = exported
    adapter = save_adapter(checkpoint, tmp_path / "a", target_modules=["k_proj"])
    quantized = Checkpoint.open(bundle.parent / "gptq")
    with pytest.raises(ValueError, match=r"holds .*k_proj\.weight quantized: merge into the checkpoint it was made"):
        merge_adapters(quantized, [LoraAdapter.open(adapter)])
