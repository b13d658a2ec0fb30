"""The prefill graph in 8 bits: against integer arithmetic in torch, and in use wherever a prompt is read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from resealing import reseal
from safetensors.torch import load_file, save_file
from torch import nn

from vl3edge.export import cli
from vl3edge.export.calibrate.prefill import cache_error, calibrate_prefill, prefilled
from vl3edge.export.calibrate.smoothquant import Smoothing
from vl3edge.export.errors import ExportError
from vl3edge.export.graphs.decoder import text_spec
from vl3edge.export.graphs.decoder_prefill_int8 import SmoothedSource, write_prefill
from vl3edge.export.options import ExportOptions
from vl3edge.export.parity import load_session
from vl3edge.export.pipeline import export_bundle
from vl3edge.export.tensor_source import Float32Source
from vl3edge.export.verify import cli as cli_verify
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.decoder import DecoderLayer, rotary
from vl3edge.models.demo.evaluate import CHECKPOINT as DEMO_CHECKPOINT
from vl3edge.models.demo.twin import write_outlier_twin
from vl3edge.models.errors import CheckpointError
from vl3edge.models.synthetic.random import preset, write_random_checkpoint
from vl3edge.models.tensor_names import DECODER
from vl3edge.quant.calibration import CalibrationSet
from vl3edge.quant.plan import QuantizationPlan
from vl3edge.quant.sequences import CalibrationSequence
from vl3edge.runtime import GenerationConfig, PruningConfig, VideoLlama3
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, open_bundle
from vl3edge.runtime.bundle.file_names import DECODER_GRAPH, PREFILL_GRAPH
from vl3edge.runtime.bundle.specs import PrefillQuantization, TextSpec
from vl3edge.runtime.cli import main as runtime_cli
from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import DecoderGraph
from vl3edge.runtime.decode.prefill_chunk import PREFILL_CHUNK
from vl3edge.runtime.errors import BundleError
from vl3edge.runtime.jobs import CaptionJob
from vl3edge.runtime.media.video import open_video
from vl3edge.runtime.memory_estimate import weights_bytes

CLIP = Path(__file__).parents[1] / "fixtures" / "demo_clip.mp4"
PLAN = QuantizationPlan(method="rtn", group_size=32)

Kind = tuple[str, int | None, QuantizationPlan | None]
KINDS: dict[str, Kind] = {  # preset, head size instead of the preset's, quantization of the steps
    "heads of 24": ("tiny", 24, PLAN),
    "not quantized": ("tiny-untied", None, None),
    "tiny-128": ("tiny-128", None, PLAN),
}


def random_inputs(hidden_size: int, count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, hidden_size)).astype(np.float32)


def calibration(checkpoint: Checkpoint) -> CalibrationSet:
    width = checkpoint.config.text.hidden_size
    sequences = [CalibrationSequence(random_inputs(width, 40, seed)) for seed in range(3)]
    return CalibrationSet(tuple(sequences[:2]), tuple(sequences[2:]))


def none(checkpoint: Checkpoint) -> Smoothing:
    """Factors of one."""
    names = (name for name in checkpoint.names if name.startswith(DECODER))
    return Smoothing({}, {name: np.ones(checkpoint.shape(name)[-1], np.float32) for name in names})


class Rounded(nn.Module):
    """A linear layer in 8 bits: weights by output channel, inputs by token. evening: what inputs are divided by."""

    def __init__(self, linear: nn.Linear, evening: torch.Tensor) -> None:
        super().__init__()
        weight = (linear.weight * evening).double()
        self.evening, self.bias = evening, linear.bias
        self.scale = weight.abs().amax(dim=1) / 127
        self.codes = (weight / self.scale[:, None]).round()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.double() / self.evening
        scale = x.abs().amax(dim=-1, keepdim=True) / 127
        y = ((x / scale).round() @ self.codes.T) * scale * self.scale
        return (y if self.bias is None else y + self.bias).float()


@torch.inference_mode()
def rounded_cache(checkpoint: Checkpoint, inputs: np.ndarray, smoothing: Smoothing) -> np.ndarray:
    """Keys and values [layers, 2, kv_heads, S, head_dim] of the torch layers with their linears in 8 bits."""
    hidden, cache = torch.from_numpy(inputs)[None], []
    for index in range(checkpoint.config.text.num_layers):
        layer = DecoderLayer.from_checkpoint(checkpoint, index)
        for owner, parts in ((layer.self_attn, "qkvo"), (layer.mlp, ("gate", "up", "down"))):
            for part in parts:
                kind = "self_attn" if owner is layer.self_attn else "mlp"
                name = f"{DECODER}layers.{index}.{kind}.{part}_proj.weight"
                evening = torch.from_numpy(smoothing.read[name])
                setattr(owner, f"{part}_proj", Rounded(getattr(owner, f"{part}_proj"), evening))
        hidden, present = layer(hidden, rotary(checkpoint.config.text, 0, len(inputs)))
        cache.append(torch.cat(present).numpy())
    return np.stack(cache)


def share(ours: np.ndarray, reference: np.ndarray) -> float:
    """Root mean square difference, as a share of the reference's."""
    return float(np.sqrt(np.square(ours - reference).mean() / np.square(reference).mean()))


