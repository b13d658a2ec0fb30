"""Chooses calibration sequences for the decoder: which media, which conversations about them, and how many.

Media are the user's, or synthetic scenes when there are none. The caller turns them into embeddings, which takes a
tokenizer, a chat template and the vision path. This module selects media, pairs them with conversations, keeps them
within a token budget, and splits them into calibration and held-out sequences.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .conversations import PAIRS, QA
from .errors import QuantError
from .scenes import Frames, render_scene
from .sequences import CalibrationSequence

_log = logging.getLogger(__name__)

_SCENES = 64
_STILL_EVERY = 8  # every eighth scene is asked about as an image, since images take the other projector
_HELD_OUT_EVERY = 8


@dataclass(frozen=True, eq=False)
class CalibrationItem:
    """One conversation about one clip or image.

    media: a file, or uint8 frames [F, H, W, 3] sampled once a second; of an image, [1, H, W, 3].
    kind: of the media; None takes it from the file name.
    """

    media: Path | Frames
    kind: Literal["video", "image"] | None
    exchange: QA

    @property
    def name(self) -> str:
        return str(self.media) if isinstance(self.media, Path) else "a synthetic scene"


Embed = Callable[[CalibrationItem], CalibrationSequence]


@dataclass(frozen=True, eq=False)
class CalibrationSet:
    """Sequences to calibrate on, and held-out ones of the same kind to measure the result on."""

    calibration: tuple[CalibrationSequence, ...]
    held_out: tuple[CalibrationSequence, ...]

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence.embeddings) for sequence in self.calibration)


def calibration_items(media: Sequence[Path] = ()) -> Iterator[CalibrationItem]:
    """Items about the user's media, two exchanges each, or about synthetic scenes when there are no media."""
    if media:
        for round_ in range(2):
            for index, path in enumerate(media):
                yield CalibrationItem(path, None, PAIRS[(index + round_ * (len(media) + 5)) % len(PAIRS)])
        return
    for seed in range(_SCENES):
        still = seed % _STILL_EVERY == _STILL_EVERY - 1
        frames = render_scene(seed, 1 if still else 6 + seed % 5)
        yield CalibrationItem(frames, "image" if still else "video", PAIRS[seed % len(PAIRS)])


def collect(
    items: Iterator[CalibrationItem], embed: Embed, max_tokens: int = 32768, unreadable: type[Exception] = OSError
) -> CalibrationSet:
    """Embeds items until there are max_tokens to calibrate on; every eighth sequence is held out.

    unreadable: what embed raises for media that cannot be used; those are skipped with a warning.
    Raises QuantError when none can be used.
    """
    calibration: list[CalibrationSequence] = []
    held_out: list[CalibrationSequence] = []
    problems: list[str] = []
    tokens = 0
    for item in items:
        if tokens >= max_tokens:
            break
        try:
            sequence = embed(item)
        except unreadable as e:
            problems.append(f"{item.name}: {e}")
            _log.warning("calibration skips %s: %s", item.name, e)
            continue
        # The second of every eight, so that two sequences already give one of each.
        if (len(calibration) + len(held_out)) % _HELD_OUT_EVERY == 1:
            held_out.append(sequence)
        else:
            calibration.append(sequence)
            tokens += len(sequence.embeddings)
    if not calibration:
        raise QuantError(f"none of the calibration media can be used: {'; '.join(dict.fromkeys(problems))}")
    # Better to measure a single clip on itself than not at all.
    return CalibrationSet(tuple(calibration), tuple(held_out or calibration[-1:]))
