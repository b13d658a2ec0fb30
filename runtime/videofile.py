"""A video file read through FFmpeg: when its frames are shown, and the pixels of those that are wanted.

The times come from the packets, which are read without being decoded. Of the packets only those are decoded
that the
wanted frames depend on: from the last keyframe shown at or before each, and, for H.264, without the frames in
    between
that no other frame refers to. Everything is read a second time rather than sought: seeking is inexact in
several containers, and reading costs a few percent of decoding.

What is wanted comes out as decoding everything would give it. Where that cannot be had from the packets
(times are missing, a wanted frame does not come out), the file is decoded from its start, and a frame that
cannot be decoded is replaced by the last one before it (or by the first that can, at the beginning).

Colours are converted as PyAV's `to_ndarray(format="rgb24")` does it, which is what transformers' PyAV backend
gives. The display matrix (rotation, mirroring) is applied; the sample aspect ratio is not, as neither
reference does it. PyAV keeps FFmpeg's messages off stderr unless a program asks for them; nothing here
changes that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import numpy.typing as npt

from .errors import MediaError
from .image import check_frame_size
from .timeline import Timeline

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

Frame = npt.NDArray[np.uint8]

MIN_GAP = 8
"""Fewer packets than this between two stretches are decoded rather than skipped: a decoder restarts
slowly."""

SKIPPABLE = frozenset({"h264"})
"""Codecs in which a frame marked as not referenced is referenced by no other, so that leaving it out changes
nothing. HEVC is not among them: its mark speaks of one temporal layer only."""


@dataclass(frozen=True, eq=False)
class Packets:
    """The packets of a stream in decoding order: int64 and bool [P]. Packets that show nothing have `shown`
    False."""

    ticks: npt.NDArray[np.int64]
    is_key: npt.NDArray[np.bool_]
    shown: npt.NDArray[np.bool_]


class VideoFile:
    """The best video stream of a file, scanned; holds no open file.

    height, width: of an upright frame, in pixels.
    timeline: when its frames are shown.
    num_lost: frames that could not be decoded as wanted, counted while `frames` runs.
    """

    def __init__(self, path: str | Path) -> None:
        """Reads all packets and decodes the first frame. Raises MediaError if there is no video to decode."""
        self.name = str(path)
        self.num_lost = 0
        with _opened(self.name) as container:
            stream = _video_stream(container, self.name)
            self._stream_index = stream.index
            self._skips = stream.codec_context.name in SKIPPABLE
            self._zero = _clock_zero(container, stream)
            check_frame_size(self.name, stream.codec_context.height, stream.codec_context.width)
            packets, last_duration = _scan(container, stream)
            rate = stream.average_rate or stream.guessed_rate
            self._step = max(1, round(1 / (rate * _base(stream)))) if rate else 1
            base = _base(stream)
        self._packets = packets
        if packets is None:
            shown = np.sort(np.array([ticks for ticks, _ in self._decode_all()], dtype=np.int64))
        else:
            shown = np.sort(packets.ticks[packets.shown])
        if not len(shown):
            raise MediaError(
                f"{self.name}: no frame of its video can be decoded; the file is damaged or cut short"
            )
        if not last_duration:
            last_duration = int(shown[-1] - shown[-2]) if len(shown) > 1 else self._step
        self._ticks = shown
        ticks = shown - self._zero
        end = int(ticks[-1]) + last_duration
        average_fps = float(rate) if rate else float(len(ticks) / ((end - int(ticks[0])) * base))
        self.timeline = Timeline(ticks, end, base, average_fps)
        self.height, self.width = self._first_size()

    def frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """The frames with these numbers of the timeline, ascending and without repetition: uint8 [H, W, 3]
        each.

        Raises MediaError if the file cannot be read any more, or nothing of it can be decoded.
        """
        wanted = deque(int(self._ticks[i]) for i in indices)
        self.num_lost = 0
        if self._packets is not None:
            for ticks, frame in self._decode_wanted(list(wanted), self._packets):
                if ticks != wanted[0]:
                    break  # a wanted frame did not come out
                yield self._to_rgb(frame)
                wanted.popleft()
        if wanted:
            yield from self._frames_the_long_way(wanted)

    def _frames_the_long_way(self, wanted: deque[int]) -> Iterator[Frame]:
        """Decodes everything; for each wanted time, the last frame shown at or before it."""
        latest: VideoFrame | None = None
        latest_ticks = 0
        for ticks, frame in self._decode_all():
            while wanted and latest is not None and ticks > wanted[0]:
                self.num_lost += latest_ticks != wanted.popleft()
                yield self._to_rgb(latest)
            if not wanted:
                return
            latest, latest_ticks = frame, ticks
        if latest is None:
            raise MediaError(f"{self.name}: no frame of its video can be decoded; the file is damaged")
        for ticks in wanted:
            self.num_lost += latest_ticks != ticks
            yield self._to_rgb(latest)

    def _decode_wanted(self, wanted: list[int], packets: Packets) -> Iterator[tuple[int, VideoFrame]]:
        """The frames shown at the ticks `wanted`, as far as they come out, from as few packets as possible."""
        targets = set(wanted)
        needed = _needed(packets, wanted)
        with _opened(self.name) as container:
            stream = self._stream(container)
            codec = stream.codec_context
            running = False
            for number, packet in enumerate(chain(_demux(container, stream), [None])):
                frames: list[VideoFrame] = []
                if packet is not None and number < len(needed) and needed[number]:
                    if self._skips:
                        codec.skip_frame = "DEFAULT" if packet.pts in targets else "NONREF"
                    frames = _decode(stream, packet)
                    running = True
                elif running:
                    frames = _decode(stream, None)
                    codec.flush_buffers()
                    running = False
                for frame in frames:
                    if frame.pts in targets and not frame.is_corrupt:
                        targets.remove(frame.pts)
                        yield frame.pts, frame
                if not targets:
                    return

    def _decode_all(self) -> Iterator[tuple[int, VideoFrame]]:
        """Every frame that can be decoded, in the order shown, with its time in ticks."""
        with _opened(self.name) as container:
            stream = self._stream(container)
            previous = -self._step
            for packet in chain(_demux(container, stream), [None]):
                for frame in _decode(stream, packet):
                    times = (t for t in (frame.pts, frame.dts) if t is not None)
                    previous = next(times, previous + self._step)
                    yield previous, frame

    def _stream(self, container: InputContainer) -> VideoStream:
        stream = next(s for s in container.streams.video if s.index == self._stream_index)
        stream.thread_type = "AUTO"
        return stream

    def _first_size(self) -> tuple[int, int]:
        for frame in self.frames([0]):
            return frame.shape[0], frame.shape[1]
        raise MediaError(f"{self.name}: no frame of its video can be decoded; the file is damaged")

    def _to_rgb(self, frame: VideoFrame) -> Frame:
        check_frame_size(self.name, frame.height, frame.width)
        return _upright(np.asarray(frame.to_ndarray(format="rgb24"), np.uint8), frame)


def _opened(name: str) -> InputContainer:
    try:
        if "://" not in name and Path(name).is_file() and Path(name).stat().st_size == 0:
            raise MediaError(f"{name}: the file is empty")
        return av.open(name, mode="r", metadata_errors="replace")
    except FileNotFoundError as e:
        raise MediaError(f"{name}: there is no such file") from e
    except PermissionError as e:
        raise MediaError(f"{name}: no permission to read it") from e
    except IsADirectoryError as e:
        raise MediaError(f"{name}: this is a folder, not a video file") from e
    except av.FFmpegError as e:
        raise MediaError(
            f"{name}: not a video that FFmpeg can read ({e.strerror}): "
            "it is damaged, cut short before its index, or not a video at all"
        ) from e


def _video_stream(container: InputContainer, name: str) -> VideoStream:
    """FFmpeg's choice among the video streams; cover pictures of audio files are not video."""
    videos = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not videos:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise MediaError(f"{name}: there is no video in it, only: {kinds}")
    best = container.streams.best("video")
    stream = best if best in videos else videos[0]
    if stream.codec_context is None:
        raise MediaError(f"{name}: this build of FFmpeg has no decoder for its video")
    return stream


