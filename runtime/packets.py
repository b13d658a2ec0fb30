"""The packets of a video file: its best video stream, when its frames are shown, what must be decoded for
some.

Packets are read without being decoded, which costs a few percent of decoding. All times are ticks of the
stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import numpy.typing as npt

from .addresses import UNREADABLE, is_address, unreachable
from .errors import MediaError
from .limits import DEFAULT_LIMITS, MediaLimits, ReadingClock

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

MIN_GAP = 8
"""Fewer packets than this between two stretches are decoded, not skipped: a decoder restarts slowly."""


@dataclass(frozen=True, eq=False)
class PacketTable:
    """The packets of a stream in decoding order.

    ticks: int64 [P], when the frame of each packet is shown; distinct.
    is_key: bool [P], decoding may start here.
    is_clean: bool [P], nothing after this keyframe refers to anything before it, not even in passing. An open group
        of pictures may begin with a keyframe that is not clean: decoding it alone is right, but not free of errors.
    is_shown: bool [P]; the others are decoded only because frames depend on them (the cut of an edit list).
    last_duration: ticks for which the last frame is shown, 0 if not known.
    num_damaged: packets of H.264 and HEVC whose units do not fill them, and so cannot be whole.
    """

    ticks: npt.NDArray[np.int64]
    is_key: npt.NDArray[np.bool_]
    is_clean: npt.NDArray[np.bool_]
    is_shown: npt.NDArray[np.bool_]
    last_duration: int
    num_damaged: int

    def needed_for(self, wanted: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which packets must be decoded for the frames shown at the ticks `wanted`: bool [P].

        Each stretch begins at a keyframe shown at or before the frame: those that are decoded after a
        keyframe but shown before it may depend on the stretch before.
        """
        needed = np.zeros(len(self.ticks), np.bool_)
        keys = np.flatnonzero(self.is_key)
        order = np.argsort(self.ticks)
        positions = order[np.searchsorted(self.ticks, wanted, sorter=order)]
        for ticks, position in zip(wanted.tolist(), positions.tolist(), strict=True):
            before = keys[: np.searchsorted(keys, position, side="right")]
            usable = before[self.ticks[before] <= ticks]
            start = int(usable[-1]) if len(usable) else 0
            # One packet more: it may hold the second field of an interlaced frame.
            needed[start : position + 2] = True
        edges = np.flatnonzero(np.diff(needed.astype(np.int8)))
        for left, right in pairwise(edges.tolist()):
            if not needed[left + 1] and right - left < MIN_GAP:
                needed[left + 1 : right + 1] = True
        return needed

    def starts_cleanly(self, needed: npt.NDArray[np.bool_]) -> bool:
        """Whether every stretch of `needed` begins with a clean keyframe or at the start of the file."""
        starts = np.flatnonzero(needed & ~np.concatenate([[False], needed[:-1]]))
        return bool((self.is_clean[starts] | (starts == 0)).all())

    def has_leading(self, key: int) -> bool:
        """Whether packets after the keyframe number `key` are shown before it (an open group of pictures)."""
        later_keys = np.flatnonzero(self.is_key[key + 1 :])
        end = key + 1 + int(later_keys[0]) if len(later_keys) else len(self.ticks)
        return bool((self.ticks[key + 1 : end] < self.ticks[key]).any())


def open_container(name: str, limits: MediaLimits = DEFAULT_LIMITS) -> InputContainer:
    """Opens a file or URL for reading. Raises MediaError that says what is wrong with it."""
    path = Path(name)
    silence_s = limits.silence_s if is_address(name) else None
    try:
        if "://" not in name and path.is_fifo():  # FFmpeg would wait for a writer for ever
            raise MediaError(f"{name}: this is a pipe, not a file; copy what it gives into a file first")
        if "://" not in name and path.is_file() and path.stat().st_size == 0:
            raise MediaError(f"{name}: the file is empty")
        container = av.open(name, mode="r", metadata_errors="replace", timeout=silence_s)
        if silence_s is not None and container.format.name == "image2":  # FFmpeg believes the suffix alone
            container.close()
            raise MediaError(f"{name}: {UNREADABLE}")
        return container
    except FileNotFoundError as e:
        raise MediaError(f"{name}: there is no such file") from e
    except PermissionError as e:
        raise MediaError(f"{name}: no permission to read it") from e
    except IsADirectoryError as e:
        raise MediaError(f"{name}: this is a folder, not a video file") from e
    except av.FFmpegError as e:
        if silence_s is not None:
            raise MediaError(f"{name}: {unreachable(e, silence_s)}") from e
        raise MediaError(
            f"{name}: not a video that FFmpeg can read ({e.strerror}): "
            "it is damaged, cut short before its index, or not a video at all"
        ) from e


