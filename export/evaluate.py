"""A checkpoint answers a set of questions in PyTorch, in float32: the reference for `vl3edge evaluate --against`.

    python -m vl3edge.export.evaluate CHECKPOINT --data FILE -o RESULTS.jsonl

Frames are sampled by the runtime, which has tests of its own for that; resizing, pruning as released, prompts and
everything after are the reference's (`verify/reference.py`, and the layers of `models`).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.decoder import TextDecoder
from vl3edge.models.projector import Projector
from vl3edge.models.vision import VisionEncoder
from vl3edge.runtime.cli import question_set as shared
from vl3edge.runtime.cli.stderr import exit_status, progress
from vl3edge.runtime.config import GenerationConfig, MediaKind, SamplingPlan
from vl3edge.runtime.decode.sampler import Sampler
from vl3edge.runtime.errors import ConfigError, ContextLengthError
from vl3edge.runtime.evaluate.answering import Answering, ModelAnswer, by_clip, kind_of, opened, reason
from vl3edge.runtime.evaluate.item import EvalItem, Source
from vl3edge.runtime.evaluate.report import report_on
from vl3edge.runtime.media.image import load_image
from vl3edge.runtime.media.video import open_video

from .cli import quiet_libraries
from .lora_option import add_lora, open_checkpoint
from .verify.reference import PromptMedia, message_ids, prepare


@dataclass(frozen=True)
class ReferenceClip:
    """One clip as the decoder reads it. tokens: float32 [K, hidden]. prompt: what the prompt needs to know of it."""

    tokens: torch.Tensor
    prompt: PromptMedia


class ReferenceAnswering(Answering):
    """A checkpoint's encoder, projectors and decoder, whole in memory in float32. Answers come one after the other.

    Raises ConfigError for a checkpoint whose decoder is quantized.
    """

    def __init__(self, checkpoint: Checkpoint, sampling: SamplingPlan, generation: GenerationConfig) -> None:
        config = checkpoint.config
        if config.quantization is not None:
            raise ConfigError(f"{checkpoint.folder} is quantized already: give the checkpoint it was made from")
        if not config.has_decoder:
            raise ConfigError(f"{checkpoint.folder} holds only a vision encoder, which answers nothing")
        self._checkpoint = checkpoint
        self._sampling = sampling
        self._generation = generation
        self._encoder = VisionEncoder.from_checkpoint(checkpoint)
        self._projectors = {
            kind: Projector.from_checkpoint(checkpoint, spec.merge_size)
            for kind, spec in (("image", config.image), ("video", config.video))
        }
        self._decoder = TextDecoder.from_checkpoint(checkpoint)
        self._tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json())
        self._held: tuple[Any, list[ReferenceClip]] | None = None  # of the last question

    @torch.inference_mode()
    def answers(self, items: Iterable[EvalItem]) -> Iterator[ModelAnswer]:
        parent = os.getppid()
        for item in by_clip(items):
            if os.getppid() != parent:
                return  # who wanted the answers was killed
            begin = time.perf_counter()
            try:
                clips = self._clips(item)
                text = self._answer(item, clips)
            except Exception as e:  # whatever is wrong with a question costs its own answer only
                yield ModelAnswer(item, error=reason(item, e))
                continue
            count = sum(len(clip.tokens) for clip in clips)
            yield ModelAnswer(item, text, count, time.perf_counter() - begin)

    def _clips(self, item: EvalItem) -> list[ReferenceClip]:
        if len(item.media) > 1 and self._checkpoint.layout == "authors":
            raise ConfigError(f"{item.clip}: the reference takes one clip a question in the authors' layout")
        key = item.clip, item.kind
        if self._held is None or self._held[0] != key:
            self._held = None
            self._held = key, [self._clip(source, item) for source in item.media]
        return self._held[1]

    def _clip(self, source: Source, item: EvalItem) -> ReferenceClip:
        kind = kind_of(source, item.kind)
        frames, times = self._frames(source, kind, item)
        prepared = prepare(frames, kind, self._checkpoint.config)
        features = torch.cat([self._encoder(torch.from_numpy(frame[None])) for frame in prepared.frames])
        kept = torch.from_numpy(np.flatnonzero(prepared.keep))
        tokens = self._projectors[kind](features, kept)
        return ReferenceClip(tokens, PromptMedia(kind, times, tuple(prepared.keep.sum(axis=1).tolist())))

    def _frames(self, source: Source, kind: MediaKind, item: EvalItem) -> tuple[np.ndarray, tuple[float, ...]]:
        """Frames uint8 [F, H, W, 3] and their times in seconds."""
        if kind == "image":
            return load_image(opened(source))[None], (0.0,)
        plan = replace(self._sampling, start_s=item.start_s, end_s=item.end_s)
        video = open_video(opened(source), plan).read()
        return video.frames, video.timestamps_s

    def _answer(self, item: EvalItem, clips: Sequence[ReferenceClip]) -> str:
        config = self._checkpoint.config
        ids = message_ids(self._checkpoint, [clip.prompt for clip in clips], item.parts)
        inputs = self._decoder.embed_tokens(torch.tensor(ids))
        order = [part for part in item.parts if isinstance(part, int)]
        marks = torch.isin(torch.tensor(ids), torch.tensor([config.image_token_id, config.video_token_id]))
        inputs[marks] = torch.cat([clips[number].tokens for number in order])
        limit = self._generation.new_tokens(config.generation, len(ids))
        limit = min(limit, config.text.max_position_embeddings - len(ids))
        if limit < 1:
            raise ContextLengthError(
                f"{item.clip}: its {len(ids):,} tokens do not fit the model's context of "
                f"{config.text.max_position_embeddings:,}; use fewer frames (--max-frames)"
            )
        return str(self._tokenizer.decode(self._generate(ids, inputs, limit)))

    def _generate(self, ids: Sequence[int], inputs: torch.Tensor, limit: int) -> list[int]:
        """The ids of the answer, without the end token, as the runtime's sampler chooses them."""
        config = self._checkpoint.config
        sampler = Sampler(self._generation, config.generation)
        history = list(ids) if config.layout == "transformers" else []
        chosen: list[int] = []
        cache = None
        while len(chosen) < limit:
            logits, cache = self._decoder(inputs[None], cache)
            token = sampler.sample(logits[0, -1].numpy(), np.array([*history, *chosen], np.int64))
            if token in config.eos_token_ids:
                break
            chosen.append(token)
            inputs = self._decoder.embed_tokens(torch.tensor([token]))
        return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 if some questions failed, 2 for bad usage."""
    options = _parser().parse_args(argv)
    quiet_libraries()
    return exit_status(lambda: _run(options), "use fewer frames (--max-frames), or a machine with more")


def _run(options: argparse.Namespace) -> int:
    if options.output is None:
        raise ConfigError("the results need a file: -o FILE")
    checkpoint = open_checkpoint(options)
    questions = shared.read(options)
    generation = shared.generation_config(options, questions)
    settings = shared.settings_of(options, generation) | {
        "model": f"{checkpoint.config.name} in PyTorch",
        "checkpoint": checkpoint.commit or str(checkpoint.folder.resolve()),
    }
    if checkpoint.adapters:
        settings["adapters"] = [asdict(adapter) for adapter in checkpoint.adapters]
    with closing(shared.open_store(options, options.output, settings)) as store:
        model = None
        if not shared.is_done(options, questions, store):
            progress(f"{checkpoint.config.name} in PyTorch {torch.__version__}, float32")
            model = ReferenceAnswering(checkpoint, shared.sampling_plan(options), generation)
        results = shared.answered(options, questions, model, store)
    return 1 if report_on(results.values()).failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vl3edge.export.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="local folder, or a hub id such as owner/name")
    parser.add_argument("--revision", help="hub revision (default: the newest)")
    add_lora(parser)
    shared.add_questions(parser, pruned=False)
    shared.add_output(parser)
    group = parser.add_argument_group("answer")
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="length limit (default: the model's, or 256)")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="default: the model's, or 1")
    parser.set_defaults(
        temperature=0.0,
        top_p=None,
        top_k=None,
        seed=None,
        system=None,
        add_system_prompt=False,
        threshold=None,
        no_pruning=False,
        max_visual_tokens=None,
        keep_ratio=None,
        draft_tokens=None,
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