def _base(stream: VideoStream) -> Fraction:
    return stream.time_base or Fraction(1, 90_000)


def _clock_zero(container: InputContainer, stream: VideoStream) -> int:
    """The tick of the stream at which the clip's clock starts."""
    if container.start_time is None:
        return stream.start_time or 0
    return round(Fraction(container.start_time, av.time_base) / _base(stream))


def _demux(container: InputContainer, stream: VideoStream) -> Iterator[Packet]:
    """The packets of the stream up to the end, or to where the file is cut."""
    try:
        for packet in container.demux(stream):
            if packet.size:
                yield packet
    except av.FFmpegError:
        return


def _decode(stream: VideoStream, packet: Packet | None) -> list[VideoFrame]:
    try:
        return stream.codec_context.decode(packet)
    except av.FFmpegError:
        return []  # damaged: the decoder goes on with the next packet


def _scan(container: InputContainer, stream: VideoStream) -> tuple[Packets | None, int]:
    """All packets, or None if their times do not tell the frames apart; and the last frame's duration in
    ticks."""
    ticks, keys, shown = [], [], []
    last, last_duration = None, 0
    complete = True
    for packet in _demux(container, stream):
        if packet.pts is None:
            complete = False
            break
        ticks.append(packet.pts)
        keys.append(packet.is_keyframe)
        shown.append(not packet.is_discard)
        if not packet.is_discard and (last is None or packet.pts > last):
            last, last_duration = packet.pts, packet.duration or 0
    packets = Packets(np.array(ticks, np.int64), np.array(keys, np.bool_), np.array(shown, np.bool_))
    times = packets.ticks[packets.shown]
    if not complete or len(np.unique(times)) != len(times):
        return None, 0
    return packets, last_duration


