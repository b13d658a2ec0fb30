"""Stretches decoded side by side: the same frames, the same damage, bounded memory, and an end when nobody listens."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from clips import LONG_GOP, OPEN_GOP, SHORT_GOP, every_frame, write_clip

from vl3edge.runtime import VideoLlama3
from vl3edge.runtime.errors import ConfigError, MediaError, MediaWarning
from vl3edge.runtime.host import cores
from vl3edge.runtime.media import stretches, video_file
from vl3edge.runtime.media.limits import MediaLimits
from vl3edge.runtime.media.video_file import VideoFile
from vl3edge.runtime.memory_estimate import frames_bytes

CLIPS: dict[str, Callable[[Path], Path]] = {
    "h264.mp4": lambda p: write_clip(p, range(120), options=SHORT_GOP),
    "fields.mp4": lambda p: write_clip(p, range(120), options={**SHORT_GOP, "flags": "+ildct+ilme"}),
    "open.ts": lambda p: write_clip(p, range(120), options=OPEN_GOP),
    "open-hevc.mp4": lambda p: write_clip(
        p, range(120), codec="libx265", options={"x265-params": "keyint=12:open-gop=1:bframes=3:log-level=none"}
    ),
    "mpeg2.mpg": lambda p: write_clip(p, range(120), codec="mpeg2video", options={"g": "12", "bf": "2"}),
    "vp9.webm": lambda p: write_clip(p, range(120), codec="libvpx-vp9", options={"g": "12", "deadline": "realtime"}),
    "turned.mov": lambda p: write_clip(p, range(120), options=SHORT_GOP, rotation=90),
}
# One frame, or two, of many groups of pictures, with groups between that nobody needs.
WANTED = (range(3, 120, 36), [*range(26, 110, 24), 119], (1, 2, 50, 52, 111))


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many decoders worked side by side, for each time that some did."""
    counts: list[int] = []
    side_by_side = stretches.side_by_side

    def counting(codecs: Sequence[object], *rest: object) -> Iterator[av.VideoFrame]:
        counts.append(len(codecs))
        return side_by_side(codecs, *rest)

    monkeypatch.setattr(video_file, "side_by_side", counting)
    return counts


def limits(num_threads: int) -> MediaLimits:
    return MediaLimits(num_threads=num_threads)


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("num_threads", [1, 2, 3, 9])
def test_frames_are_those_of_decoding_everything(tmp_path: Path, used: list[int], name: str, num_threads: int) -> None:
    path = CLIPS[name](tmp_path / name)
    upright = (lambda frame: np.rot90(frame)) if name == "turned.mov" else np.asarray
    expected = every_frame(path)
    video = VideoFile(path, limits(num_threads))
    for wanted in WANTED:
        found = list(video.frames(wanted))
        assert (len(found), video.num_lost) == (len(wanted), 0)
        for number, frame in zip(wanted, found, strict=True):
            np.testing.assert_array_equal(frame, upright(expected[number]), err_msg=f"frame {number}")
    if num_threads == 1:
        assert not used
    else:
        assert len(used) == len(WANTED)
        assert set(used) <= {2, 3, 4}
        assert max(used) == min(num_threads, 4)


def read(path: Path, wanted: Sequence[int], num_threads: int) -> tuple[list[bytes] | str, int, tuple[str, ...]]:
    try:
        video = VideoFile(path, limits(num_threads))
        indices = [number for number in wanted if number < len(video.timeline.ticks)]
        return [frame.tobytes() for frame in video.frames(indices)], video.num_lost, video.notes
    except MediaError as e:
        return str(e), 0, ()


