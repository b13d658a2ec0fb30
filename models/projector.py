"""The projector: merges features into visual tokens and maps the kept ones to the decoder's width."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .checkpoint import Checkpoint
from .config import ModelConfig
from .tensor_names import PROJECTOR
from .weight_map import Linear, WeightSource, as_stored, linear_weights, load, transposed


class Projector(nn.Module):
    """features float32 [F, h, w, C], keep int64 [K] -> visual tokens float32 [K, D], for one merge size m.

    keep: flat indices into the [F, h/m, w/m] grid of merged tokens, in row-major order. h and w are multiples of m.
    """

    def __init__(self, config: ModelConfig, merge_size: int) -> None:
        super().__init__()
        self.merge_size = merge_size
        width = config.text.hidden_size
        self.first = Linear(config.vision.hidden_size, width)
        self.second = Linear(width, width)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, merge_size: int) -> Projector:
        with torch.device("meta"):
            projector = cls(checkpoint.config, merge_size)
        load(projector, projector.sources(), checkpoint)
        return projector

    def sources(self) -> dict[str, WeightSource]:
        linear = linear_weights(self)
        parts = {"first": "readout.0", "second": "readout.2"}
        sources = {}
        for name, _ in self.named_parameters():
            layer, _, leaf = name.partition(".")
            transform = transposed if name in linear else as_stored
            sources[name] = WeightSource(f"{PROJECTOR}{parts[layer]}.{leaf}", transform)
        return sources

    def forward(self, features: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        kept = self.merge(features).index_select(0, keep)
        tokens: torch.Tensor = self.second(F.gelu(self.first(kept)))
        return tokens

    def merge(self, features: torch.Tensor) -> torch.Tensor:
        """[F, h, w, C] -> [F · h/m · w/m, C], as bilinear interpolation to exactly 1/m without antialiasing.

        Its sampling points are the blocks' centres: the middle patch for odd m, the mean of the middle four for even.
        """
        count, rows, columns, width = features.shape
        m = self.merge_size
        if m == 1:
            return features.reshape(-1, width)
        low, high = (m - 1) // 2, m // 2 + 1
        blocks = features.reshape(count, rows // m, m, columns // m, m, width)[:, :, low:high, :, low:high]
        return blocks.mean(dim=(2, 4)).reshape(-1, width)
