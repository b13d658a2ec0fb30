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
    """`Checkpoint`, which loads torch: the clips of the demo world, with which the runtime is tested, do without."""
    if name == "Checkpoint":
        from .checkpoint import Checkpoint

        return Checkpoint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
