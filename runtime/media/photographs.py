"""Whether the pictures of a folder are photographs, each for itself, or the frames of one video.

Frames have one size and running numbers after the same beginning, and no camera says when it took them. What breaks
one of these rules is a photograph. That is a guess: whoever makes it says so, and how to decide otherwise.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import MediaError, MediaWarning
from .contents import is_animated
from .image import open_image
from .image_sequence import pictures_of
from .isolated import ask_worker
from .limits import DEFAULT_LIMITS, MediaLimits

_LOOKED_AT = 24
"""Pictures opened of a folder, evenly apart: a long film has tens of thousands of frames."""
_EXIF_IFD, _DATE_TAKEN = 0x8769, 0x9003


def why_photographs(pictures: Sequence[str | Path], limits: MediaLimits = DEFAULT_LIMITS) -> str | None:
    """Why the pictures of a folder are treated as photographs; None for the frames of a video."""
    if limits.isolate:
        try:
            why: str | None = ask_worker("photographs", str(Path(pictures[0]).parent), list(pictures), limits)
        except MediaError:  # it comes again, with the name of the picture, when that is read
            why = None
        return why
    if len(pictures) == 1:
        return "there is only one"
    if not have_running_numbers([Path(picture).stem for picture in pictures]):
        return "their names are not numbered"
    sizes = set()
    for index in np.linspace(0, len(pictures) - 1, min(len(pictures), _LOOKED_AT)).round().astype(int).tolist():
        try:
            with open_image(pictures[index], limits) as image:
                sizes.add(image.size)
                if is_animated(image):
                    return "there are animations among them"
                if _DATE_TAKEN in image.getexif().get_ifd(_EXIF_IFD):
                    return "a camera dated them"
        except MediaError:
            continue  # reading it says what is wrong
        except Exception:  # EXIF data that is damaged says nothing
            continue
    return "their sizes differ" if len(sizes) > 1 else None


def warn_of_photographs(source: object, limits: MediaLimits) -> None:
    """Warns (MediaWarning) if a folder is treated as a video but looks like photographs."""
    if not isinstance(source, str | Path) or not os.path.isdir(source):
        return
    pictures = pictures_of(source)
    if pictures and (why := why_photographs(pictures, limits)):
        warnings.warn(
            f"{source}: its {len(pictures)} pictures are treated as the frames of one video, though they look like "
            f"photographs ({why}); confirm with kind='video' (--as video), or name each picture",
            MediaWarning,
            stacklevel=4,
        )


def have_running_numbers(stems: Sequence[str]) -> bool:
    """Whether names (without suffixes) share a beginning that distinct numbers follow."""
    common = re.sub(r"\d+$", "", os.path.commonprefix(list(stems)))
    numbers = [re.match(r"\d+", stem[len(common) :]) for stem in stems]
    return len({int(number[0]) for number in numbers if number}) == len(stems)
