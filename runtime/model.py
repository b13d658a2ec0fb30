"""VideoLlama3: the embedded API. Load a bundle, encode media once, ask as often as you like."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .bundle import DEMO_BUNDLE, Bundle, open_bundle
from .clip import Clip, MediaKind
from .config import GenerationConfig, PruningConfig, SamplingPlan
from .decoder import Decoder
from .encoder import ClipEncoder, OpenedMedia
from .engine import Backend, select_backend
from .errors import ConfigError
from .generation import Answer, Chunk, Generator, join
from .prompt import MediaItem, PromptTemplate, media_items
from .splice import EmbeddingTable, SplicedPrompt, splice
from .tokenizer import Tokenizer
from .vision import VisionPath

DESCRIBE = {"video": "Describe this video.", "image": "Describe this image."}


class VideoLlama3:
    """A loaded bundle. Use `VideoLlama3.load`.

    Not thread-safe: one call at a time. Starting an answer ends an unfinished one of the same model. The KV cache of
    the last prompt is kept, and whatever the next prompt shares with its beginning is not computed again.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self._backend = backend
        self._encoder = ClipEncoder(VisionPath(bundle, backend), manifest.processor, manifest.vision.patch_size)
        self._tokenizer = Tokenizer(bundle.path("tokenizer.json"))
        template = bundle.path("chat_template.jinja").read_text(encoding="utf-8")
        self._template = PromptTemplate(template, self._tokenizer, manifest.tokens, manifest.layout)
        text = manifest.text
        table = EmbeddingTable(bundle.path("embeddings.safetensors"), text.vocab_size, text.hidden_size)
        decoder = Decoder(backend.session(bundle.path("decoder.onnx")), text)
        self._generator = Generator(decoder, table, self._tokenizer, manifest.tokens.eos_ids)

    @classmethod
    def load(cls, bundle: str | Path | None = None, backend: str = "auto", num_threads: int = 0) -> VideoLlama3:
        """Checks and loads a bundle.

        bundle: the folder `vl3edge export` wrote; None is the small demo bundle that comes with the package.
        backend: "cpu", "cuda", or "auto": CUDA where ONNX Runtime has it, else the CPU. "rtx" and "jetson" run the
            vision path in TensorRT plans of the bundle. There is no silent fallback; `info` says what runs.
        num_threads: of one operator; 0 leaves it to ONNX Runtime (one per physical core).
        Raises BundleError, BackendError, ConfigError.
        """
        chosen = select_backend(backend, num_threads)
        return cls(open_bundle(DEMO_BUNDLE if bundle is None else bundle), chosen)

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
            "bundle_bytes": self.bundle.num_bytes,
            "context_tokens": manifest.text.max_position_embeddings,
            "backend": self._backend.name,
            "vision_runtime": self._backend.vision_runtime,
            "providers": list(self._backend.providers),
            "onnxruntime": self._backend.version,
            "num_threads": self._backend.num_threads or "one per physical core",
        }

    def encode(
        self,
        media: Any,
        sampling: SamplingPlan | None = None,
        pruning: PruningConfig | None = None,
        kind: MediaKind | None = None,
    ) -> Clip:
        """Encodes a video or an image into visual tokens.

        media: a video file, an image file, a folder of frames (3 per second), a GIF; a Pillow image or an array uint8
            [H, W, 3]; an array uint8 [F, H, W, 3] or a list of Pillow images, taken as sampled already.
        sampling, pruning: None takes the checkpoint's settings.
        kind: "image" or "video" where the name or the type of the source does not tell.
        Raises MediaError for media that cannot be used. Warns (MediaWarning) when a damaged video lost frames.
        """
        opened = self._encoder.open(media, kind, sampling)
        return self._encode(opened, pruning, opened.num_frames)

    def encode_all(
        self, media: Sequence[Any], sampling: SamplingPlan | None = None, pruning: PruningConfig | None = None
    ) -> list[Clip]:
        """Encodes media that will stand in one conversation; each is what `encode` takes, or a clip.

        The authors' layout shares one pixel budget among all frames of a conversation; apart from that, it is the same
        as encoding one by one.
        """
        return self._clips([(None, source) for source in media], sampling, pruning)

    def stream(
        self, media: Clip | Sequence[Clip], question: str, config: GenerationConfig | None = None
    ) -> Iterator[Chunk]:
        """The answer to a question about clips, piece by piece; the last chunk has finish_reason and stats.

        Raises ContextLengthError, at the call, if clip and question do not fit the model's context.
        """
        clips = [media] if isinstance(media, Clip) else list(media)
        if not all(isinstance(clip, Clip) for clip in clips):
            raise ConfigError("a question is about clips: make them with `encode` (or `encode_all`) first")
        content: list[dict[str, Any]] = [{"type": clip.kind, clip.kind: clip} for clip in clips]
        content.append({"type": "text", "text": question})
        return self.stream_messages([{"role": "user", "content": content}], config)

    def ask(self, media: Clip | Sequence[Clip], question: str, config: GenerationConfig | None = None) -> Answer:
        """The whole answer to a question about a clip (or several); see `stream`."""
        return join(self.stream(media, question, config))

    def generate(
        self,
        messages: Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        sampling: SamplingPlan | None = None,
        pruning: PruningConfig | None = None,
    ) -> Answer:
        """The answer to a conversation in transformers' message format.

        messages: [{"role", "content"}, …]; content is a string or a list of {"type": "text", "text": …},
            {"type": "image", "image": …} and {"type": "video", "video": …}; media are clips or anything `encode` takes.
        sampling, pruning: for media that are not encoded yet.
        Raises ConfigError for malformed messages, MediaError, ContextLengthError.
        """
        return join(self.stream_messages(messages, config, sampling, pruning))

    def stream_messages(
        self,
        messages: Sequence[Mapping[str, Any]],
        config: GenerationConfig | None = None,
        sampling: SamplingPlan | None = None,
        pruning: PruningConfig | None = None,
    ) -> Iterator[Chunk]:
        """Like `generate`, piece by piece."""
        clips = self._clips(media_items(messages), sampling, pruning)
        return self._generator.chunks(self.prompt(messages, clips), config or GenerationConfig())

    def prompt(self, messages: Sequence[Mapping[str, Any]], clips: Sequence[Clip]) -> SplicedPrompt:
        """The token sequence of a conversation whose k-th image or video is clips[k]."""
        tokens = self.bundle.manifest.tokens
        pieces = self._template.pieces(messages, [MediaItem(clip.kind, clip.timestamps_s) for clip in clips])
        placeholders = [tokens.image_id if clip.kind == "image" else tokens.video_id for clip in clips]
        return splice(pieces, [clip.visual for clip in clips], placeholders, self._tokenizer)

    def _clips(
        self, media: Sequence[tuple[str | None, Any]], sampling: SamplingPlan | None, pruning: PruningConfig | None
    ) -> list[Clip]:
        # All are opened before one is encoded: how the authors' layout sizes frames depends on their number in all.
        opened: list[Clip | OpenedMedia] = []
        for kind, source in media:
            if isinstance(source, Clip):
                if kind not in (None, source.kind):
                    raise ConfigError(f"{source.name} is given as {kind}, but was encoded as {source.kind}")
                opened.append(source)
            else:
                wanted: MediaKind | None = None if kind is None else "image" if kind == "image" else "video"
                opened.append(self._encoder.open(source, wanted, sampling))
        frames = sum(item.num_frames for item in opened)
        return [item if isinstance(item, Clip) else self._encode(item, pruning, frames) for item in opened]

    def _encode(self, opened: OpenedMedia, pruning: PruningConfig | None, frames_in_conversation: int) -> Clip:
        return self._encoder.encode(opened, pruning, self._encoder.frames_sharing(opened, frames_in_conversation))
