"""What a VideoLLaMA3 model is: frozen, typed configurations, the same for both checkpoint layouts.

`read_config` in `config_reader.py` makes them from a checkpoint's JSON files. Nothing here depends on torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from vl3edge.runtime.bundle.specs import GREEDY, GenerationSpec

Layout = Literal["transformers", "authors"]


@dataclass(frozen=True)
class VisionConfig:
    """The vision encoder, SigLIP with 2D rotary positions.

    hidden_act: "gelu_pytorch_tanh" (the released models) or "gelu" (the exact one, with erf).
    """

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    patch_size: int
    num_channels: int = 3
    layer_norm_eps: float = 1e-6
    hidden_act: str = "gelu_pytorch_tanh"
    rope_theta: float = 10000.0

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads


@dataclass(frozen=True)
class TextConfig:
    """The decoder, Qwen2.5: RMSNorm, rotary positions, bias on q/k/v only, SwiGLU."""

    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    max_position_embeddings: int = 32768
    tie_word_embeddings: bool = False


NO_TEXT = TextConfig(0, 0, 0, 0, 0, 0, 0)
"""Of a checkpoint that holds the vision encoder alone."""


@dataclass(frozen=True)
class MediaProcessing:
    """How images, or the frames of a video, are resized before the encoder.

    merge_size: m×m patches become one visual token.
    rule: whose rounding is used; it also determines what the two budgets count.
        "transformers": pixels, the maximum divided by the number of frames of a video;
        "authors": merged tokens, the maximum divided by all images and video frames of the conversation.
    minimum, maximum: the budgets.
    """

    merge_size: int
    rule: Layout
    minimum: int
    maximum: int


@dataclass(frozen=True)
class ModelConfig:
    """A checkpoint's configuration.

    text: NO_TEXT where the checkpoint is the vision encoder alone; the fields about tokens then say nothing.
    image_token_id, video_token_id: the placeholder tokens; the authors' layout has one for both.
    eos_token_ids: generation ends at any of them.
    image_mean, image_std: of pixel values scaled to 0…1, one per channel.
    fps, max_frames: how the checkpoint's processor samples a video.
    use_token_compression: whether the checkpoint prunes video tokens (DiffFP) by default.
    generation: the checkpoint's settings for choosing tokens.
    quantization: the checkpoint's `quantization_config` (a GPTQ decoder), unchanged, or None.
    """

    name: str
    layout: Layout
    vision: VisionConfig
    text: TextConfig
    image: MediaProcessing
    video: MediaProcessing
    image_token_id: int
    video_token_id: int
    eos_token_ids: tuple[int, ...]
    image_mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    image_std: tuple[float, ...] = (0.5, 0.5, 0.5)
    fps: float = 1.0
    max_frames: int = 180
    use_token_compression: bool = True
    generation: GenerationSpec = GREEDY
    quantization: Mapping[str, Any] | None = None

    @property
    def has_decoder(self) -> bool:
        """False for the vision encoder alone, which has no projector either."""
        return self.text != NO_TEXT
