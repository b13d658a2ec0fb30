"""Writes docs/api.md from the docstrings of the public names.

    python docs/make_api.py [--check]

`--check` only compares.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("api.md")
MODULES = ("vl3edge.runtime", "vl3edge.runtime.live", "vl3edge.runtime.captions")


def sections(module: str) -> Iterator[str]:
    """A heading and text for every public name of a module, in the order of its `__all__`."""
    found = importlib.import_module(module)
    yield f"## {module}\n\n{inspect.getdoc(found)}"
    for name in found.__all__:
        item = getattr(found, name)
        yield from class_section(name, item) if inspect.isclass(item) else value_section(name, item)


def class_section(name: str, item: type) -> Iterator[str]:
    is_error = issubclass(item, Exception | Warning)
    signature = "" if is_error else signature_of(item)
    yield f"### {name}\n\n{code(name + signature)}{inspect.getdoc(item)}"
    if is_error:
        return
    members = {name: member for part in item.__mro__[-2::-1] for name, member in vars(part).items()}
    for member_name, member in members.items():
        if member_name.startswith("_"):
            continue
        doc = inspect.getdoc(member)
        if isinstance(member, property) and doc:
            yield f"#### {name}.{member_name}\n\n{doc}"
        elif isinstance(member, classmethod) or inspect.isfunction(member):
            bound = getattr(item, member_name)
            yield f"#### {name}.{member_name}\n\n{code(f'{member_name}{signature_of(bound)}')}{doc or ''}".rstrip()


def value_section(name: str, item: Any) -> Iterator[str]:
    signature = signature_of(item) if callable(item) else ""
    yield f"### {name}\n\n{code(name + signature)}{inspect.getdoc(item) or ''}".rstrip()


def signature_of(item: Any) -> str:
    signature = inspect.signature(item)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    if dataclasses.is_dataclass(item):
        parameters = [
            p.replace(default=inspect.Parameter.empty) if "factory" in repr(p.default) else p for p in parameters
        ]
    text = re.sub(r"<function .*? at 0x\w+>", "...", str(signature.replace(parameters=parameters)))
    return text.replace("'", "").replace("NoneType", "None").removesuffix(" -> None")


def code(text: str) -> str:
    return f"```python\n{text}\n```\n"


def page() -> str:
    parts = ["# Python API\n\nWritten from the docstrings by `docs/make_api.py`."]
    for module in MODULES:
        parts += sections(module)
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def main() -> int:
    text = page()
    if "--check" in sys.argv[1:]:
        return int(not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text)
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
