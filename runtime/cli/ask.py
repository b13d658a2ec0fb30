"""`vl3edge ask`: questions about images and videos, answers streamed as they are generated.

With -q, one question. Without, a conversation: on a terminal with a prompt, from a pipe with a question on every line.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ..config import GenerationConfig
from ..errors import ConfigError
from ..media.discovery import expand
from ..model import VideoLlama3
from ..terminal import printable
from ..vision.clip import Clip
from . import options as shared
from .labelling import add_labelling, add_prompt_file, check_json, labelled, prompt_of
from .repl import Conversation, questions_from
from .stderr import progress


def add_to(commands: Any) -> None:
    parser = commands.add_parser("ask", help="ask about videos and images", description=__doc__)
    parser.add_argument(
        "media",
        nargs="*",
        metavar="MEDIA",
        help="file, folder, pattern or address; all of them are part of one question",
    )
    parser.add_argument("-q", "--question", help="question to ask (default: a conversation, with questions from stdin)")
    add_prompt_file(parser, "-q")
    shared.add_system(parser)
    shared.add_model(parser)
    shared.add_sampling(parser)
    shared.add_generation(parser)
    add_labelling(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    sampling, pruning = shared.sampling_plan(options), shared.pruning_config(options)
    generation, question = labelled(options, shared.generation_config(options)), prompt_of(options, "question")
    if question is not None and not options.media:
        raise ConfigError("a question needs MEDIA: name a file, or leave it out for a conversation")
    limits = shared.media_limits(options)
    media = expand(options.media, shared.folder_kind(options), limits)
    model = shared.load_model(options)
    clips = model.encode_all(media, sampling, pruning, options.kind)
    if question is not None:
        _answer_once(model, clips, question, options, generation)
        return 0

    def load(names: Sequence[str]) -> list[Clip]:
        return model.encode_all(expand(names, shared.folder_kind(options), limits), sampling, pruning, options.kind)

    chat = model.chat(options.system, sampling, pruning, options.add_system_prompt)
    return Conversation(chat, load, clips, generation, questions_from(sys.stdin)).run()


def _answer_once(
    model: VideoLlama3, clips: list[Clip], question: str, options: argparse.Namespace, generation: GenerationConfig
) -> None:
    instructions = {"system": options.system, "add_system_prompt": options.add_system_prompt}
    chunks = []
    for chunk in model.stream(clips, question, generation, **instructions):
        chunks.append(chunk)
        print(printable(chunk.text), end="", flush=True)
        if chunk.stats is not None:
            print(flush=True)
            for clip in clips:
                progress(f"{clip.name}: {shared.time_report(clip, chunk.stats)}")
    check_json(chunks, generation)
