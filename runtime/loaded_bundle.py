"""A bundle's parts, loaded and wired up: what `VideoLlama3` answers with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .backends.onnxruntime import PATCHES_PER_CALL, Backend
from .bundle.bundle import Bundle
from .decode.batch import BatchGenerator
from .decode.decoder import PREFILL_CHUNK, Decoder
from .decode.generate import Generator
from .decode.graph import load_decoder_graph
from .media.limits import DEFAULT_LIMITS, MediaLimits
from .memory_budget import MemoryBudget
from .memory_estimate import prefill_bytes, vision_bytes
from .prompt.chat_template import MediaItem, PromptTemplate
from .prompt.messages import conversation_pieces
from .prompt.splice import EmbeddingTable, SplicedPrompt, growing
from .prompt.tokenizer import Tokenizer
from .vision.clip import Clip
from .vision.clip_encoder import ClipEncoder
from .vision.engines import VisionEngines
from .vision.pending_clip import AnyClip

Messages = Sequence[Mapping[str, Any]]


class LoadedBundle:
    """Encoder, template, tokenizer, embeddings and decoder of one bundle on one backend."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        memory_limit: int | None = None,
        limits: MediaLimits = DEFAULT_LIMITS,
    ) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self._backend = backend
        self._memory = MemoryBudget(manifest, backend, memory_limit)
        self._memory.check_model()
        self._encoder = ClipEncoder(
            VisionEngines(bundle, backend), manifest.processor, manifest.vision.patch_size, limits, self._memory
        )
        self._tokenizer = Tokenizer(bundle.path("tokenizer.json"))
        self._template = PromptTemplate(bundle.chat_template(), self._tokenizer, manifest.tokens, manifest.layout)
        text = manifest.text
        self._table = EmbeddingTable(bundle.path("embeddings.safetensors"), text.vocab_size, text.hidden_size)
        self._decoder_graph = load_decoder_graph(backend, bundle)
        decoder = Decoder(self._decoder_graph, text, self._memory.check_context)
        self._generator = self._new_generator(decoder)

    def _new_generator(self, decoder: Decoder) -> Generator:
        manifest = self.bundle.manifest
        return Generator(decoder, self._table, self._tokenizer, manifest.tokens.eos_ids, manifest.generation)

    def _batch_generator(self, batch: int, memory_bytes: int | None) -> BatchGenerator:
        manifest = self.bundle.manifest
        return BatchGenerator(
            Decoder(self._decoder_graph, manifest.text),
            self._table,
            self._tokenizer,
            manifest.tokens.eos_ids,
            batch,
            self._memory.cache_bytes() if memory_bytes is None else memory_bytes,
            vision_bytes(manifest, PATCHES_PER_CALL, 1) + prefill_bytes(manifest, PREFILL_CHUNK, batch),
            self._memory.check_context,
            manifest.generation,
        )

    def _prompts(
        self, messages: Messages, clips: Sequence[AnyClip], every: int | None, add_system_prompt: bool
    ) -> Iterator[SplicedPrompt]:
        """The prompt of a conversation while its clips are encoded; see `growing`."""
        tokens = self.bundle.manifest.tokens
        media = [MediaItem(clip.kind, clip.timestamps_s) for clip in clips]
        pieces = conversation_pieces(self._template, messages, media, add_system_prompt=add_system_prompt)
        placeholders = [tokens.image_id if clip.kind == "image" else tokens.video_id for clip in clips]
        visuals = [clip.visual if isinstance(clip, Clip) else clip for clip in clips]
        return growing(pieces, visuals, placeholders, self._tokenizer, every)
