"""The demo model: a VideoLLaMA3 of 1.7 M parameters, built from transformers' own classes.

The stock modules hold the weights. The forward passes here are batched over the same weights (frames are the encoder's
batch; the decoder takes any attention mask), several times faster for tiny frames than the stock loops; a test holds
them equal to the stock forward.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..rope import rotary_frequencies
from .render import COLOURS, GROUNDS, SHAPES, SIZE_PX
from .stock import VideoLlama3Config, VideoLlama3ForConditionalGeneration

PATCH_PX = 14
VOCABULARY = 448


def make_config(
    special: dict[str, int] | None = None, vision_width: int = 96, decoder_layers: int = 6
) -> VideoLlama3Config:
    """A configuration; the demo model's by default. special: ids of the special tokens by their text (tokenizer.py)."""
    ids = special or {}
    return VideoLlama3Config(
        vision_config={
            "hidden_size": vision_width,
            "intermediate_size": 384,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "patch_size": PATCH_PX,
        },
        text_config={
            "model_type": "qwen2",
            "vocab_size": VOCABULARY,
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": decoder_layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "max_position_embeddings": 4096,
            "initializer_range": 0.04,
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": ids.get("<|im_end|>"),
            "pad_token_id": ids.get("<|endoftext|>"),
        },
        image_token_id=ids.get("<|image_pad|>", 0),
        video_token_id=ids.get("<|video_pad|>", 1),
        tie_word_embeddings=True,
    )


def make_model(config: VideoLlama3Config, seed: int = 0) -> VideoLlama3ForConditionalGeneration:
    """A model with random weights that follow from the seed, in float32."""
    torch.manual_seed(seed)
    return VideoLlama3ForConditionalGeneration._from_config(config, attn_implementation="sdpa").float()


