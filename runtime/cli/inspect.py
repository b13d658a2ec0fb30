"""`vl3edge inspect`: how a clip will be processed, before the model runs, as a picture and as a page.

The frames sampled with what is pruned of them dimmed, tokens of every frame and by threshold, the prompt against the
context, memory and the least possible time. Give it the options you mean to give `caption` or `ask`.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..bundle.bundle import bundle_folder, open_bundle
from ..config import GenerationConfig
from ..errors import ConfigError
from ..files import write_whole
from ..host import available_bytes
from ..inspect.inspection import inspect
from ..inspect.page import page
from ..inspect.text import facts, verdict
from ..terminal import one_line
from . import options as shared
from .output_files import check_output
from .stderr import progress


def add_to(commands: Any) -> None:
    parser = commands.add_parser(
        "inspect", help="show how a clip will be processed, without running the model", description=__doc__
    )
    parser.add_argument("media", metavar="MEDIA", help="video, image, or folder of frames; or an address")
    parser.add_argument("-m", "--model", metavar="BUNDLE", help="bundle to use (default: the small demo bundle)")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="REPORT", help="writes REPORT.png and REPORT.html"
    )
    parser.add_argument("-q", "--question", help="question that will be asked (default: one for a description)")
    parser.add_argument(
        "--max-new-tokens", type=int, metavar="N", help="tokens of the answer (default: the model's, or 256)"
    )
    shared.add_system(parser)
    shared.add_sampling(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if find_spec("matplotlib") is None:
        raise ConfigError("inspect draws with matplotlib, which is not installed: pip install 'vl3edge[inspect]'")
    sampling, pruning = shared.sampling_plan(options), shared.pruning_config(options)
    generation = GenerationConfig(max_new_tokens=options.max_new_tokens)
    png, html = report_paths(options.output)
    for path in (png, html):
        check_output("-o", path, [options.media])
    bundle = open_bundle(bundle_folder(options.model), quick=True)
    asked = {"system": options.system, "add_system_prompt": options.add_system_prompt, "kind": options.kind}
    seen = inspect(bundle, options.media, sampling, pruning, options.question, generation, **asked)
    from ..inspect.charts import DARK, LIGHT
    from ..inspect.picture import page_charts, picture  # the only ones that need matplotlib

    available = available_bytes()
    write_whole(png, [picture(seen, available)])
    charts = (page_charts(seen, theme, available) for theme in (LIGHT, DARK))
    write_whole(html, [page(seen, *charts).encode("utf-8")])
    progress(f"{seen.name}: {'; '.join(facts(seen))}")
    if problem := verdict(seen):
        progress(f"it does not fit: {problem}")
    for path in (png, html):
        print(one_line(str(path)))
    return 0


def report_paths(report: Path) -> tuple[Path, Path]:
    """The picture's and the page's path; an ending that is one of theirs already is not doubled."""
    base = report.with_suffix("") if report.suffix.lower() in (".png", ".html") else report
    if not base.name:
        raise ConfigError(f"-o needs a file name for the report, not {str(report)!r}")
    return base.with_name(f"{base.name}.png"), base.with_name(f"{base.name}.html")
