"""What one call wants: how to sample frames, how to prune tokens, how to generate text.

What the model *is* lives in the bundle's manifest (`manifest.py`); nothing here depends on a model. All classes are
frozen and check their values when they are made, so a bad option fails at the call that gave it.
"""

from __future__ import annotations

import math
import numbers
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, cast

from .bundle.specs import GenerationSpec
from .errors import ConfigError

MAX_FPS = 1_000_000  # finer than any clip's clock; times are counted exactly, and may not overflow
DEFAULT_NEW_TOKENS = 256
"""Of an answer, where neither the call nor the model limits it."""
SamplingRule = Literal["fps", "index"]
MediaKind = Literal["image", "video"]
_KINDS: dict[str, tuple[type, str]] = {
    "float": (numbers.Real, "a number"),
    "int": (numbers.Integral, "a whole number"),
    "bool": (bool, "True or False"),
}


@dataclass(frozen=True)
class SamplingPlan:
    """Which frames of a video are read.

    fps: frames per second of the video's own clock; None takes the checkpoint's (1 for the released models).
    max_frames: at most so many; None takes the checkpoint's (180). If there are more, `linspace` over them.
    start_s, end_s: the part of the video to read, in seconds from its start; None is the whole.
    rule: "fps" samples by time as FFmpeg's fps filter does (the authors' release, the default);
        "index" spreads frames evenly by frame number (transformers' port).
    source_fps: of the video itself, whatever its own clock says: its frames count as evenly spaced, so many per second.
        None takes its own; a bare stream that states none counts as 25, a folder of pictures as 3, frames in memory as
        sampled already.
    """

    fps: float | None = None
    max_frames: int | None = None
    start_s: float | None = None
    end_s: float | None = None
    rule: SamplingRule = "fps"
    source_fps: float | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        check_rate("fps", self.fps)
        check_rate("source_fps", self.source_fps)
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


MAX_DRAFTS = 8
"""Drafted tokens in one pass, at most: products of nine rows still read the weights once."""


@dataclass(frozen=True)
class PruningConfig:
    """Which tokens of a video the decoder is not given: those that did not change (DiffFP), and the least unique ones.

    threshold: a token is kept when the mean absolute difference of its normalized pixels to the previous sampled
        frame, times 255, is above it. 0.1 is the released model's value; "auto" takes each clip's own noise floor.
    enabled: of DiffFP; None follows the checkpoint (the released ones prune), and prunes for "auto".
    max_visual_tokens: of each video, the most that the decoder is given: the most unique of those that DiffFP leaves
        (of all, where it is off). Every frame keeps one, so that many it must allow.
    keep_ratio: the same as a share of what DiffFP leaves, above 0 and at most 1. With both the fewer are given.

    Images keep all their tokens, and need not fit a budget.
    """

    threshold: float | Literal["auto"] = 0.1
    enabled: bool | None = None
    max_visual_tokens: int | None = None
    keep_ratio: float | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        threshold = self.threshold
        if threshold != "auto" and (isinstance(threshold, str) or not (math.isfinite(threshold) and threshold >= 0)):
            raise ConfigError(f"threshold must be a number, 0 or more, or 'auto', not {self.threshold!r}")
        if self.max_visual_tokens is not None and self.max_visual_tokens < 1:
            raise ConfigError(f"max_visual_tokens must be at least 1, not {self.max_visual_tokens}")
        if self.keep_ratio is not None and not 0 < self.keep_ratio <= 1:
            raise ConfigError(f"keep_ratio must be above 0 and at most 1, not {self.keep_ratio}")

    @property
    def chooses_threshold(self) -> bool:
        """Whether the threshold depends on all frames of a clip, so that all are read before the first is encoded."""
        return self.threshold == "auto"

    @property
    def chooses_tokens(self) -> bool:
        """Whether tokens are chosen by how unique they are, after all of a clip's are known."""
        return self.max_visual_tokens is not None or self.keep_ratio is not None

    @property
    def needs_whole_clip(self) -> bool:
        """Whether any choice depends on all of a clip, so that a stream cannot be pruned so."""
        return self.chooses_threshold or self.chooses_tokens

    def tokens_chosen(self, left: int) -> int:
        """How many of a video's tokens the decoder is given, of those that DiffFP leaves."""
        share = left if self.keep_ratio is None else round(self.keep_ratio * left)
        return share if self.max_visual_tokens is None else min(share, self.max_visual_tokens)


