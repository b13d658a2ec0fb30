"""What a VideoLLaMA3 model is: checkpoints of either layout, their configurations and their torch modules."""

from typing import TYPE_CHECKING, Any

from .config import MediaProcessing, ModelConfig, TextConfig, VisionConfig
from .errors import CheckpointError

if TYPE_CHECKING:
    from .checkpoint import Checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "MediaProcessing",
    "ModelConfig",
    "TextConfig",
    "VisionConfig",
]


def __getattr__(name: str) -> Any:
    """Imports `Checkpoint`, and with it torch, on first use: the demo clips, which test the runtime, need neither."""
    if name == "Checkpoint":
        from .checkpoint import Checkpoint

        return Checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
