"""The outlier twin: the same model in float32, with outlier channels like those of large language models.

    python -m vl3edge.models.demo.twin CHECKPOINT FOLDER [--part decoder|vision] [--seed 0]

A model as small as the demo has activations of similar size, and loses little to rounding. Real language models have a
few channels tens of times larger than the rest. The twin gets some: the gain of an RMSNorm, or the output row of a
linear layer, is multiplied by a power of two, and the weight columns that read it are divided by it. The function does
not change by a bit in float32, but a weight group now mixes columns of very different sizes. The vision encoder can get
such channels too, before its LayerNorms' readers and its output projections.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors.torch import save_file

from vl3edge.runtime.cli.stderr import exit_status

from ..checkpoint import Checkpoint
from ..tensor_names import DECODER, VISION, stored_name

# Shares of channels that grow, and by which powers of two: few, and up to 64 times, as measured in models of this size
# (LLM.int8(), arXiv 2208.07339: outliers of 20 to 60 times in a handful of channels).
_LOUD_SHARE = 0.06
_POWERS = (3, 4, 5, 6)

Part = Literal["decoder", "vision"]


def write_outlier_twin(source: Checkpoint, folder: Path, seed: int = 0, part: Part = "decoder") -> Path:
    """Writes the twin of a checkpoint, in float32 and in its own layout, and returns `folder`, which is made.

    part: the one that gets outlier channels.
    """
    tensors = {name: source.tensor(name, torch.float32).clone() for name in source.names}
    rng = np.random.default_rng([seed, 9])
    if part == "decoder":
        for index in range(source.config.text.num_layers):
            _make_loud(tensors, f"{DECODER}layers.{index}.", source.config.text.head_dim, rng)
    else:
        for index in range(source.config.vision.num_layers):
            _make_vision_loud(tensors, f"{VISION}encoder.layers.{index}.", rng)
    folder.mkdir(parents=True)
    for path in source.folder.iterdir():
        if path.is_file() and not path.name.startswith("model"):
            shutil.copyfile(path, folder / path.name)
    stored = {stored_name(name, source.layout): tensor.contiguous() for name, tensor in tensors.items()}
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    return folder


def _make_loud(tensors: dict[str, torch.Tensor], layer: str, head_dim: int, rng: np.random.Generator) -> None:
    """Changes one decoder layer's tensors in place."""
    attention, mlp = f"{layer}self_attn.", f"{layer}mlp."
    for norm, readers in (
        (f"{layer}input_layernorm", [f"{attention}{part}_proj" for part in "qkv"]),
        (f"{layer}post_attention_layernorm", [f"{mlp}gate_proj", f"{mlp}up_proj"]),
    ):
        gain = tensors[f"{norm}.weight"]
        scale = _factors(len(gain), rng)
        gain *= scale
        for reader in readers:
            tensors[f"{reader}.weight"] /= scale
    up, down = tensors[f"{mlp}up_proj.weight"], tensors[f"{mlp}down_proj.weight"]
    scale = _factors(len(up), rng)
    up *= scale[:, None]
    down /= scale
    # A value head is read by several query heads, so its channels are larger in all of them.
    value, out = tensors[f"{attention}v_proj.weight"], tensors[f"{attention}o_proj.weight"]
    scale = _factors(len(value), rng)
    value *= scale[:, None]
    tensors[f"{attention}v_proj.bias"] *= scale
    repeats = out.shape[1] // len(value)
    out /= scale.reshape(-1, head_dim).repeat_interleave(repeats, dim=0).reshape(-1)


def _make_vision_loud(tensors: dict[str, torch.Tensor], layer: str, rng: np.random.Generator) -> None:
    """Changes one encoder layer's tensors in place."""
    attention = f"{layer}self_attn."
    for makers, readers in (
        ([f"{layer}layer_norm1.weight", f"{layer}layer_norm1.bias"], [f"{attention}{part}_proj" for part in "qkv"]),
        ([f"{layer}layer_norm2.weight", f"{layer}layer_norm2.bias"], [f"{layer}mlp.fc1"]),
        ([f"{attention}v_proj.weight", f"{attention}v_proj.bias"], [f"{attention}out_proj"]),
    ):
        scale = _factors(len(tensors[makers[0]]), rng)
        for maker in makers:
            tensors[maker] *= scale if tensors[maker].ndim == 1 else scale[:, None]
        for reader in readers:
            tensors[f"{reader}.weight"] /= scale


def _factors(channels: int, rng: np.random.Generator) -> torch.Tensor:
    """float32 [channels]: ones, and a few powers of two."""
    loud = rng.choice(channels, max(1, round(channels * _LOUD_SHARE)), replace=False)
    values = np.ones(channels)
    values[loud] = 2.0 ** rng.choice(_POWERS, len(loud))
    return torch.from_numpy(values).float()


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the outlier twin of a checkpoint.")
    parser.add_argument("checkpoint")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=("decoder", "vision"), default="decoder")
    options = parser.parse_args()
    print(write_outlier_twin(Checkpoint.open(options.checkpoint), options.folder, options.seed, options.part))


if __name__ == "__main__":
    sys.exit(exit_status(main))
