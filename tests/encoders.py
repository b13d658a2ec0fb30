"""Checkpoints of the vision encoder alone, with random weights, in both published forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from reference import transformers_module

SIZES = {
    "hidden_size": 80,
    "intermediate_size": 120,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "patch_size": 14,
}


def random_encoder(seed: int = 0) -> Any:
    """transformers' VideoLlama3VisionModel, float32, whose every weight matters."""
    transformers = transformers_module()
    config = transformers.models.video_llama_3.VideoLlama3VisionConfig(**SIZES, attn_implementation="sdpa")
    model = transformers.VideoLlama3VisionModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.2 if parameter.ndim == 1 else 1.5 / parameter[0].numel() ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
            if parameter.ndim == 1:
                parameter.add_(0.5)
    return model


def write_encoder(folder: Path, form: str, seed: int = 0, prefix: str = "") -> Path:
    """form: "transformers", as its class saves it, with its processors' files; "authors", as they publish theirs.

    prefix: of the authors' names.
    """
    model = random_encoder(seed)
    model.save_pretrained(folder)
    if form == "transformers":
        image = {"size": {"shortest_edge": 28 * 28, "longest_edge": 40000}, "merge_size": 1, "patch_size": 14}
        video = {"size": {"shortest_edge": 28 * 28, "longest_edge": 180 * 9000}, "merge_size": 2, "patch_size": 14}
        processors = {"image_processor": image, "video_processor": video}
        (folder / "processor_config.json").write_text(json.dumps(processors), encoding="utf-8")
        return folder
    from safetensors.torch import save_file

    save_file(
        {prefix + name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors"
    )
    config = {**SIZES, "model_type": "videollama3_vision_encoder", "hidden_act": "gelu_pytorch_tanh"}
    config |= {"architectures": ["Videollama3VisionEncoderModel"], "layer_norm_eps": 1e-6, "num_channels": 3}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    preprocessor = {"min_tokens": 4, "max_tokens": 2000, "patch_size": 14, "resample": 3}
    preprocessor |= {
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "image_processor_type": "Videollama3ImageProcessor",
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor), encoding="utf-8")
    return folder


@torch.inference_mode()
def reference_map(model: Any, frames: Any, merge: int) -> torch.Tensor:
    """What the model makes of frames uint8 [F, H, W, 3], whose sides fit: float32 [F, h / m, w / m, C]."""
    pixels = (torch.from_numpy(frames).float() / 255 - 0.5) / 0.5
    count, height, width, _ = pixels.shape
    rows, columns = height // 14, width // 14
    # Patches of a merge block are consecutive, a patch is [channel, row, column].
    grid = pixels.reshape(count, rows // merge, merge, 14, columns // merge, merge, 14, 3)
    patches = grid.permute(0, 1, 4, 2, 5, 7, 3, 6).reshape(count * rows * columns, -1)
    sizes = torch.tensor([[count, rows, columns]])
    output = model(pixel_values=patches, grid_thw=sizes, merge_sizes=torch.tensor([merge]))
    return output.last_hidden_state.reshape(count, rows // merge, columns // merge, -1)
