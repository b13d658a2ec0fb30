"""Caption videos and answer questions about them from a VideoLLaMA3 bundle, without torch."""

from .chat import Chat, Turn
from .config import GenerationConfig, PruningConfig, SamplingPlan
from .decode.generate import Answer, Chunk, GenerationStats
from .encoder import VideoLlama3Encoder
from .errors import (
    BackendError,
    BundleError,
    ConfigError,
    ContextLengthError,
    MediaError,
    MediaWarning,
    MemoryLimitError,
    Vl3EdgeError,
)
from .jobs import CaptionJob, CaptionResult
from .live.session import FrameReport, Session
from .media.limits import MediaLimits
from .model import VideoLlama3
from .prompt.boxes import Box
from .prompt.splice import SplicedPrompt, VisualTokens
from .vision.clip import Clip, EncodeStats
from .vision.frame_features import FrameFeatures
from .vision.opened_media import OpenedMedia
from .vision.pending_clip import PendingClip

__all__ = [
    "Answer",
    "BackendError",
    "Box",
    "BundleError",
    "CaptionJob",
    "CaptionResult",
    "Chat",
    "Chunk",
    "Clip",
    "ConfigError",
    "ContextLengthError",
    "EncodeStats",
    "FrameFeatures",
    "FrameReport",
    "GenerationConfig",
    "GenerationStats",
    "MediaError",
    "MediaLimits",
    "MediaWarning",
    "MemoryLimitError",
    "OpenedMedia",
    "PendingClip",
    "PruningConfig",
    "SamplingPlan",
    "Session",
    "SplicedPrompt",
    "Turn",
    "VideoLlama3",
    "VideoLlama3Encoder",
    "VisualTokens",
    "Vl3EdgeError",
]
