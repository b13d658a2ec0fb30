"""`vl3edge ask`: questions about images and videos, answers streamed as they are generated.

With -q, one question. Without, a conversation: on a terminal with a prompt, from a pipe with a question on every line.
Questions and answers may have boxes in them: parts of a picture, in pixels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError
from ..media.discovery import expand
from ..vision.clip import Clip
from . import options as shared
from .boxes import add_boxes, check
from .labelling import add_labelling, add_prompt_file, labelled, prompt_of
from .repl import Conversation, questions_from
from .single_question import SingleQuestion


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
    add_boxes(parser)
    shared.add_json(parser, "the answer and its boxes")
    shared.add_system(parser)
    shared.add_model(parser)
    shared.add_sampling(parser)
    shared.add_generation(parser)
    add_labelling(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    sampling, pruning = shared.sampling_plan(options), shared.pruning_config(options)
    generation = labelled(options, shared.generation_config(options))
    options.question = question = prompt_of(options, "question")
    if question is not None and not options.media:
        raise ConfigError("a question needs MEDIA: name a file, or leave it out for a conversation")
    limits = shared.media_limits(options)
    media = expand(options.media, shared.folder_kind(options), limits)
    check(options, media)
    model = shared.load_model(options)
    if question is not None:
        return SingleQuestion(model, options, generation).run(media)
    clips = model.encode_all(media, sampling, pruning, options.kind)

    def load(names: Sequence[str]) -> list[Clip]:
        return model.encode_all(expand(names, shared.folder_kind(options), limits), sampling, pruning, options.kind)

    chat = model.chat(options.system, sampling, pruning, options.add_system_prompt)
    return Conversation(chat, load, clips, generation, questions_from(sys.stdin), options.boxes).run()
