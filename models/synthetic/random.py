"""Checkpoints with random weights in either layout and any size: for tests, and for runs at the released sizes.

    python -m vl3edge.models.synthetic tiny FOLDER [--layout authors] [--seed 1] [--dtype bfloat16] [--shards 4]

They open in vl3edge like any other checkpoint, and the transformers layout also opens in transformers. Weights are
scaled so that every part matters: activations neither grow nor vanish over the layers, attention prefers some
positions, biases and norms have an effect, and greedy decoding chooses different tokens. A tensor's values depend only
on the seed and its name, so both layouts of a configuration hold the same model.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from dataclasses import replace
from pathlib import Path

import torch

from ..config import Layout, MediaProcessing, ModelConfig, TextConfig, VisionConfig
from ..safetensors_writer import write_tensors
from ..tensor_names import EMBEDDINGS, LM_HEAD, Shape, expected_shapes, stored_name
from .random_files import SPECIAL_TOKENS, build_tokenizer, write_files

_SIGLIP = VisionConfig(hidden_size=1152, intermediate_size=4304, num_layers=27, num_heads=16, patch_size=14)

# Names of presets, with the sizes of their two parts. The tiny ones have sizes unlike real models, on purpose: widths
# that are not multiples of 64, one key/value head or several, heads wider or narrower than hidden_size / heads.
_PRESETS: dict[str, tuple[VisionConfig, TextConfig]] = {
    "tiny": (
        VisionConfig(hidden_size=80, intermediate_size=120, num_layers=2, num_heads=4, patch_size=14),
        TextConfig(
            hidden_size=96,
            intermediate_size=160,
            num_layers=3,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            vocab_size=320,
            rope_theta=1e6,
            tie_word_embeddings=True,
        ),
    ),
    "tiny-untied": (
        VisionConfig(hidden_size=48, intermediate_size=100, num_layers=3, num_heads=2, patch_size=14),
        TextConfig(
            hidden_size=112,
            intermediate_size=144,
            num_layers=2,
            num_heads=3,
            num_kv_heads=1,
            head_dim=48,
            vocab_size=331,
            rope_theta=1e4,
        ),
    ),
    # Every width of the decoder is a multiple of 128, as grouped quantization needs.
    "tiny-128": (
        VisionConfig(hidden_size=96, intermediate_size=192, num_layers=2, num_heads=4, patch_size=14),
        TextConfig(
            hidden_size=128,
            intermediate_size=384,
            num_layers=3,
            num_heads=4,
            num_kv_heads=2,
            head_dim=32,
            vocab_size=320,
            rope_theta=1e6,
            tie_word_embeddings=True,
        ),
    ),
    "2b": (
        _SIGLIP,
        TextConfig(
            hidden_size=1536,
            intermediate_size=8960,
            num_layers=28,
            num_heads=12,
            num_kv_heads=2,
            head_dim=128,
            vocab_size=151936,
            rope_theta=1e6,
            tie_word_embeddings=True,
        ),
    ),
    "7b": (
        _SIGLIP,
        TextConfig(
            hidden_size=3584,
            intermediate_size=18944,
            num_layers=28,
            num_heads=28,
            num_kv_heads=4,
            head_dim=128,
            vocab_size=152064,
            rope_theta=1e6,
        ),
    ),
}
PRESETS = tuple(_PRESETS)

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Standard deviation of the logits: large enough that the best token is clear and varies.
_LOGIT_STD = 3.0
# Weights that are not scaled to keep the size of their input. Sharper attention, so that positions matter; layers that
# outweigh the residual stream, as otherwise tied embeddings repeat the last token forever.
_GAINS = {"q_proj": 2.0, "k_proj": 2.0, "o_proj": 3.0, "down_proj": 2.0}


def preset(name: str, layout: Layout = "transformers") -> ModelConfig:
    """The configuration of a preset; change it with `dataclasses.replace` for other variants.

    Raises ValueError for an unknown preset.
    """
    if name not in _PRESETS:
        raise ValueError(f"no preset {name!r}; there are: {', '.join(PRESETS)}")
    vision, text = _PRESETS[name]
    tokenizer = build_tokenizer()
    ids = {token: i for token, i in tokenizer.get_vocab().items() if token in SPECIAL_TOKENS}
    real = name in ("2b", "7b")
    config = ModelConfig(
        name=f"random-{name}",
        layout=layout,
        vision=vision,
        text=text,
        image=MediaProcessing(1, "transformers", 56 * 56, 28 * 28 * (16384 if real else 32)),
        video=MediaProcessing(2, "transformers", 56 * 56, 28 * 28 * (16384 if real else 64)),
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        eos_token_ids=(ids["<|im_end|>"], ids["<|endoftext|>"]),
    )
    if layout == "transformers":
        return config
    maximum = 16384 if real else 64
    return replace(
        config,
        image=MediaProcessing(1, "authors", 16, maximum),
        video=MediaProcessing(2, "authors", 16, maximum),
        image_token_id=ids["<image>"],
        video_token_id=ids["<image>"],
    )


def write_random_checkpoint(
    folder: Path, config: ModelConfig, *, seed: int = 0, dtype: str = "float32", shards: int = 1
) -> Path:
    """Writes a checkpoint in `config.layout` and returns `folder`, which is made if need be.

    config: from `preset`, or any other whose token ids fit `build_tokenizer()`. dtype: "float32", "float16" or
    "bfloat16". Memory: a few times the largest tensor, whatever the size of the model.

    Raises ValueError for an impossible option.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(_DTYPES)}, not {dtype!r}")
    if config.text.vocab_size < build_tokenizer().get_vocab_size():
        raise ValueError(
            f"vocab_size must be at least the tokenizer's {build_tokenizer().get_vocab_size()}, "
            f"not {config.text.vocab_size}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    shapes = expected_shapes(config)
    if config.text.tie_word_embeddings:
        del shapes[LM_HEAD]
    canonical = {stored_name(name, config.layout): name for name in shapes}

    def make(stored: str, shape: Shape) -> torch.Tensor:
        return random_tensor(canonical[stored], shape, seed)

    write_files(folder, config, dtype)
    write_tensors(folder, {stored: shapes[name] for stored, name in canonical.items()}, make, _DTYPES[dtype], shards)
    return folder


def random_tensor(name: str, shape: Shape, seed: int) -> torch.Tensor:
    """The float32 tensor of this canonical name; the same for the same name, shape and seed."""
    # torch's CPU generator uses 32 bits of its seed, so both go into one hash.
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    noise = torch.randn(shape, generator=generator)
    if name.endswith(".bias"):
        return noise.mul_(0.2)
    if len(shape) == 1:
        return noise.mul_(0.2).add_(1.0)
    if name in (EMBEDDINGS, LM_HEAD):
        return noise.mul_(_LOGIT_STD / shape[1] ** 0.5)
    gain = next((gain for part, gain in _GAINS.items() if part in name), 1.0)
    return noise.mul_(gain / torch.Size(shape[1:]).numel() ** 0.5)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m vl3edge.models.synthetic", description="Write a checkpoint with random weights."
    )
    parser.add_argument("preset", choices=PRESETS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", choices=("transformers", "authors"), default="transformers")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", choices=tuple(_DTYPES), default="float32")
    parser.add_argument("--shards", type=int, default=1)
    options = parser.parse_args(arguments)
    write_random_checkpoint(
        options.folder,
        preset(options.preset, options.layout),
        seed=options.seed,
        dtype=options.dtype,
        shards=options.shards,
    )
    print(
        f"{options.folder}: random {options.preset}, {options.layout} layout, {options.dtype}",
        file=sys.stderr,
    )
    return 0
