"""Frames as they come: a thread reads a source and holds the newest sampled frame for whoever takes it.

Nothing is queued. Decoding keeps the last frame of the interval that is running; when the interval is over that frame
waits to be taken, and if the taker is slower than the source, the next one replaces it (newest wins, counted). So at
most two frames are held, whatever the source and the taker do.

A live source that ends, falls silent or breaks is opened again, after a pause that doubles from attempt to attempt. A
packet that cannot be decoded costs frames, which are counted; nothing that a source sends ends the reader. What happens
is told by `events`.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING

import av
import numpy as np
import numpy.typing as npt

from ..config import check_rate
from ..errors import ConfigError, MediaError, Vl3EdgeError, unexpected
from ..media.packets import time_base
from ..media.pixels import frame_rgb
from .clock import IntervalSampler, RealtimePacer, Sample, StreamClock
from .events import EventLog, LiveEvent
from .source import LiveSource, Reconnection, SourceLost, SourceOptions, open_live_source, reason, shown_name

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.frame import VideoFrame

JUMP_S = 10.0
"""A live stream whose clock gains more than this on ours has jumped."""


@dataclass(frozen=True)
class LiveCounts:
    """What became of the frames. sampled = taken + dropped + at most one that waits.

    received: frames decoded whole. damaged: frames and packets that were not.
    sampled: chosen by the sampling rate. taken: handed over. dropped: replaced by a newer one before they were taken.
    connections: how often the source was opened.
    """

    received: int = 0
    damaged: int = 0
    sampled: int = 0
    taken: int = 0
    dropped: int = 0
    connections: int = 0


@dataclass(frozen=True, eq=False)
class LiveFrame:
    """pixels: uint8 [H, W, 3], upright. timestamp_s: seconds since the first frame of the session, ascending."""

    pixels: npt.NDArray[np.uint8]
    timestamp_s: float


class LiveReader:
    """Reads a source in a thread of its own, from `with` (or `start`) to the end of it (or `close`).

    source: a V4L2 device (/dev/video0), an address (rtsp://, http://, tcp://, udp://, …) or a file.
    fps: frames sampled per second of the stream's own time.
    speed: how much faster than its own speed a recording is played; live sources have no speed.
    """

    def __init__(
        self,
        source: str,
        fps: float = 1.0,
        options: SourceOptions | None = None,
        reconnection: Reconnection | None = None,
        speed: float = 1.0,
    ) -> None:
        check_rate("fps", fps)
        if not 0 < speed <= 1000:
            raise ConfigError(f"speed must be a positive number, at most 1000, not {speed}")
        self.name = shown_name(source)
        self._source = source
        self._options = options or SourceOptions()
        self._reconnection = reconnection or Reconnection()
        self._speed = speed
        self._clock = StreamClock()
        self._sampler = IntervalSampler["VideoFrame"](fps)
        self._events = EventLog()
        self._stopped = threading.Event()
        self._changed = threading.Condition()  # of a lock that one thread may take twice; guards the four below
        self._waiting: LiveFrame | None = None
        self._counts = LiveCounts()
        self._ended = False
        self._error: BaseException | None = None
        self._described = False
        self._lost_at_s: float | None = None
        self._attempts = 0
        # Nobody can interrupt a read inside FFmpeg: a program that ends does not wait for it.
        self._thread = threading.Thread(target=self._run, name="live reader", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Ends the reading. A read that is under way may outlast this by the time limit of the source."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(timeout=0.5)

    def __enter__(self) -> LiveReader:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def counts(self) -> LiveCounts:
        with self._changed:
            return self._counts

    def events(self) -> list[LiveEvent]:
        """What happened since the last call."""
        return self._events.take()

    @property
    def lost(self) -> bool:
        """Whether the source is lost and was not found again yet."""
        return self._lost_at_s is not None

    @property
    def ended(self) -> bool:
        """Whether no frame waits and none will come."""
        with self._changed:
            return self._ended and self._waiting is None

    def take(self, timeout_s: float | None = None) -> LiveFrame | None:
        """The newest frame that was not taken yet; waits for one. None when there is none in time, or the source ended.

        Raises MediaError if the source cannot be read and is not tried again.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._waiting is not None or self._ended, timeout_s)
            frame, self._waiting = self._waiting, None
            if frame is not None:
                self._count(taken=1)
            elif self._error is not None:
                raise self._error
            return frame

    def _run(self) -> None:
        try:
            while not self._stopped.is_set() and self._connect():
                pass
        except BaseException as e:  # told to the taker: a thread that died in silence would keep it waiting for ever
            known = isinstance(e, Vl3EdgeError | MemoryError) or not isinstance(e, Exception)
            self._error = e if known else unexpected(self.name, e)
        finally:
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _connect(self) -> bool:
        """Reads the source until it ends. Whether it is to be opened again."""
        try:
            opened = open_live_source(self._source, self._options)
            with opened.container:
                self._count(connections=1)
                self._clock.restart(float("inf") if opened.is_recording else JUMP_S)
                self._read(opened)
            if opened.is_recording or self._stopped.is_set():
                return False
            why = "it ended"
        except MediaError as e:
            if not isinstance(e, SourceLost) and not self._counts.connections:
                raise  # never there; a camera that was unplugged may come back
            why = str(e).removeprefix(f"{self.name}: ")
        self._attempts += 1
        self._lost_at_s = self._lost_at_s or time.monotonic()
        limit = self._reconnection.attempts
        if limit is not None and self._attempts > limit:
            raise MediaError(f"{self.name}: {why}" + (f"; given up after {limit} attempts" if limit else ""))
        pause_s = self._reconnection.pause_s(self._attempts)
        self._tell("lost", f"{self.name}: {why}; retrying in {pause_s:g} s")
        self._stopped.wait(pause_s)
        return True

    def _read(self, opened: LiveSource) -> None:
        """Every packet until the end. Raises SourceLost where a live source breaks off; a recording is cut short."""
        pacer = RealtimePacer(self._speed, self._stopped) if opened.is_recording else None
        heard_s = time.monotonic()
        try:
            for packet in opened.container.demux():
                if self._stopped.is_set():
                    return
                if packet.stream_index == opened.stream.index:
                    self._decode(packet, opened, pacer)
                    heard_s = time.monotonic()
                elif not opened.is_recording and time.monotonic() - heard_s > self._options.timeout_s:
                    raise SourceLost(f"no video for {self._options.timeout_s:g} s, only other streams")
        except av.FFmpegError as e:
            self._decode(None, opened, pacer)
            if not opened.is_recording:
                raise SourceLost(reason(e, self._options)) from e
            self._tell("cut", f"{self.name}: cut short here: {reason(e, self._options)}")
        finally:
            self._offer(self._sampler.flush())

    def _decode(self, packet: Packet | None, opened: LiveSource, pacer: RealtimePacer | None) -> None:
        """The frames of a packet; with None those that the decoder still holds."""
        if packet is not None and packet.is_corrupt:
            self._damaged()
            return
        try:
            frames = opened.stream.codec_context.decode(packet)
        except av.FFmpegError:
            self._damaged()
            return
        for frame in frames:
            self._accept(frame, opened, pacer)

    def _accept(self, frame: VideoFrame, opened: LiveSource, pacer: RealtimePacer | None) -> None:
        """One decoded frame: when it is shown, and whether an interval ended with the one before."""
        if frame.is_corrupt:
            self._damaged()
            return
        own = None
        if opened.fps is not None:
            own = (self._counts.received + self._counts.damaged) / opened.fps
        elif opened.has_clock and frame.pts is not None:
            own = frame.pts * (frame.time_base or time_base(opened.stream))
        shown, jump = self._clock.advance(own, time.monotonic())
        self._count(received=1)
        self._attempts = 0
        self._describe(frame, opened)
        if jump is not None:
            self._tell("jump", f"the stream's clock jumped by {jump:+.1f} s; continuing from here")
        if pacer is not None:
            pacer.wait_for(shown)
        self._offer(self._sampler.push(shown, frame))

    def _offer(self, sample: Sample[VideoFrame] | None) -> None:
        """Puts a sampled frame where it can be taken, in the place of one that was not."""
        if sample is None:
            return
        try:
            pixels = frame_rgb(sample.frame, self.name)
        except MediaError:
            self._damaged()
            return
        with self._changed:
            self._count(sampled=1, dropped=int(self._waiting is not None))
            self._waiting = LiveFrame(pixels, sample.timestamp_s)
            self._changed.notify_all()

    def _describe(self, frame: VideoFrame, opened: LiveSource) -> None:
        """Tells what the source is, or that it is back."""
        if not self._described:
            kind = "played in real time" if self._speed == 1 else f"played {self._speed:g} times as fast"
            codec = opened.stream.codec_context.name
            size = f"{frame.width}×{frame.height}"
            rate = f"; {float(opened.fps or 0):g} frames per second are assumed (give --source-fps)"
            kind = kind if opened.is_recording else "live"
            self._tell("open", f"{self.name}: {codec}, {size}, {kind}{rate if opened.is_assumed else ''}")
        elif self._lost_at_s is not None:
            self._tell("back", f"{self.name}: back after {time.monotonic() - self._lost_at_s:.1f} s")
        self._described, self._lost_at_s = True, None

    def _damaged(self) -> None:
        self._count(damaged=1)
        self._tell("damage", "damaged: parts that cannot be decoded are skipped")

    def _count(self, **more: int) -> None:
        with self._changed:
            now = self._counts
            self._counts = replace(now, **{name: getattr(now, name) + number for name, number in more.items()})

    def _tell(self, kind: str, message: str) -> None:
        self._events.add(kind, LiveEvent(self._clock.now_s, message))