@dataclass(frozen=True)
class GenerationConfig:
    """How tokens are chosen. Field names and meanings follow transformers; temperature 0 is greedy.

    What is None is as the checkpoint's generation_config.json says (`model.info` shows it), or, where that says
    nothing, greedy, without a penalty, and at most 256 tokens.

    max_new_tokens: upper limit of generated tokens. None takes the checkpoint's max_new_tokens, or what its max_length
        leaves after the prompt.
    temperature, top_k, top_p: applied in this order; top_k 0 and top_p 1.0 switch theirs off. A temperature above 0
        draws tokens, also from a checkpoint that does not ask for it.
    repetition_penalty: 1.0 is off; applied to every token of the prompt and the answer so far; to those of the answer
        alone in the authors' layout, whose release gives transformers no ids of the prompt.
    seed: of the sampler; None draws one. The same seed gives the same text on the same machine.
    draft_tokens: tokens looked up in what was said before and checked in one pass, 0 (off) to 8. They change no answer,
        but for rounding: products of several tokens sum in another order. Where they do not pay, none are tried.
        Batches have none, and neither have decoders of older bundles.
    prefix: what the answer begins with; the model goes on from there. Its tokens stand after the prompt's, and count as
        the prompt's but in the answer's text and token_ids.
    json_schema: a JSON schema, as a dictionary, that the answer has to fit: of the tokens that do, the best is taken,
        or one is drawn. Needs llguidance, of the extra [schema].
    best_of: so many answers are drawn, with seed, seed + 1, …, after one prefill, and the one with the highest mean
        log-probability per token is given: by the model's own probabilities, without temperature, top-k, top-p, penalty
        or schema, of the tokens generated, the end token among them. Needs a temperature above 0.
    """

    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    draft_tokens: int = 0
    prefix: str = ""
    json_schema: Mapping[str, Any] | None = None
    best_of: int = 1

    def __post_init__(self) -> None:
        _check_types(self)
        if not 0 <= self.draft_tokens <= MAX_DRAFTS:
            raise ConfigError(f"draft_tokens must be 0 to {MAX_DRAFTS}, not {self.draft_tokens}")
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")
        temperature, penalty = self.temperature, self.repetition_penalty
        if temperature is not None and not (math.isfinite(temperature) and temperature >= 0):
            raise ConfigError(f"temperature must be 0 (greedy) or more, not {temperature}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.top_k is not None and self.top_k < 0:
            raise ConfigError(f"top_k must be 0 (off) or more, not {self.top_k}")
        if penalty is not None and not (math.isfinite(penalty) and penalty > 0):
            raise ConfigError(f"repetition_penalty must be above 0 (1.0 is off), not {penalty}")
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"seed must be a whole number, 0 or more, not {self.seed}")
        if not isinstance(self.prefix, str) or any("\ud800" <= c <= "\udfff" for c in self.prefix):
            raise ConfigError(f"prefix must be text, not {self.prefix!r}")
        if self.json_schema is not None and not isinstance(self.json_schema, Mapping):
            raise ConfigError(f"json_schema must be a dictionary, the JSON schema itself, not {self.json_schema!r}")
        if self.best_of < 1:
            raise ConfigError(f"best_of must be at least 1, not {self.best_of}")

    def filled(self, model: GenerationSpec) -> GenerationConfig:
        """A copy whose open fields are filled from the model's defaults; only seed may still be None."""
        own = {"temperature": model.temperature if model.do_sample else 0.0, "top_p": model.top_p, "top_k": model.top_k}
        own["repetition_penalty"] = model.repetition_penalty
        taken: dict[str, Any] = {name: value for name, value in own.items() if getattr(self, name) is None}
        return replace(self, **taken)

    def new_tokens(self, model: GenerationSpec, prompt_tokens: int) -> int:
        """The upper limit of tokens to generate after a prompt of so many; below 1 if the model's max_length is used
        up."""
        if self.max_new_tokens is None and not model.max_new_tokens and model.max_length:
            return model.max_length - prompt_tokens
        return self.max_new_tokens or model.max_new_tokens or DEFAULT_NEW_TOKENS


def check_rate(name: str, fps: float | None) -> None:
    """Raises ConfigError for an impossible number of frames per second; None is allowed."""
    if fps is not None and not 0 < fps <= MAX_FPS:
        raise ConfigError(f"{name} must be a positive number, at most {MAX_FPS:,}, not {fps}")


def _check_types(config: Any) -> None:
    """ConfigError for a value of another kind than its field is declared as: "1", True or an array for a number."""
    for field in fields(config):
        value, words = getattr(config, field.name), re.findall(r"\w+", str(field.type))
        kind = next((kind for kind in _KINDS if kind in words), None)
        if kind is None or (value is None and "None" in words) or (isinstance(value, str) and "Literal" in words):
            continue
        expected, name = _KINDS[kind]
        if not isinstance(value, expected) or (isinstance(value, bool) and kind != "bool"):
            raise ConfigError(f"{field.name} must be {name}, not {value!r}")
        try:
            float(cast(Any, value))
        except OverflowError as e:  # a whole number may have any number of digits
            raise ConfigError(f"{field.name} must be a smaller number") from e