def patchify(frames: Tensor) -> Tensor:
    """uint8 [F, H, W, 3] -> normalized patches [F, H/14 * W/14, 588] in raster order, channels first in a patch."""
    f, h, w, _ = frames.shape
    x = frames.float().mul_(2 / 255).sub_(1)
    x = x.view(f, h // PATCH_PX, PATCH_PX, w // PATCH_PX, PATCH_PX, 3)
    return x.permute(0, 1, 3, 5, 2, 4).reshape(f, -1, 3 * PATCH_PX * PATCH_PX)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


def encode_frames(model: VideoLlama3ForConditionalGeneration, frames: Tensor) -> Tensor:
    """The vision encoder over uint8 frames [F, H, W, 3]: features [F, H/14, W/14, 96] in raster order."""
    vision = model.model.vision_model
    rows, columns = frames.shape[1] // PATCH_PX, frames.shape[2] // PATCH_PX
    embedding = vision.embeddings.patch_embedding
    x = F.linear(patchify(frames), embedding.weight.flatten(1), embedding.bias)
    heads = vision.config.num_attention_heads
    size = x.shape[-1] // heads
    inverse = rotary_frequencies(10000.0, size // 2)
    row, column = torch.meshgrid(torch.arange(rows).float(), torch.arange(columns).float(), indexing="ij")
    angles = torch.cat([row.reshape(-1, 1) * inverse, column.reshape(-1, 1) * inverse], dim=-1)
    angles = torch.cat([angles, angles], dim=-1)
    cos, sin = angles.cos(), angles.sin()
    f, n, c = x.shape
    for layer in vision.encoder.layers:
        attention = layer.self_attn
        y = layer.layer_norm1(x)
        q, k, v = (
            projection(y).view(f, n, heads, size).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        y = F.scaled_dot_product_attention(_rotate(q, cos, sin), _rotate(k, cos, sin), v)
        x = x + attention.out_proj(y.transpose(1, 2).reshape(f, n, c))
        x = x + layer.mlp(layer.layer_norm2(x))
    return vision.post_layernorm(x).view(f, rows, columns, c)


def merge_features(features: Tensor) -> Tensor:
    """Mean over 2 x 2 patches: [F, h, w, C] -> [F, h/2, w/2, C], as the bilinear interpolation to half size gives."""
    f, h, w, c = features.shape
    return features.view(f, h // 2, 2, w // 2, 2, c).mean(dim=(2, 4))


def decode(
    model: VideoLlama3ForConditionalGeneration, embeddings: Tensor, positions: Tensor, mask: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The decoder over whole sequences: last hidden states [B, S, 128], normalized, and those after each layer.

    embeddings: [B, S, 128]. positions: int64 [B, S]. mask: bool [B, S, S], True where a row may look at a column.
    """
    decoder = model.model.language_model
    heads, groups = decoder.config.num_attention_heads, decoder.config.num_key_value_heads
    x = embeddings
    b, s, c = x.shape
    size = c // heads
    inverse = rotary_frequencies(10000.0, size)
    angles = positions.float()[..., None] * inverse
    angles = torch.cat([angles, angles], dim=-1)[:, None]
    cos, sin = angles.cos(), angles.sin()
    bias = torch.zeros(b, 1, s, s).masked_fill_(~mask[:, None], -1e9)
    after = []
    for layer in decoder.layers:
        attention = layer.self_attn
        y = _norm(layer.input_layernorm, x)
        q = _rotate(attention.q_proj(y).view(b, s, heads, size).transpose(1, 2), cos, sin)
        k = _rotate(attention.k_proj(y).view(b, s, groups, size).transpose(1, 2), cos, sin)
        v = attention.v_proj(y).view(b, s, groups, size).transpose(1, 2)
        k, v = k.repeat_interleave(heads // groups, dim=1), v.repeat_interleave(heads // groups, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        x = x + attention.o_proj(y.transpose(1, 2).reshape(b, s, c))
        x = x + layer.mlp(_norm(layer.post_attention_layernorm, x))
        after.append(x)
    return _norm(decoder.norm, x), after


def _norm(module: nn.Module, x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), module.weight, module.variance_epsilon)  # type: ignore[arg-type]


@dataclass(frozen=True)
class VisionLabels:
    """What the auxiliary heads learn, per frame: class indices int64 [F], centres float32 [F, 2] from 0 to 1, and per
    patch the share of it that the shape covers, float32 [F, 8, 8]."""

    colour: Tensor
    shape: Tensor
    ground: Tensor
    centre: Tensor
    presence: Tensor


class AuxiliaryHeads(nn.Module):
    """Linear read-outs of every patch's feature, used in the vision stage and then dropped.

    Each patch learns its own row and column and how much of it the shape covers, but also what the whole frame shows:
    colour, shape, ground and the shape's centre. So a frame pruned to one token still says where the shape is, and
    questions about time become comparisons of neighbouring frames.
    """

    BINS = 16

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (len(COLOURS), len(SHAPES), len(GROUNDS), self.BINS, self.BINS, 2, 2, 1)
        self.linear = nn.Linear(width, sum(self.sizes))
        side = SIZE_PX // PATCH_PX
        grid = (torch.arange(side) + 0.5) / side
        self.own: Tensor
        self.bins: Tensor
        self.register_buffer("own", torch.stack(torch.meshgrid(grid, grid, indexing="ij"), dim=-1), persistent=False)
        self.register_buffer("bins", (torch.arange(self.BINS) + 0.5) / self.BINS, persistent=False)

    def forward(self, features: Tensor, labels: VisionLabels) -> dict[str, Tensor]:
        """Losses of each head, and under "colour_right" ... the shares of right answers, of features [F, 8, 8, C]."""
        colour, shape, ground, x_bin, y_bin, centre, own, presence = self.linear(features).split(self.sizes, dim=-1)
        result: dict[str, Tensor] = {}
        for name, logits, label in (
            ("colour", colour, labels.colour),
            ("shape", shape, labels.shape),
            ("ground", ground, labels.ground),
        ):
            every = label[:, None, None].expand(logits.shape[:3])
            result[name] = F.cross_entropy(logits.flatten(0, 2), every.flatten())
            result[f"{name}_right"] = (logits.argmax(-1) == every).float().mean()
        target = labels.centre[:, None, None, :]
        for i, logits in enumerate((x_bin, y_bin)):
            soft = torch.softmax(-(((self.bins - target[..., i : i + 1]) / 0.04) ** 2), dim=-1)
            result[f"bin{i}"] = -(soft * F.log_softmax(logits, dim=-1)).sum(-1).mean() * 0.3
        result["centre"] = F.mse_loss(centre, target.expand_as(centre)) * 20
        result["centre_error_px"] = (centre - target).abs().mean() * SIZE_PX
        result["own"] = F.mse_loss(own, self.own.expand_as(own)) * 5
        result["presence"] = F.binary_cross_entropy_with_logits(presence[..., 0], labels.presence)
        return result
