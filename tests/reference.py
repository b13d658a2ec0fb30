"""The oracle of parity tests: transformers' own VideoLLaMA3, in float32 on the CPU.

    run = reference_generate(folder, [{"role": "user", "content": [
        {"type": "video", "video": frames, "timestamps": [0.0, 1.0]},      # uint8 [F, H, W, 3], already
        sampled {"type": "image", "image": picture},                               # uint8 [H, W, 3]
        {"type": "text", "text": "What is this?"}]}])
    run.prompt, run.prompt_ids, run.new_ids, run.inputs                    # inputs: what the processor gave
    the model

For a checkpoint in transformers' layout, transformers' processor prepares everything. It has no classes for
the authors' layout: there the same weights are put into transformers' model in memory, and the prompt's
ids, resized frames and kept tokens, which only vl3edge can make, are passed to `generate_from_visuals`.
That also serves to test the stages after the processor on their own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.config import ModelConfig

Frames = NDArray[np.uint8]


@cache
def _declare_torchvision_operators() -> None:
    """transformers imports torchvision for this model; beside a CPU build of torch, PyPI's torchvision fails to
    register two operators and then does not import. Declaring them is enough, nothing here calls them. Beside one for
    CUDA it registers them itself, later."""
    if torch.version.cuda is not None:
        return
    library = torch.library.Library("torchvision", "DEF")
    for signature in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        try:
            library.define(signature)
        except RuntimeError:  # this torchvision registered it itself
            continue
    _KEPT_ALIVE.append(library)


_KEPT_ALIVE: list[torch.library.Library] = []


def transformers_module() -> Any:
    """transformers, importable also beside a CPU build of torch."""
    _declare_torchvision_operators()
    import transformers

    return transformers


def load_reference(folder: Path) -> Any:
    """transformers' VideoLlama3ForConditionalGeneration with the weights of `folder`, float32, for
    inference.
    """
    transformers = transformers_module()
    checkpoint = Checkpoint.open(folder)
    if checkpoint.layout == "transformers":
        model = transformers.VideoLlama3ForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa"
        )
        return model.eval()
    with torch.device("meta"):
        model = transformers.VideoLlama3ForConditionalGeneration(reference_config(checkpoint.config))
    weights = {name: checkpoint.tensor(name, torch.float32).clone() for name in checkpoint.names}
    # Buffers that follow from the configuration are not in any checkpoint; an unset model computes them.
    model = model.to_empty(device="cpu")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise AssertionError(f"missing {missing}, unexpected {unexpected}")
    fresh = transformers.VideoLlama3ForConditionalGeneration(reference_config(checkpoint.config))
    for name, buffer in fresh.named_buffers():
        model.get_buffer(name).copy_(buffer)
    model.tie_weights()
    model.generation_config.eos_token_id = list(checkpoint.config.eos_token_ids)
    return model.eval()


def reference_config(config: ModelConfig) -> Any:
    """transformers' configuration object for ours; the placeholder of the authors' layout stands for
    images.
    """
    transformers = transformers_module()
    vision, text = config.vision, config.text
    # One token is the placeholder of both in the authors' layout; transformers needs two different ones.
    video_token_id = config.video_token_id if config.video_token_id != config.image_token_id else -1
    return transformers.VideoLlama3Config(
        text_config={
            "model_type": "qwen2",
            "hidden_size": text.hidden_size,
            "intermediate_size": text.intermediate_size,
            "num_hidden_layers": text.num_layers,
            "num_attention_heads": text.num_heads,
            "num_key_value_heads": text.num_kv_heads,
            "head_dim": text.head_dim,
            "vocab_size": text.vocab_size,
            "rms_norm_eps": text.rms_norm_eps,
            "rope_parameters": {"rope_type": "default", "rope_theta": text.rope_theta},
            "max_position_embeddings": text.max_position_embeddings,
            "tie_word_embeddings": text.tie_word_embeddings,
        },
        vision_config={
            "hidden_size": vision.hidden_size,
            "intermediate_size": vision.intermediate_size,
            "num_hidden_layers": vision.num_layers,
            "num_attention_heads": vision.num_heads,
            "num_channels": vision.num_channels,
            "patch_size": vision.patch_size,
            "layer_norm_eps": vision.layer_norm_eps,
            "hidden_act": vision.hidden_act,
        },
        image_token_id=config.image_token_id,
        video_token_id=video_token_id,
        tie_word_embeddings=text.tie_word_embeddings,
        attn_implementation="sdpa",
    )


def load_processor(folder: Path) -> Any:
    """transformers' VideoLlama3Processor of a checkpoint in transformers' layout."""
    return transformers_module().VideoLlama3Processor.from_pretrained(folder)


@dataclass(frozen=True)
class ReferenceRun:
    """One greedy generation of transformers.

    prompt: the text after the chat template and after expansion of the placeholders. inputs: the
    processor's arrays (pixel_values, image_grid_thw, video_compression_mask, …). new_ids: without the
    prompt, with the end token.
    """

    prompt: str
    prompt_ids: list[int]
    inputs: dict[str, NDArray[Any]]
    new_ids: list[int]


def reference_inputs(processor: Any, messages: Sequence[dict[str, Any]], resize: bool = True) -> tuple[str, Any]:
    """The expanded prompt and the processor's tensors for messages with arrays in them (see the module
    docstring).

    resize: False takes the arrays as they are; their sides must then be multiples of patch × merge.
    """
    transformers_module()
    from transformers.video_utils import VideoMetadata

    images, videos, metadata = [], [], []
    for message in messages:
        for item in message["content"] if isinstance(message["content"], list) else []:
            if item["type"] == "image":
                images.append(item["image"])
            elif item["type"] == "video":
                times = [float(t) for t in item["timestamps"]]
                videos.append(item["video"])
                # With fps 1 a frame's index is its time, so that any times can be given.
                metadata.append(VideoMetadata(total_num_frames=len(times), fps=1.0, frames_indices=times))
    text = processor.apply_chat_template(_without_arrays(messages), tokenize=False, add_generation_prompt=True)
    inputs = processor(
        text=[text],
        images=images or None,
        videos=videos or None,
        return_tensors="pt",
        images_kwargs={"do_resize": resize},
        videos_kwargs={"do_resize": resize, "do_sample_frames": False, "video_metadata": metadata or None},
    )
    return processor.tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=False), inputs


def reference_generate(
    folder: Path,
    messages: Sequence[dict[str, Any]],
    max_new_tokens: int = 32,
    resize: bool = True,
    model: Any = None,
    processor: Any = None,
) -> ReferenceRun:
    """Greedy tokens of transformers for a checkpoint in transformers' layout; float32, all of it
    transformers' code.

    model, processor: already loaded ones, to save time; `processor` may have other merge sizes or pruning
    set.
    """
    model = model if model is not None else load_reference(folder)
    processor = processor if processor is not None else load_processor(folder)
    prompt, inputs = reference_inputs(processor, messages, resize)
    tensors = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
    with torch.inference_mode():
        ids = model.generate(**tensors, max_new_tokens=max_new_tokens, do_sample=False)
    length = tensors["input_ids"].shape[1]
    return ReferenceRun(
        prompt=prompt,
        prompt_ids=tensors["input_ids"][0].tolist(),
        inputs={name: value.numpy() for name, value in tensors.items()},
        new_ids=ids[0, length:].tolist(),
    )


@dataclass(frozen=True)
class VisualInput:
    """An image (F = 1) or a video as the encoder sees it.

    frames: uint8 [F, H, W, 3], sides multiples of patch × merge_size. keep: bool [F, h/m, w/m], None keeps
    all.
    """

    frames: Frames
    merge_size: int
    keep: NDArray[np.bool_] | None = None


def reference_tokens(model: Any, config: ModelConfig, visual: VisualInput) -> NDArray[np.float32]:
    """Visual tokens [K, D] of one image or video from transformers' encoder and projector."""
    pixels = block_major_patches(visual.frames, config, visual.merge_size)
    frames, height, width, _ = visual.frames.shape
    patch = config.vision.patch_size
    with torch.inference_mode():
        output = model.model.get_image_features(
            pixel_values=torch.from_numpy(pixels),
            image_grid_thw=torch.tensor([[frames, height // patch, width // patch]]),
            image_merge_sizes=torch.tensor([visual.merge_size]),
        )
    tokens: NDArray[np.float32] = output.pooler_output[0].numpy()
    return tokens if visual.keep is None else tokens[visual.keep.reshape(-1)]


def reference_features(model: Any, config: ModelConfig, frames: Frames) -> NDArray[np.float32]:
    """Features [F, h, w, C] after the encoder's last LayerNorm, before merging, in plain raster order."""
    patch = config.vision.patch_size
    count, h, w = frames.shape[0], frames.shape[1] // patch, frames.shape[2] // patch
    with torch.inference_mode():
        output = model.model.vision_model(
            pixel_values=torch.from_numpy(block_major_patches(frames, config, 1)),
            grid_thw=torch.tensor([[count, h, w]]),
            merge_sizes=torch.tensor([1]),
        )
    return output.last_hidden_state.numpy().reshape(count, h, w, -1)


def generate_from_visuals(
    model: Any,
    config: ModelConfig,
    input_ids: Sequence[int],
    visuals: Sequence[VisualInput],
    max_new_tokens: int = 32,
) -> list[int]:
    """Greedy tokens of transformers for a prompt that already has one placeholder id for every visual
    token.
    """
    ids = torch.tensor([list(input_ids)])
    with torch.inference_mode():
        embeddings = model.get_input_embeddings()(ids)
        if visuals:
            tokens = np.concatenate([reference_tokens(model, config, visual) for visual in visuals])
            places = (ids == config.image_token_id) | (ids == config.video_token_id)
            if int(places.sum()) != len(tokens):
                raise AssertionError(f"{int(places.sum())} placeholders, but {len(tokens)} visual tokens")
            embeddings[places] = torch.from_numpy(tokens)
        new = model.generate(inputs_embeds=embeddings, max_new_tokens=max_new_tokens, do_sample=False)
    return new[0].tolist()


def block_major_patches(frames: Frames, config: ModelConfig, merge_size: int) -> NDArray[np.float32]:
    """Normalized patches [F·h·w, 3·patch²], the patches of a merge block one after another, as transformers
    wants.
    """
    patch, m = config.vision.patch_size, merge_size
    count, height, width, channels = frames.shape
    mean, std = np.float32(config.image_mean), np.float32(config.image_std)
    pixels = (frames.astype(np.float32) / np.float32(255) - mean) / std
    grid = pixels.reshape(count, height // patch // m, m, patch, width // patch // m, m, patch, channels)
    return np.ascontiguousarray(grid.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(-1, channels * patch * patch))


def _without_arrays(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same messages for the chat template, which must not see (or print) pixels."""
    return [
        {
            **message,
            "content": [{k: v for k, v in item.items() if k in ("type", "text")} for item in message["content"]]
            if isinstance(message["content"], list)
            else message["content"],
        }
        for message in messages
    ]
