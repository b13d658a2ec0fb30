"""Reads a checkpoint's JSON files, of either layout, into a ModelConfig.

A missing key takes the default of the class that would read it: transformers' `VideoLlama3*` classes, or the authors'
processor (from their public release). Settings that change the result and are not implemented here (other activations,
scaled rotary positions, sliding windows, other resampling) are refused, so that no checkpoint loads into a model that
only looks right.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from vl3edge.runtime.bundle.specs import GenerationSpec

from .config import NO_TEXT, Layout, ModelConfig, TextConfig, VisionConfig
from .errors import CheckpointError
from .processor_reader import authors_media, transformers_media
from .typed_json import Section

_ENCODERS: dict[str, Layout] = {"video_llama_3_vision": "transformers", "videollama3_vision_encoder": "authors"}
_TRANSFORMERS_TOP_K = 50  # transformers' generate() default
# Other keys of generation_config.json, with the values that have no effect.
_NOT_DONE: dict[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    **dict.fromkeys(("bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias"), ([],)),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"), ()),
    **dict.fromkeys(("stop_strings", "watermarking_config"), ()),
}
_NOT_DRAWN: dict[str, tuple[Any, ...]] = {
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff"), (0,)),
    **dict.fromkeys(("typical_p", "top_h"), (1,)),
}


def read_config(folder: Path) -> ModelConfig:
    """The configuration of the checkpoint in `folder`.

    Raises CheckpointError if a file or key is missing, has the wrong type, or asks for something unsupported.
    """
    config = Section.read(folder / "config.json")
    model_type = config.string("model_type")
    if model_type == "video_llama_3":
        return _read_transformers(folder, config)
    if model_type == "videollama3_qwen2":
        return _read_authors(folder, config)
    if model_type in _ENCODERS:
        return _read_encoder(folder, config, _ENCODERS[model_type])
    raise config.error(
        "model_type",
        f"is {model_type!r}; supported: 'video_llama_3' (transformers), 'videollama3_qwen2' (the authors), and for the "
        f"vision encoder alone {' and '.join(map(repr, _ENCODERS))}",
    )


def _read_transformers(folder: Path, config: Section) -> ModelConfig:
    text = config.section("text_config")
    text.one_of("model_type", ("qwen2",), "qwen2")
    vision = _vision(config.section("vision_config"))
    # The flag ties at either level, as in transformers' VideoLlama3Config.
    tied = config.boolean("tie_word_embeddings", False) or text.boolean("tie_word_embeddings", False)
    return ModelConfig(
        name=_name(folder, config),
        layout="transformers",
        vision=vision,
        text=_text(text, tied),
        image_token_id=config.integer("image_token_id", 151655, at_least=0),
        video_token_id=config.integer("video_token_id", 151656, at_least=0),
        eos_token_ids=_eos(folder, config, text),
        generation=_generation(folder, config, text),
        quantization=_quantization(folder, config),
        **transformers_media(folder, vision.patch_size),
    )


def _read_authors(folder: Path, config: Section) -> ModelConfig:
    vision = _vision(config.section("vision_encoder_config"))
    config.one_of("mm_projector_type", ("mlp2x_gelu",), "mlp2x_gelu")
    placeholder = config.integer("image_token_index", at_least=0)
    return ModelConfig(
        name=_name(folder, config),
        layout="authors",
        vision=vision,
        text=_text(config, config.boolean("tie_word_embeddings", False)),
        image_token_id=placeholder,
        video_token_id=placeholder,
        eos_token_ids=_eos(folder, config),
        use_token_compression=config.boolean("use_token_compression", True),
        generation=_generation(folder, config),
        quantization=_quantization(folder, config),
        **authors_media(folder, vision.patch_size),
    )


def _read_encoder(folder: Path, config: Section, layout: Layout) -> ModelConfig:
    """The vision encoder alone, whose configuration is at the top level."""
    vision = _vision(config)
    media = (transformers_media if layout == "transformers" else authors_media)(folder, vision.patch_size, True)
    return ModelConfig(
        name=_name(folder, config),
        layout=layout,
        vision=vision,
        text=NO_TEXT,
        image_token_id=0,
        video_token_id=0,
        eos_token_ids=(),
        **media,
    )


def _name(folder: Path, config: Section) -> str:
    """The hub name that the checkpoint was saved under, else its folder's name."""
    saved = config.string("_name_or_path", "").rstrip("/")
    return saved if saved.count("/") == 1 and not saved.startswith((".", "/")) else folder.resolve().name