@pytest.fixture(scope="module", params=KINDS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path]:
    """Checkpoints and bundles with a prefill graph. Heads of 24 are widened in the cache."""
    folder = tmp_path_factory.mktemp("prefill")
    name, head_dim, plan = KINDS[request.param]
    config = preset(name, "transformers")
    text = replace(config.text, head_dim=head_dim or config.text.head_dim)
    write_random_checkpoint(folder / "checkpoint", replace(config, text=text))
    checkpoint = Checkpoint.open(folder / "checkpoint")
    options = ExportOptions(plan=plan, prefill_bits=8, calibration_tokens=500)
    export_bundle(checkpoint, folder / "bundle", options)
    return checkpoint, folder / "bundle"


def decoders(folder: Path, spec: TextSpec) -> tuple[Decoder, Decoder]:
    """One that reads prompts in 8 bits, one that does not."""
    whole = DecoderGraph(load_session(folder / DECODER_GRAPH, prepack=True))
    prompts = DecoderGraph(load_session(folder / PREFILL_GRAPH, prepack=True))
    return Decoder(DecoderGraph(whole.session, prompts=prompts), spec), Decoder(whole, spec)


@pytest.mark.parametrize("even", [False, True])
def test_keys_and_values_are_integer_arithmetic(exported: tuple[Checkpoint, Path], tmp_path: Path, even: bool) -> None:
    checkpoint, _ = exported
    config = checkpoint.config.text
    smoothing = calibrate_prefill(checkpoint, calibration(checkpoint)).smoothing if even else none(checkpoint)
    write_prefill(config, Float32Source(checkpoint), smoothing, tmp_path)
    inputs = random_inputs(config.hidden_size, 50, 7)
    ours = prefilled(load_session(tmp_path / PREFILL_GRAPH, prepack=True), inputs, config.head_dim)
    expected = rounded_cache(checkpoint, inputs, smoothing)
    first = np.abs(ours[0] - expected[0]) / np.abs(expected[0]).max()
    assert np.quantile(first, 0.9) < 1e-5, f"{np.quantile(first, 0.9):.1e}, at most {first.max():.1e}"
    assert share(ours, expected) < 0.005  # a value between two steps may fall either way


def test_evening_out_changes_nothing_in_float32(exported: tuple[Checkpoint, Path]) -> None:
    checkpoint, _ = exported
    smoothing = calibrate_prefill(checkpoint, calibration(checkpoint)).smoothing
    even, source = SmoothedSource(Float32Source(checkpoint), smoothing), Float32Source(checkpoint)
    stem = f"{DECODER}layers.0."
    changed = {
        name for name in checkpoint.names if name.startswith(stem) and name in {*smoothing.made, *smoothing.read}
    }
    assert {name.removeprefix(stem).split(".")[0] for name in changed} == {
        "input_layernorm",
        "post_attention_layernorm",
        "self_attn",
        "mlp",
    }
    for maker, reader in (
        ("input_layernorm", "self_attn.k_proj"),
        ("post_attention_layernorm", "mlp.gate_proj"),
        ("post_attention_layernorm", "mlp.up_proj"),
        ("mlp.up_proj", "mlp.down_proj"),
    ):
        made, read = f"{stem}{maker}.weight", f"{stem}{reader}.weight"
        own = smoothing.read.get(made, np.float32(1))  # what `up` reads is scaled, too
        gain = even.array(made) / source.array(made) / own
        column = even.array(read) / source.array(read)
        if reader == "mlp.up_proj":
            column = column * smoothing.made[read][:, None]
        gain = gain if gain.ndim == 1 else gain[:, 0]
        np.testing.assert_array_equal(gain * column, 1)
        assert (np.frexp(gain)[0] == 0.5).all()  # powers of two


