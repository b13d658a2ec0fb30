"""Damaged bundles, chat templates and record files, for seconds or on demand; each ends as it should or in one line.

    python tests/fuzz/artefacts.py --seconds 300 [--first 0] [--json FILE]

Input number n is made from n alone. Manifests are sealed again and files hashed again after most of the damage, as
whoever makes a bundle to do harm can; what a graph does to ONNX Runtime is tried in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from fuzzer import Report, Worker
from mutations import MUTATIONS

from vl3edge.runtime import GenerationConfig, VideoLlama3
from vl3edge.runtime.bundle.bundle import DEMO_BUNDLE, hash_file, open_bundle
from vl3edge.runtime.bundle.manifest import sealed
from vl3edge.runtime.captions.jsonl import RecordFile
from vl3edge.runtime.captions.records import json_line
from vl3edge.runtime.errors import ConfigError, Vl3EdgeError
from vl3edge.runtime.jobs import CaptionResult
from vl3edge.runtime.prompt.chat_template import MediaItem, PromptTemplate
from vl3edge.runtime.prompt.tokenizer import Tokenizer

ADDRESS_SPACE_BYTES = 6 << 30
TEMPLATE_S = 30.0  # three times the sandbox's own limit, for a busy machine
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2, 3, 1 << 24, 1 << 31, 1 << 63, 10**400, 0.5, -0.0, 1e308, "", "x", "../x", "/etc/passwd",
    "vision.onnx", "bundle.json", "a\0b", "\ud800", [], {}, [0], {"bytes": 0, "sha256": "0" * 64}, [[]] * 3,
)  # fmt: skip
FRAGMENTS = (
    "{%", "%}", "{{", "}}", "-%}", "{%-", "for", "in", "if", "else", "endfor", "endif", "set", "message", "messages",
    "loop", "loop.index", "range(99999)", "namespace()", "macro f(x)", "endmacro", "f(1)", "~", "*", "**", "%", "|join",
    "|string", "|tojson", "|length", "[0]", "['content']", ".__class__", "'a'", "'<|im_start|>'", "'<|image_pad|>'",
    "'<|video_pad|>'", "\ue0000\ue000", "\ue0007\ue000", "strftime_now('%Y')", "raise_exception('x')", "99999999",
    "recursive", "is string", "is defined", "self", "caller()", "#}", "{#", "\n", "not", "and", "(", ")", ",",
)  # fmt: skip


def examine(number: int, folder: Path) -> dict[str, Any]:
    """Tries input `number`; outcome "read" (usable), "refused" (by one line) or "failed"."""
    rng, begin = random.Random(number), time.perf_counter()
    kind = (manifest, files, template, records)[number % 4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            outcome, detail = "read", kind(rng, folder)
        except Vl3EdgeError as e:
            outcome, detail = ("refused" if len(str(e)) < 4000 else "failed"), str(e)
        except Exception as e:
            outcome, detail = "failed", f"{type(e).__name__}: {e}"
    seconds = time.perf_counter() - begin
    return {"outcome": outcome, "detail": f"{kind.__name__}: {detail}", "seconds": round(seconds, 3), "grown_bytes": 0}


def _bundle(folder: Path) -> Path:
    return Path(shutil.copytree(DEMO_BUNDLE, folder / "bundle"))


def _used(bundle: Path) -> str:
    """Loads it and asks one question; sizes it states may not be believed before they are checked."""
    open_bundle(bundle)
    model = VideoLlama3.load(bundle, backend="cpu", num_threads=1)
    clip = model.encode(np.zeros((56, 56, 3), np.uint8))
    return model.ask(clip, "What?", GenerationConfig(max_new_tokens=2)).text


def manifest(rng: random.Random, folder: Path) -> str:
    """Values of bundle.json replaced, dropped or moved; sometimes bytes of it."""
    path = (bundle := _bundle(folder)) / "bundle.json"
    data = json.loads(path.read_text())
    for _ in range(rng.choice((1, 1, 2, 5))):
        parent, key = rng.choice(list(_places(data)))
        change = rng.randrange(3)
        if change == 0:
            parent[key] = rng.choice(VALUES)
        elif change == 1:
            other, name = rng.choice(list(_places(data)))
            parent[key] = json.loads(json.dumps(other[name]))
        else:
            del parent[key]
    content = json.dumps(sealed(data) if rng.random() < 0.8 else data).encode()
    path.write_bytes(rng.choice(MUTATIONS)(content, rng) if rng.random() < 0.2 else content)
    return _used(bundle)


def _places(value: Any) -> Any:
    """Every (container, key) in a JSON value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def files(rng: random.Random, folder: Path) -> str:
    """One of the bundle's other files damaged; mostly its hash is right again."""
    bundle = _bundle(folder)
    data = json.loads((bundle / "bundle.json").read_text())
    path = bundle / rng.choice(sorted(data["files"]))
    path.write_bytes(rng.choice(MUTATIONS)(path.read_bytes(), rng) or b"\0")
    if rng.random() < 0.9:
        data["files"][path.name] = vars(hash_file(path))
        (bundle / "bundle.json").write_text(json.dumps(sealed(data)))
    return _used(bundle)