def _vision(section: Section) -> VisionConfig:
    rope_theta = _rope_theta(section, ("default", "axial"))
    vision = VisionConfig(
        hidden_size=section.integer("hidden_size", 768),
        intermediate_size=section.integer("intermediate_size", 3072),
        num_layers=section.integer("num_hidden_layers", 12),
        num_heads=section.integer("num_attention_heads", 12),
        patch_size=section.integer("patch_size", 16),
        num_channels=section.integer("num_channels", 3),
        layer_norm_eps=section.number("layer_norm_eps", 1e-6),
        hidden_act=section.one_of("hidden_act", ("gelu_pytorch_tanh", "gelu"), "gelu_pytorch_tanh"),
        rope_theta=rope_theta,
    )
    if vision.num_channels != 3:
        raise section.error("num_channels", f"must be 3 (RGB), not {vision.num_channels}")
    if vision.hidden_size % vision.num_heads or vision.head_dim % 4:
        raise section.error(
            "num_attention_heads",
            f"({vision.num_heads}) must split hidden_size ({vision.hidden_size}) into multiples of 4",
        )
    return vision


def _text(section: Section, tied: bool) -> TextConfig:
    section.one_of("hidden_act", ("silu",), "silu")
    if section.boolean("use_sliding_window", False):
        raise section.error("use_sliding_window", "is true; sliding-window attention is not supported")
    hidden_size = section.integer("hidden_size", 4096)
    num_heads = section.integer("num_attention_heads", 32)
    num_kv_heads = section.integer("num_key_value_heads", 32)
    head_dim = section.integer("head_dim", hidden_size // num_heads)
    if num_heads % num_kv_heads:
        raise section.error("num_key_value_heads", f"({num_kv_heads}) must divide the {num_heads} attention heads")
    if head_dim % 2:
        raise section.error("head_dim", f"({head_dim}) must be even for rotary positions")
    return TextConfig(
        hidden_size=hidden_size,
        intermediate_size=section.integer("intermediate_size", 22016),
        num_layers=section.integer("num_hidden_layers", 32),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=section.integer("vocab_size", 151936),
        rms_norm_eps=section.number("rms_norm_eps", 1e-6),
        rope_theta=_rope_theta(section, ("default",)),
        max_position_embeddings=section.integer("max_position_embeddings", 32768),
        tie_word_embeddings=tied,
    )


def _rope_theta(section: Section, types: tuple[str, ...]) -> float:
    """Newer files have `rope_parameters`, older ones `rope_theta` and `rope_scaling`."""
    top = section.number("rope_theta", 10000.0)
    for key in ("rope_scaling", "rope_parameters"):
        rope = section.section(key, {})
        rope.one_of("rope_type" if "rope_type" in rope else "type", types, types[0])
        top = rope.number("rope_theta", top)
    return top


def _eos(folder: Path, *sections: Section) -> tuple[int, ...]:
    """The end tokens of generation_config.json, else of the model's configuration."""
    candidates = (Section.read_if_there(folder / "generation_config.json"), *sections)
    for section in candidates:
        if ids := section.integers("eos_token_id"):
            return ids
    files = " and ".join(sorted({section.file.name for section in candidates}))
    raise CheckpointError(f"{folder}: eos_token_id is in neither {files}, so generation would never end")


def _generation(folder: Path, *sections: Section) -> GenerationSpec:
    """How to choose tokens, by generation_config.json, else by the configuration, as in transformers."""
    file = Section.read_if_there(folder / "generation_config.json")
    sources = (file,) if file.values else sections

    def holding(key: str) -> Section:
        return next((section for section in sources if key in section), sources[0])

    samples = holding("do_sample").boolean("do_sample", False)
    top_p = holding("top_p").number("top_p", 1.0)
    if top_p > 1:
        raise holding("top_p").error("top_p", f"must be at most 1, not {top_p}")
    asked = {key: holding(key).values.get(key) for key in (*_NOT_DONE, *(_NOT_DRAWN if samples else ()))}
    ignored = [f"{k} {v}" for k, v in asked.items() if v is not None and v not in {**_NOT_DONE, **_NOT_DRAWN}[k]]
    if ignored:
        text = (
            f"{sources[0].file} asks for {', '.join(ignored)}, which is not supported: answers may differ from "
            "transformers'"
        )
        warnings.warn(text, stacklevel=4)
    return GenerationSpec(
        do_sample=samples,
        temperature=holding("temperature").number("temperature", 1.0, zero=True),
        top_p=top_p,
        top_k=holding("top_k").integer("top_k", _TRANSFORMERS_TOP_K if samples else 0, at_least=0),
        repetition_penalty=holding("repetition_penalty").number("repetition_penalty", 1.0),
        # Not from the configuration itself, where max_length may be the context length.
        max_new_tokens=file.integer("max_new_tokens", 0, at_least=0),
        max_length=file.integer("max_length", 0, at_least=0),
    )


def _quantization(folder: Path, config: Section) -> dict[str, object] | None:
    """config.json's `quantization_config`; the oldest GPTQ writers only have quantize_config.json."""
    if "quantization_config" in config:
        return dict(config.section("quantization_config").values)
    beside = Section.read_if_there(folder / "quantize_config.json")
    return dict(beside.values) or None
