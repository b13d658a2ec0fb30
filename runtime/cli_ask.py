"""`vl3edge ask`: one question about images and videos, the answer streamed as it is generated."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from . import cli_options as shared
from .medialist import expand
from .records import printable


def add_to(commands: Any) -> None:
    parser = commands.add_parser("ask", help="ask about videos and images", description=__doc__)
    parser.add_argument("media", nargs="+", metavar="MEDIA", help="file, folder or pattern; all go into one question")
    parser.add_argument("-q", "--question", required=True)
    shared.add_model(parser)
    shared.add_sampling(parser)
    shared.add_generation(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    sampling, pruning = shared.sampling_plan(options), shared.pruning_config(options)
    generation = shared.generation_config(options)
    media = expand(options.media)
    model = shared.load_model(options)
    clips = model.encode_all(media, sampling, pruning)
    for chunk in model.stream(clips, options.question, generation):
        print(printable(chunk.text), end="", flush=True)
        if chunk.stats is not None:
            print(flush=True)
            for clip in clips:
                shared.progress(f"{clip.name}: {shared.time_report(clip, chunk.stats)}")
    sys.stdout.flush()
    return 0
