"""VideoLlama3: the embedded API. Load a bundle, encode media once, ask as often as you like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .backends.select import select_backend
from .bundle.bundle import bundle_folder, open_bundle
from .chat import Chat
from .config import GenerationConfig, MediaKind, PruningConfig, SamplingPlan
from .decode.generate import Answer, Chunk, join
from .decode.rope import Rotary
from .errors import ConfigError
from .host import trimmed
from .jobs import CaptionJob, CaptionResult, batched, in_order, sequential
from .kernels.select import chosen_decoder
from .live.session import Session
from .live.session_prompt import StreamFormat, StreamLayout
from .loaded_bundle import LoadedBundle, Messages
from .media.limits import DEFAULT_LIMITS, MediaLimits
from .prompt.chat_template import DESCRIBE as DESCRIBE
from .prompt.chat_template import media_items, question_about, with_system
from .prompt.splice import SplicedPrompt
from .vision.clip import Clip
from .vision.opened_media import OpenedMedia
from .vision.pending_clip import AnyClip, PendingClip

TRAINING_TOKENS = 16384  # the longest sequences the released models were trained on


class VideoLlama3(LoadedBundle):
    """A loaded bundle. Use `VideoLlama3.load`.

    Not thread-safe: one call at a time. Starting an answer ends an unfinished one of the same model. The KV cache of
    the last prompt is kept, and whatever the next prompt shares with its beginning is not computed again.

    Calls that ask have two options of one meaning, both as in the authors' processor, by default off, as they evaluate
    their models; what is off leaves the prompt as it is.
    system: instructions, put as a system message at the beginning. Their published example has "You are a helpful
        assistant."
    add_system_prompt: True puts the chat template's own system text where the conversation has no system message. A
        template without one ignores it; see `has_system_prompt`.
    """

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        backend: str = "auto",
        num_threads: int = 0,
        memory_limit: int | None = None,
        limits: MediaLimits = DEFAULT_LIMITS,
        decoder: str = "auto",
    ) -> VideoLlama3:
        """Checks and loads a bundle. Its files are hashed the first time, and when they have changed since.

        bundle: the folder `vl3edge export` wrote; None is the small demo bundle that comes with the package.
        backend: "cpu", "cuda", or "auto": CUDA where ONNX Runtime has it, else the CPU. "rtx", "jetson" and
            "tensorrt" run the vision path in TensorRT plans of the bundle. There is no silent fallback; `info` says
            what runs.
        num_threads: of one operator; 0 leaves it to ONNX Runtime (one per physical core). Clips are decoded with as
            many, unless `limits` has a number of its own.
        memory_limit: bytes that this process may take, by estimate, on a CPU; None is what is available now. On a GPU
            of the GPU's memory. What does not fit is refused: the model here, a clip or a prompt when it comes. Nothing
            is computed differently, but that a GPU with little memory reads prompts in smaller chunks.
        limits: of what reading one clip may cost; see MediaLimits.
        decoder: "onnxruntime"; "kernels", the bundle's own for NVIDIA GPUs, and on "cpu" Triton's interpreter, for
            tests; or "auto": the kernels on GPUs of compute capability 8.0 and later if the bundle has them, else ONNX
            Runtime.
        Raises BundleError, BackendError, ConfigError, MemoryLimitError.
        """
        opened = open_bundle(bundle_folder(bundle), quick=True)
        kind = chosen_decoder(decoder, backend, opened)
        chosen = select_backend(backend, num_threads, decodes=kind == "onnxruntime")
        return cls(opened, chosen, memory_limit, replace(limits, num_threads=limits.num_threads or num_threads), kind)

    def encode(
        self,
        media: Any,
        sampling: SamplingPlan | None = None,
        pruning: PruningConfig | None = None,
        kind: MediaKind | None = None,
    ) -> Clip:
        """Encodes a video or an image into visual tokens.

        media: a video file or a picture, an animation (GIF, WebP, AVIF, PNG), which is a video with its own clock, each
            by its path or its address (http://…, file://…); a folder of frames (3 per second); a Pillow image or an
            array uint8 [H, W, 3]; an array uint8 [F, H, W, 3] or a list of Pillow images, taken as sampled already; or
            what `open` returned. `sampling.source_fps` says otherwise how fast frames follow each other.
        sampling, pruning: None takes the checkpoint's settings.
        kind: "image" or "video"; None tells by the type of the source, and a file's by what is in it.
        Raises MediaError for media that cannot be used. Warns (MediaWarning) when a damaged video lost frames.
        """
        return self.begin(media, sampling, pruning, kind).finish()

    def begin(
        self,
        media: Any,
        sampling: SamplingPlan | None = None,
        pruning: PruningConfig | None = None,
        kind: MediaKind | None = None,
    ) -> PendingClip:
        """Like `encode`, but frames are encoded as `stream` or `ask` takes them up, so that the stages overlap.

        The frames sampled are known when it returns. After the answer, `finish()` gives the clip at once.
        """
        opened = media if isinstance(media, OpenedMedia) else self.open(media, sampling, kind)
        return self._encoder.begin(opened, pruning)

    def encode_all(
        self,
        media: Sequence[Any],
        sampling: SamplingPlan | None = None,
        pruning: PruningConfig | None = None,
        kind: MediaKind | None = None,
    ) -> list[Clip]:
        """Encodes media that will stand in one conversation; each is what `encode` takes, or a clip.

        The authors' layout shares one pixel budget among all frames of a conversation: evenly, or, where it mixes
        pictures and videos, by dividing all sides by the same number. Clips keep their size and count with it. Apart
        from that, it is the same as encoding one by one.
        """
        pending = self._encoder.begin_all([(kind, source) for source in media], sampling, pruning)
        return [item if isinstance(item, Clip) else item.finish() for item in pending]

    def stream(
        self,
        media: AnyClip | Sequence[AnyClip],
        question: str,
        config: GenerationConfig | None = None,
        *,
        system: str | None = None,
        add_system_prompt: bool = False,
    ) -> Iterator[Chunk]:
        """The answer to a question about clips, piece by piece; the last chunk has finish_reason and stats.

        Raises ContextLengthError if clip and question do not fit the model's context: at the call; for clips in the
        making (`begin`), as soon as they turn out too long.
        """
        clips = _listed(media)
        if not all(isinstance(clip, Clip | PendingClip) for clip in clips):
            raise ConfigError("a question needs clips: create them with `encode` (or `encode_all`) first")
        messages = question_about(clips, question)
        return self.stream_messages(messages, config, system=system, add_system_prompt=add_system_prompt)

    def ask(
        self,
        media: AnyClip | Sequence[AnyClip],
        question: str,
        config: GenerationConfig | None = None,
        *,
        system: str | None = None,
        add_system_prompt: bool = False,
    ) -> Answer:
        """The whole answer to a question about a clip (or several); see `stream`."""
        clips = _listed(media)
        chunks = self.stream(clips, question, config, system=system, add_system_prompt=add_system_prompt)
        return join(chunks, [clip.source_size for clip in clips])

    def caption_all(
        self,
        jobs: Iterable[CaptionJob],
        config: GenerationConfig | None = None,
        batch: int = 1,
        memory_bytes: int | None = None,
    ) -> Iterator[CaptionResult]:
        """The result of every job, one each: a clip and its answer, or an error, which costs that job only.

        jobs: taken one at a time, when there is room for another, so that a generator may make them as they are needed.
        batch: how many answers are generated together. Each is the one its job gets alone (but for rounding, see
            `batch.py`); they come in the order they are finished, with 1 in the order of the jobs.
        memory_bytes: what the KV cache of a batch may take; None is most of what is available. A batch that does not
            fit is made smaller, with a BatchWarning.
        With best_of, that many answers of each job are drawn side by side, beside those of the batch's other jobs.
        Raises ConfigError for a config that cannot be followed.
        """
        if batch < 1:
            raise ConfigError(f"batch must be at least 1, not {batch}")
        config = config or GenerationConfig()
        self._generator.check(config)
        if batch == config.best_of == 1:
            return sequential(self, trimmed(jobs), config)
        generator = self._batch_generator(batch * config.best_of, memory_bytes, keep_rows=config.best_of > 1)
        results = batched(self, generator, trimmed(jobs), config, self.bundle.manifest.generation)
        return in_order(results) if batch == 1 else results

    def generate(
        self,
        messages: Messages,
        config: GenerationConfig | None = None,
        sampling: SamplingPlan | None = None,
        pruning: PruningConfig | None = None,
        *,
        system: str | None = None,
        add_system_prompt: bool = False,
    ) -> Answer:
        """The answer to a conversation in transformers' message format.

        messages: [{"role", "content"}, …]; content is a string or a list of {"type": "text", "text": …},
            {"type": "image", "image": …} and {"type": "video", "video": …}; media are clips or anything `encode` takes.
        sampling, pruning: for media that are not encoded yet.
        Raises ConfigError for malformed messages, and for system beside a system message; MediaError,
        ContextLengthError.
        """
        messages = with_system(messages, system)
        clips = self._encoder.begin_all(media_items(messages), sampling, pruning)
        chunks = self._answer(messages, clips, config or GenerationConfig(), add_system_prompt)
        return join(chunks, [clip.source_size for clip in clips])

    def stream_messages(
        self,
        messages: Messages,
        config: GenerationConfig | None = None,
        sampling: SamplingPlan | None = None,
        pruning: PruningConfig | None = None,
        *,
        system: str | None = None,
        add_system_prompt: bool = False,
    ) -> Iterator[Chunk]:
        """Like `generate`, piece by piece."""
        messages = with_system(messages, system)
        clips = self._encoder.begin_all(media_items(messages), sampling, pruning)
        return self._answer(messages, clips, config or GenerationConfig(), add_system_prompt)

    def _answer(
        self, messages: Messages, clips: Sequence[AnyClip], config: GenerationConfig, add_system_prompt: bool
    ) -> Iterator[Chunk]:
        if all(isinstance(clip, Clip) for clip in clips):
            return self._generator.stream(self.prompt(messages, clips, add_system_prompt=add_system_prompt), config)
        chunk = self._decoders.prefill_chunk
        return self._generator.stream(self._prompts(messages, clips, chunk, add_system_prompt), config)

    def prompt(
        self,
        messages: Messages,
        clips: Sequence[AnyClip],
        *,
        system: str | None = None,
        add_system_prompt: bool = False,
    ) -> SplicedPrompt:
        """The token sequence of a conversation whose k-th image or video is clips[k]."""
        return list(self._prompts(with_system(messages, system), clips, None, add_system_prompt))[-1]

    def chat(
        self,
        system: str | None = None,
        sampling: SamplingPlan | None = None,
        pruning: PruningConfig | None = None,
        add_system_prompt: bool = False,
    ) -> Chat:
        """A conversation of several turns with media in any of them; what was said before is not computed again.

        sampling, pruning: for media not encoded yet.
        In the authors' layout, frames share the pixel budget with those that come in the same turn.
        """

        def encode(media: Sequence[Any]) -> list[AnyClip]:
            return self._encoder.begin_all([(None, source) for source in media], sampling, pruning)

        def answer(messages: Messages, clips: Sequence[AnyClip], config: GenerationConfig) -> Iterator[Chunk]:
            return self._answer(messages, clips, config, add_system_prompt)

        return Chat(encode, answer, system)

    def open_session(
        self,
        system: str | None = None,
        pruning: PruningConfig | None = None,
        max_tokens: int | None = None,
        format: StreamFormat = "video",
        frames_expected: int | None = None,
        add_system_prompt: bool = False,
    ) -> Session:
        """A streaming session, with a KV cache of its own: frames are pushed as they come, questions asked at any time.

        system, add_system_prompt: see the class; they stay when the oldest frames leave a full context.
        pruning: None takes the checkpoint's settings.
        max_tokens: of the context; None is the model's, at most 16384.
        format: "video", the default, writes frames as those of a clip in a user's turn, which every checkpoint of this
            family is trained on: the tokens are those of the same clip encoded at once. "stream" writes them in turns
            of the role `stream`, the paper's format, for checkpoints that were trained on it.
        frames_expected: frames are encoded at the size that those of a clip of so many have. None is the checkpoint's
            max_frames, or fewer where that would leave a frame less than the checkpoint's minimum of pixels.
        Raises ConfigError, BundleError.
        """
        manifest = self.bundle.manifest
        limit = manifest.text.max_position_embeddings
        max_tokens = min(limit, TRAINING_TOKENS) if max_tokens is None else max_tokens
        if not 1 <= max_tokens <= limit:
            raise ConfigError(f"max_tokens must be 1 to {limit}, the model's context, not {max_tokens}")
        if frames_expected is not None and frames_expected < 1:
            raise ConfigError(f"frames_expected must be at least 1, not {frames_expected}")
        Rotary.of(manifest.text)  # a bundle that cannot drop frames should say so now
        decoder = self._decoders.make(self._memory.check_context)
        decoder.reserve(max_tokens)  # memory is taken as it is written, and nothing is ever copied to grow
        return Session(
            StreamLayout(self._template, format, system, add_system_prompt),
            lambda height, width: self._encoder.stream(height, width, pruning, frames_expected),
            self._new_generator(decoder),
            self._tokenizer,
            manifest.tokens.video_id,
            max_tokens,
        )


def _listed(media: AnyClip | Sequence[AnyClip]) -> list[AnyClip]:
    return [media] if isinstance(media, Clip | PendingClip) else list(media)