def best_video_stream(container: InputContainer, name: str) -> VideoStream:
    """FFmpeg's choice among the video streams; cover pictures of audio files are none. Raises MediaError."""
    cover = av.stream.Disposition.attached_pic
    videos = [s for s in container.streams.video if not s.disposition & cover]
    if not videos:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise MediaError(f"{name}: there is no video in it, only: {kinds}")
    best = container.streams.best("video")
    stream = next((s for s in videos if s is best), videos[0])
    if stream.codec_context is None:
        raise MediaError(f"{name}: this build of FFmpeg has no decoder for its video")
    return stream


def time_base(stream: VideoStream) -> Fraction:
    """Seconds per tick of the stream."""
    return stream.time_base or Fraction(1, 90_000)


def clock_zero(container: InputContainer, stream: VideoStream) -> int:
    """The tick at which the clip's clock starts: the start of the earliest stream, as players count."""
    if container.start_time is None:
        return stream.start_time or 0
    return round(Fraction(container.start_time, av.time_base) / time_base(stream))


def read_packets(container: InputContainer, stream: VideoStream, clock: ReadingClock) -> Iterator[Packet]:
    """The packets of the stream up to the end, or to where the file is cut; not those marked as corrupt.

    Raises MediaError when the clock's time is up.
    """
    while True:
        try:
            for packet in clock.checked(container.demux(stream)):
                if packet.size and not packet.is_corrupt:
                    yield packet
            return
        except av.ExitError as e:  # nothing else interrupts a read
            raise MediaError(f"{container.name}: its server fell silent before the end") from e
        except av.FFmpegError:
            return
        except IndexError:
            continue  # the packet of a stream that began in mid-file, which PyAV looks up among those it found at first


def scan(
    container: InputContainer, stream: VideoStream, name: str, limits: MediaLimits, clock: ReadingClock
) -> PacketTable | None:
    """All packets, or None if their times do not tell the frames apart. Raises MediaError beyond a limit."""
    ticks: list[int] = []
    keys, clean, shown = [], [], []
    codec = stream.codec_context.name
    is_h264 = codec == "h264"
    length_bytes = _nal_length_bytes(codec, stream.codec_context.extradata)
    num_damaged = 0
    last, last_duration = None, 0
    for packet in read_packets(container, stream, clock):
        if packet.pts is None:
            return None
        limits.check_frames(name, len(ticks) + 1)
        ticks.append(packet.pts)
        num_damaged += length_bytes > 0 and not _units_fill(memoryview(packet), length_bytes)
        starts = cleanly = packet.is_keyframe
        if starts and is_h264:
            starts, cleanly = _h264_start(bytes(packet), length_bytes)
        keys.append(starts)
        clean.append(cleanly)
        shown.append(not packet.is_discard)
        if shown[-1] and (last is None or packet.pts > last):
            last, last_duration = packet.pts, packet.duration or 0
    times = np.array(ticks, np.int64)
    if len(np.unique(times)) != len(times):
        return None
    if container.format.name == "avi" and stream.codec_context.has_b_frames and (np.diff(times) > 0).all():
        return None  # AVI knows the order of decoding only, and the parser could not work out the other
    is_key, is_clean, is_shown = (np.array(flags, np.bool_) for flags in (keys, clean, shown))
    return PacketTable(times, is_key, is_clean, is_shown, last_duration, num_damaged)


def _nal_length_bytes(codec: str, extradata: bytes | None) -> int:
    """How many bytes hold the length of a unit of H.264 or HEVC; 0 for start codes between units, or other codecs."""
    at = {"h264": 4, "hevc": 21}.get(codec)
    if at is None or not extradata or len(extradata) <= at or extradata[0] != 1:
        return 0
    return (extradata[at] & 3) + 1


def _units_fill(data: memoryview, length_bytes: int) -> bool:
    """Whether units, each after its length, fill a packet to the last byte."""
    at = 0
    while at + length_bytes < len(data):
        at += length_bytes + int.from_bytes(data[at : at + length_bytes], "big")
    return at == len(data)


def _h264_start(data: bytes, length_bytes: int) -> tuple[bool, bool]:
    """Whether decoding may start at an H.264 packet that the container calls a keyframe, and whether cleanly.

    Cleanly at an instantaneous decoding refresh (unit type 5); else at a picture of intra slices. Gradual refresh,
    which containers also mark, begins with a picture that is predicted in part.
    """
    at = 0
    while True:
        if length_bytes:
            unit = at + length_bytes
            at = unit + int.from_bytes(data[at:unit], "big")
        else:
            start = data.find(b"\x00\x00\x01", at)
            unit = at = start + 3 if start >= 0 else len(data)
        if unit + 1 >= len(data):
            return False, False
        kind = data[unit] & 31
        if kind == 5:
            return True, True
        if kind == 1:
            # Exp-Golomb codes of first_mb_in_slice, 0, and slice_type, 7 or 2: the two names of an intra slice.
            head = data[unit + 1]
            return head == 0b10001000 or head >> 4 == 0b1011, False
