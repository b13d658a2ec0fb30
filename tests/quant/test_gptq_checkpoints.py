"""GPTQ checkpoints, written and read back, and read as others write them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from quantized import random_linear
from safetensors.torch import load_file, save_file

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.errors import CheckpointError
from vl3edge.models.synthetic.random import preset, write_random_checkpoint
from vl3edge.models.tensor_names import DECODER, stored_name
from vl3edge.quant import gptq_writer
from vl3edge.quant.errors import QuantError
from vl3edge.quant.gptq_reader import GptqLinears
from vl3edge.quant.gptq_writer import write_gptq_checkpoint
from vl3edge.quant.plan import LINEARS


class Linears:
    """Random quantized layers for every linear of a decoder."""

    def __init__(self, checkpoint, bits=4, group_size=32, symmetric=False, permuted=False):
        self._linears = {}
        for index in range(checkpoint.config.text.num_layers):
            for name in LINEARS:
                stem = f"{DECODER}layers.{index}.{name}"
                out, columns = checkpoint.shape(f"{stem}.weight")
                self._linears[stem] = random_linear(
                    bits(stem) if callable(bits) else bits, group_size, symmetric=symmetric, permuted=permuted,
                    out=out, columns=columns, seed=len(self._linears),
                )  # fmt: skip

    @property
    def names(self):
        return (*self._linears, "lm_head")

    def linear(self, name):
        return self._linears[name]


@pytest.fixture(scope="module", params=["transformers", "authors"])
def source(request, tmp_path_factory) -> Checkpoint:
    folder = tmp_path_factory.mktemp(request.param)
    return Checkpoint.open(write_random_checkpoint(folder, preset("tiny", request.param), dtype="bfloat16"))


def edit_config(folder, **changes):
    for file in ("config.json", "quantize_config.json"):
        values = json.loads((folder / file).read_text())
        section = values["quantization_config"] if file == "config.json" else values
        section.update(changes)
        for key in [key for key, value in section.items() if value is None]:
            del section[key]
        (folder / file).write_text(json.dumps(values))


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("zero_format", ["v1", "v2"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (8, 32), (3, 16), (4, -1)])
def test_written_checkpoints_read_back_the_same(source, tmp_path, bits, group_size, symmetric, zero_format, permuted):
    linears = Linears(source, bits, group_size, symmetric, permuted)
    folder = write_gptq_checkpoint(source, linears, tmp_path / "out", zero_format)
    checkpoint = Checkpoint.open(folder)
    result = GptqLinears(checkpoint)
    assert result.zero_format == zero_format
    assert set(result.names) == set(linears.names) - {"lm_head"}
    for name in result.names:
        written, read = linears.linear(name), result.linear(name)
        assert np.array_equal(read.dequantized(), written.dequantized()), name
        assert read.bits == bits
        assert (read.order is not None) == (permuted and group_size > 0)
    values = checkpoint.config.quantization
    assert (values["bits"], values["group_size"], values["sym"]) == (bits, group_size, symmetric)
    assert values["desc_act"] == permuted
    assert values == json.loads((folder / "quantize_config.json").read_text())


def test_everything_else_is_kept(source, tmp_path):
    folder = write_gptq_checkpoint(source, Linears(source), tmp_path / "out")
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.layout == source.layout
    linear_names = {f"{DECODER}layers.{i}.{n}.weight" for i in range(3) for n in LINEARS}
    assert linear_names.isdisjoint(checkpoint.names)
    for name in set(source.names) - linear_names:
        before, after = source.tensor(name), checkpoint.tensor(name)
        if name.endswith("_proj.bias") and ".language_model." in name:
            assert after.dtype == torch.float16
            assert torch.equal(before.half(), after), name
        else:
            assert torch.equal(before, after), name
            assert before.dtype == after.dtype
    weights = {path.name for path in folder.glob("*.safetensors")}
    assert {p.name for p in folder.iterdir()} - weights - {"quantize_config.json"} == {
        p.name for p in source.folder.iterdir() if not p.name.startswith("model")
    }
    config = json.loads((folder / "config.json").read_text())
    block = config["quantization_config"]["block_name_to_quantize"]
    assert block == ("model.language_model.layers" if source.layout == "transformers" else "model.layers")
    del config["quantization_config"]
    assert config == json.loads((source.folder / "config.json").read_text())
    name = f"{DECODER}layers.0.self_attn.q_proj"
    bias = GptqLinears(checkpoint).linear(name).bias
    assert np.array_equal(bias, source.tensor(f"{name}.bias").half().float().numpy())


def test_layers_of_different_widths(source, tmp_path):
    linears = Linears(source, bits=lambda name: 8 if "down_proj" in name else 4)
    checkpoint = Checkpoint.open(write_gptq_checkpoint(source, linears, tmp_path / "out"))
    result = GptqLinears(checkpoint)
    for name in result.names:
        assert np.array_equal(result.linear(name).dequantized(), linears.linear(name).dequantized()), name
    rules = checkpoint.config.quantization["dynamic"]
    assert checkpoint.config.quantization["bits"] == 4
    assert list(rules.values()) == [{"bits": 8}] * 3
    import re

    names = [stored_name(name, source.layout) for name in result.names]
    matched = {name for name in names for rule in rules if re.match(rule.removeprefix("+:"), name)}
    assert matched == {name for name in names if name.endswith("down_proj")}


@pytest.fixture
def uneven(tmp_path) -> Checkpoint:
    """A checkpoint whose layers read 96 or 192 inputs."""
    config = preset("tiny")
    config = replace(config, text=replace(config.text, num_heads=3, num_kv_heads=1, intermediate_size=192))
    return Checkpoint.open(write_random_checkpoint(tmp_path / "source", config))


def test_groups_as_wide_as_some_layers_are_no_whole_rows(uneven, tmp_path):
    folder = write_gptq_checkpoint(uneven, Linears(uneven, 4, 96), tmp_path / "out")
    assert Checkpoint.open(folder).config.quantization["group_size"] == 96


def test_several_group_sizes_are_refused(uneven, tmp_path):
    mixed = Linears(uneven, 4, -1)
    mixed._linears[f"{DECODER}layers.0.mlp.down_proj"] = random_linear(4, 64, symmetric=True, out=96, columns=192)
    with pytest.raises(QuantError, match=r"one group size, and these layers have \[64, 96, 192\]"):
        write_gptq_checkpoint(uneven, mixed, tmp_path / "out")


def test_shards(source, tmp_path, monkeypatch):
    monkeypatch.setattr(gptq_writer, "_SHARD_BYTES", 100_000)
    linears = Linears(source)
    folder = write_gptq_checkpoint(source, linears, tmp_path / "out")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    result = GptqLinears(Checkpoint.open(folder))
    for name in result.names:
        assert np.array_equal(result.linear(name).dequantized(), linears.linear(name).dequantized()), name


def test_a_missing_g_idx_means_groups_in_order(source, tmp_path):
    linears = Linears(source)
    folder = write_gptq_checkpoint(source, linears, tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith("g_idx")}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    result = GptqLinears(Checkpoint.open(folder))
    for name in result.names:
        assert np.array_equal(result.linear(name).dequantized(), linears.linear(name).dequantized()), name


@pytest.mark.parametrize(("written", "label"), [("v1", "gptq_v2"), ("v2", "gptq")])
def test_a_symmetric_checkpoint_with_the_wrong_label_is_read_right(source, tmp_path, written, label):
    linears = Linears(source, symmetric=True)
    folder = write_gptq_checkpoint(source, linears, tmp_path / "out", written)
    edit_config(folder, checkpoint_format=label)
    result = GptqLinears(Checkpoint.open(folder))
    assert result.zero_format == written
    for name in result.names:
        assert np.array_equal(result.linear(name).dequantized(), linears.linear(name).dequantized()), name


@pytest.mark.parametrize(("written", "label"), [("v1", "gptq_v2"), ("v2", "gptq")])
def test_an_asymmetric_one_is_believed_with_a_warning(source, tmp_path, written, label):
    linears = Linears(source)
    for name in linears.names[:-1]:  # zero points as of weights around zero, not all over the range
        zeros = linears.linear(name).zeros
        zeros[...] = np.random.default_rng(0).normal(7.5, 1.5, zeros.shape).round().clip(1, 15)
    folder = write_gptq_checkpoint(source, linears, tmp_path / "out", written)
    assert GptqLinears(Checkpoint.open(folder)).zero_format == written
    edit_config(folder, checkpoint_format=label)
    with pytest.warns(UserWarning, match="change checkpoint_format"):
        assert GptqLinears(Checkpoint.open(folder)).zero_format != written


def test_what_cannot_be_read_is_refused_by_name(source, tmp_path):
    folder = write_gptq_checkpoint(source, Linears(source, symmetric=False), tmp_path / "out")
    checkpoint = Checkpoint.open(folder)
    plain = source.config
    for changes, message in (
        ({"quant_method": "awq"}, "quantized by 'awq'; only 'gptq' can be read"),
        ({"checkpoint_format": "marlin"}, "format 'marlin' is unknown; 'gptq' and 'gptq_v2' can be read"),
        ({"sym": True}, "sym should be false, or the checkpoint is damaged"),
    ):
        checkpoint.config = replace(plain, quantization={**checkpoint.config.quantization, **changes})
        with pytest.raises(QuantError, match=message):
            GptqLinears(checkpoint)
        checkpoint.config = Checkpoint.open(folder).config
    unquantized = Checkpoint.open(source.folder)
    unquantized.config = replace(plain, quantization={"bits": 4})
    with pytest.raises(QuantError, match="no layer of the decoder is quantized"):
        GptqLinears(unquantized)
    edit_config(folder, quant_method="bitsandbytes")
    with pytest.raises(CheckpointError, match="quantized by 'bitsandbytes'; of those, only 'gptq' can be read"):
        Checkpoint.open(folder)


def test_damaged_layers_are_named(source, tmp_path):
    folder = write_gptq_checkpoint(source, Linears(source), tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    broken = f"{DECODER}layers.1.mlp.up_proj"
    tensors[stored_name(f"{broken}.scales", source.layout)][0, 0] = torch.nan
    other = f"{DECODER}layers.2.mlp.up_proj"
    tensors[stored_name(f"{other}.g_idx", source.layout)][:5] = 77
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    result = GptqLinears(Checkpoint.open(folder))
    with pytest.raises(QuantError, match=r"layers\.1\.mlp\.up_proj\.scales holds NaN"):
        result.linear(broken)
    with pytest.raises(QuantError, match=r"layers\.2\.mlp\.up_proj: g_idx does not split"):
        result.linear(other)


def test_nothing_is_left_when_writing_fails(source, tmp_path):
    linears = Linears(source)
    linears.linear(f"{DECODER}layers.2.mlp.up_proj").zeros[0, 0] = 0
    with pytest.raises(QuantError, match="write v2"):
        write_gptq_checkpoint(source, linears, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(
        QuantError, match="exists and will not be overwritten; choose another folder for the GPTQ checkpoint"
    ):
        write_gptq_checkpoint(source, linears, tmp_path / "out")
