"""Stretches of packets, each from a keyframe on to the frames wanted of it, decoded one by one or side by side.

A decoder's own threads start and drain with every stretch, and gain little where that is short; so several decoders
take a stretch each, ahead of whoever takes the frames. Frames come out in the same order, with the same pixels, and up
to the same damage either way.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby, takewhile
from queue import SimpleQueue
from threading import Event
from typing import TYPE_CHECKING

import av

from ..host import cores

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

MAX_DECODERS = 4
MAX_DECODERS_BYTES = 128 << 20
"""What the frames of all decoders may take, more than one decoder takes alone."""
MAX_STRETCH_BYTES = 8 << 20
"""Packets of a stretch that waits to be decoded."""
MAX_WANTED = 2
"""Frames of a stretch that wait to be taken."""


class DamagedError(Exception):
    """What follows in this stretch would be decoded from a damaged frame."""


@dataclass(frozen=True)
class Stretch:
    """Packets in decoding order. is_settled: an error in the first of them is damage; where frames shown before a
    keyframe depend on what was left out, only one after the first frame is."""

    packets: Iterable[Packet]
    is_settled: bool


@dataclass(frozen=True)
class StretchDecoder:
    """targets: ticks of all frames wanted. can_skip: frames that no other refers to may be left out."""

    targets: frozenset[int]
    can_skip: bool

    def frames(self, codec: VideoCodecContext, stretch: Stretch) -> Generator[VideoFrame]:
        """The frames shown at the targets. Raises DamagedError at the first sign of damage."""
        settled = stretch.is_settled
        for packet in chain(stretch.packets, [None]):
            try:
                if packet is not None and self.can_skip:
                    codec.skip_frame = "DEFAULT" if packet.pts in self.targets else "NONREF"
                frames = codec.decode(packet)
            except av.FFmpegError as e:
                if settled:
                    raise DamagedError from e
                continue
            settled = settled or bool(frames)
            yield from (frame for frame in frames if frame.pts in self.targets)
        codec.flush_buffers()


def split(packets: Iterable[Packet], needed: Sequence[bool], has_leading: Callable[[int], bool]) -> Iterator[Stretch]:
    """The stretches of packets that are `needed`; each must be taken before the next.

    has_leading: whether packets after the keyframe of this number are shown before it.
    """
    end = max((number for number, is_needed in enumerate(needed) if is_needed), default=-1) + 1
    numbered = zip(range(end), packets, strict=False)
    for is_needed, run in groupby(numbered, key=lambda numbered_packet: needed[numbered_packet[0]]):
        if is_needed:
            number, first = next(run)
            yield Stretch(chain([first], (packet for _, packet in run)), not has_leading(number))


def num_decoders(height: int, width: int, num_threads: int = 0) -> int:
    """How many may work side by side on frames of this size. num_threads: at most; 0 is one per CPU."""
    threads = num_threads or cores()
    return max(1, min(threads, MAX_DECODERS, MAX_DECODERS_BYTES // max(1, decoder_bytes(height, width))))


def decoder_bytes(height: int, width: int) -> int:
    """The frames of one decoder: what others refer to, at 1.5 bytes a pixel, and those that wait to be taken."""
    return height * width * (8 + 2 * MAX_WANTED) * 3 // 2


def one_by_one(
    codec: VideoCodecContext, stretches: Iterable[Stretch], decoder: StretchDecoder
) -> Generator[VideoFrame]:
    """The frames wanted of all stretches. Raises DamagedError."""
    for stretch in stretches:
        yield from decoder.frames(codec, stretch)


def side_by_side(
    codecs: Sequence[VideoCodecContext],
    stretches: Iterable[Stretch],
    decoder: StretchDecoder,
    check: Callable[[], None],
) -> Generator[VideoFrame]:
    """The same, from as many threads as there are codecs. check: called before each packet, to raise if time is up."""
    idle: SimpleQueue[VideoCodecContext] = SimpleQueue()
    for codec in codecs:
        idle.put(codec)
    is_closed = Event()

    def go_on(packet: Packet) -> bool:
        check()
        return not is_closed.is_set()

    def decode(stretch: Stretch) -> tuple[list[VideoFrame], bool]:
        """The frames up to the end, or up to the first damage, and whether there is any."""
        codec, found = idle.get(), []
        try:
            for frame in decoder.frames(codec, stretch):
                found.append(frame)
            return found, False
        except DamagedError:
            return found, True
        finally:
            idle.put(codec)

    def taken(result: Future[tuple[list[VideoFrame], bool]]) -> Iterator[VideoFrame]:
        frames, is_damaged = result.result()
        yield from frames
        if is_damaged:
            raise DamagedError

    with ThreadPoolExecutor(len(codecs)) as threads:
        try:
            coming: deque[Future[tuple[list[VideoFrame], bool]]] = deque()
            for stretch in stretches:
                held = Stretch(takewhile(go_on, list(stretch.packets)), stretch.is_settled)
                coming.append(threads.submit(decode, held))
                if len(coming) > len(codecs):
                    yield from taken(coming.popleft())
            while coming:
                yield from taken(coming.popleft())
        finally:
            is_closed.set()
