"""Options for people who label: the question from a file, how answers begin, their JSON schema, the best of several."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..config import GenerationConfig
from ..decode.best_of import attempts
from ..decode.generate import Chunk, join
from ..errors import ConfigError
from .options import manifest_of

_MAX_BYTES = 1 << 20  # of a question or a schema; what is longer is some other file


def add_prompt_file(parser: argparse._ActionsContainer, instead: str) -> None:
    """instead: the option that has the question itself."""
    parser.add_argument(
        "--prompt-file",
        type=Path,
        metavar="FILE",
        help=f"read the question from a text file (- is stdin) instead of {instead}",
    )


def add_labelling(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("form of the answer")
    group.add_argument("--prefix", metavar="TEXT", default="", help='begin every answer with this: "A video of"')
    group.add_argument(
        "--json-schema", type=Path, metavar="FILE", help="answers are JSON of this schema (needs the extra `schema`)"
    )
    group.add_argument(
        "--best-of",
        type=int,
        default=1,
        metavar="N",
        help="draw N answers and take the one with the highest mean log-probability per token; needs --temperature",
    )


def labelled(options: argparse.Namespace, generation: GenerationConfig) -> GenerationConfig:
    """With what the options of `add_labelling` say. Raises ConfigError, BundleError."""
    schema = None if options.json_schema is None else _schema(options.json_schema)
    config = replace(generation, prefix=options.prefix, json_schema=schema, best_of=options.best_of)
    if config.best_of > 1:
        attempts(config, manifest_of(options).generation)  # before the minutes of loading
    return config


def prompt_of(options: argparse.Namespace, name: str) -> str | None:
    """The question that `--prompt-file`, or the option `name`, asks; None if neither is given."""
    given: str | None = getattr(options, name)
    if options.prompt_file is None:
        return given
    if given is not None:
        raise ConfigError(f"--{name} and --prompt-file are mutually exclusive")
    return read_prompt(options.prompt_file)


def read_prompt(path: Path) -> str:
    """The text of a file, without the line ends after it. Raises ConfigError."""
    text = _text(path).rstrip("\n")
    if not text.strip():
        raise ConfigError(f"{path}: there is no question in this file")
    return text


def check_json(chunks: list[Chunk], generation: GenerationConfig) -> None:
    """Raises Vl3EdgeError for a whole answer that had to be JSON and was cut off."""
    if generation.json_schema is not None:
        join(iter(chunks)).json()


def _schema(path: Path) -> dict[str, Any]:
    text = _text(path)
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as e:
        raise ConfigError(f"--json-schema {path}: this is not JSON ({' '.join(str(e).split())})") from e
    if not isinstance(schema, dict):
        raise ConfigError(f'--json-schema {path}: a schema is a JSON object, such as {{"type": "object"}}')
    return schema


def _text(path: Path) -> str:
    """Of a file in UTF-8, perhaps with a byte order mark; line ends are "\\n"."""
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.read(_MAX_BYTES + 1)
        else:
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
    except OSError as e:
        raise ConfigError(f"{path}: it cannot be read ({e.strerror})") from e
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{path}: this has more than {_MAX_BYTES >> 20} MiB; name a text file")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: this is not text in UTF-8; save it as UTF-8") from e
    return text.replace("\r\n", "\n").replace("\r", "\n")
