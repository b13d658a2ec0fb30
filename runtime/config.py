"""What one call wants: how to sample frames, how to prune tokens, how to generate text.

What the model *is* lives in the bundle's manifest (`bundle.py`); nothing here depends on a model. All classes are
frozen and check their values when they are made, so a bad option fails at the call that gave it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .errors import ConfigError

MAX_FPS = 1_000_000  # finer than any clip's clock; times are counted exactly, and may not overflow
SamplingRule = Literal["fps", "index"]


@dataclass(frozen=True)
class SamplingPlan:
    """Which frames of a video are read.

    fps: frames per second of the video's own clock; None takes the checkpoint's (1 for the released models).
    max_frames: at most so many; None takes the checkpoint's (180). If there are more, `linspace` over them.
    start_s, end_s: the part of the video to read, in seconds from its start; None is the whole.
    rule: "fps" samples by time as FFmpeg's fps filter does (the authors' release, the default);
        "index" spreads frames evenly by frame number (transformers' port).
    """

    fps: float | None = None
    max_frames: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    rule: SamplingRule = "fps"

    def __post_init__(self) -> None:
        if self.fps is not None and not 0 < self.fps <= MAX_FPS:
            raise ConfigError(f"fps must be a positive number, at most {MAX_FPS:,}, not {self.fps}")
        if self.max_frames is not None and self.max_frames < 1:
            raise ConfigError(f"max_frames must be at least 1, not {self.max_frames}")
        for name in ("start_s", "end_s"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name} must be a time in seconds, 0 or more, not {value}")
        if self.start_s is not None and self.end_s is not None and self.end_s <= self.start_s:
            raise ConfigError(f"end_s ({self.end_s}) must be after start_s ({self.start_s})")
        if self.rule not in ("fps", "index"):
            raise ConfigError(f"rule must be 'fps' or 'index', not {self.rule!r}")


@dataclass(frozen=True)
class PruningConfig:
    """DiffFP: which video tokens are dropped because they did not change.

    threshold: a token is kept when the mean absolute difference of its normalized pixels to the previous sampled
        frame, times 255, is above it. 0.1 is the released model's value.
    enabled: False keeps every token; None follows the checkpoint (the released ones prune).
    """

    threshold: float = 0.1
    enabled: bool | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ConfigError(f"threshold must be a number, 0 or more, not {self.threshold}")


@dataclass(frozen=True)
class GenerationConfig:
    """How tokens are chosen. Field names and meanings follow transformers; temperature 0 is greedy.

    max_new_tokens: upper limit of generated tokens.
    temperature, top_k, top_p: applied in this order; top_k 0 and top_p 1.0 switch theirs off.
    repetition_penalty: 1.0 is off; applied to every token of the prompt and the answer so far.
    seed: of the sampler; None draws one. The same seed gives the same text on the same machine.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError(f"temperature must be 0 (greedy) or more, not {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be 0 (off) or more, not {self.top_k}")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ConfigError(f"repetition_penalty must be above 0 (1.0 is off), not {self.repetition_penalty}")
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"seed must be a whole number, 0 or more, not {self.seed}")
