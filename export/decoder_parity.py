"""Measures exported decoders against the torch layers, which run one at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.decoder import DecoderLayer, RMSNorm, rotary
from vl3edge.models.tensor_names import DECODER, EMBEDDINGS, LM_HEAD
from vl3edge.quant.dequantized import DequantizedCheckpoint
from vl3edge.runtime.bundle.file_names import DECODER_GRAPH, FP16_DECODER_GRAPH
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import DecoderGraph

from .calibrate.fp16_range import Fp16Range
from .graphs.decoder import text_spec
from .parity import Difference, load_session

_TOKENS = 48  # enough for rotary positions and masks to matter, cheap at full size


def check_decoder(
    checkpoint: Checkpoint | DequantizedCheckpoint,
    folder: Path,
    progress: Callable[[int, int], None],
    graphs: Sequence[str] = (DECODER_GRAPH,),
    head_ids: np.ndarray | None = None,
) -> dict[str, Difference]:
    """Logits of exported decoders against the torch layers, run one at a time, after a prefill and after a step.

    graphs: file names; the result is keyed by their stems. For a quantized decoder, the torch layers have the
    dequantized weights. The inputs are embeddings of tokens drawn from the whole vocabulary. head_ids: int64 [n], the
    tokens that have logits; None is all. progress: called with (layers done, in all). Raises ExportError for a decoder
    with values that float16 cannot hold, if one of the graphs computes in it.
    """
    config = checkpoint.config.text
    ids = torch.randint(config.vocab_size, (_TOKENS,), generator=torch.Generator().manual_seed(0))
    inputs = checkpoint.tensor(EMBEDDINGS)[ids].float()
    fp16_range = Fp16Range()
    (reference,) = reference_logits(checkpoint, [inputs], [2], progress, fp16_range)
    if FP16_DECODER_GRAPH in graphs:
        fp16_range.check("the decoder for GPUs runs")
    reference = reference if head_ids is None else reference[:, head_ids]
    checkpoint.release()  # its mapped weights and the session's need not be in memory together

    measured = {}
    for name in graphs:
        graph = DecoderGraph(load_session(folder / name, prepack=isinstance(checkpoint, DequantizedCheckpoint)))
        decoder = Decoder(graph, text_spec(config, head_ids))
        decoder.prefill(inputs[:-1].numpy())
        prefilled = decoder.logits[0].copy()
        decoder.step(inputs[-1:].numpy())
        measured[Path(name).stem] = Difference.between(np.stack([prefilled, decoder.logits[0]]), reference)
        del graph, decoder
    return measured


@torch.inference_mode()
def reference_logits(
    checkpoint: Checkpoint | DequantizedCheckpoint,
    sequences: Sequence[torch.Tensor],
    positions: Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
    fp16_range: Fp16Range | None = None,
    caches: list[list[np.ndarray]] | None = None,
) -> list[np.ndarray]:
    """Logits float32 [positions[k], vocab] of the last positions of each sequence of inputs [S, hidden].

    One layer is in memory at a time, and the head a block of rows at a time. progress: called with (layers done, in
    all). fp16_range: observes every layer. caches: filled with each sequence's keys and values, an array float32 [2,
    kv_heads, S, head_dim] per layer.
    """
    config = checkpoint.config.text
    hidden = [inputs[None] for inputs in sequences]
    all_cos_sin = [rotary(config, 0, len(inputs)) for inputs in sequences]
    for index in range(config.num_layers):
        layer = DecoderLayer.from_checkpoint(cast(Checkpoint, checkpoint), index)
        if fp16_range is not None:
            fp16_range.watch(layer, f"layers.{index}.")
        for number, cos_sin in enumerate(all_cos_sin):
            hidden[number], present = layer(hidden[number], cos_sin)
            if caches is not None:
                caches[number].append(torch.cat(present).numpy())
        progress(index + 1, config.num_layers)
    norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
    norm.weight.copy_(checkpoint.tensor(f"{DECODER}norm.weight"))
    last = torch.cat([norm(values[0, -count:]) for values, count in zip(hidden, positions, strict=True)])
    head = checkpoint.tensor(LM_HEAD)
    blocks = [last @ block.float().T for block in head.split(16384)]  # the whole head in float32 is a GB at full size
    return [part.numpy() for part in torch.cat(blocks, dim=1).split(list(positions))]
