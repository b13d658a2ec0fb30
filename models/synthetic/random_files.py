"""The text files of a random-weight checkpoint: tokenizer, chat template, and JSON in either layout.

The tokenizer is a small byte-level BPE with Qwen2's steps and special tokens; it reads and writes any text.
The chat templates are our own wording of the two layouts' prompt formats.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, pre_tokenizers

from ..config import MediaProcessing, ModelConfig, TextConfig
from ..tokenizer_files import byte_level_bpe

# A few merges, so that tokens and bytes are not the same thing. Ġ is the byte-level form of a space.
_MERGES = (
    "h e|t he|Ġ t|Ġt he|i n|a n|Ġ a|e r|o n|r e|Ġ o|i s|e s|o r|e n|a t|i t|Ġ w|Ġ c|Ġc at|Ġ is|in g|Ġ s|Ġ m|"
    "i d|id e|Ġ v|Ġv ide|Ġvide o|Ġ i|m e|T i|Ti me|Ġ f|r a|Ġf ra|Ġfra me|Ġ W|Ġ in|o u|Ġ d|d o|W h|Wh at"
)
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<image>",
    "<|stream_start|>",
    "<|stream_end|>",
)
_SYSTEM = "You are a helpful assistant that understands images and videos."

# One placeholder a video: the processor expands it to every frame's time and tokens.
TRANSFORMERS_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item['type'] == 'image' -%}
{{- '<|image_pad|>\\n' -}}
{%- elif item['type'] == 'video' -%}
{{- '<|video_pad|>\\n' -}}
{%- else -%}
{{- item['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""

# One placeholder a frame, with the times that the caller puts into a video's content.
AUTHORS_TEMPLATE = """\
{%- set placeholder = image_token | default('<image>') -%}
{%- for message in messages -%}
{%- if loop.first and add_system_prompt and message['role'] != 'system' -%}
{{- '<|im_start|>system\\nSYSTEM<|im_end|>\\n' -}}
{%- endif -%}
{%- set streamed = message['role'] == 'stream' -%}
{{- ('<|stream_start|>' if streamed else '<|im_start|>') + message['role'] + '\\n' -}}
{%- if message['content'] is string -%}
{{- message['content'] -}}
{%- else -%}
{%- for item in message['content'] -%}
{%- if item is string -%}
{{- item -}}
{%- elif item['type'] == 'image' -%}
{{- placeholder + '\\n' -}}
{%- elif item['type'] == 'video' -%}
{%- for i in range(item['num_frames']) -%}
{%- if item['timestamps'] is defined -%}
{{- 'Time %.1fs:' | format(item['timestamps'][i]) + (' ' if streamed else '') -}}
{%- endif -%}
{{- placeholder + ('\\n' if streamed or loop.last else ',') -}}
{%- endfor -%}
{%- else -%}
{{- item['text'] -}}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- ('<|stream_end|>' if streamed else '<|im_end|>') + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
""".replace("SYSTEM", _SYSTEM)


def build_tokenizer() -> Tokenizer:
    """256 bytes, the merges above, then SPECIAL_TOKENS."""
    merges = [(first, second) for first, second in (pair.split(" ") for pair in _MERGES.split("|"))]
    tokens = sorted(pre_tokenizers.ByteLevel.alphabet()) + [first + second for first, second in merges]
    vocab = {token: i for i, token in enumerate(tokens)}
    return byte_level_bpe(vocab, merges, [AddedToken(token, special=True) for token in SPECIAL_TOKENS])


def write_files(folder: Path, config: ModelConfig, dtype: str) -> None:
    """Everything of a checkpoint except the weights; an existing file is replaced."""
    tokenizer = build_tokenizer()
    (folder / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
    tokenizer_config: dict[str, Any] = {
        "tokenizer_class": "Qwen2TokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "additional_special_tokens": list(SPECIAL_TOKENS),
        "model_max_length": config.text.max_position_embeddings,
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {"content": token, "special": True} for token in SPECIAL_TOKENS
        },
    }
    if config.layout == "transformers":
        files = _transformers_files(config, dtype)
        (folder / "chat_template.jinja").write_text(TRANSFORMERS_TEMPLATE, encoding="utf-8")
    else:
        files = _authors_files(config, dtype)
        tokenizer_config["chat_template"] = AUTHORS_TEMPLATE
    files["tokenizer_config.json"] = tokenizer_config
    files["generation_config.json"] = {
        "eos_token_id": list(config.eos_token_ids),
        "pad_token_id": tokenizer.token_to_id("<|endoftext|>"),
    }
    for name, values in files.items():
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _transformers_files(config: ModelConfig, dtype: str) -> dict[str, Mapping[str, Any]]:
    return {
        "config.json": {
            "architectures": ["VideoLlama3ForConditionalGeneration"],
            "model_type": "video_llama_3",
            "dtype": dtype,
            "image_token_id": config.image_token_id,
            "video_token_id": config.video_token_id,
            "tie_word_embeddings": config.text.tie_word_embeddings,
            "text_config": {
                "model_type": "qwen2",
                **_text_values(config.text),
                "rope_parameters": {"rope_type": "default", "rope_theta": config.text.rope_theta},
            },
            "vision_config": {"model_type": "video_llama_3_vision", **_vision_values(config)},
        },
        "preprocessor_config.json": {
            "image_processor_type": "VideoLlama3ImageProcessor",
            **_pixel_values(config, config.image),
        },
        "video_preprocessor_config.json": {
            "video_processor_type": "VideoLlama3VideoProcessor",
            **_pixel_values(config, config.video),
            "fps": config.fps,
            "max_frames": config.max_frames,
            "use_token_compression": config.use_token_compression,
        },
        "processor_config.json": {"processor_class": "VideoLlama3Processor"},
    }


def _authors_files(config: ModelConfig, dtype: str) -> dict[str, Mapping[str, Any]]:
    return {
        "config.json": {
            "architectures": ["Videollama3Qwen2ForCausalLM"],
            "model_type": "videollama3_qwen2",
            "torch_dtype": dtype,
            "mm_projector_type": "mlp2x_gelu",
            "image_token_index": config.image_token_id,
            "use_token_compression": config.use_token_compression,
            **_text_values(config.text),
            "rope_theta": config.text.rope_theta,
            "rope_scaling": None,
            "tie_word_embeddings": config.text.tie_word_embeddings,
            "vision_encoder_config": {"model_type": "videollama3_vision_encoder", **_vision_values(config)},
        },
        "preprocessor_config.json": {
            "image_processor_type": "Videollama3ImageProcessor",
            "image_mean": list(config.image_mean),
            "image_std": list(config.image_std),
            "min_tokens": config.image.minimum,
            "max_tokens": config.image.maximum,
            "patch_size": config.vision.patch_size,
            "resample": 3,
        },
        "processor_config.json": {
            "processor_class": "Videollama3Qwen2Processor",
            "image_merge_size": config.image.merge_size,
            "video_merge_size": config.video.merge_size,
            "fps": config.fps,
            "max_frames": config.max_frames,
        },
    }


def _text_values(text: TextConfig) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": text.num_layers,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads,
        "head_dim": text.head_dim,
        "vocab_size": text.vocab_size,
        "rms_norm_eps": text.rms_norm_eps,
        "max_position_embeddings": text.max_position_embeddings,
    }


def _vision_values(config: ModelConfig) -> dict[str, Any]:
    vision = config.vision
    return {
        "hidden_act": vision.hidden_act,
        "hidden_size": vision.hidden_size,
        "intermediate_size": vision.intermediate_size,
        "num_hidden_layers": vision.num_layers,
        "num_attention_heads": vision.num_heads,
        "num_channels": vision.num_channels,
        "patch_size": vision.patch_size,
        "layer_norm_eps": vision.layer_norm_eps,
    }


def _pixel_values(config: ModelConfig, media: MediaProcessing) -> dict[str, Any]:
    return {
        "image_mean": list(config.image_mean),
        "image_std": list(config.image_std),
        "resample": 3,
        "patch_size": config.vision.patch_size,
        "temporal_patch_size": 1,
        "merge_size": media.merge_size,
        "size": {"shortest_edge": media.minimum, "longest_edge": media.maximum},
    }
