"""The packets of a video file: its best video stream, when its frames are shown, what must be decoded for some of them.

Packets are read without being decoded, which costs a few percent of decoding. All times are ticks of the stream.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import av
import numpy as np
import numpy.typing as npt

from ..errors import MediaError, no_such_file
from .addresses import UNREADABLE, is_address, unreachable
from .bitstream import Bitstream
from .limits import DEFAULT_LIMITS, MediaLimits, ReadingClock
from .signatures import holder_of

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

# PyAV 19 and later always keeps what it cannot decode, and has no such argument.
_METADATA: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}

_NOT_OF_THE_CONTENT = {errno.ELOOP, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EMFILE, errno.ENFILE, errno.EIO}

MIN_GAP = 8
"""Fewer packets than this between two stretches are decoded, not skipped: a decoder restarts slowly."""


@dataclass(frozen=True, eq=False)
class PacketTable:
    """The packets of a stream in decoding order.

    ticks: int64 [P], when the frame of each packet is shown; distinct for those that are.
    sizes: int64 [P], bytes of each packet.
    is_key: bool [P], decoding may start here.
    is_clean: bool [P], nothing after this keyframe refers to anything before it, not even in passing. An open group
        of pictures may begin with a keyframe that is not clean: decoding it alone is right, but not free of errors.
    is_shown: bool [P]; the others are decoded only because frames depend on them (the cut of an edit list, hidden
        frames of VP8 and VP9), show nothing new (MPEG-4), or cannot be decoded as the stream begins in the middle of a
        group of pictures.
    last_duration: ticks for which the last frame is shown, 0 if not known.
    num_damaged: packets of H.264 and HEVC whose units do not fill them, and so cannot be whole.
    """

    ticks: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
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
        shown = np.flatnonzero(self.is_shown)
        order = shown[np.argsort(self.ticks[shown])]
        positions = order[np.searchsorted(self.ticks[order], wanted)]
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

    def seen_from(self, first: int) -> PacketTable:
        """With the packets hidden that a decoder leaves out because the stream begins in the middle of a group of
        pictures, or its first group is open. first: tick of the first frame that it gives."""
        keys = np.flatnonzero(self.is_key)
        key = int(keys[0]) if len(keys) else 0
        leading = (np.arange(len(self.ticks)) < key) | (self.ticks < self.ticks[key])
        return replace(self, is_shown=self.is_shown & ~(leading & (self.ticks < first)))

    def starts_cleanly(self, needed: npt.NDArray[np.bool_]) -> bool:
        """Whether every stretch of `needed` begins with a clean keyframe; a file may begin without one."""
        return bool(self.is_clean[_begins(needed)].all())

    def stretch_loads(
        self, needed: npt.NDArray[np.bool_], wanted: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Of each stretch of `needed`: its bytes, and how many of the frames shown at the ticks `wanted` it has."""
        number = np.cumsum(_begins(needed)) - 1
        last = int(number[-1]) + 1
        has_wanted = needed & np.isin(self.ticks, wanted)
        sizes = np.bincount(number[needed], self.sizes[needed], last)
        return sizes.astype(np.int64), np.bincount(number[has_wanted], minlength=last)

    def has_leading(self, key: int) -> bool:
        """Whether packets after the keyframe number `key` are shown before it (an open group of pictures)."""
        later_keys = np.flatnonzero(self.is_key[key + 1 :])
        end = key + 1 + int(later_keys[0]) if len(later_keys) else len(self.ticks)
        return bool((self.ticks[key + 1 : end] < self.ticks[key]).any())


