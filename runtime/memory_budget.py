"""Keeps a model within a limit of memory: refuses what does not fit, before it is allocated.

What can be bounded without changing a result is bounded first: frames go through the encoder in smaller calls. What is
still too much then is an error that names the numbers; nothing is dropped or shrunk in silence. Without a limit given,
it is what the machine had available when the model was loaded: an error of ours costs one clip, the kernel's
out-of-memory killer costs the process.
"""

from __future__ import annotations

import re

from .backends.onnxruntime import Backend
from .bundle.manifest import Manifest
from .decode.kv_cache import bytes_per_row
from .decode.prefill_chunk import PREFILL_CHUNK
from .errors import ConfigError, ContextLengthError, MediaError, MemoryLimitError
from .host import available_bytes, current_bytes
from .memory_estimate import (
    BASE_BYTES,
    FLOAT,
    TEXT_TOKENS,
    frames_bytes,
    gpu_weights_bytes,
    loading_bytes,
    prefill_bytes,
    vision_bytes,
    weights_bytes,
)

UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30}
_ADVICE = "set memory_limit (--memory-limit) if you know better"


class MemoryBudget:
    """What the process of one model may take, by estimate (`memory_estimate.py`).

    limit_bytes: None where there is no limit: on a GPU, whose memory it is of, unless one is given.
    """

    def __init__(self, manifest: Manifest, backend: Backend, memory_limit: int | None) -> None:
        """memory_limit: in bytes; None is what is available now, and what the process has already."""
        self._on_gpu = backend.device is not None
        self._manifest = manifest
        self._given = memory_limit is not None
        self.limit_bytes = memory_limit
        if memory_limit is None and backend.name == "cpu" and (available := available_bytes()) is not None:
            self.limit_bytes = available + (current_bytes() or 0)
        self._loaded = gpu_weights_bytes(manifest) if self._on_gpu else BASE_BYTES + weights_bytes(manifest)
        self._vision = 0  # the largest call so far: its memory is kept for the next

    def check_model(self) -> None:
        """Raises MemoryLimitError if the weights alone do not fit."""
        needed = self._loaded + (0 if self._on_gpu else loading_bytes(self._manifest))
        if self.limit_bytes is not None and needed > self.limit_bytes:
            raise MemoryLimitError(
                f"the model needs {_gb(needed)} while it is loaded, {self._limit()}: use a smaller bundle "
                f"(export --preset small){'' if self._given else f', or {_ADVICE}'}"
            )

    def frames_per_call(
        self, name: str, wanted: int, size: tuple[int, int], source: tuple[int, int], merge_size: int, tokens: int
    ) -> int:
        """How many frames of `size` = (height, width) go through the encoder at once: `wanted`, or fewer, but one.

        source: height and width before resizing. tokens: visual tokens of the clip, at most; fewer frames at once leave
        room for them. Raises MediaError if not even one frame fits.
        """
        if self.limit_bytes is None:
            return wanted
        room = self.limit_bytes - self._loaded - prefill_bytes(self._manifest, PREFILL_CHUNK)
        patches = size[0] * size[1] // self._manifest.vision.patch_size**2
        answered = self._context_bytes(min(tokens + TEXT_TOKENS, self._manifest.text.max_position_embeddings))

        def needed(frames: int) -> int:
            encoding = vision_bytes(self._manifest, frames * patches, merge_size)
            return max(encoding, self._vision) + (0 if self._on_gpu else frames_bytes(frames, size, source))

        if needed(1) > room:
            raise MediaError(
                f"{name}: reading a frame of {source[1]}×{source[0]} pixels and encoding it at {size[1]}×{size[0]} "
                f"takes {_gb(needed(1))} beside the {_gb(self.limit_bytes - room)} of the model, "
                f"{self._limit()}: make it smaller first, or sample more frames, which share one budget of pixels"
            )
        fitting = (frames for frames in range(wanted, 1, -1) if needed(frames) + answered <= room)
        frames = next(fitting, 1)
        self._vision = max(self._vision, vision_bytes(self._manifest, frames * patches, merge_size))
        return frames

    def check_context(self, tokens: int) -> None:
        """Raises ContextLengthError if the decoder cannot hold so many tokens, prompt and answer."""
        if self.limit_bytes is None:
            return
        needed = self._context_bytes(tokens)
        rest = self._loaded + self._vision + prefill_bytes(self._manifest, PREFILL_CHUNK)
        if needed + rest > self.limit_bytes:
            raise ContextLengthError(
                f"a context of {tokens:,} tokens takes {_gb(needed)} on top of the {_gb(rest)} of the model, "
                f"{self._limit()}: use fewer frames (max_frames), a higher pruning threshold, a shorter question or "
                "fewer new tokens"
            )

    def _context_bytes(self, tokens: int) -> int:
        """Of each token: keys and values; its embedding in the clip, in the clip's frames and in the prompt.

        On a GPU, whose cache is float16, keys and values alone: embeddings are the host's.
        """
        text = self._manifest.text
        if self._on_gpu:
            return bytes_per_row(text, tokens, itemsize=2)
        return bytes_per_row(text, tokens) + 3 * tokens * text.hidden_size * FLOAT

    def cache_bytes(self) -> int | None:
        """Bytes that an explicit limit leaves for caches and prompts; None without one."""
        if not self._given or self.limit_bytes is None:
            return None
        rest = self._loaded + self._vision + prefill_bytes(self._manifest, PREFILL_CHUNK)
        return max(0, self.limit_bytes - rest)

    def _limit(self) -> str:
        assert self.limit_bytes is not None
        reason = "the limit given" if self._given else "what was available when it was loaded"
        return f"more than {_gb(self.limit_bytes)}, {reason}"


def parse_bytes(text: str) -> int:
    """ "4GB", "3.5g", "800 MB", "2GiB" or a number of bytes; ConfigError for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmg]i?)?b?", text.strip().lower())
    if match is None or (size := int(float(match[1]) * UNITS[match[2] or ""])) < 1:
        raise ConfigError(f"a size is a number with a unit, such as 4GB or 800MB, not {text!r}")
    return size


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.2f} GB"
