"""The fine model's tokenizer and processor: the demo's, for its own sentences and size."""

from __future__ import annotations

from tokenizers import Tokenizer

from ..stock import VideoLlama3Processor
from ..tokenizer import make_processor, train_bpe
from .questions import sentences
from .world import SIZE_PX


def train_tokenizer() -> Tokenizer:
    """Trains the tokenizer; the same every time."""
    return train_bpe(sentences() * 20)


def fine_processor(tokenizer: Tokenizer) -> VideoLlama3Processor:
    """The processor of the fine checkpoint: frames of 140 x 140 pixels stay as they are."""
    return make_processor(tokenizer, SIZE_PX)
