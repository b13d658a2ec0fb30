"""Reading a bundle's JSON files, which are untrusted: bounded size, regular files only, one clear error."""

from __future__ import annotations

import dataclasses
import json
import math
import stat
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from ..errors import BundleError

_EXACT = 1 << 53  # whole numbers that a float holds


def read_json_file(path: Path, max_bytes: int, advice: str) -> Any:
    """The value in a JSON file.

    Links and special files are refused unread (a pipe would wait forever), so are files over max_bytes, numbers that
    JSON does not have, and keys that stand twice in one object, which readers take in different ways. advice: what the
    user should do about a damaged file, a sentence.
    Raises BundleError; FileNotFoundError where there is no such file.
    """
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path} is not a regular file. {advice}")
        if status.st_size > max_bytes:
            raise BundleError(f"{path} is too large: {status.st_size:,} bytes, above the limit of {max_bytes:,}.")
        text = path.read_text(encoding="utf-8")
        return json.loads(text, object_pairs_hook=_distinct, parse_constant=_no_number)
    except (FileNotFoundError, BundleError):
        raise
    except (ValueError, RecursionError) as e:
        raise BundleError(f"{path} is damaged ({e}). {advice}") from e
    except OSError as e:
        raise BundleError(f"{path} cannot be read ({e.strerror}).") from e


def read_json(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    """value as kind (a dataclass, a tuple, a dict or a plain type); what is wrong goes to problems."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _read_dataclass(kind, value, where, problems)
    if origin is Literal:
        if not any(type(value) is type(known) and value == known for known in arguments):
            problems.append(f"{where} is {short(value)}, not one of {', '.join(map(str, arguments))}")
        return value
    if origin is tuple:
        many = len(arguments) == 2 and arguments[1] is Ellipsis
        if not isinstance(value, list) or not (many or len(value) == len(arguments)):
            problems.append(f"{where} is not a list{'' if many else f' of {len(arguments)}'}")
            return ()
        kinds = [arguments[0]] * len(value) if many else list(arguments)
        return tuple(
            read_json(k, item, f"{where}[{i}]", problems) for i, (k, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin in (dict, types.GenericAlias):
        if not isinstance(value, Mapping):
            problems.append(f"{where} is not an object")
            return {}
        return {key: read_json(arguments[1], item, f"{where}.{key}", problems) for key, item in value.items()}
    if kind is Any:
        return value
    if kind is float and type(value) is int and abs(value) < _EXACT:
        value = float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        problems.append(f"{where} is {short(value)}, not {kind.__name__}")
    elif kind is float and not math.isfinite(value):
        problems.append(f"{where} is {value}, not a finite number")
    return value


def short(value: Any) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _read_dataclass(kind: Any, value: Any, where: str, problems: list[str]) -> Any:
    if not isinstance(value, Mapping):
        problems.append(f"{where or 'the manifest'} is not an object")
        return None
    prefix = f"{where}." if where else ""
    hints = typing.get_type_hints(kind)
    optional = {f.name for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    missing = [name for name in hints if name not in value and name not in optional]
    problems += [f"{prefix}{name} is missing" for name in missing]
    found = {name: read_json(hints[name], value[name], prefix + name, problems) for name in hints if name in value}
    return None if missing else kind(**found)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"duplicate key {max(names, key=names.count)!r}")
    return found


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")