def _needed(packets: Packets, wanted: list[int]) -> npt.NDArray[np.bool_]:
    """Which packets must be decoded for the frames shown at the ticks `wanted`: bool [P]."""
    needed = np.zeros(len(packets.ticks), np.bool_)
    keys = np.flatnonzero(packets.is_key)
    order = np.argsort(packets.ticks, kind="stable")
    positions = order[np.searchsorted(packets.ticks[order], np.array(wanted))]
    for ticks, position in zip(wanted, positions.tolist(), strict=True):
        usable = keys[(keys <= position) & (packets.ticks[keys] <= ticks)]
        start = int(usable[-1]) if len(usable) else 0
        # One packet more: it may hold the second field of an interlaced frame.
        needed[start : position + 2] = True
    edges = np.flatnonzero(np.diff(needed.astype(np.int8)))
    for left, right in pairwise(edges):
        if not needed[left + 1] and right - left < MIN_GAP:
            needed[left + 1 : right + 1] = True
    return needed


def _upright(pixels: Frame, frame: VideoFrame) -> Frame:
    """Applies the frame's display matrix, to the nearest quarter turn, as FFmpeg's own player does."""
    data: Any = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return pixels
    matrix = np.frombuffer(bytes(data), dtype=np.int32).reshape(3, 3)
    (a, b), (c, d) = matrix[0, :2].tolist(), matrix[1, :2].tolist()
    # A point (x, y) of the coded frame is shown at (a·x + c·y, b·x + d·y).
    if abs(a) + abs(d) >= abs(b) + abs(c):
        flip_x, flip_y = a < 0, d < 0
    else:
        pixels = pixels.transpose(1, 0, 2)
        flip_x, flip_y = c < 0, b < 0
    return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])