@pytest.mark.parametrize("name", ["h264.mp4", "fields.mp4", "open.ts", "open-hevc.mp4"])
def test_damage_is_told_and_replaced_alike(tmp_path: Path, used: list[int], name: str) -> None:
    whole = CLIPS[name](tmp_path / name).read_bytes()
    path = tmp_path / f"damaged-{name}"
    rng = np.random.default_rng(0)
    sound = read(tmp_path / name, WANTED[0], 1)
    num_worse = 0
    for _ in range(8):
        data = bytearray(whole)
        for at in rng.integers(len(data) // 6, len(data) * 5 // 6, 10).tolist():
            data[at : at + 20] = rng.integers(0, 256, 20, dtype=np.uint8).tobytes()
        path.write_bytes(data)
        alone = read(path, WANTED[0], 1)
        assert read(path, WANTED[0], 3) == alone
        num_worse += alone != sound
    assert used
    assert num_worse > 2


def test_what_is_dense_or_long_has_one_decoder_with_threads(
    tmp_path: Path, used: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = CLIPS["h264.mp4"](tmp_path / "h264.mp4")
    video = VideoFile(path, limits(4))
    for wanted in (range(120), range(0, 120, 6), [50]):  # more frames of a stretch than are held, or a single stretch
        list(video.frames(wanted))
    list(VideoFile(write_clip(tmp_path / "long.mp4", range(60), options=LONG_GOP), limits(4)).frames([3, 50]))
    assert not used
    monkeypatch.setattr(video_file, "MAX_STRETCH_BYTES", 1000)
    list(video.frames([3, 50, 100]))
    assert not used


def test_no_more_decoders_than_cpus_threads_and_memory_allow() -> None:
    assert stretches.num_decoders(1080, 1920, 16) == 3
    assert stretches.num_decoders(1080, 1920, 2) == 2
    assert stretches.num_decoders(270, 480, 16) == 4
    assert stretches.num_decoders(270, 480) == min(cores(), 4)
    assert stretches.num_decoders(4320, 7680, 16) == 1
    for height, width in ((270, 480), (1080, 1920), (1440, 2560)):
        count = stretches.num_decoders(height, width, 16)
        assert count * stretches.decoder_bytes(height, width) <= stretches.MAX_DECODERS_BYTES


def test_the_estimate_counts_every_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = []
    for count in (1, 2, 4):
        monkeypatch.setattr(stretches, "cores", lambda count=count: count)
        needs.append(frames_bytes(8, (56, 56), (720, 1280)))
    assert needs[1] - needs[0] == 720 * 1280 * (2 * 18 - 12)
    assert needs[2] - needs[1] == 2 * 720 * 1280 * 18


def test_threads_end_with_whoever_takes_the_frames(tmp_path: Path, used: list[int]) -> None:
    before = set(threading.enumerate())
    frames = VideoFile(CLIPS["h264.mp4"](tmp_path / "h264.mp4"), limits(3)).frames(range(3, 120, 24))
    next(frames)
    assert set(threading.enumerate()) > before
    frames.close()
    assert set(threading.enumerate()) == before
    assert used == [3]


def test_the_clock_is_looked_at_by_every_decoder(tmp_path: Path) -> None:
    path = CLIPS["h264.mp4"](tmp_path / "h264.mp4")
    main = threading.current_thread()

    def check() -> None:
        if threading.current_thread() is not main:
            raise MediaError("the time is up")

    with av.open(str(path)) as container, av.open(str(path)) as other:
        packets = [packet for packet in container.demux(video=0) if packet.size]
        codecs = [source.streams.video[0].codec_context for source in (container, other)]
        needed = [number % 24 < 5 for number in range(len(packets))]
        coming = stretches.split(packets, needed, lambda key: False)
        decoder = stretches.StretchDecoder(frozenset([packets[0].pts]), True)
        with pytest.raises(MediaError, match="the time is up"):
            list(stretches.side_by_side(codecs, coming, decoder, check))


def test_a_file_that_goes_meanwhile_is_a_media_error(tmp_path: Path) -> None:
    path = CLIPS["h264.mp4"](tmp_path / "h264.mp4")
    video = VideoFile(path, limits(2))
    path.unlink()
    with pytest.raises(MediaError, match=r"h264\.mp4: there is no such file"):
        list(video.frames([3, 50]))


def test_a_model_reads_with_as_many_threads_as_it_may_use(tmp_path: Path, used: list[int]) -> None:
    path = CLIPS["h264.mp4"](tmp_path / "h264.mp4")
    with warnings.catch_warnings():
        warnings.simplefilter("error", MediaWarning)
        VideoLlama3.load(backend="cpu", num_threads=1).encode(path)
        assert not used
        VideoLlama3.load(backend="cpu", num_threads=1, limits=limits(2)).encode(path)
    assert set(used) <= {2}
    with pytest.raises(ConfigError, match="num_threads must be 0"):
        limits(-1)
