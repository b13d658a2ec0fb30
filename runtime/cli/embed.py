"""`vl3edge embed`: one vector, or a map of tokens, of every frame, from the vision encoder alone; and search in them.

With --like, finds the moments in a file of such vectors that look like a picture.
"""

from __future__ import annotations

import argparse
import time
from contextlib import closing
from pathlib import Path
from typing import Any

from ..captions.outputs import records_of
from ..captions.records import clock_time
from ..embed.clips import EmbedRequest, MediaFailure, embed_clip, query_like
from ..embed.formats import SUFFIXES, check_suffix, read_embeddings
from ..embed.search import Moment
from ..embed.store import EmbeddingStore
from ..encoder import VideoLlama3Encoder
from ..errors import ConfigError, no_such_file
from ..host import trimmed
from ..media.discovery import WANTED, matches
from ..memory_budget import parse_bytes
from ..terminal import one_line
from . import options as shared
from .output_files import check_output
from .stderr import progress


def add_to(commands: Any) -> None:
    parser = commands.add_parser("embed", help="embed frames, and find moments by a picture", description=__doc__)
    parser.add_argument("media", nargs="*", metavar="MEDIA", help="file, folder, pattern or address")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help=f"file to write, {' or '.join(f'*{s}' for s in SUFFIXES)}"
    )
    parser.add_argument(
        "--tokens", action="store_true", help="write each frame's map of tokens, instead of their mean of length 1"
    )
    parser.add_argument("--resume", action="store_true", help="keep what FILE has, and add the clips that it has not")
    parser.add_argument("--force", action="store_true", help="replace FILE")
    search = parser.add_argument_group("search")
    search.add_argument("--like", metavar="PICTURE", help="find moments that look like this picture, instead of MEDIA")
    search.add_argument("--in", dest="index", type=Path, metavar="FILE", help="where to look: what -o wrote")
    search.add_argument("--top", type=int, default=5, metavar="N", help="at most N moments (default: 5)")
    shared.add_json(search)
    shared.add_model(parser, decodes=False)
    shared.add_sampling(parser, prunes=False, most="all")
    parser.add_argument(
        "--frames-expected",
        type=int,
        metavar="N",
        help="encode frames of videos at the size that those of a clip of N frames have (default: the model's 180)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.like is not None:
        return _search(options)
    if options.index is not None or options.json is not None:
        raise ConfigError("--in and --json are for a search: --like PICTURE --in FILE")
    return _embed(options)


def _embed(options: argparse.Namespace) -> int:
    begin = time.perf_counter()
    if not options.media or options.output is None:
        raise ConfigError("name media and a file: vl3edge embed MEDIA -o FILE; or search: --like PICTURE --in FILE")
    if options.force and options.resume:
        raise ConfigError("--force and --resume are mutually exclusive")
    check_suffix(options.output)
    check_output("-o", options.output)
    request = EmbedRequest(shared.sampling_plan(options), options.kind, options.tokens, options.frames_expected)
    arguments = matches(options.media, shared.folder_kind(options), shared.media_limits(options))
    media = [name for _, names in arguments for name in names]
    missing = [argument for argument, names in arguments if not names]
    for argument in missing:
        progress(f"{argument}: error: {no_such_file(argument, WANTED)}")
    encoder = _load(options)
    done = 0
    with closing(EmbeddingStore(options.output, request.form(encoder), options.resume, options.force)) as store:
        waiting = [name for name in media if not store.holds(name)]
        try:
            for number, name in enumerate(trimmed(waiting), 1):
                place = f"[{number}/{len(waiting)}] {name}"
                try:
                    progress(f"{place}: {embed_clip(encoder, store, name, request)}")
                    done += 1
                except MediaFailure as e:
                    progress(f"{place}: error: {e}")
        except KeyboardInterrupt:
            progress(f"{done} clips are kept: continue with --resume{' in place of --force' if options.force else ''}")
            raise
        store.finish()
    failed, skipped = len(missing) + len(waiting) - done, len(media) - len(waiting)
    progress(f"{done} embedded, {failed} failed, {skipped} skipped, {time.perf_counter() - begin:.1f} s")
    return 1 if failed else 0


def _search(options: argparse.Namespace) -> int:
    if options.media or options.output is not None:
        raise ConfigError("--like looks into --in FILE, and takes neither MEDIA nor -o")
    if options.index is None:
        raise ConfigError("--like needs --in FILE, which `vl3edge embed MEDIA -o FILE` wrote")
    if options.top < 1:
        raise ConfigError(f"--top must be at least 1, not {options.top}")
    check_suffix(options.index)
    check_output("--json", options.json, [options.like, options.index, records_of(options.index)])
    query = query_like(_load(options), options.like, options.frames_expected)
    moments = query.moments(read_embeddings(options.index), options.top, str(options.index))
    if options.json is not None:
        shared.write_json(options.json, [moment.to_json() for moment in moments])
    if str(options.json) != "-":
        print("\n".join(map(_line, moments)))
    return 0


def _line(moment: Moment) -> str:
    name = one_line(moment.media)
    if moment.kind == "image":
        return f"{moment.cosine:.3f}  {name}"
    best = f"at {clock_time(moment.best_s)}"
    if moment.start_s == moment.end_s:
        return f"{moment.cosine:.3f}  {name}  {best}"
    return f"{moment.cosine:.3f}  {name}  {clock_time(moment.start_s)} - {clock_time(moment.end_s)}, best {best}"


def _load(options: argparse.Namespace) -> VideoLlama3Encoder:
    memory_limit = None if options.memory_limit is None else parse_bytes(options.memory_limit)
    encoder = VideoLlama3Encoder.load(
        options.model, options.backend, options.threads, memory_limit, shared.media_limits(options)
    )
    info = encoder.info
    demo = " (demo bundle; give your own with -m)" if options.model is None else ""
    progress(f"{info['name']}{demo}, its vision encoder, on {info['backend']} with {info['vision_runtime']}")
    return encoder
