"""Files that options name to be written: told before the minutes of work, and never one that is read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError
from ..media.addresses import clip_key
from ..media.contents import PICTURE_SUFFIXES


def check_output(option: str, output: Path | None, read: Iterable[str | Path | None] = ()) -> None:
    """Raises ConfigError for a file that could not be written at the end, or would take the place of one that is read.

    output: None and "-" are no file. read: media and other files of the command line; what does not exist is nothing.
    """
    if output is None or str(output) == "-":
        return
    if output.is_dir():
        raise ConfigError(f"{option} {output}: this is a folder; name a file")
    if not output.parent.is_dir():
        raise ConfigError(f"{option} {output}: there is no such folder")
    if not output.exists():
        return
    is_picture = output.suffix.lower() in PICTURE_SUFFIXES  # a frame, if it lies in a folder that is read
    for name in (str(each) for each in read if each is not None):
        path = clip_key(name)
        if os.path.exists(path) and (output.samefile(path) or (is_picture and output.parent.samefile(path))):
            raise ConfigError(f"{option} {output} would overwrite {name}: choose another name")