def _begins(needed: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which packets a stretch begins with: bool [P]."""
    return needed & ~np.concatenate([[False], needed[:-1]])


def open_tolerantly(name: str | BinaryIO | io.RawIOBase, **options: Any) -> InputContainer:
    """`av.open` for reading, with metadata in any encoding: what is not UTF-8 in it is never an error."""
    return av.open(name, mode="r", **_METADATA, **options)


def open_container(name: str, limits: MediaLimits = DEFAULT_LIMITS) -> InputContainer:
    """Opens a file or URL for reading. Raises MediaError that says what is wrong with it."""
    path, is_local = Path(name), not is_address(name)
    silence_s = None if is_local else limits.silence_s
    try:
        if is_local and path.is_fifo():  # FFmpeg would wait for a writer for ever
            raise MediaError(f"{name}: this is a pipe, not a file; save its output to a file first")
        if is_local and path.is_file() and path.stat().st_size == 0:
            raise MediaError(f"{name}: the file is empty")
        if is_local:
            return open_file(name)
        container = open_tolerantly(name, timeout=silence_s)
        if container.format.name == "image2":  # FFmpeg believes the suffix alone
            container.close()
            raise MediaError(f"{name}: {UNREADABLE}")
        return container
    except MediaError:
        raise
    except FileNotFoundError as e:
        raise MediaError(no_such_file(name)) from e
    except PermissionError as e:
        raise MediaError(f"{name}: no permission to read it") from e
    except IsADirectoryError as e:
        raise MediaError(f"{name}: this is a folder, not a video file") from e
    except av.FFmpegError as e:
        if silence_s is not None:
            raise MediaError(f"{name}: {unreachable(e, silence_s)}") from e
        if e.errno in _NOT_OF_THE_CONTENT:
            raise MediaError(f"{name}: it cannot be opened ({e.strerror})") from e
        raise MediaError(
            f"{name}: not a video that FFmpeg can read ({e.strerror}): "
            "it is damaged, cut short before its index, or not a video at all"
        ) from e
    except OSError as e:
        raise MediaError(f"{name}: it cannot be opened ({e.strerror or e})") from e


def open_file(path: str) -> InputContainer:
    """Opens a file by what is in it, whatever it is called. Raises OSError, MediaError for no medium, FFmpegError."""
    if os.path.isfile(path):
        with io.FileIO(path) as file:
            if holder := holder_of(file):
                raise MediaError(f"{path}: this is {holder}, no picture or video; take what is in it out of it first")
    url = f"file:{path}"  # FFmpeg would take what stands before a colon for a protocol
    try:
        container = open_tolerantly(url)
        if container.format.name != "image2":
            return container
        container.close()  # FFmpeg believes the suffix alone
    except FileNotFoundError:
        if not os.path.isfile(path):
            raise
        # FFmpeg takes shot%03d.jpg for the pattern of many names.
    return open_tolerantly(url, format=_format_by_content(path))


def _format_by_content(path: str) -> str:
    """FFmpeg's name for what the bytes of a file are. Raises FFmpegError."""
    with io.FileIO(path) as file:
        file.name = ""  # which FFmpeg would look at, too
        with open_tolerantly(file) as container:
            return container.format.name.split(",")[0]


def is_picture(container: InputContainer) -> bool:
    """Whether FFmpeg opened a file as a picture."""
    return container.format.name == "image2" or container.format.name.endswith("_pipe")


def best_video_stream(container: InputContainer, name: str) -> VideoStream:
    """FFmpeg's choice among the video streams; cover pictures of audio files are none. Raises MediaError."""
    videos = [s for s in container.streams.video if not _is_cover(s)]
    if not videos and container.streams.video:
        raise MediaError(f"{name}: there is no video in it: its only picture is the cover of an audio file")
    if not videos:
        kinds = ", ".join(sorted({s.type or "unknown" for s in container.streams})) or "nothing"
        raise MediaError(f"{name}: there is no video in it, only: {kinds}")
    best = container.streams.best("video")
    stream = next((s for s in videos if s is best), videos[0])
    if stream.codec_context is None:
        raise MediaError(f"{name}: this build of FFmpeg has no decoder for its video")
    return stream


def _is_cover(stream: VideoStream) -> bool:
    try:
        return bool(stream.disposition & av.stream.Disposition.attached_pic)
    except ValueError:  # PyAV before 18 has no names for what a newer FFmpeg adds; no cover needs that
        return False


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
            raise MediaError(f"{container.name}: its server stopped sending before the end") from e
        except av.FFmpegError:
            return
        except IndexError:
            continue  # the packet of a stream that began in mid-file, which PyAV looks up among those it found at first


@dataclass(frozen=True, eq=False)
class Scan:
    """What a first pass over the packets finds.

    packets: None if their times do not tell the frames apart.
    num_missing, num_stated: packets that the file states and does not have, of how many.
    """

    packets: PacketTable | None
    num_missing: int
    num_stated: int


def scan(container: InputContainer, stream: VideoStream, name: str, limits: MediaLimits, clock: ReadingClock) -> Scan:
    """Reads all packets. Raises MediaError beyond a limit."""
    ticks: list[int] = []
    sizes: list[int] = []
    keys, clean, shown = [], [], []
    bitstream = Bitstream(stream.codec_context.name, stream.codec_context.extradata)
    count = num_damaged = 0
    last, last_duration, last_dts = None, 0, -1
    are_apart = True
    for packet in read_packets(container, stream, clock):
        count += 1
        limits.check_frames(name, count)
        last_dts = last_dts if packet.dts is None else max(last_dts, packet.dts)
        data = bytes(packet)
        are_apart = are_apart and packet.pts is not None and not bitstream.is_packed(data)
        if not are_apart or packet.pts is None:
            continue
        ticks.append(packet.pts)
        sizes.append(packet.size)
        num_damaged += not bitstream.is_whole(data)
        starts, cleanly = bitstream.start(data) if packet.is_keyframe else (False, False)
        keys.append(starts)
        clean.append(cleanly)
        shown.append(not packet.is_discard and not bitstream.is_hidden(data))
        if shown[-1] and (last is None or packet.pts > last):
            last, last_duration = packet.pts, packet.duration or 0
    times, lengths = np.array(ticks, np.int64), np.array(sizes, np.int64)
    is_key, is_clean, is_shown = (np.array(flags, np.bool_) for flags in (keys, clean, shown))
    is_avi = container.format.name == "avi"
    if is_avi and stream.codec_context.has_b_frames and (np.diff(times) > 0).all():
        are_apart = False  # AVI knows the order of decoding only, and the parser could not work out the other
    if len(np.unique(times[is_shown])) != is_shown.sum():
        are_apart = False
    table = PacketTable(times, lengths, is_key, is_clean, is_shown, last_duration, num_damaged) if are_apart else None
    if is_avi:
        return Scan(table, *_missing_of_avi(stream, name, count, last_dts + 1))
    return Scan(table, *_missing(stream, count, (last or 0) + last_duration, last_duration))


def _missing(stream: VideoStream, found: int, end: int, duration: int) -> tuple[int, int]:
    """How many packets a file that states their number does not have, of how many.

    The number alone does not tell, as what an edit list hides need not be read: it counts as far as the index has more,
    or the packets end before the time stated. end, duration: of the last packet, in ticks.
    """
    if not (stream.frames and stream.duration and duration):
        return 0, 0
    indexed = _num_indexed(stream)
    behind = min(((stream.start_time or 0) + stream.duration - end) // duration, stream.frames - found)
    if indexed - found >= max(1, behind):
        return indexed - found, indexed
    return (behind, round(stream.duration / duration)) if behind > 0 else (0, 0)


def _missing_of_avi(stream: VideoStream, name: str, found: int, num_chunks: int) -> tuple[int, int]:
    """The same of AVI, whose number counts chunks without a byte, too: these repeat the frame before.

    num_chunks: up to the last packet found. They count where the file is shorter than it says.
    """
    indexed = _num_indexed(stream)
    behind = stream.frames - num_chunks
    if behind > 0 and stream.frames > found and not is_address(name):
        with open(name, "rb") as file:
            stated_size = 8 + int.from_bytes(file.read(8)[4:], "little")
            if stated_size > os.fstat(file.fileno()).st_size:
                return behind, stream.frames
    return (indexed - found, indexed) if indexed > found else (0, 0)


def _num_indexed(stream: VideoStream) -> int:
    """Packets that the index names; 0 where PyAV (before 17) does not tell."""
    return len(stream.index_entries) if hasattr(stream, "index_entries") else 0
