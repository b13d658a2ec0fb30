"""The whole decoder of a small random checkpoint, against one that is quantized the slow way with forward hooks."""

from __future__ import annotations

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from plain_gptq import plain_gptq
from quantized import random_sequences

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.decoder import TextDecoder
from vl3edge.models.synthetic.random import preset, write_random_checkpoint
from vl3edge.models.tensor_names import DECODER
from vl3edge.quant import decoder as decoders
from vl3edge.quant.decoder import HEAD, quantize_decoder
from vl3edge.quant.errors import QuantError
from vl3edge.quant.plan import GROUPS, LINEARS, QuantizationPlan
from vl3edge.quant.sequences import CalibrationSequence

PLAN = QuantizationPlan(group_size=32, symmetric=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return Checkpoint.open(write_random_checkpoint(tmp_path_factory.mktemp("random"), preset("tiny"), seed=2))


@pytest.fixture(scope="module")
def sequences() -> list[CalibrationSequence]:
    return random_sequences(96)


@pytest.fixture(scope="module")
def quantized(checkpoint, sequences, tmp_path_factory):
    return quantize_decoder(checkpoint, sequences, PLAN, tmp_path_factory.mktemp("work"))


def plain_inputs(decoder, sequences, name):
    """All inputs of the linear called name, float64 [tokens, in], and their weights, from whole forward passes."""
    seen, weights = [], []
    hook = decoder.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0][0].double()))
    for sequence in sequences:
        decoder(torch.from_numpy(sequence.embeddings).double()[None])
        size = len(sequence.embeddings)
        weights.append(np.ones(size) if sequence.weights is None else sequence.weights)
    hook.remove()
    return torch.cat(seen).numpy(), np.concatenate(weights)


@torch.inference_mode()
def test_every_layer_equals_plain_gptq_on_quantized_upstream_layers(checkpoint, sequences, quantized):
    decoder = TextDecoder.from_checkpoint(checkpoint).double()
    decoder.lm_head.weight = torch.nn.Parameter(decoder.lm_head.weight.clone())
    groups = [[f"layers.{i}.{n}" for n in group] for i in range(3) for group in GROUPS] + [[HEAD]]
    different = total = 0
    for group in groups:
        x, weights = plain_inputs(decoder, sequences, group[0])
        hessian = (x * weights[:, None]).T @ x / weights.sum()
        for name in group:
            result = quantized.linear(name if name == HEAD else DECODER + name)
            weight = decoder.get_submodule(name).weight
            expected = plain_gptq(
                weight.numpy(), hessian, result.scales, result.zeros, 2**result.bits - 1, act_order=True, damp=0.01
            )
            differing = int((expected != result.codes).sum())
            # float32 statistics may turn a tie, which changes the rest of that row.
            assert differing <= expected.size // 20, f"{name}: {differing} of {expected.size} codes differ"
            different, total = different + differing, total + expected.size
            decoder.get_submodule(name).weight = torch.nn.Parameter(torch.from_numpy(result.dequantized()).double())
    assert different < total // 200, f"{different} of {total} codes differ"


def test_names_bits_and_errors(checkpoint, quantized):
    expected = {f"{DECODER}layers.{i}.{name}" for i in range(3) for name in LINEARS} | {HEAD}
    assert set(quantized.names) == expected
    assert quantized.linear(HEAD).bits == 8
    assert quantized.linear(f"{DECODER}layers.1.mlp.down_proj").bits == 4
    bias = checkpoint.tensor(f"{DECODER}layers.2.self_attn.k_proj.bias")
    assert np.array_equal(quantized.linear(f"{DECODER}layers.2.self_attn.k_proj").bias, bias.numpy())
    for name, error in quantized.errors.items():
        assert 0 < error.gptq < error.rtn < error.signal, name


def assert_same(a, b):
    assert a.names == b.names
    for name in a.names:
        x, y = a.linear(name), b.linear(name)
        for field in ("codes", "scales", "zeros"):
            assert np.array_equal(getattr(x, field), getattr(y, field)), f"{name}.{field}"
        assert x.error == y.error


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("stop_after", [1, 2, 3, 4])
def test_an_interrupted_run_resumes_and_ends_the_same(checkpoint, sequences, quantized, tmp_path, stop_after):
    steps = []

    def interrupt(step):
        steps.append(step.name)
        if len(steps) == stop_after:
            raise Interrupted

    with pytest.raises(Interrupted):
        quantize_decoder(checkpoint, sequences, PLAN, tmp_path, progress=interrupt)
    done_before, steps[:] = list(steps), []
    result = quantize_decoder(checkpoint, sequences, PLAN, tmp_path, progress=lambda step: steps.append(step.name))
    # The layer whose hidden states had not been kept yet is done again.
    assert steps == [f"layers.{i}" for i in range(stop_after - 1, 3)] + ([HEAD] if stop_after < 4 else [])
    assert done_before == [f"layers.{i}" for i in range(3)][:stop_after] + ([HEAD] if stop_after == 4 else [])
    assert_same(result, quantized)


