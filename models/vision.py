"""The vision encoder as one torch module, from uint8 frames to features, shaped to be traced.

Normalization, patches and 2D rotary positions are included, so the traced graph takes only pixels. Frames are the
batch: a frame's patches attend to each other and to no other frame.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import nn
from torch.nn import functional as F

from .checkpoint import Checkpoint
from .config import ModelConfig, VisionConfig
from .rope import rotary_frequencies
from .tensor_names import VISION
from .weight_map import Linear, WeightSource, as_stored, linear_weights, load, transposed


class Attend(Protocol):
    """(query, key, value, each [F, N, C] with heads side by side; number of heads) -> [F, N, C]"""

    def __call__(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor: ...


class Rotate(Protocol):
    """([F, N, C], cos and sin [N, head_dim / 2], number of heads) -> [F, N, C], rotate-half within each head"""

    def __call__(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int) -> torch.Tensor: ...


class VisionOps(NamedTuple):
    """The two operations that an exporter may replace with something better than plain torch."""

    attend: Attend
    rotate: Rotate


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int) -> torch.Tensor:
    frames, patches, width = q.shape
    q, k, v = (x.reshape(frames, patches, num_heads, width // num_heads).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(frames, patches, width)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, num_heads: int) -> torch.Tensor:
    frames, patches, width = x.shape
    first, second = x.reshape(frames, patches, num_heads, width // num_heads).chunk(2, dim=-1)
    cos, sin = cos[:, None, :], sin[:, None, :]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).reshape(x.shape)


TORCH_OPS = VisionOps(attend, rotate)


class VisionLayer(nn.Module):
    """Pre-norm attention and MLP of the encoder."""

    def __init__(self, config: VisionConfig, ops: VisionOps) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.ops = ops
        self.approximate = "tanh" if config.hidden_act == "gelu_pytorch_tanh" else "none"
        self.layer_norm1 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.self_attn = nn.ModuleDict(
            {name: Linear(width, width) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        )
        self.layer_norm2 = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.mlp = nn.ModuleDict(
            {"fc1": Linear(width, config.intermediate_size), "fc2": Linear(config.intermediate_size, width)}
        )

    def forward(self, hidden: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """hidden [F, N, C], cos and sin [N, head_dim / 2] -> [F, N, C]"""
        x = self.layer_norm1(hidden)
        q = self.ops.rotate(self.self_attn["q_proj"](x), cos, sin, self.num_heads)
        k = self.ops.rotate(self.self_attn["k_proj"](x), cos, sin, self.num_heads)
        attended = self.ops.attend(q, k, self.self_attn["v_proj"](x), self.num_heads)
        hidden = hidden + self.self_attn["out_proj"](attended)
        x = self.mlp["fc1"](self.layer_norm2(hidden))
        return hidden + self.mlp["fc2"](F.gelu(x, approximate=self.approximate))


class VisionEncoder(nn.Module):
    """uint8 frames [F, H, W, 3] RGB -> features float32 [F, h, w, C] in raster order, h = H / patch, w = W / patch.

    H and W must be multiples of the patch size. As transformers computes them, up to and including the last LayerNorm.
    """

    inverse_frequencies: torch.Tensor
    pixel_scale: torch.Tensor
    pixel_offset: torch.Tensor

    def __init__(self, config: ModelConfig, ops: VisionOps = TORCH_OPS) -> None:
        super().__init__()
        vision = config.vision
        self.patch_size = vision.patch_size
        self.patch_embedding = Linear(vision.patch_size**2 * vision.num_channels, vision.hidden_size)
        self.layers = nn.ModuleList([VisionLayer(vision, ops) for _ in range(vision.num_layers)])
        self.post_layernorm = nn.LayerNorm(vision.hidden_size, eps=vision.layer_norm_eps)
        # (x / 255 - mean) / std as one multiplication and one addition; on the CPU even if the weights are meta.
        std = torch.tensor(config.image_std, dtype=torch.float64, device="cpu")
        mean = torch.tensor(config.image_mean, dtype=torch.float64, device="cpu")
        self.register_buffer("pixel_scale", (1 / (255 * std)).float(), persistent=False)
        self.register_buffer("pixel_offset", (-mean / std).float(), persistent=False)
        frequencies = rotary_frequencies(vision.rope_theta, vision.head_dim // 2, device="cpu")
        self.register_buffer("inverse_frequencies", frequencies, persistent=False)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> VisionEncoder:
        with torch.device("meta"):
            encoder = cls(checkpoint.config)
        load(encoder, encoder.sources(), checkpoint)
        return encoder

    def sources(self) -> dict[str, WeightSource]:
        """Where each parameter comes from; the patch embedding's rows are in the order in which `patches` reads."""
        linear = linear_weights(self)
        sources = {}
        for name, _ in self.named_parameters():
            canonical = name.replace("layers.", "encoder.layers.", 1)
            if name.startswith("patch_embedding."):
                canonical = f"embeddings.{name}"
            transform = transposed if name in linear else as_stored
            if name == "patch_embedding.weight":
                transform = _pixel_order
            sources[name] = WeightSource(VISION + canonical, transform)
        return sources

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        count, height, width, _ = frames.shape
        rows, columns = height // self.patch_size, width // self.patch_size
        cos, sin = self.rotary(rows, columns)
        hidden = self.patch_embedding(self.patches(frames)).reshape(count, rows * columns, -1)
        for layer in self.layers:
            hidden = layer(hidden, cos, sin)
        return self.post_layernorm(hidden).reshape(count, rows, columns, -1)

    def patches(self, frames: torch.Tensor) -> torch.Tensor:
        """[F, H, W, 3] uint8 -> pixels, normalized [F, h, w, patch · patch · 3], by (row, column, channel)."""
        count, height, width, channels = frames.shape
        size = self.patch_size
        pixels = frames.to(torch.float32) * self.pixel_scale + self.pixel_offset
        grid = pixels.reshape(count, height // size, size, width // size, size * channels).transpose(2, 3)
        return grid.reshape(count, height // size, width // size, size * size * channels)

    def rotary(self, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [rows · columns, head_dim / 2]: half of the pairs rotate by row, the others by column."""
        device, pairs = self.inverse_frequencies.device, self.inverse_frequencies.shape[0]
        by_row = torch.arange(rows, device=device).float()[:, None] * self.inverse_frequencies
        by_column = torch.arange(columns, device=device).float()[:, None] * self.inverse_frequencies
        angles = torch.cat(
            (
                by_row[:, None, :].expand(rows, columns, pairs),
                by_column[None, :, :].expand(rows, columns, pairs),
            ),
            dim=-1,
        ).reshape(rows * columns, 2 * pairs)
        return angles.cos(), angles.sin()


def _pixel_order(stored: torch.Tensor) -> torch.Tensor:
    """Convolution weights [C, channel, row, column] -> [row · column · channel, C]."""
    return stored.permute(2, 3, 1, 0).reshape(-1, stored.shape[0])
