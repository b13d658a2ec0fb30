"""What a manifest says of the model and of its export, a dataclass for each part.

They are written as JSON as they stand, so a field that is added needs a default: what bundles of before it mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class MediaSpec:
    """Pixel budget of images or of videos; sides become multiples of patch_size × merge_size pixels.

    min_pixels, max_pixels: of one image, or of all frames of a video together (`ProcessorSpec.rule` says how they are
    shared out).
    """

    merge_size: int
    min_pixels: int
    max_pixels: int


@dataclass(frozen=True)
class ProcessorSpec:
    """How media become pixels. mean and std are per RGB channel, on pixels in [0, 1]."""

    rule: Literal["transformers", "authors"]
    image: MediaSpec
    video: MediaSpec
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fps: float
    max_frames: int
    token_compression: bool


@dataclass(frozen=True)
class VisionSpec:
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    patch_size: int


@dataclass(frozen=True)
class TextSpec:
    """Sizes of the decoder graph.

    head_dim: of the KV cache; the model's own is rotary_dim, and what is more is zeros at the end of either half.
    rope_theta: base of the rotary frequencies. Both are 0 in bundles of before they were written.
    head_rows: tokens that the output head can say (`head_tokens.py`); 0 is all of the vocabulary.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float = 0.0
    rotary_dim: int = 0
    head_rows: int = 0

    @property
    def num_logits(self) -> int:
        """Rows of the output head."""
        return self.head_rows or self.vocab_size


NO_TEXT = TextSpec(0, 0, 0, 0, 0, 0, 0, 0)
"""Of a bundle that holds the vision encoder alone: with these sizes there is nothing to reckon with."""


@dataclass(frozen=True)
class TokenSpec:
    """Token ids. In the authors' layout image_id and video_id are one and the same."""

    image_id: int
    video_id: int
    eos_ids: tuple[int, ...]


NO_TOKENS = TokenSpec(0, 0, ())
"""Of a bundle that holds the vision encoder alone."""


@dataclass(frozen=True)
class GenerationSpec:
    """How the checkpoint wants tokens to be chosen: what a call takes for what its GenerationConfig leaves open.

    do_sample: False is greedy; temperature, top_p and top_k then count only for calls that set a temperature.
    max_new_tokens: of an answer, max_length: of the prompt and the answer; 0 says nothing, and the former goes first.
    penalize_prompt: whether repetition_penalty counts the prompt's tokens, placeholders of media included. So it is
        where transformers is given ids (its own layout); the authors' release gives it embeddings, and then it counts
        those of the answer alone.
    """

    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    penalize_prompt: bool = True
    max_new_tokens: int = 0
    max_length: int = 0

    def problems(self) -> list[str]:
        """Describes every value that is out of bounds; NaN and infinity are already refused when JSON is read."""
        right = {
            "temperature": self.temperature >= 0,
            "top_p": 0 < self.top_p <= 1,
            "top_k": self.top_k >= 0,
            "repetition_penalty": self.repetition_penalty > 0,
            "max_new_tokens": self.max_new_tokens >= 0,
            "max_length": self.max_length >= 0,
        }
        return [f"generation.{name} is {getattr(self, name)}, out of bounds" for name, ok in right.items() if not ok]


GREEDY = GenerationSpec()
"""What a checkpoint that asks for nothing gets, and bundles of before this was written."""


@dataclass(frozen=True)
class VisionQuantization:
    """How the products of the vision encoder are computed: 8 bits for weights and activations, or 16 for float.

    source: what it was calibrated on, in words. relative_error: root mean square difference of the features of
    held-out frames from the float32 encoder's, over their root mean square.
    """

    bits: Literal[8, 16] = 16
    source: str = ""
    calibration_frames: int = 0
    relative_error: float = 0.0


WHOLE_VISION = VisionQuantization()
"""Of an encoder that is not quantized."""


@dataclass(frozen=True)
class PrefillQuantization:
    """How a CPU computes the decoder's products while it reads a prompt: in 8 bits, by a graph of its own, or not.

    bits: 8, or 16 where there is no such graph and prompts are computed as steps are. source: what it was calibrated
    on, in words. relative_error: root mean square difference of the keys, or the values, of held-out prompts from the
    float32 decoder's, over their spread from token to token, in the layer where it is largest.
    """

    bits: Literal[8, 16] = 16
    source: str = ""
    calibration_tokens: int = 0
    relative_error: float = 0.0


NO_PREFILL_GRAPH = PrefillQuantization()
"""Of a bundle whose prompts are computed as steps are."""


@dataclass(frozen=True)
class VocabularySpec:
    """Where `TextSpec.head_rows` are taken from, and what that loses; empty where the head has the whole vocabulary.

    source: in words. held_out_tokens: of every other line of the texts. held_out_lost: as many of them are not in a
    head made from the other lines; held_out_spelled: tokens of that head that spell these, at least.
    """

    source: str = ""
    held_out_tokens: int = 0
    held_out_lost: int = 0
    held_out_spelled: int = 0


NO_VOCABULARY = VocabularySpec()
"""Of a head that has not been cut."""


@dataclass(frozen=True)
class ExportSpec:
    """How a bundle was asked for, where its other facts do not tell.

    preset: of `vl3edge export`; "" for none, as in bundles from before. changed: settings that were given instead of
    the preset's, in words, such as "head_bits 8". activation_bits: 8 if a CPU rounds activations before the decoder's
    quantized products.
    """

    preset: Literal["", "exact", "balanced", "small"] = ""
    changed: tuple[str, ...] = ()
    activation_bits: Literal[8, 32] = 8


UNKNOWN_EXPORT = ExportSpec()
"""Of bundles of before this was written."""


@dataclass(frozen=True)
class AdapterSpec:
    """A LoRA adapter that was merged into the weights before anything else.

    name: of its folder, or of its repository with the commit. sha256, config_sha256: of adapter_model.safetensors and
    adapter_config.json. weight: what its changes were multiplied by.
    """

    name: str
    sha256: str
    config_sha256: str
    weight: float = 1.0

    def __str__(self) -> str:
        return f"{self.name}, weight {self.weight:g}, sha256 {self.sha256[:16]}"