def test_a_folder_of_another_run_is_started_afresh(checkpoint, sequences, quantized, tmp_path):
    quantize_decoder(checkpoint, sequences[:1], PLAN, tmp_path)
    quantize_decoder(checkpoint, sequences, replace(PLAN, bits=3), tmp_path)
    assert_same(quantize_decoder(checkpoint, sequences, PLAN, tmp_path), quantized)


def test_progress_tells_what_is_left(checkpoint, sequences, tmp_path):
    steps = []
    quantize_decoder(checkpoint, sequences[:1], PLAN, tmp_path, progress=steps.append)
    assert [(step.name, step.done, step.total) for step in steps] == [
        ("layers.0", 1, 4), ("layers.1", 2, 4), ("layers.2", 3, 4), ("lm_head", 4, 4)
    ]  # fmt: skip
    assert all(step.seconds_left > 0 for step in steps[:-1])
    assert steps[-1].seconds_left == 0
    assert len(steps[0].errors) == 7


def test_round_to_nearest_needs_no_data_and_is_measured_with_some(checkpoint, sequences, tmp_path):
    plan = replace(PLAN, method="rtn", head_bits=None)
    blind = quantize_decoder(checkpoint, [], plan, tmp_path / "blind")
    measured = quantize_decoder(checkpoint, sequences, plan, tmp_path / "measured")
    assert HEAD not in blind
    assert blind.errors == {}
    name = f"{DECODER}layers.1.mlp.up_proj"
    assert np.array_equal(blind.linear(name).codes, measured.linear(name).codes)
    assert measured.errors[name].gptq == measured.errors[name].rtn > 0
    weight = checkpoint.tensor(f"{name}.weight").numpy()
    assert np.abs(blind.linear(name).dequantized() - weight).max() <= blind.linear(name).scales.max() * 0.502


def test_memory_is_that_of_one_layer(checkpoint, sequences, tmp_path, monkeypatch):
    """No two layers exist at a time."""
    alive = []
    original = decoders.DecoderLayer.from_checkpoint

    def counted(source, index):
        assert all(reference() is None for reference in alive[:-1]), "an earlier layer is still held"
        layer = original(source, index)
        alive.append(weakref.ref(layer))
        return layer

    monkeypatch.setattr(decoders.DecoderLayer, "from_checkpoint", counted)
    quantize_decoder(checkpoint, sequences[:1], PLAN, tmp_path)
    assert len(alive) == 3


def test_bad_input_is_refused_before_any_work(checkpoint, sequences, tmp_path):
    work = tmp_path / "work"
    cases = [
        ([], PLAN, "at least one sequence"),
        (sequences, replace(PLAN, group_size=64), r"weight: group size 64 does not divide 96 input columns"),
        ([CalibrationSequence(np.zeros((3, 95), np.float32))], PLAN, r"shape \(3, 95\), not \[tokens, 96\]"),
        ([CalibrationSequence(np.full((3, 96), np.nan, np.float32))], PLAN, "sequence 0 holds NaN"),
        ([CalibrationSequence(np.ones((3, 96), np.float32), -np.ones(3, np.float32))], PLAN, "weights must be 3"),
    ]
    for data, plan, message in cases:
        with pytest.raises(QuantError, match=message):
            quantize_decoder(checkpoint, data, plan, work)
    assert not work.exists()


def test_a_damaged_weight_is_named(sequences, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_random_checkpoint(tmp_path / "damaged", preset("tiny"), seed=2)
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{DECODER}layers.2.mlp.up_proj.weight"][5, 5] = torch.inf
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(QuantError, match=r"layers\.2\.mlp\.up_proj\.weight holds NaN or infinity"):
        quantize_decoder(Checkpoint.open(folder), sequences, PLAN, tmp_path / "work")
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "awq"}, "method must be 'gptq' or 'rtn'"),
        ({"bits": 5}, "bits must be one of 2, 3, 4, 8 or 'auto', not 5"),
        ({"head_bits": 16}, "head_bits must be one of 2, 3, 4, 8 or None"),
        ({"damp": 0.0}, "damp must be above 0"),
        ({"group_size": 0}, "group_size must be positive"),
        ({"average_bits": 3.0}, "average_bits must be from 4 to 8"),
    ],
)
def test_bad_plans(options, message):
    with pytest.raises(QuantError, match=message):
        QuantizationPlan(**options)
