from __future__ import annotations

import numpy as np
import pytest
import torch
from quantized import random_sequences

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.decoder import TextDecoder
from vl3edge.models.synthetic.random import preset, write_random_checkpoint
from vl3edge.models.tensor_names import DECODER, LM_HEAD
from vl3edge.quant import comparison
from vl3edge.quant.comparison import compare
from vl3edge.quant.decoder import quantize_decoder
from vl3edge.quant.dequantized import DequantizedCheckpoint
from vl3edge.quant.plan import LINEARS, QuantizationPlan


@pytest.fixture(scope="module", params=["tiny", "tiny-untied"])
def checkpoint(request, tmp_path_factory) -> Checkpoint:
    return Checkpoint.open(write_random_checkpoint(tmp_path_factory.mktemp("random"), preset(request.param)))


@pytest.mark.parametrize("head_bits", [None, 4])
@torch.inference_mode()
def test_figures_are_those_of_two_whole_decoders(checkpoint, tmp_path, monkeypatch, head_bits):
    monkeypatch.setattr(comparison, "_POSITIONS", 16)
    plan = QuantizationPlan(method="rtn", group_size=16, head_bits=head_bits)
    linears = quantize_decoder(checkpoint, [], plan, tmp_path)
    sequences = random_sequences(checkpoint.config.text.hidden_size)
    result = compare(checkpoint, linears, sequences)

    original, changed = TextDecoder.from_checkpoint(checkpoint), TextDecoder.from_checkpoint(checkpoint)
    changed.lm_head.weight = torch.nn.Parameter(changed.lm_head.weight.clone())
    for name in linears.names:
        own = "lm_head" if name == "lm_head" else name.removeprefix(DECODER)
        changed.get_submodule(own).weight = torch.nn.Parameter(torch.from_numpy(linears.linear(name).dequantized()))
    kl, same = [], []
    for sequence in sequences:
        x = torch.from_numpy(sequence.embeddings)[None]
        p, q = (torch.log_softmax(decoder(x)[0][0].double(), -1) for decoder in (original, changed))
        counts = slice(None) if sequence.weights is None else torch.from_numpy(sequence.weights > 0)
        kl.append((p.exp() * (p - q)).sum(-1)[counts])
        same.append((p.argmax(-1) == q.argmax(-1)).double()[counts])
    kl, same = torch.cat(kl), torch.cat(same)
    assert result.positions == len(kl)
    assert result.kl == pytest.approx(float(kl.mean()), rel=1e-3)
    assert result.kl_p99 == pytest.approx(float(kl.quantile(0.99)), rel=1e-3)
    assert result.top1 == pytest.approx(float(same.mean()), abs=1e-9)
    assert 0.001 < result.kl < 5


@torch.inference_mode()
def test_the_dequantized_decoder_has_the_quantized_weights(checkpoint, tmp_path):
    linears = quantize_decoder(checkpoint, [], QuantizationPlan(method="rtn", group_size=16), tmp_path)
    view = DequantizedCheckpoint(checkpoint, linears)
    decoder = view.decoder()
    assert LM_HEAD in view
    for name in (f"layers.1.{part}" for part in LINEARS):
        expected = linears.linear(DECODER + name).dequantized()
        assert np.array_equal(decoder.get_submodule(name).weight.numpy(), expected), name
        assert np.array_equal(view.decoder_layer(1).get_submodule(name[9:]).weight.numpy(), expected), name
    assert np.array_equal(decoder.lm_head.weight.numpy(), linears.linear("lm_head").dequantized())
    assert torch.equal(decoder.embed_tokens.weight, checkpoint.tensor(f"{DECODER}embed_tokens.weight"))
    assert torch.equal(decoder.norm.weight, checkpoint.tensor(f"{DECODER}norm.weight"))


def test_an_unchanged_decoder_diverges_by_nothing(checkpoint):
    class Nothing:
        names = ()
        errors = {}  # noqa: RUF012

    result = compare(checkpoint, Nothing(), random_sequences(checkpoint.config.text.hidden_size))
    assert (result.kl, result.kl_p99, result.top1) == (0.0, 0.0, 1.0)