def test_loud_channels_are_evened_out(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    twin = Checkpoint.open(
        write_outlier_twin(Checkpoint.open(checkpoints("tiny-128")), tmp_path / "twin", part="decoder")
    )
    found = calibrate_prefill(twin, calibration(twin))
    errors = []
    for name, smoothing in (("even", found.smoothing), ("as they are", none(twin))):
        (tmp_path / name).mkdir()
        write_prefill(twin.config.text, Float32Source(twin), smoothing, tmp_path / name)
        errors.append(cache_error(tmp_path / name / PREFILL_GRAPH, found.held_out))
    assert found.num_tokens == 80
    assert errors[0] < 0.1, errors  # of the worst layer
    assert errors[0] < errors[1] / 5, errors


def test_the_graph_holds_a_byte_a_weight_and_no_head(exported: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = exported
    model = onnx.load(folder / PREFILL_GRAPH, load_external_data=False)
    assert all(output.name.startswith("present.") for output in model.graph.output)
    assert len(model.graph.output) == 2 * checkpoint.config.text.num_layers
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"If", "MatMul", "Gemm", "MatMulNBits"}
    last = f"layers.{checkpoint.config.text.num_layers - 1}."
    codes = {t.name: t for t in model.graph.initializer if t.name.endswith(".codes")}
    assert {name.removeprefix(last) for name in codes if name.startswith(last)} == {"qkv.codes"}
    assert {t.data_type for t in codes.values()} == {onnx.TensorProto.INT8}
    assert sum(node.op_type == "MatMulIntegerToFloat" for node in model.graph.node) == len(codes)


def test_prompts_however_cut_and_steps_after_them(exported: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = exported
    spec = text_spec(checkpoint.config.text)
    inputs = random_inputs(spec.hidden_size, 2 * PREFILL_CHUNK + 41)
    fast, slow = decoders(folder, spec)
    for decoder in (fast, slow):
        decoder.prefill(inputs)
    if open_bundle(folder).manifest.quantization["method"] == "none":
        assert 1e-4 < share(fast.logits, slow.logits) < 0.1  # 4 bits of random weights are far from 8
    whole, keys = fast.logits.copy(), fast.cache.buffers[-1].array[0, :, : len(inputs)].copy()

    fast.rewind(0)
    fast.prefill(inputs[:PREFILL_CHUNK], logits=False)
    assert fast.length == PREFILL_CHUNK
    fast.prefill(inputs[PREFILL_CHUNK:])
    np.testing.assert_array_equal(fast.logits, whole)  # as the generator grows a prompt

    fast.rewind(0)
    for start in range(0, len(inputs), 97):
        fast.prefill(inputs[start : start + 97], logits=False)
    fast.rewind(len(inputs) - 1)
    fast.step(inputs[-1:])
    again = fast.cache.buffers[-1].array[0, :, : len(inputs)]
    assert share(again, keys) < 0.03  # attention sums in another order, which may move a value by one step of 8 bits
    assert share(fast.logits, whole) < 0.03


def test_a_prompt_of_one_token_is_a_step(exported: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = exported
    spec = text_spec(checkpoint.config.text)
    inputs = random_inputs(spec.hidden_size, 1)
    fast, slow = decoders(folder, spec)
    fast.prefill(inputs)
    slow.prefill(inputs)
    np.testing.assert_array_equal(fast.logits, slow.logits)


def test_rows_of_a_batch_are_prefilled_as_alone(exported: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = exported
    spec = text_spec(checkpoint.config.text)
    alone, _ = decoders(folder, spec)
    batch = Decoder(alone.graph, spec)
    batch.resize(3, 128)
    for row, count in ((1, 30), (0, 55), (2, 1)):
        inputs = random_inputs(spec.hidden_size, count, row)
        batch.prefill(inputs, row=row)
        alone.rewind(0)
        alone.prefill(inputs)
        np.testing.assert_array_equal(batch.logits[row], alone.logits[0])
    np.testing.assert_array_equal(batch.cache.lengths, [55, 30, 1])


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model, quantized, with a prefill graph."""
    folder = tmp_path_factory.mktemp("prefill") / "demo"
    command = [str(DEMO_CHECKPOINT), "-o", str(folder), "--calibration-tokens", "3000", "--prefill-bits", "8"]
    assert cli.main(command) == 0
    return folder


QUESTIONS = ("Describe this video.", "What color is the shape?", "When does it stop?")
CONFIG = GenerationConfig(max_new_tokens=24)
DENSE, WHOLE = SamplingPlan(fps=30.0), PruningConfig(enabled=False)  # a prompt of more than two chunks


def logits(model: VideoLlama3) -> np.ndarray:
    return model.decoder.logits[0].copy()


def test_the_demo_answers_as_the_shipped_bundle(demo: Path) -> None:
    ours, shipped = VideoLlama3.load(demo), VideoLlama3.load(DEMO_BUNDLE)
    assert (ours.info["prompt_graph"], shipped.info["prompt_graph"]) == (PREFILL_GRAPH, DECODER_GRAPH)
    answers = [[model.ask(model.encode(CLIP), question).text for question in QUESTIONS] for model in (ours, shipped)]
    assert answers[0] == answers[1]


def test_a_clip_in_the_making_has_the_logits_of_a_whole_one(demo: Path) -> None:
    whole, growing = VideoLlama3.load(demo), VideoLlama3.load(demo)
    answer = whole.ask(whole.encode(CLIP, DENSE, WHOLE), QUESTIONS[0], CONFIG)
    assert answer.stats.prompt_tokens > 2 * PREFILL_CHUNK
    assert growing.ask(growing.begin(CLIP, DENSE, WHOLE), QUESTIONS[0], CONFIG).text == answer.text
    np.testing.assert_array_equal(logits(growing), logits(whole))


def test_a_second_question_costs_its_own_tokens(demo: Path) -> None:
    model = VideoLlama3.load(demo)
    clip = model.encode(CLIP)
    alone = [VideoLlama3.load(demo).ask(clip, question, CONFIG).text for question in QUESTIONS]
    answers = [model.ask(clip, question, CONFIG) for question in QUESTIONS]
    assert [answer.text for answer in answers] == alone
    assert all(answer.stats.reused_tokens >= clip.num_tokens for answer in answers[1:])


def test_batches_answer_as_one_by_one(demo: Path) -> None:
    model = VideoLlama3.load(demo)
    jobs = [CaptionJob(CLIP, question, key=question) for question in QUESTIONS]
    results = [
        sorted(model.caption_all(jobs, CONFIG, batch=batch), key=lambda result: result.index) for batch in (1, 3)
    ]
    texts = [[result.answer.text for result in batch if result.answer is not None] for batch in results]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 3


def test_a_session_reads_frames_as_a_clip_is_read(demo: Path) -> None:
    model = VideoLlama3.load(demo)
    video = open_video(CLIP, SamplingPlan(fps=1.0)).read()
    session = model.open_session(frames_expected=len(video.frames))
    for frame, time_s in zip(video.frames, video.timestamps_s, strict=True):
        session.push(frame, float(time_s))
    answers = ["".join(chunk.text for chunk in session.ask(question, CONFIG, keep=False)) for question in QUESTIONS]
    assert answers == [model.ask(model.encode(CLIP), question, CONFIG).text for question in QUESTIONS]


def test_sessions_drop_their_oldest_frames(demo: Path) -> None:
    """When the context is full, what stays is used on, and frames still come in."""
    model = VideoLlama3.load(demo)
    frames = np.random.default_rng(0).integers(0, 256, (40, 112, 112, 3), dtype=np.uint8)
    session = model.open_session(max_tokens=420)
    reports = [session.push(frame, float(number)) for number, frame in enumerate(frames)]
    assert session.num_frames < 40
    assert sum(len(report.dropped_s) for report in reports) == 40 - session.num_frames
    assert "".join(chunk.text for chunk in session.ask(QUESTIONS[0], CONFIG))


def verify_command(bundle: Path, checkpoint: Checkpoint) -> list[str]:
    return [str(bundle), "--checkpoint", str(checkpoint.folder), "--tokens", "4", "--threads", "1"]


def test_verify_passes(exported: tuple[Checkpoint, Path], capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, folder = exported
    assert cli_verify.main(verify_command(folder, checkpoint)) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    for stage in ("prompt weights", "prompts", "logits"):
        assert any(line.startswith(f"ok {stage} ") for line in lines), stage


PRODUCTS = ("layers.0.qkv", "layers.0.output", "layers.0.gate", "layers.0.up", "layers.0.down", "the last qkv")


@pytest.mark.parametrize("product", PRODUCTS)
def test_verify_names_a_wrong_weight(
    exported: tuple[Checkpoint, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], product: str
) -> None:
    """Also in the last layer, whose keys and values no other layer reads."""
    checkpoint, folder = exported
    if product == PRODUCTS[-1]:
        product = f"layers.{checkpoint.config.text.num_layers - 1}.qkv"
    bundle = Path(shutil.copytree(folder, tmp_path / "bundle"))
    tensor = next(
        tensor
        for tensor in onnx.load(bundle / PREFILL_GRAPH, load_external_data=False).graph.initializer
        if tensor.name == f"{product}.codes"
    )
    place = {entry.key: entry.value for entry in tensor.external_data}
    codes = np.memmap(bundle / place["location"], np.int8, "r+", int(place["offset"]), tuple(tensor.dims))
    codes[:, :2] = codes[:, :2][:, ::-1].copy()  # two outputs change places
    codes.flush()
    reseal(bundle)
    assert cli_verify.main(verify_command(bundle, checkpoint)) == 1
    assert f"The first stage that differs is prompt weights: {product} is" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("op", "attribute", "value"),
    [("QuickGelu", "alpha", -1.0), ("GroupQueryAttention", "scale", 0.01), ("GroupQueryAttention", "do_rotary", 0)],
)
def test_verify_names_a_graph_that_computes_something_else(
    exported: tuple[Checkpoint, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    op: str,
    attribute: str,
    value: float,
) -> None:
    checkpoint, folder = exported
    bundle = Path(shutil.copytree(folder, tmp_path / "bundle"))
    model = onnx.load(bundle / PREFILL_GRAPH, load_external_data=False)
    for node in model.graph.node:
        for entry in node.attribute:
            if (node.op_type, entry.name) == (op, attribute):
                entry.CopyFrom(onnx.helper.make_attribute(attribute, value))
    (bundle / PREFILL_GRAPH).write_bytes(model.SerializeToString())
    reseal(bundle)
    assert cli_verify.main(verify_command(bundle, checkpoint)) == 1
    assert "The first stage that differs is prompts: the " in (out := capsys.readouterr().out)
    assert " differ most: decoder-prefill.onnx is wrong" in out


def test_verify_passes_large_biases(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Keys of this family have biases that are much larger than what tells tokens apart."""
    write_random_checkpoint(tmp_path / "checkpoint", preset("tiny-128", "transformers"))
    path = tmp_path / "checkpoint" / "model.safetensors"
    tensors = load_file(path)
    for name, tensor in tensors.items():
        if name.endswith("k_proj.bias"):
            tensor[:2] = 300.0
    save_file(tensors, path, {"format": "pt"})
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    export_bundle(checkpoint, tmp_path / "bundle", ExportOptions(prefill_bits=8))
    assert open_bundle(tmp_path / "bundle").manifest.prefill_quantization.relative_error > 0.005
    assert cli_verify.main(verify_command(tmp_path / "bundle", checkpoint)) == 0
    assert "FAIL" not in capsys.readouterr().out


def test_a_graph_of_another_model_is_refused(exported: tuple[Checkpoint, Path], demo: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(exported[1], tmp_path / "bundle"))
    for name in (PREFILL_GRAPH, f"{PREFILL_GRAPH}.data"):
        shutil.copy(demo / name, bundle / name)
    reseal(bundle)
    with pytest.raises(BundleError, match=r"decoder-prefill\.onnx has other inputs, outputs or sizes"):
        VideoLlama3.load(bundle)


def test_info_and_manifest_say_what_it_lost(demo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = open_bundle(demo).manifest
    stated = manifest.prefill_quantization
    assert (stated.bits, stated.source) == (8, "synthetic scenes")
    assert 1000 < stated.calibration_tokens < 6000
    assert 1e-3 < stated.relative_error < 0.03
    assert runtime_cli.main(["info", str(demo)]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("prompts in 8 bits"))
    assert f"{stated.calibration_tokens} tokens" in line
    assert f"{stated.relative_error:.2%}" in line
    assert open_bundle(DEMO_BUNDLE).manifest.prefill_quantization == PrefillQuantization()


def test_its_memory_is_reckoned(demo: Path) -> None:
    manifest = open_bundle(demo).manifest
    files = {name: entry for name, entry in manifest.files.items() if not name.startswith(PREFILL_GRAPH)}
    more = weights_bytes(manifest) - weights_bytes(replace(manifest, files=files))
    assert more == pytest.approx(manifest.files[f"{PREFILL_GRAPH}.data"].bytes, rel=0.08)  # pages of small norms


def test_a_gptq_checkpoint_gives_its_codes(demo: Path, tmp_path: Path) -> None:
    """What is left of the weights is all that can be rounded."""
    command = [str(DEMO_CHECKPOINT), "-o", str(tmp_path / "first"), "--calibration-tokens", "1000"]
    assert cli.main([*command, "--save-gptq", str(tmp_path / "gptq")]) == 0
    assert cli.main([str(tmp_path / "gptq"), "-o", str(tmp_path / "second"), "--prefill-bits", "8"]) == 0
    manifest = open_bundle(tmp_path / "second").manifest
    assert 1e-3 < manifest.prefill_quantization.relative_error < 0.03  # against the codes, not what they were made of
    model = VideoLlama3.load(tmp_path / "second")
    shipped = VideoLlama3.load(DEMO_BUNDLE)
    assert model.ask(model.encode(CLIP), QUESTIONS[0]).text == shipped.ask(shipped.encode(CLIP), QUESTIONS[0]).text
    assert cli_verify.main([str(tmp_path / "second"), "--checkpoint", str(tmp_path / "gptq")]) == 0


def test_other_bits_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ExportError, match="prefill_bits must be 8 or 16, not 4"):
        export_bundle(Checkpoint.open(DEMO_CHECKPOINT), tmp_path / "b", ExportOptions(prefill_bits=4))  # type: ignore[arg-type]
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(DEMO_CHECKPOINT), "-o", str(tmp_path / "b"), "--prefill-bits", "4"])
    assert stopped.value.code == 2
    assert "--prefill-bits" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    both = [str(DEMO_CHECKPOINT), "-o", str(tmp_path / "b"), "--prefill-bits", "8", "--activation-bits", "32"]
    assert cli.main(both) == 1
    assert "excludes activation_bits 32: leave one out" in capsys.readouterr().err


def test_fewer_tokens_to_calibrate_with(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    options = ExportOptions(prefill_bits=8, calibration_tokens=300)
    manifest = export_bundle(Checkpoint.open(checkpoints("tiny")), tmp_path / "bundle", options).manifest
    assert 300 <= manifest.prefill_quantization.calibration_tokens < 1500


def test_weights_that_are_no_numbers_are_refused(checkpoints: Callable[..., Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoints("tiny"), tmp_path / "checkpoint"))
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.1.mlp.up_proj.weight") and "vision" not in name)
    tensors[name][3, 3] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"up_proj\.weight holds NaN or infinity"):
        export_bundle(Checkpoint.open(folder), tmp_path / "bundle", ExportOptions(prefill_bits=8))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bits": 16}, "prefill_quantization.bits is 16, but decoder-prefill.onnx is listed"),
        ({"bits": 4}, "prefill_quantization.bits is 4, not one of 8, 16"),
        ({"calibration_tokens": -5}, "prefill_quantization.calibration_tokens is -5, below 0"),
        ({"relative_error": -3.0}, "prefill_quantization.relative_error is -3.0, out of bounds"),
        ({"relative_error": 1e300}, "prefill_quantization.relative_error is 1e+300, out of bounds"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    demo: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    bundle = Path(shutil.copytree(demo, tmp_path / "bundle"))
    reseal(bundle, lambda data: data["prefill_quantization"].update(change))
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle)
    assert message in str(caught.value)


def test_a_graph_with_other_names_is_refused(demo: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(demo, tmp_path / "bundle"))
    model = onnx.load(bundle / PREFILL_GRAPH, load_external_data=False)
    del model.graph.output[-1]
    (bundle / PREFILL_GRAPH).write_bytes(model.SerializeToString())
    reseal(bundle)
    with pytest.raises(BundleError, match=r"prefill\.onnx has other inputs, outputs or sizes than bundle\.json says"):
        VideoLlama3.load(bundle)


def test_logits_are_void_until_the_answer_begins(exported: tuple[Checkpoint, Path]) -> None:
    checkpoint, folder = exported
    spec = text_spec(checkpoint.config.text)
    inputs = random_inputs(spec.hidden_size, 9)
    for decoder in decoders(folder, spec):
        decoder.prefill(inputs, logits=False)
        for result in ("logits", "token"):
            with pytest.raises(RuntimeError, match="no logits"):
                getattr(decoder, result)
        decoder.rewind(8)
        decoder.prefill(inputs[8:])
        assert decoder.token == int(decoder.logits.argmax())
