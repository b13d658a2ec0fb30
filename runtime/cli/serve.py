"""`vl3edge serve`: a server that speaks OpenAI's protocol, with a page at its root."""

from __future__ import annotations

import argparse
import os
import warnings
from pathlib import Path
from typing import Any

from ..errors import ConfigError, MediaWarning
from ..memory_budget import parse_bytes
from ..serve.settings import MEDIA_LIMITS, ServeSettings
from . import options as shared
from .stderr import progress

KEY_VARIABLE = "VL3EDGE_API_KEY"
INSTALL = "`vl3edge serve` needs more than the runtime ({}): pip install 'vl3edge[serve]'"


def add_to(commands: Any) -> None:
    defaults = ServeSettings()
    parser = commands.add_parser("serve", help="answer over HTTP, as OpenAI's API does", description=__doc__)
    shared.add_model(parser, limits=MEDIA_LIMITS)
    parser.set_defaults(run=run)
    where = parser.add_argument_group("where")
    where.add_argument(
        "--host", default=defaults.host, help="address to listen at (default: %(default)s, this machine alone)"
    )
    where.add_argument(
        "--port", type=int, default=defaults.port, help="0 takes any that is free (default: %(default)s)"
    )
    where.add_argument(
        "--api-key", metavar="KEY", help=f"what clients must know (or {KEY_VARIABLE}, which no list of processes shows)"
    )
    where.add_argument("--tls-certificate", type=Path, metavar="FILE", help="serve HTTPS with this certificate (PEM)")
    where.add_argument("--tls-key", type=Path, metavar="FILE", help="its private key (PEM)")
    media = parser.add_argument_group("media")
    media.add_argument("--media-root", type=Path, metavar="DIR", help="let requests name files below DIR")
    media.add_argument("--allow-urls", action="store_true", help="fetch media from public addresses of the network")
    media.add_argument(
        "--max-frames", type=int, metavar="N", help="of a clip, at most (default: the model's own number)"
    )
    media.add_argument("--max-upload", metavar="SIZE", default="512MiB", help="of a file (default: %(default)s)")
    media.add_argument(
        "--keep-uploads",
        type=float,
        metavar="S",
        default=defaults.keep_uploads_s,
        help="seconds (default: %(default)g)",
    )
    load = parser.add_argument_group("load")
    load.add_argument(
        "--batch", type=int, metavar="N", default=defaults.batch, help="answers at a time (default: %(default)s)"
    )
    load.add_argument(
        "--queue", type=int, metavar="N", default=defaults.queue, help="requests that may wait (default: %(default)s)"
    )
    load.add_argument(
        "--live", type=int, metavar="N", default=defaults.live_sessions, help="cameras at a time (default: %(default)s)"
    )
    load.add_argument(
        "--clip-cache", metavar="SIZE", default="512MiB", help="for clips asked about (default: %(default)s)"
    )
    load.add_argument(
        "--answer-seconds",
        type=float,
        metavar="S",
        default=defaults.answer_limit_s,
        help="of one answer (default: %(default)g)",
    )


def run(options: argparse.Namespace) -> int:
    settings = _settings(options)
    try:
        from ..serve.served_model import ServedModel
        from ..serve.server import Server
    except ImportError as e:
        raise ConfigError(INSTALL.format(e)) from e
    model = shared.load_model_as(ServedModel, options)
    if not settings.is_local and settings.api_key is None:
        progress("warning: everyone who reaches this address can use the server: give it an --api-key")
    warnings.simplefilter("ignore", MediaWarning)  # of files that are not ours, with the names that clients gave them
    server = Server(model, settings)
    progress(f"serving on {server.address} (Ctrl-C ends it)")
    server.run()
    return 0


def _settings(options: argparse.Namespace) -> ServeSettings:
    return ServeSettings(
        host=options.host,
        port=options.port,
        api_key=options.api_key if options.api_key is not None else os.environ.get(KEY_VARIABLE),
        media_root=options.media_root,
        allow_urls=options.allow_urls,
        batch=options.batch,
        queue=options.queue,
        live_sessions=options.live,
        max_frames=options.max_frames,
        max_upload_bytes=parse_bytes(options.max_upload),
        keep_uploads_s=options.keep_uploads,
        clip_cache_bytes=parse_bytes(options.clip_cache),
        answer_limit_s=options.answer_seconds,
        tls_certificate=options.tls_certificate,
        tls_key=options.tls_key,
        limits=shared.media_limits(options),
    )
