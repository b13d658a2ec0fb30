"""Caption videos and answer questions about them from a VideoLLaMA3 bundle, without torch."""

from .config import GenerationConfig, PruningConfig, SamplingPlan
from .decode.generate import Answer, Chunk
from .errors import Vl3EdgeError
from .model import VideoLlama3

__all__ = [
    "Answer",
    "Chunk",
    "GenerationConfig",
    "PruningConfig",
    "SamplingPlan",
    "VideoLlama3",
    "Vl3EdgeError",
]
