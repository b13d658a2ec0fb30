"""The decoder, Qwen2.5, in plain torch modules: the fp32 reference of the export, and the layers that GPTQ quantizes.

Linear layers are `nn.Linear` under the checkpoint's own names (`self_attn.q_proj`, `mlp.down_proj`, …), so that they
can be looked up, hooked or replaced by name. Layers can be loaded and run one at a time.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .checkpoint import Checkpoint
from .config import TextConfig
from .rope import rotary_frequencies
from .tensor_names import DECODER, EMBEDDINGS, LM_HEAD
from .weight_map import WeightSource, load

Rotary = tuple[torch.Tensor, torch.Tensor]
KeyValue = tuple[torch.Tensor, torch.Tensor]


def rotary(config: TextConfig, start: int, length: int) -> Rotary:
    """cos and sin [length, head_dim] float32 of the positions from `start` on."""
    positions = torch.arange(start, start + length, dtype=torch.float32)
    angles = (positions[:, None] * rotary_frequencies(config.rope_theta, config.head_dim)).repeat(1, 2)
    return angles.cos(), angles.sin()


class RMSNorm(nn.Module):
    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Attention(nn.Module):
    """Causal attention with fewer key/value heads than query heads."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, q)
        self.k_proj = nn.Linear(config.hidden_size, kv)
        self.v_proj = nn.Linear(config.hidden_size, kv)
        self.o_proj = nn.Linear(q, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor, cos_sin: Rotary, past: KeyValue | None) -> tuple[torch.Tensor, KeyValue]:
        batch, length, _ = x.shape
        head_dim = self.config.head_dim
        q = _rotated(self.q_proj(x).view(batch, length, -1, head_dim).transpose(1, 2), cos_sin)
        k = _rotated(self.k_proj(x).view(batch, length, -1, head_dim).transpose(1, 2), cos_sin)
        v = self.v_proj(x).view(batch, length, -1, head_dim).transpose(1, 2)
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        start = k.shape[2] - length
        # A query attends to all of the past, and to new positions up to its own.
        visible = torch.ones(length, k.shape[2], dtype=torch.bool).tril(start) if length > 1 else None
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1)), (k, v)


class MLP(nn.Module):
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return y


class DecoderLayer(nn.Module):
    """hidden [B, S, H] -> hidden [B, S, H] and the layer's keys and values [B, kv_heads, past + S, head_dim].

    past: what the previous call returned, or None at the start. cos_sin: `rotary` of the S new positions.
    """

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint, index: int) -> DecoderLayer:
        with torch.device("meta"):
            layer = cls(checkpoint.config.text)
        prefix = f"{DECODER}layers.{index}."
        load(layer, {name: WeightSource(prefix + name) for name, _ in layer.named_parameters()}, checkpoint)
        return layer

    def forward(
        self, hidden: torch.Tensor, cos_sin: Rotary, past: KeyValue | None = None
    ) -> tuple[torch.Tensor, KeyValue]:
        attended, present = self.self_attn(self.input_layernorm(hidden), cos_sin, past)
        hidden = hidden + attended
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), present


class TextDecoder(nn.Module):
    """inputs_embeds [B, S, H] -> logits [B, S, vocabulary], with an append-only cache of keys and values."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(config) for _ in range(config.num_layers)])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> TextDecoder:
        with torch.device("meta"):
            decoder = cls(checkpoint.config.text)
        sources = {name: WeightSource(DECODER + name) for name, _ in decoder.named_parameters() if name != LM_HEAD}
        sources[LM_HEAD] = WeightSource(LM_HEAD if LM_HEAD in checkpoint else EMBEDDINGS)
        load(decoder, sources, checkpoint)
        if checkpoint.config.text.tie_word_embeddings:
            decoder.lm_head.weight = decoder.embed_tokens.weight
        return decoder

    def forward(
        self, inputs_embeds: torch.Tensor, cache: list[KeyValue] | None = None
    ) -> tuple[torch.Tensor, list[KeyValue]]:
        """cache: what the previous call returned (it is not changed), or None at the start."""
        start = 0 if cache is None else cache[0][0].shape[2]
        cos_sin = rotary(self.config, start, inputs_embeds.shape[1])
        hidden, present = inputs_embeds, []
        for i, layer in enumerate(self.layers):
            hidden, key_value = layer(hidden, cos_sin, None if cache is None else cache[i])
            present.append(key_value)
        return self.lm_head(self.norm(hidden)), present


def _rotated(x: torch.Tensor, cos_sin: Rotary) -> torch.Tensor:
    """[B, heads, S, head_dim], rotate-half convention."""
    cos, sin = cos_sin
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
