"""A video file read through FFmpeg: when its frames are shown, and the pixels of those that are wanted.

Only the packets that the wanted frames depend on are decoded: from the last keyframe shown at or before each, and, for
H.264, without the frames in between that no other frame refers to. The file is read a second time, not sought in:
seeking is inexact in several containers, and reading costs a few percent of decoding.

The frames are those that decoding everything would give. At the first sign of damage, or if the times of the packets do
not tell the frames apart, everything is decoded from the start; a frame that cannot be decoded is replaced by the last
one before it (at the beginning, by the first that can), and counted.

A packet without a frame is damage only where decoding failed, or where the lengths of its units do not fill it
(`packets.py`): pictures that were never meant to be shown, or repeat the one before, are none. PyAV keeps FFmpeg's
messages off stderr unless a program asks for them; nothing here changes that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from fractions import Fraction
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import av
import numpy as np
import numpy.typing as npt

from ..errors import MediaError
from ..host import cores
from .addresses import is_address
from .frame_rate import ASSUMED_FPS, lacks_clock, must_be_counted, own_rate
from .frame_sampling import Timeline, regular_timeline
from .limits import DEFAULT_LIMITS, MediaLimits, ReadingClock
from .packets import PacketTable, best_video_stream, clock_zero, open_container, read_packets, scan, time_base
from .pixels import Frame, frame_rgb
from .stretches import (
    MAX_STRETCH_BYTES,
    MAX_WANTED,
    DamagedError,
    StretchDecoder,
    num_decoders,
    one_by_one,
    side_by_side,
    split,
)

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

SKIPPABLE = frozenset({"h264"})
"""Codecs in which a frame marked as not referenced is referenced by no other, so that leaving it out changes
nothing. HEVC is not among them: its mark speaks of one temporal layer only."""


class VideoFile:
    """The best video stream of a file, scanned; holds no open file.

    height, width: of an upright frame, in pixels.
    timeline: when its frames are shown.
    notes: what is missing of the file, in words.
    num_lost: how many of the frames wanted of `frames` could not be decoded; complete when it has ended.
    """

    def __init__(self, path: str | Path, limits: MediaLimits = DEFAULT_LIMITS) -> None:
        """Reads all packets and decodes the first frame.

        Raises MediaError if there is no video to decode, or it is beyond a limit.
        """
        self.name = str(path)
        self._limits = limits
        self._clock = ReadingClock(self.name, limits)
        self.num_lost = 0
        self._first_attempt = 0
        with self._clock, open_container(self.name, self._limits) as container:
            stream = best_video_stream(container, self.name)
            limits.check_pixels(self.name, stream.codec_context.height, stream.codec_context.width)
            self._stream_index = stream.index
            self._can_skip = stream.codec_context.name in SKIPPABLE
            base, zero = time_base(stream), clock_zero(container, stream)
            self._is_bare = lacks_clock(container)
            is_even = must_be_counted(container)
            rate = own_rate(container, stream)
            self.assumed_fps = float(ASSUMED_FPS) if self._is_bare and not rate else None
            rate = rate or (ASSUMED_FPS if self._is_bare else None)
            self._step = max(1, round(1 / (rate * base))) if rate else 1
            scanned = scan(container, stream, self.name, limits, self._clock)
            self._packets: PacketTable | None = scanned.packets
            self._ticks, first = self._look()
        self.height, self.width = first.shape[:2]
        self.notes: tuple[str, ...] = ()
        if missing := scanned.num_missing:
            self.notes = (
                f"the file is cut short or damaged: {missing} of its {scanned.num_stated} frames are missing",
            )
        if self._packets and self._packets.num_damaged:
            # Those that no sample depends on are never decoded; whoever sees the caption should know all the same.
            damaged, total = self._packets.num_damaged, len(self._packets.ticks)
            self.notes += (f"the file is damaged: {damaged} of its {total} frames cannot be decoded",)
        fps = float(rate) if rate else None
        self.timeline = regular_timeline(len(self._ticks), fps) if fps and is_even else self._timeline(base, zero, fps)
        limits.check_duration(self.name, self.timeline.span_s)

    def _timeline(self, base: Fraction, zero: int, rate: float | None) -> Timeline:
        """Ticks counted from `zero`; `rate` is the one stated."""
        first, last = int(self._ticks[0]) - zero, int(self._ticks[-1]) - zero
        duration = self._packets.last_duration if self._packets else 0
        if not duration:
            duration = last + zero - int(self._ticks[-2]) if len(self._ticks) > 1 else self._step
        end = last + max(1, duration)
        counted = float(len(self._ticks) / ((end - first) * base))
        return Timeline(self._ticks - zero, end, base, rate or counted)

    def frames(self, indices: Sequence[int]) -> Generator[Frame]:
        """The frames with these numbers of the timeline, ascending, none twice: uint8 [H, W, 3] each.

        Raises MediaError if the file cannot be read any more, takes too long, or nothing of it can be decoded.
        """
        self._clock = ReadingClock(self.name, self._limits)
        return self._clock.timed(self._frames(indices))

    def _frames(self, indices: Sequence[int]) -> Generator[Frame]:
        wanted = deque(self._ticks[list(indices)].tolist())
        self.num_lost = 0
        attempts = (self._decode_stretches, self._decode_through, self._decode_up_to)
        # Each takes away from `wanted` what it has found; what failed once is not tried again.
        while wanted:
            with closing(attempts[self._first_attempt](wanted)) as found:
                yield from (frame_rgb(frame, self.name, self._limits) for frame in found)
            self._first_attempt += bool(wanted)

    def _decode_stretches(self, wanted: deque[int]) -> Generator[VideoFrame]:
        """First attempt: the packets that the wanted frames depend on, and no others."""
        if self._packets is not None:
            yield from self._decode_packets(wanted, self._packets, self._packets.needed_for(np.array(wanted)))

    def _decode_through(self, wanted: deque[int]) -> Generator[VideoFrame]:
        """Second attempt, for streams whose keyframes are not enough to start from: all packets."""
        if self._packets is not None:
            yield from self._decode_packets(wanted, self._packets, np.ones_like(self._packets.is_key))

    def _decode_packets(
        self, wanted: deque[int], packets: PacketTable, needed: npt.NDArray[np.bool_]
    ) -> Generator[VideoFrame]:
        """The frames shown at the ticks `wanted`, from the packets `needed`; it ends early if it finds damage."""
        decoder = StretchDecoder(frozenset(wanted), self._can_skip)
        # An error must end it, as what follows would be decoded from a damaged frame.
        options = {"err_detect": "explode"} if packets.starts_cleanly(needed) else {}
        with ExitStack() as opened:
            streams = []
            count = self._num_decoders(packets, needed, np.array(wanted))
            for _ in range(count):
                container = opened.enter_context(open_container(self.name, self._limits))
                streams.append(self._stream(container, options, count))
            codecs = [stream.codec_context for stream in streams]
            coming = read_packets(container, streams[-1], self._clock)
            stretches = split(coming, needed.tolist(), packets.has_leading)
            if count > 1:
                found = side_by_side(codecs, stretches, decoder, self._clock.check)
            else:
                found = one_by_one(codecs[0], stretches, decoder)
            opened.enter_context(closing(found))
            with suppress(DamagedError):
                for frame in found:
                    if frame.pts != wanted[0] or frame.is_corrupt:
                        return
                    wanted.popleft()
                    yield frame
                    if not wanted:  # more frames with the last one's time may follow at once
                        return

    def _num_decoders(self, packets: PacketTable, needed: npt.NDArray[np.bool_], wanted: npt.NDArray[np.int64]) -> int:
        """How many decode the stretches of `needed` side by side: one where little would be gained, or much held."""
        sizes, wanted_of_each = packets.stretch_loads(needed, wanted)
        if is_address(self.name) or sizes.max() > MAX_STRETCH_BYTES or wanted_of_each.max() > MAX_WANTED:
            return 1
        return min(len(sizes), num_decoders(self.height, self.width, self._limits.num_threads))

    def _decode_up_to(self, wanted: deque[int]) -> Generator[VideoFrame]:
        """Last attempt: decodes everything; for each tick of `wanted`, the last frame shown until then."""
        latest: VideoFrame | None = None
        latest_ticks = 0
        for ticks, frame in self._timed(self._decode_all()):
            while latest is not None and wanted and wanted[0] < ticks:
                self.num_lost += wanted.popleft() != latest_ticks and self._has_failed
                yield latest
            if not wanted:
                return
            latest, latest_ticks = frame, ticks
        if latest is None:
            raise self._undecodable()
        while wanted:
            self.num_lost += wanted.popleft() != latest_ticks and self._has_failed
            yield latest

    def _decode_all(self) -> Generator[VideoFrame]:
        """Every frame that can be decoded, in the order shown."""
        self._has_failed = False
        with open_container(self.name, self._limits) as container:
            stream = self._stream(container, {})
            for packet in chain(read_packets(container, stream, self._clock), [None]):
                try:
                    yield from stream.codec_context.decode(packet)
                except av.FFmpegError:
                    self._has_failed = True  # damaged: the decoder goes on with the next packet

    def _timed(self, frames: Iterator[VideoFrame]) -> Iterator[tuple[int, VideoFrame]]:
        """All frames, each with its ticks."""
        if self._packets is None:
            yield from zip(self._ticks.tolist(), frames, strict=False)
        else:
            yield from ((frame.pts, frame) for frame in frames if frame.pts is not None)

    def _look(self) -> tuple[npt.NDArray[np.int64], Frame]:
        """When each frame is shown, ascending, at least one, and the pixels of the first; from the packets, or by
        decoding everything if need be."""
        with closing(self._decode_all()) as frames:
            first = next(frames, None)
            if first is None:
                raise self._undecodable()
            pixels = frame_rgb(first, self.name, self._limits)
            if self._packets is not None:
                if first.pts is not None:
                    self._packets = self._packets.seen_from(first.pts)
                ticks = self._packets.ticks[self._packets.is_shown]
                if not len(ticks):
                    raise self._undecodable()
                return np.sort(ticks), pixels
            times: list[tuple[int | None, int | None]] = [(first.pts, first.dts)]
            for frame in frames:
                times.append((frame.pts, frame.dts))
                self._limits.check_frames(self.name, len(times))
        if self._is_bare:
            times = [(None, None)] * len(times)
        return np.array(_shown_at(times, self._step), np.int64), pixels

    def _stream(self, container: InputContainer, options: dict[str, str], num_decoders: int = 1) -> VideoStream:
        """The stream, its decoder set up. num_decoders: that share the CPUs."""
        stream = next((s for s in container.streams.video if s.index == self._stream_index), None)
        if stream is None or stream.codec_context is None:
            raise MediaError(f"{self.name}: the file changed while being read; retry once it is complete")
        if self._packets is None and not self._is_bare:
            # The order of decoding may be all that is known, and is lost where every thread has a frame of its own.
            stream.thread_type = "SLICE"
        else:
            # With threads, damaged frames come out different from run to run.
            stream.thread_type = "NONE" if self._packets and self._first_attempt == 2 else "AUTO"
        threads = self._limits.num_threads
        if num_decoders > 1:
            threads = max(1, (threads or cores()) // num_decoders)
        stream.codec_context.thread_count = threads
        stream.codec_context.options = options
        return stream

    def _undecodable(self) -> MediaError:
        return MediaError(f"{self.name}: no frame of its video can be decoded; the file is damaged or cut short")


def _shown_at(times: list[tuple[int | None, int | None]], step: int) -> list[int]:
    """When frames that come in order are shown, from what is known, and right, of their times of presentation and
    decoding.

    Where B-frames are packed, or in AVI, the parser may have given the times of presentation to the wrong frames; but
    decoders without threads put on a frame the time of decoding of the packet that brought it out.
    """
    for known in zip(*times, strict=True):
        ticks: list[int] = []
        for time in known:
            ticks.append((ticks[-1] + step if ticks else 0) if time is None else time)
        if all(earlier < later for earlier, later in pairwise(ticks)):
            return ticks
    ticks = []
    for pair in times:
        previous = ticks[-1] if ticks else -step
        later = [time for time in pair if time is not None and time > previous]
        ticks.append(later[0] if later else previous + step)
    return ticks
