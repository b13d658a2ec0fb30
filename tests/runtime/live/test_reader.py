"""Live sources over loopback: what is delivered, what becomes of damage and loss, and that nothing is queued."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import picture, write_clip
from streams import Script, http_stream, motion_jpeg, paced, rtsp_stream, tcp_stream, transport_stream

from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.errors import ConfigError, MediaError
from vl3edge.runtime.live.reader import LiveFrame, LiveReader
from vl3edge.runtime.live.source import Reconnection, SourceOptions
from vl3edge.runtime.media.video import Video, read_video

FPS = 10
QUICK = SourceOptions(timeout_s=1.5)
ONCE = Reconnection(0.05, 1.0, attempts=0)
PATIENT = Reconnection(0.05, 0.2)


def pictures(count: int, height: int = 64, width: int = 96, first: int = 0) -> list[np.ndarray]:
    return [picture(number, height, width) for number in range(first, first + count)]


def taken(reader: LiveReader, count: int, pause_s: float = 0.0) -> list[LiveFrame]:
    """The next frames, at most `count`, fewer when the source is given up; fails when none comes for long."""
    frames: list[LiveFrame] = []
    with suppress(MediaError):
        while len(frames) < count and not reader.ended:
            frame = reader.take(5.0)
            assert frame is not None or reader.ended, f"only {len(frames)} frames: {reader.counts} {reader.events()}"
            frames += [frame] if frame is not None else []
            time.sleep(pause_s)
    return frames


def told(reader: LiveReader) -> str:
    return "\n".join(event.message for event in reader.events())


def times(frames: Iterable[LiveFrame]) -> list[float]:
    return [frame.timestamp_s for frame in frames]


def number_of(frame: LiveFrame) -> int:
    """Which picture a frame shows; coding has changed it, but no other is as near."""
    return min(range(40), key=lambda number: np.abs(frame.pixels.astype(int) - picture(number)).sum())


def same_as_file(frames: list[LiveFrame], whole: Video) -> None:
    """Frames taken live are those of the clip read at once; on a busy machine some may have been dropped."""
    offline = dict(zip(whole.timestamps_s, whole.frames, strict=True))
    assert len(frames) > 1
    for frame in frames:
        nearest = min(offline, key=lambda time_s: abs(time_s - frame.timestamp_s))
        assert frame.timestamp_s == pytest.approx(nearest)
        np.testing.assert_array_equal(frame.pixels, offline[nearest])


def consistent(reader: LiveReader) -> bool:
    """Whether every sampled frame of a reader that has ended is accounted for."""
    return reader.counts.sampled == reader.counts.taken + reader.counts.dropped


def test_a_stream_gives_what_the_same_bytes_give_as_a_file(tmp_path: Path) -> None:
    pieces = transport_stream(pictures(3 * FPS), FPS)
    file = tmp_path / "stream.ts"
    file.write_bytes(b"".join(pieces))
    whole = read_video(file, SamplingPlan(fps=4.0))
    with http_stream(lambda _: paced(pieces, 0.03)) as (url, _), LiveReader(url, 4.0, QUICK, ONCE) as reader:
        frames = taken(reader, 100)
    same_as_file(frames, whole)
    assert reader.counts.sampled == len(whole.frames) == 12


def test_a_source_that_is_killed_is_found_again() -> None:
    pieces = transport_stream(pictures(2 * FPS), FPS)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with ExitStack() as stack:
        reader = LiveReader(f"http://127.0.0.1:{port}/stream", 5.0, QUICK, PATIENT)
        with http_stream(lambda _: paced(pieces[:12], 0.02), port=port):
            stack.enter_context(reader)
            before = taken(reader, 5)
        time.sleep(0.2)
        stack.enter_context(http_stream(lambda _: paced(pieces, 0.02), port=port))
        after = taken(reader, 5)
        said = told(reader)
    stamps = times([*before, *after])
    assert stamps == sorted(set(stamps))
    # The stream's own times began again at 0; the session's go on by the time that has really passed.
    assert 0.2 < after[1].timestamp_s - before[-1].timestamp_s < 5.0
    assert "retrying in 0.05 s" in said
    assert "back after" in said
    assert reader.counts.connections >= 2


def test_garbage_in_a_stream_costs_frames_only() -> None:
    pieces = transport_stream(pictures(4 * FPS), FPS)
    noise = np.random.default_rng(0).bytes(30_000)
    script = [*paced(pieces[:16], 0.01), (0.0, noise), *paced([p[:300] for p in pieces[16:18]], 0.01)]
    script += paced(pieces[18:], 0.01)
    with http_stream(lambda _: script) as (url, connections), LiveReader(url, 2.0, QUICK, ONCE) as reader:
        frames = taken(reader, 100)
        said = told(reader)
    assert len(connections) == 1
    assert reader.counts.sampled == 8  # no interval is without a frame
    assert frames[-1].timestamp_s == 3.5
    assert reader.counts.damaged > 0
    assert "damaged" in said
    assert number_of(frames[-1]) == 4 * FPS - 1


def test_a_source_of_garbage_is_given_up_with_a_reason() -> None:
    noise = np.random.default_rng(1).bytes(6_000_000)  # FFmpeg looks at five million before it decides
    limited = Reconnection(0.02, 0.05, attempts=2)
    with http_stream(lambda _: [(0.0, noise)]) as (url, connections), LiveReader(url, 1.0, QUICK, limited) as reader:
        with pytest.raises(MediaError, match=r"no video that FFmpeg can read; given up after 2 attempts"):
            reader.take(10.0)
        assert reader.ended
    assert len(connections) == 3


def test_a_change_of_resolution() -> None:
    pieces = transport_stream([*pictures(FPS), *pictures(FPS, 128, 160, first=FPS)], FPS)
    with http_stream(lambda _: paced(pieces, 0.03)) as (url, _), LiveReader(url, 5.0, QUICK, ONCE) as reader:
        frames = taken(reader, 100)
    assert {frame.pixels.shape for frame in frames if frame.timestamp_s < 1.0} == {(64, 96, 3)}
    assert {frame.pixels.shape for frame in frames if frame.timestamp_s >= 1.0} == {(128, 160, 3)}
    assert reader.counts.sampled == 10


def test_time_stamps_that_jump_back() -> None:
    pieces = transport_stream(pictures(FPS), FPS, first_s=30) + transport_stream(pictures(FPS, first=FPS), FPS)
    with http_stream(lambda _: paced(pieces, 0.04)) as (url, _), LiveReader(url, 5.0, QUICK, ONCE) as reader:
        frames = taken(reader, 100)
        said = told(reader)
    stamps = times(frames)
    assert stamps == sorted(set(stamps))
    assert stamps[0] == 0.0
    assert stamps[-1] < 4.0
    assert "clock jumped by -30" in said
    assert reader.counts.sampled >= 9  # the interval of the jump may be cut


def test_a_silent_source_is_opened_again() -> None:
    pieces = transport_stream(pictures(8), FPS)

    def script(number: int) -> Script:
        yield from paced(pieces, 0.01)
        if number == 0:
            yield 60.0, b""

    options = SourceOptions(timeout_s=0.3)
    with http_stream(script) as (url, connections), LiveReader(url, 10.0, options, PATIENT) as reader:
        taken(reader, 9)
        said = told(reader)
    assert len(connections) >= 2
    assert "silent for 0.3 s" in said


def test_the_newest_frame_wins() -> None:
    pieces = transport_stream(pictures(40), FPS)
    with http_stream(lambda _: paced(pieces, 0.01)) as (url, _), LiveReader(url, FPS, QUICK, ONCE) as reader:
        frames = taken(reader, 100, pause_s=0.12)
        with pytest.raises(MediaError, match="was lost"):
            reader.take(0.0)
    counts = reader.counts
    assert counts.received == counts.sampled == 40
    assert counts.taken == len(frames) < 15
    assert consistent(reader)
    assert frames[-1].timestamp_s == 3.9  # the last that was sent is not among those dropped
    gaps = np.diff(times(frames))
    assert gaps.max() > 0.3, f"nothing was dropped: {gaps}"


def test_a_file_is_played_at_its_own_speed_once(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "clip.mp4", range(50))
    whole = read_video(file, SamplingPlan(fps=5.0))
    begin = time.monotonic()
    with LiveReader(str(file), 5.0, speed=4.0) as reader:
        frames = taken(reader, 100)
        assert time.monotonic() - begin > 0.45  # 49 frames of 40 ms at four times their speed
        assert reader.take(0.0) is None
        said = told(reader)
    same_as_file(frames, whole)
    assert reader.counts.sampled == len(whole.frames) == 10
    assert reader.counts.connections == 1
    assert "h264, 96×64, played 4 times as fast" in said


def test_frames_are_upright(media: Path) -> None:
    whole = read_video(media / "video_90.mov", SamplingPlan(fps=2.0))
    with LiveReader(str(media / "video_90.mov"), 2.0, speed=50.0) as reader:
        frames = taken(reader, 1)
    assert frames[0].pixels.shape == whole.frames[0].shape


def test_motion_jpeg_has_the_times_of_its_arrival() -> None:
    parts = motion_jpeg(pictures(16))
    kind = "multipart/x-mixed-replace; boundary=frame"
    with (
        http_stream(lambda _: paced(parts, 0.1), kind) as (url, _),
        LiveReader(url, 5.0, QUICK, ONCE) as reader,
    ):
        frames = taken(reader, 20)
    # By the rate that FFmpeg assumes, 25 a second, the last would be at 0.6 s.
    assert 1.0 < frames[-1].timestamp_s < 3.0
    assert number_of(frames[-1]) == 15


def test_rtsp() -> None:
    with rtsp_stream(pictures(30), FPS, 0.02) as url, LiveReader(url, 5.0, QUICK, ONCE) as reader:
        frames = taken(reader, 100)
        said = told(reader)
    assert f"{url}: h264, 96×64, live" in said
    assert reader.counts.sampled >= 14  # the decoder gives nothing before the end that follows the last frame
    assert frames[-1].timestamp_s >= 2.6
    # The first frame comes without a time, so where the others stand after it is known to one frame only.
    assert {number_of(frame) - round(frame.timestamp_s * FPS) for frame in frames[:-1]} in ({1}, {2})


def test_tcp() -> None:
    script = paced(transport_stream(pictures(20), FPS), 0.02)
    with tcp_stream(script) as url, LiveReader(url, 5.0, QUICK, ONCE) as reader:
        frames = taken(reader, 100)
        said = told(reader)
    assert reader.counts.sampled == 10
    assert number_of(frames[-1]) == 19
    assert "h264, 96×64, live" in said


def test_closing_does_not_wait_for_a_silent_source() -> None:
    pieces = transport_stream(pictures(8), FPS)
    script: Script = [*paced(pieces, 0.0), (60.0, b"")]
    with http_stream(lambda _: script) as (url, _):
        reader = LiveReader(url, 5.0)
        with reader:
            taken(reader, 1)  # a slow machine may have dropped all but the last
            begin = time.monotonic()
        assert time.monotonic() - begin < 1.0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("/dev/video93", "no such camera"),
        ("no/such/file.mp4", "no such file"),
        ("nonsense://127.0.0.1/x", "does not support this protocol"),
    ],
)
def test_what_will_never_work_is_not_tried_again(source: str, message: str) -> None:
    with LiveReader(source) as reader, pytest.raises(MediaError, match=message) as caught:
        reader.take(5.0)
    assert source in str(caught.value)
    assert reader.counts.connections == 0


def test_bad_options() -> None:
    for make in (
        lambda: LiveReader("x", 0.0),
        lambda: LiveReader("x", speed=0.0),
        lambda: Reconnection(0.0),
        lambda: Reconnection(attempts=-1),
        lambda: SourceOptions(timeout_s=0.0),
        lambda: SourceOptions(camera_size="large"),
    ):
        with pytest.raises(ConfigError):
            make()


@pytest.mark.parametrize(("suffix", "codec"), [(".flv", "flv"), (".mpg", "mpeg2video"), (".ts", "libx264")])
def test_streams_that_no_header_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, codec: str) -> None:
    """PyAV before 18 crashed on the first two."""
    data = write_clip(tmp_path / f"clip{suffix}", range(50), codec=codec).read_bytes()
    opened, given = av.open, []

    def recorded(*arguments: Any, **options: Any) -> Any:
        given.append(options)
        return opened(*arguments, **options)

    monkeypatch.setattr(av, "open", recorded)
    with http_stream(lambda _: [(0.0, data)]) as (url, _), LiveReader(url, 5.0, QUICK, ONCE) as reader:
        taken(reader, 100)
    assert reader.counts.received == 50
    assert given
    for options in given:
        assert "options" not in options
        assert options["container_options"]["fpsprobesize"] == "0"
