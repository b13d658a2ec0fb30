"""Turns calibration media into sequences on the runtime's own path: sampled, resized, pruned, encoded and spliced.

This needs the vision engines, the embedding table and the tokenizer of the bundle being written, but no decoder yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vl3edge.quant.calibration import CalibrationItem, CalibrationSet, calibration_items, collect
from vl3edge.quant.sequences import CalibrationSequence
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import Bundle
from vl3edge.runtime.bundle.specs import MediaSpec
from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.errors import MediaError
from vl3edge.runtime.media.discovery import expand
from vl3edge.runtime.prompt.chat_template import MediaItem, PromptTemplate
from vl3edge.runtime.prompt.splice import EmbeddingTable, splice
from vl3edge.runtime.prompt.tokenizer import Tokenizer
from vl3edge.runtime.vision.clip_encoder import ClipEncoder
from vl3edge.runtime.vision.engines import VisionEngines

_FRAMES = 16
_VISUAL_TOKENS = 1536  # at most, per sequence: longer ones would leave room for only a few in the budget


class CalibrationEmbedder:
    """Turns calibration items into the sequences that the decoder reads.

    bundle: a folder and a manifest that lists at least tokenizer.json, chat_template.jinja, embeddings.safetensors,
        vision.onnx and the projectors.
    """

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self._tokens = manifest.tokens
        vision = VisionEngines(bundle, select_backend("cpu"))
        processor, patch_size = manifest.processor, manifest.vision.patch_size
        small = replace(
            processor, image=_limited(processor.image, patch_size), video=_limited(processor.video, patch_size)
        )
        self._encoder = ClipEncoder(vision, small, patch_size)
        self._tokenizer = Tokenizer.of(bundle)
        self._template = PromptTemplate.of(bundle, self._tokenizer)
        self._table = EmbeddingTable.of(bundle)

    def __call__(self, item: CalibrationItem) -> CalibrationSequence:
        """The conversation about the item's media: at most 16 frames, made small enough for 1,536 visual tokens.

        Raises MediaError for media that cannot be used.
        """
        source = item.media
        if isinstance(source, np.ndarray) and item.kind == "image":
            source = source[0]
        opened = self._encoder.open(source, item.kind, SamplingPlan(max_frames=_FRAMES))
        clip = self._encoder.encode(opened, None)
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": [{"type": clip.kind}, {"type": "text", "text": item.exchange.question}]},
            {"role": "assistant", "content": [{"type": "text", "text": item.exchange.answer}]},
        ]
        media = [MediaItem(clip.kind, clip.timestamps_s)]
        pieces = self._template.pieces(messages, media, add_generation_prompt=False)
        placeholder = self._tokens.image_id if clip.kind == "image" else self._tokens.video_id
        prompt = splice(pieces, [clip.visual], [placeholder], self._tokenizer)
        return CalibrationSequence(prompt.embeddings(self._table))


def _limited(spec: MediaSpec, patch_size: int) -> MediaSpec:
    return replace(spec, max_pixels=min(spec.max_pixels, _VISUAL_TOKENS * (patch_size * spec.merge_size) ** 2))


def calibration_set(bundle: Bundle, media: Sequence[str] = (), max_tokens: int = 32768) -> CalibrationSet:
    """Sequences from files, folders and patterns, or from built-in synthetic scenes when there are none.

    Raises MediaError when an argument matches nothing, QuantError when none of the media can be used.
    """
    paths = [Path(name) for name in expand(media)]
    return collect(calibration_items(paths), CalibrationEmbedder(bundle), max_tokens, unreadable=MediaError)
