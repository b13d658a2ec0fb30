"""The end-to-end cost of quantization: next-token distributions of the quantized and the float32 decoder compared.

Both decoders run side by side, layer by layer, so even the largest model needs memory for only two layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.decoder import DecoderLayer, RMSNorm, rotary
from vl3edge.models.divergence import kl_divergence
from vl3edge.models.tensor_names import DECODER, LM_HEAD

from .dequantized import DequantizedCheckpoint, Linears
from .sequences import CalibrationSequence, check_sequences

_POSITIONS = 128  # tokens whose logits are in memory at once: three arrays of 152k floats each


@dataclass(frozen=True)
class Comparison:
    """Averages over the positions that count.

    positions: how many. kl: mean KL(float32 || quantized) of the next token, in nats. kl_p99: its 99th percentile.
    top1: share of positions where both rank the same token first.
    """

    positions: int
    kl: float
    kl_p99: float
    top1: float


@torch.inference_mode()
def compare(
    checkpoint: Checkpoint, linears: Linears, sequences: Sequence[CalibrationSequence], device: str = "cpu"
) -> Comparison:
    """Compares the checkpoint's decoder with the same decoder using `linears`, on held-out sequences.

    Positions of weight 0 are ignored. Raises QuantError for sequences that do not fit the checkpoint.
    """
    text = checkpoint.config.text
    check_sequences(sequences, text.hidden_size)
    quantized = DequantizedCheckpoint(checkpoint, linears)
    longest = max(len(sequence.embeddings) for sequence in sequences)
    states = [torch.from_numpy(sequence.embeddings).to(device) for sequence in sequences]
    changed = list(states)
    with torch.device(device):
        cos, sin = (table.to(device) for table in rotary(text, 0, longest))
        for index in range(text.num_layers):
            for layer, hidden in (
                (DecoderLayer.from_checkpoint(checkpoint, index).to(device), states),
                (quantized.decoder_layer(index).to(device), changed),
            ):
                for i, x in enumerate(hidden):
                    hidden[i] = layer(x[None], (cos[: len(x)], sin[: len(x)]))[0][0]
        return _compare_heads(checkpoint, quantized, sequences, states, changed)


def final_norm(checkpoint: Checkpoint) -> RMSNorm:
    """The norm before the output head, in CPU memory."""
    text = checkpoint.config.text
    norm = RMSNorm(text.hidden_size, text.rms_norm_eps)
    weight = checkpoint.tensor(f"{DECODER}norm.weight", torch.float32)
    norm.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
    return norm


def _compare_heads(
    checkpoint: Checkpoint,
    quantized: DequantizedCheckpoint,
    sequences: Sequence[CalibrationSequence],
    states: Sequence[torch.Tensor],
    changed: Sequence[torch.Tensor],
) -> Comparison:
    device = states[0].device
    norm = final_norm(checkpoint).to(device)
    head = checkpoint.tensor(LM_HEAD, torch.float32).to(device)
    other = quantized.tensor(LM_HEAD, torch.float32).to(device) if LM_HEAD in quantized else head
    divergences, agreements = [], []
    for sequence, a, b in zip(sequences, states, changed, strict=True):
        counts = torch.ones(len(a), dtype=torch.bool)
        if sequence.weights is not None:
            counts = torch.from_numpy(sequence.weights > 0)
        for x, y in zip(norm(a)[counts].split(_POSITIONS), norm(b)[counts].split(_POSITIONS), strict=True):
            p, q = torch.log_softmax(x @ head.T, -1), torch.log_softmax(y @ other.T, -1)
            divergences.append(kl_divergence(p, q).double().cpu())
            agreements.append((p.argmax(-1) == q.argmax(-1)).double().cpu())
    kl, same = torch.cat(divergences), torch.cat(agreements)
    return Comparison(len(kl), float(kl.mean()), float(kl.quantile(0.99)), float(same.mean()))
