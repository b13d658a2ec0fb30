"""What MEDIA on the command line means: files, folders, patterns and addresses, as clips in a stable order."""

from __future__ import annotations

import glob
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..config import MediaKind
from ..errors import MediaError, MediaWarning, no_such_file
from .addresses import clip_key, is_address
from .contents import VIDEO_SUFFIXES, pictures_in
from .image_sequence import FOLDER_FPS, natural_key
from .limits import DEFAULT_LIMITS, MediaLimits
from .photographs import why_photographs

WANTED = "file, folder, pattern or address"
"""What an argument can be."""


def expand(arguments: Iterable[str], kind: MediaKind | None = None, limits: MediaLimits = DEFAULT_LIMITS) -> list[str]:
    """The clips that the arguments name, each once, in the order given; see `matches`.

    Raises MediaError, naming all of them, if arguments match nothing.
    """
    found = matches(arguments, kind, limits)
    missing = [argument for argument, names in found if not names]
    if missing:
        raise MediaError("; ".join(no_such_file(name, WANTED) for name in missing))
    return [name for _, names in found for name in names]


def matches(
    arguments: Iterable[str], kind: MediaKind | None = None, limits: MediaLimits = DEFAULT_LIMITS
) -> list[tuple[str, list[str]]]:
    """For each argument, the clips that no earlier one has named (folders and patterns sorted by name).

    A folder means the media in it and its sub-folders, following links, and every folder in it that may not be read.
    Pictures beside videos are clips of their own. A folder with nothing but pictures is one clip of these frames,
    unless they look like photographs (`photographs.py`); a MediaWarning says what was assumed. kind: "image" or "video"
    decides instead. An existing file is taken whatever its name; so are addresses, and names that may not be looked up,
    which fail when read. An argument that matches nothing has no clips; one whose clips have all been named is omitted.
    """
    seen: set[str] = set()
    found = []
    for argument in dict.fromkeys(arguments):
        names = _named(argument, kind, limits)
        new = list({clip_key(name): name for name in reversed(names) if clip_key(name) not in seen}.values())[::-1]
        seen |= {clip_key(name) for name in new}
        if new or not names:
            found.append((argument, new))
    return found


def _named(argument: str, kind: MediaKind | None, limits: MediaLimits) -> list[str]:
    """The clips of one argument."""
    if not argument:  # an unset variable of a shell; as a path it would be the current folder
        return []
    if is_address(argument):
        path = clip_key(argument)  # of a file:// address; reading says what is wrong with one
        return _in_folder(Path(path), kind, limits) if os.path.isdir(path) else [argument]
    if os.path.isfile(argument) or _is_forbidden(argument):
        return [argument]
    if os.path.isdir(argument):
        return _in_folder(Path(argument), kind, limits)
    matched = sorted(glob.glob(argument, recursive=True), key=lambda name: natural_key(Path(name)))
    return [
        part for name in matched for part in (_in_folder(Path(name), kind, limits) if os.path.isdir(name) else [name])
    ]


def _is_forbidden(name: str) -> bool:
    """Whether a folder on the way to it may not be searched."""
    try:
        os.stat(name)
    except PermissionError:
        return True
    except OSError:
        return False
    return False


def _in_folder(folder: Path, kind: MediaKind | None, limits: MediaLimits) -> list[str]:
    """The clips in a folder, including endless links and pipes named like media, which fail when read."""
    forbidden: list[str] = []
    clips: list[Path] = []
    for parent, files in _walk(folder, forbidden):
        videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
        pictures = pictures_in([path for path in files if path.suffix.lower() not in VIDEO_SUFFIXES])
        if pictures and not videos and _are_frames(parent, sorted(pictures, key=natural_key), kind, limits):
            clips.append(parent)
        else:
            clips += [*pictures, *([] if kind == "image" else videos)]
    clips += map(Path, forbidden)
    # Where nothing can be used, reading the folder says what.
    return [str(path) for path in sorted(clips, key=natural_key)] or [str(folder)]


def _walk(folder: Path, forbidden: list[str]) -> Iterator[tuple[Path, list[Path]]]:
    """Every folder with its files, without hidden ones; those behind links come last, none twice.

    Adds the folders that may not be read to `forbidden`.
    """
    waiting = [str(folder)]
    seen: set[tuple[int, int]] = set()
    while waiting:
        for parent, folders, names in os.walk(waiting.pop(0), onerror=lambda e: forbidden.append(str(e.filename))):
            identity = os.stat(parent)
            if (identity.st_dev, identity.st_ino) in seen:
                folders.clear()
                continue
            seen.add((identity.st_dev, identity.st_ino))
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            waiting += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
            yield Path(parent), [Path(parent, name) for name in names if not name.startswith(".")]


def _are_frames(folder: Path, pictures: list[Path], kind: MediaKind | None, limits: MediaLimits) -> bool:
    """Whether the pictures of a folder are one clip; warns of the assumption if the caller did not decide."""
    if kind is not None:
        return kind == "video"
    why = why_photographs(pictures, limits)
    if len(pictures) > 1:
        taken = (
            f"are treated as separate photographs, because {why}; use --as video if they are the frames of one video"
            if why
            else f"are treated as the frames of one video, {FOLDER_FPS:g} per second (change with --source-fps); use "
            "--as image for separate images"
        )
        warnings.warn(f"{folder}: its {len(pictures)} pictures {taken}", MediaWarning, stacklevel=5)
    return why is None