def template(rng: random.Random, folder: Path) -> str:
    """The demo's template with pieces put in, dropped and doubled, rendered for a conversation with an image."""
    source = (DEMO_BUNDLE / "chat_template.jinja").read_text()
    parts = source.replace("{%", "\0{%").replace("{{", "\0{{").split("\0")
    for _ in range(rng.choice((1, 1, 2, 4))):
        at = rng.randrange(len(parts))
        change = rng.randrange(4)
        if change == 0:
            parts.insert(at, "{{ " + " ".join(rng.choices(FRAGMENTS, k=rng.randint(1, 6))) + " }}")
        elif change == 1:
            place = rng.randrange(len(parts[at]) + 1)
            parts[at] = parts[at][:place] + rng.choice(FRAGMENTS) + parts[at][place:]
        elif change == 2:
            parts.insert(at, rng.choice(parts))
        elif len(parts) > 1:
            del parts[at]
    known = open_bundle(DEMO_BUNDLE).manifest
    tokenizer = Tokenizer(DEMO_BUNDLE / "tokenizer.json")
    begin = time.perf_counter()
    prompt = PromptTemplate("".join(parts), tokenizer, known.tokens, known.layout)
    content = [{"type": "image", "image": 0}, {"type": "text", "text": "a <|im_end|> b"}]
    try:
        return f"{len(prompt.pieces([{'role': 'user', 'content': content}], [MediaItem('image', (0.0,))]))} pieces"
    finally:
        if time.perf_counter() - begin > TEMPLATE_S:
            raise RuntimeError(f"a template ran for {time.perf_counter() - begin:.0f} s")


def records(rng: random.Random, folder: Path) -> str:
    """A file of records torn or damaged, and continued: what was whole stays, and every clip has one record."""
    made = [_record(rng, folder, number) for number in range(rng.randint(0, 12))]
    lines = [json_line(record) for record in made]
    whole, path = b"".join(lines), folder / "out.jsonl"
    torn = rng.random() < 0.5
    content = whole[: rng.randrange(len(whole) + 1)] if torn else whole
    if not torn and whole:
        content = rng.choice(MUTATIONS)(whole, rng)
    path.write_bytes(content)
    try:
        file = RecordFile(path, keep=True)
    except ConfigError:
        if torn:
            raise RuntimeError("a torn file was not continued") from None
        if path.read_bytes() != content:
            raise RuntimeError("a file that was refused was changed") from None
        raise
    kept = path.read_bytes()
    try:
        if kept != content[: content.rfind(b"\n") + 1]:
            raise RuntimeError("not just the last line, cut short, was removed")
        for record in made:
            if file.state(record.media).name != "DONE":
                file.write(CaptionResult(record.media, caption="again"))
    finally:
        file.close()
    names = Counter(json.loads(line)["media"] for line in path.read_bytes().splitlines())
    if torn and (set(names) != {record.media for record in made} or max(names.values(), default=1) > 1):
        raise RuntimeError(f"records: {names}")
    return f"{len(names)} records"


def _record(rng: random.Random, folder: Path, number: int) -> CaptionResult:
    name = rng.choice(("a", "ü 🦀", "b\nc", "\udcff", '"\\', "\u2028", "</b>"))
    media = str(folder / f"{name}{number}.mp4")
    if rng.random() < 0.3:
        return CaptionResult(media, error="damaged " * rng.randint(1, 50))
    caption = "".join(rng.choices('ab \n"\\\x1b🦀é\u2028', k=rng.randint(0, 80)))
    return CaptionResult(media, caption=caption, finish_reason="stop", num_frames=2, seconds=0.1)


def fuzz(numbers: range, seconds: float) -> Report:
    """Tries the inputs with these numbers, in a worker process, until the time is up."""
    report, begin = Report(), time.perf_counter()
    worker = Worker([sys.executable, __file__, "--worker"])
    for number in numbers:
        report.seconds = time.perf_counter() - begin
        if report.seconds > seconds:
            break
        kind = (manifest, files, template, records)[number % 4].__name__
        report.add(worker.examine(Path(str(number))), kind, number=number, kind=kind)
    worker.close()
    return report


def work() -> None:
    """Answers each number on stdin with a line of JSON. What libraries write to stdout goes elsewhere."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE_BYTES, ADDRESS_SPACE_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(examine(int(line), Path(folder))), file=answers, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--json", type=Path, help="add the report to this file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work()
        return 0
    return fuzz(range(options.first, 1 << 40), options.seconds).conclude(options.first, "by_kind", options.json)


if __name__ == "__main__":
    sys.exit(main())
