"""What a VideoLLaMA3 model is: checkpoints of either layout, their configurations and their torch modules."""

from .checkpoint import Checkpoint
from .config import MediaProcessing, ModelConfig, TextConfig, VisionConfig
from .errors import CheckpointError

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "MediaProcessing",
    "ModelConfig",
    "TextConfig",
    "VisionConfig",
]
