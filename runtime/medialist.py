"""What MEDIA on the command line means: a file, a folder or a pattern, as a list of clips in a stable order."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path

from .address import is_address
from .encoder import IMAGE_SUFFIXES
from .errors import MediaError, no_such_file
from .framesets import natural_key
from .records import clip_key

VIDEO_SUFFIXES = frozenset(
    {".3gp", ".asf", ".avi", ".divx", ".dv", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"}
    | {".264", ".265", ".h263", ".h264", ".h265", ".hevc", ".ivf", ".m2v", ".mjpeg", ".mjpg", ".obu"}
    | {".gif", ".apng"}  # a .png or .webp is a still as far as its name goes
)
WANTED = "file, folder or pattern"
"""What an argument can be."""


def expand(arguments: Iterable[str]) -> list[str]:
    """The clips that the arguments name, each once, in the order given; see `matches`.

    Raises MediaError, naming all of them, if arguments match nothing.
    """
    found = matches(arguments)
    missing = [argument for argument, names in found if not names]
    if missing:
        raise MediaError("; ".join(no_such_file(name, WANTED) for name in missing))
    return [name for _, names in found for name in names]


def matches(arguments: Iterable[str]) -> list[tuple[str, list[str]]]:
    """For each argument the clips it names that none before has named (folders and patterns sorted by name).

    A folder with video files in it, at any depth, stands for every video and image in it, and every folder in it that
    may not be read; a folder that holds images alone is itself one clip, its images the frames. A file that exists is
    taken as it is, whatever its name; so is an address (http://…), and one that may not be looked up, which
    reading it will say. An argument that matches nothing has no clips; one whose clips have all been named is left out.
    """
    seen: set[str] = set()
    found = []
    for argument in dict.fromkeys(arguments):
        path = Path(argument)
        if not argument:  # an unset variable of a shell; as a path it would be the current folder
            names = []
        elif is_address(argument) or os.path.isfile(argument) or _is_forbidden(argument):
            names = [argument]
        elif os.path.isdir(argument):
            names = _in_folder(path)
        else:
            matched = sorted(glob.glob(argument, recursive=True), key=lambda name: natural_key(Path(name)))
            names = [part for name in matched for part in (_in_folder(Path(name)) if os.path.isdir(name) else [name])]
        new = list({clip_key(name): name for name in reversed(names) if clip_key(name) not in seen}.values())[::-1]
        seen |= {clip_key(name) for name in new}
        if new or not names:
            found.append((argument, new))
    return found


def _is_forbidden(name: str) -> bool:
    """Whether a folder on the way to it may not be searched."""
    try:
        os.stat(name)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _in_folder(folder: Path) -> list[str]:
    """The clips in a folder. Links without an end and pipes that are named like media are among them, as failures."""
    files: list[Path] = []
    forbidden: list[str] = []
    for parent, folders, names in os.walk(folder, onerror=lambda error: forbidden.append(str(error.filename))):
        folders[:] = [name for name in folders if not name.startswith(".")]
        files += [Path(parent, name) for name in names if not name.startswith(".")]
    if not any(path.suffix.lower() in VIDEO_SUFFIXES for path in files):
        # Frames of one clip, or nothing usable: reading it says what.
        return [str(folder), *(name for name in forbidden if name != str(folder))]
    media = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES | IMAGE_SUFFIXES]
    return [str(path) for path in sorted([*media, *map(Path, forbidden)], key=natural_key)]
