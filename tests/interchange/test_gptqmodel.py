"""GPTQ checkpoints between vl3edge and GPTQModel, in both directions, on numbers.

GPTQModel pins other versions than the rest of the tests can live with, so `make test-interchange` runs this file in an
environment of its own; without GPTQModel it is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")
gptqmodel = pytest.importorskip("gptqmodel")

import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402
from transformers import GPTQConfig  # noqa: E402

from vl3edge.models.checkpoint import Checkpoint  # noqa: E402
from vl3edge.models.decoder import TextDecoder  # noqa: E402
from vl3edge.models.demo.stock import VideoLlama3ForConditionalGeneration  # noqa: E402
from vl3edge.models.synthetic.random import preset, write_random_checkpoint  # noqa: E402
from vl3edge.models.tensor_names import DECODER  # noqa: E402
from vl3edge.quant.decoder import quantize_decoder  # noqa: E402
from vl3edge.quant.dequantized import DequantizedCheckpoint  # noqa: E402
from vl3edge.quant.gptq_reader import GptqLinears  # noqa: E402
from vl3edge.quant.gptq_writer import write_gptq_checkpoint  # noqa: E402
from vl3edge.quant.plan import QuantizationPlan  # noqa: E402
from vl3edge.quant.sequences import CalibrationSequence  # noqa: E402

_TOLERANCE = 5e-3  # weights and their sums are float16 in GPTQModel's plain kernel


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint.open(write_random_checkpoint(tmp_path_factory.mktemp("random"), preset("tiny-128")))


def embeddings(checkpoint: Checkpoint, seed: int = 0) -> torch.Tensor:
    shape = (1, 24, checkpoint.config.text.hidden_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(got: torch.Tensor, wanted: torch.Tensor) -> None:
    difference = (got.float() - wanted).abs() / wanted.square().mean().sqrt()
    assert difference.mean() < _TOLERANCE, f"max {difference.max():.2e}, mean {difference.mean():.2e}"


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric", "zero_format"),
    [(4, 32, True, "v1"), (4, 128, True, "v1"), (4, 32, False, "v1"), (4, 64, False, "v2"), (8, 32, True, "v1")],
)
@torch.inference_mode()
def test_ours_loads_in_transformers_with_gptqmodel(
    checkpoint: Checkpoint, tmp_path: Path, bits: int, group_size: int, symmetric: bool, zero_format: Any
) -> None:
    """transformers' own class of the whole model, through optimum and GPTQModel's kernels, gives our logits."""
    plan = QuantizationPlan(bits=bits, group_size=group_size, symmetric=symmetric, head_bits=None)
    sequence = CalibrationSequence(embeddings(checkpoint, 1)[0].numpy())
    linears = quantize_decoder(checkpoint, [sequence], plan, tmp_path / "work")
    folder = write_gptq_checkpoint(checkpoint, linears, tmp_path / "out", zero_format)
    # The default kernel rounds activations to bfloat16.
    settings = GPTQConfig(bits=bits, backend="torch")
    model = VideoLlama3ForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, device_map="cpu", quantization_config=settings
    )
    quantized = [name for name, module in model.named_modules() if hasattr(module, "qweight")]
    assert len(quantized) == 7 * checkpoint.config.text.num_layers
    assert all("language_model.layers" in name for name in quantized)
    x = embeddings(checkpoint)
    mask = torch.ones(x.shape[:2], dtype=torch.long)
    wanted, _ = DequantizedCheckpoint(checkpoint, linears).decoder()(x)
    assert_close(model(inputs_embeds=x, attention_mask=mask).logits, wanted)


@pytest.mark.parametrize(
    ("bits", "desc_act", "symmetric", "zero_format"),
    [(4, False, True, "gptq"), (4, True, True, "gptq"), (4, True, False, "gptq_v2"), (8, True, True, "gptq")],
)
def test_gptqmodel_s_checkpoint_is_read(
    checkpoint: Checkpoint, tmp_path: Path, bits: int, desc_act: bool, symmetric: bool, zero_format: str
) -> None:
    """A decoder that GPTQModel quantized as a Qwen2 model, put into a VideoLLaMA3 checkpoint, computes the same."""
    source = _as_qwen2(checkpoint, tmp_path / "qwen2")
    generator = torch.Generator().manual_seed(2)
    rows = [torch.randint(320, (48,), generator=generator).tolist() for _ in range(24)]
    config = gptqmodel.QuantizeConfig(
        bits=bits, group_size=32, desc_act=desc_act, sym=symmetric, format=zero_format, act_group_aware=False,
        pack_impl="original",
    )  # fmt: skip
    model = gptqmodel.GPTQModel.load(str(source), config, device="cpu")
    model.quantize([{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], batch_size=1)
    model.save(str(tmp_path / "quantized"))
    read = Checkpoint.open(_as_video_llama(checkpoint, tmp_path / "quantized", tmp_path / "whole"))
    linears = GptqLinears(read)
    assert len(linears.names) == 7 * checkpoint.config.text.num_layers
    assert (linears.linear(linears.names[0]).order is not None) == desc_act

    # It would dequantize to bfloat16 by itself.
    theirs = gptqmodel.GPTQModel.load(
        str(tmp_path / "quantized"), device="cpu", backend=gptqmodel.BACKEND.TORCH, dtype=torch.float16
    )
    for name in linears.names:
        weight = theirs.model.model.get_submodule(name.removeprefix(DECODER)).dequantize_weight().T.float().numpy()
        difference = np.abs(weight - linears.linear(name).dequantized())
        assert difference.max() <= 2**-11 * np.abs(weight).max(), f"{name}: max {difference.max():.2e}"
    x = embeddings(checkpoint)
    with torch.inference_mode():
        wanted, _ = DequantizedCheckpoint(read, linears).decoder()(x)
        got = theirs.model(inputs_embeds=x.half()).logits
        original, _ = TextDecoder.from_checkpoint(checkpoint)(x)
    assert_close(got, wanted)
    changed = (wanted - original).square().mean().sqrt() / original.square().mean().sqrt()
    assert changed > 3 * _TOLERANCE if bits == 4 else changed < 0.05, f"{changed:.3f}"


def _as_qwen2(checkpoint: Checkpoint, folder: Path) -> Path:
    """The decoder as a text model that GPTQModel knows, in float16."""
    from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    text = checkpoint.config.text
    config = Qwen2Config(
        vocab_size=text.vocab_size, hidden_size=text.hidden_size, intermediate_size=text.intermediate_size,
        num_hidden_layers=text.num_layers, num_attention_heads=text.num_heads, head_dim=text.head_dim,
        num_key_value_heads=text.num_kv_heads, rope_theta=text.rope_theta, tie_word_embeddings=True,
        max_position_embeddings=text.max_position_embeddings,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    state = TextDecoder.from_checkpoint(checkpoint).state_dict()
    prefixed = {name if name.startswith("lm_head") else f"model.{name}": value for name, value in state.items()}
    model.load_state_dict(prefixed)
    model.half().save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(checkpoint.folder / "tokenizer.json"))
    tokenizer.pad_token = tokenizer.eos_token = "<|im_end|>"
    tokenizer.save_pretrained(folder)
    return folder


def _as_video_llama(checkpoint: Checkpoint, quantized: Path, folder: Path) -> Path:
    """The VideoLLaMA3 checkpoint with GPTQModel's decoder in place of its own."""
    shutil.copytree(checkpoint.folder, folder)
    tensors = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in tensors.items() if not name.startswith(DECODER)}
    for shard in quantized.glob("*.safetensors"):
        for name, value in load_file(shard).items():
            if not name.startswith("lm_head"):
                kept[DECODER + name.removeprefix("model.")] = value
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    facts = json.loads((quantized / "config.json").read_text())["quantization_config"]
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": facts}))
    return folder


def test_both_fixtures_are_one_model(checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Guards the test itself: the Qwen2 model computes what the decoder does."""
    from transformers import Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(_as_qwen2(checkpoint, tmp_path / "qwen2"), dtype=torch.float32)
    x = embeddings(checkpoint)
    with torch.inference_mode():
        wanted, _ = TextDecoder.from_checkpoint(checkpoint)(x)
        assert_close(model(inputs_embeds=x).logits, wanted)
