"""A bundle's parts, loaded and wired up: what `VideoLlama3` answers with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .backends.onnxruntime import PATCHES_PER_CALL, Backend
from .bundle.bundle import Bundle
from .decode.batch import BatchGenerator
from .decode.cached_decoder import CachedDecoder
from .decode.generate import Generator
from .decode.json_grammar import JsonGrammar
from .kernels.select import chosen_decoder, open_decoders
from .media.limits import DEFAULT_LIMITS, MediaLimits
from .memory_estimate import vision_bytes
from .prompt.chat_template import MediaItem, PromptTemplate
from .prompt.messages import conversation_pieces
from .prompt.splice import EmbeddingTable, SplicedPrompt, stream_incremental
from .prompt.tokenizer import Tokenizer
from .vision.clip import Clip
from .vision.frame_embedder import FrameEmbedder
from .vision.pending_clip import AnyClip

Messages = Sequence[Mapping[str, Any]]


class LoadedBundle(FrameEmbedder):
    """Encoder, template, tokenizer, embeddings and decoder of one bundle on one backend.

    decoder: the one that answers; its KV cache holds the last prompt.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        memory_limit: int | None = None,
        limits: MediaLimits = DEFAULT_LIMITS,
        decoder: str = "auto",
    ) -> None:
        super().__init__(bundle, backend, memory_limit, limits)
        backend = self._backend
        self._tokenizer = Tokenizer.of(bundle)
        self._template = PromptTemplate.of(bundle, self._tokenizer)
        self._table = EmbeddingTable.of(bundle)
        self._grammar = JsonGrammar(bundle)
        kind = chosen_decoder(decoder, backend.name, bundle, backend.device)
        self._decoders = open_decoders(kind, backend, bundle, self._engines.wait)
        self.decoder = self._decoders.make(self._memory.check_context)
        self._generator = self._new_generator(self.decoder)

    @property
    def info(self) -> dict[str, Any]:
        """What this model is and what it runs on, as plain values."""
        manifest = self.bundle.manifest
        return {
            "bundle": str(self.bundle.folder),
            "name": manifest.name,
            "layout": manifest.layout,
            "precision": manifest.precision,
            "quantization": manifest.quantization.get("method", "none"),
            "vision_bits": manifest.vision_quantization.bits,
            "bundle_bytes": self.bundle.num_bytes,
            "context_tokens": manifest.text.max_position_embeddings,
            "generation": asdict(manifest.generation),
            "backend": self._backend.name,
            "vision_runtime": self._backend.vision_runtime,
            "vision_graph": self._backend.vision_file(self.bundle),
            **self._decoders.info,
            "providers": list(self._backend.providers),
            "onnxruntime": self._backend.version or None,
            "num_threads": self._backend.num_threads or "one per physical core",
        }

    @property
    def has_system_prompt(self) -> bool:
        """Whether the chat template has a system text of its own, for add_system_prompt."""
        return self._template.has_system_prompt

    def _new_generator(self, decoder: CachedDecoder) -> Generator:
        manifest = self.bundle.manifest
        eos_ids, defaults = manifest.tokens.eos_ids, manifest.generation
        return Generator(decoder, self._table, self._tokenizer, eos_ids, defaults, self._grammar)

    def _batch_generator(self, batch: int, memory_bytes: int | None, keep_rows: bool = False) -> BatchGenerator:
        manifest = self.bundle.manifest
        return BatchGenerator(
            self._decoders.make(),
            self._table,
            self._tokenizer,
            manifest.tokens.eos_ids,
            batch,
            self._memory.cache_bytes() if memory_bytes is None else memory_bytes,
            vision_bytes(manifest, PATCHES_PER_CALL, 1) + self._decoders.run_bytes(batch),
            self._memory.check_context,
            manifest.generation,
            keep_rows,
            self._grammar,
        )

    def _prompts(
        self, messages: Messages, clips: Sequence[AnyClip], every: int | None, add_system_prompt: bool
    ) -> Iterator[SplicedPrompt]:
        """The prompt of a conversation while its clips are encoded; see `stream_incremental`."""
        tokens = self.bundle.manifest.tokens
        media = [MediaItem(clip.kind, clip.timestamps_s) for clip in clips]
        pieces = conversation_pieces(self._template, messages, media, add_system_prompt=add_system_prompt)
        placeholders = [tokens.image_id if clip.kind == "image" else tokens.video_id for clip in clips]
        visuals = [clip.visual if isinstance(clip, Clip) else clip for clip in clips]
        return stream_incremental(pieces, visuals, placeholders, self._tokenizer, every)
