from __future__ import annotations

import pytest
import torch
from quantized import random_sequences

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.decoder import DecoderLayer, rotary
from vl3edge.models.synthetic.random import preset, write_random_checkpoint
from vl3edge.models.tensor_names import DECODER
from vl3edge.quant.decoder import quantize_decoder
from vl3edge.quant.errors import QuantError
from vl3edge.quant.plan import DOWN, GATE_UP, GROUPS, LINEARS, OUT, QKV, QuantizationPlan
from vl3edge.quant.sensitivity import Sensitivity, choose_bits, measure
from vl3edge.quant.solver import round_to_nearest

PLAN = QuantizationPlan(bits="auto", average_bits=5.0, group_size=32)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    return Checkpoint.open(write_random_checkpoint(tmp_path_factory.mktemp("random"), preset("tiny")))


@torch.inference_mode()
def test_figures_are_changes_of_the_layers_output(checkpoint):
    sequence = random_sequences(96, lengths=(40,))
    found = measure(checkpoint, sequence, PLAN, torch.device("cpu"))
    assert [(s.layer, s.group) for s in found] == [(i, group) for i in range(3) for group in GROUPS]
    turn = rotary(checkpoint.config.text, 0, 40)
    hidden = torch.from_numpy(sequence[0].embeddings)[None]
    for index in range(3):
        layer = DecoderLayer.from_checkpoint(checkpoint, index)
        reference = layer(hidden, turn)[0]
        for sensitivity in found[4 * index : 4 * index + 4]:
            for bits, figure in ((4, sensitivity.low), (8, sensitivity.high)):
                changed = DecoderLayer.from_checkpoint(checkpoint, index)
                for name in sensitivity.group:
                    linear = changed.get_submodule(name)
                    rounded = round_to_nearest(linear.weight, PLAN.grid(bits)).dequantized()
                    linear.weight = torch.nn.Parameter(torch.from_numpy(rounded))
                change = (changed(hidden, turn)[0] - reference).square().sum(-1) / reference.square().sum(-1)
                assert figure == pytest.approx(float(change.mean()), rel=1e-4)
            assert sensitivity.high < 0.1 * sensitivity.low
        hidden = reference


def sensitivity(layer, group, weights, low):
    return Sensitivity(layer, group, weights, low, 0.0)


def test_the_budget_goes_to_what_gains_most_per_weight():
    found = [
        sensitivity(0, QKV, 30, 0.3),
        sensitivity(0, OUT, 10, 0.2),
        sensitivity(0, GATE_UP, 40, 0.1),
        sensitivity(0, DOWN, 20, 0.9),
        *(sensitivity(1, group, weights, 0.1) for group, weights in zip(GROUPS, (30, 10, 40, 20), strict=True)),
    ]
    first, second = choose_bits(found, average_bits=4.0 + 4 * 40 / 200)  # room for 40 of the 200 weights
    assert {name for name, bits in first.items() if bits == 8} == {*DOWN, *OUT}
    assert {name for name, bits in second.items() if bits == 8} == {*OUT}
    assert set(first) == set(second) == set(LINEARS)
    assert all(set(layer.values()) == {4} for layer in choose_bits(found, 4.0))
    assert all(set(layer.values()) == {8} for layer in choose_bits(found, 8.0))


def test_auto_stays_within_its_budget_and_resumes(checkpoint, tmp_path):
    sequences = random_sequences(96)

    def stop(step):
        raise InterruptedError

    with pytest.raises(InterruptedError):
        quantize_decoder(checkpoint, sequences, PLAN, tmp_path / "a", progress=stop)
    resumed = quantize_decoder(checkpoint, sequences, PLAN, tmp_path / "a")
    whole = quantize_decoder(checkpoint, sequences, PLAN, tmp_path / "b")
    bits, weights = [], []
    for name in resumed.names:
        a, b = resumed.linear(name), whole.linear(name)
        assert a.bits == b.bits
        assert (a.codes == b.codes).all()
        if name.startswith(DECODER):
            bits.append(a.bits)
            weights.append(a.codes.size)
    average = sum(b * w for b, w in zip(bits, weights, strict=True)) / sum(weights)
    assert 4.5 < average <= 5.0
    assert set(bits) == {4, 8}


def test_auto_needs_data_even_for_round_to_nearest(checkpoint, tmp_path):
    with pytest.raises(QuantError, match="calibration needs at least one sequence"):
        quantize_decoder(checkpoint, [], QuantizationPlan(method="rtn", bits="auto"), tmp_path / "work")
