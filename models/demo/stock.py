"""transformers' classes for VideoLLaMA3, importable beside a CPU build of torch.

transformers imports torchvision for this model, and the torchvision wheel of PyPI does not register two operators when
torch is a CPU build; its import then fails. Declaring them (nothing calls them) is enough.
"""

from __future__ import annotations

import torch

_missing = [name for name in ("nms", "qnms") if not hasattr(torch.ops.torchvision, name)]
if _missing:
    try:
        import torchvision  # type: ignore[import-untyped]  # noqa: F401
    except (ImportError, RuntimeError):
        # Kept in a module variable: the operators disappear with the library object.
        _library = torch.library.Library("torchvision", "FRAGMENT")
        for _name in _missing:
            if not hasattr(torch.ops.torchvision, _name):
                _library.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from transformers import (  # noqa: E402
    PreTrainedTokenizerFast,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
    VideoLlama3ImageProcessor,
    VideoLlama3Processor,
    VideoLlama3VideoProcessor,
)

__all__ = [
    "PreTrainedTokenizerFast",
    "VideoLlama3Config",
    "VideoLlama3ForConditionalGeneration",
    "VideoLlama3ImageProcessor",
    "VideoLlama3Processor",
    "VideoLlama3VideoProcessor",
]
