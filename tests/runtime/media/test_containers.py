"""Sound files of kinds that look damaged, or unreadable, to a careless reader; and damaged ones beside them.

The oracle is decoding everything: as many frames, each the same, and nothing said of damage.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntFlag
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.sidedata.sidedata import Type
from clips import OPEN_GOP, SHORT_GOP, every_frame, picture, write_clip
from PIL import Image

from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.errors import MediaError, MediaWarning
from vl3edge.runtime.live.reader import LiveReader
from vl3edge.runtime.media.limits import DEFAULT_LIMITS, MediaLimits
from vl3edge.runtime.media.pixels import frame_rgb
from vl3edge.runtime.media.video import open_video, read_video
from vl3edge.runtime.media.video_file import VideoFile

FIXTURES = Path(__file__).parents[2] / "fixtures"
VOP = b"\x00\x00\x01\xb6"
TENTHS = Fraction(1, 10)


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


@contextmanager
def copying(
    source: Path, target: Path, muxer: dict[str, str] | None = None
) -> Iterator[tuple[list[av.Packet], Callable[[av.Packet], None], av.VideoStream]]:
    """The packets of a clip, what writes one into a copy of it, and the stream they are of."""
    with av.open(str(source)) as container, av.open(str(target), "w", options=muxer or {}) as output:
        stream = container.streams.video[0]
        copy = output.add_stream_from_template(stream)
        copy.time_base = 1 / stream.average_rate if target.suffix == ".avi" else stream.time_base

        def write(packet: av.Packet) -> None:
            packet.stream = copy
            output.mux(packet)

        yield [packet for packet in container.demux(stream) if packet.size], write, stream


def remuxed(source: Path, target: Path, change: Callable[[list[bytes]], list[bytes]]) -> Path:
    """The packets of a clip with other bytes, at the same times; those without any are left out, which AVI notes."""
    with copying(source, target) as (packets, write, _):
        for old, content in zip(packets, change([bytes(packet) for packet in packets]), strict=True):
            if content:
                packet = av.Packet(content)
                packet.time_base, packet.pts, packet.dts = old.time_base, old.pts, old.dts
                packet.duration, packet.is_keyframe = old.duration, old.is_keyframe
                write(packet)
    return target


def kind_of(vop: bytes) -> int:
    """0, 1, 2: a picture of MPEG-4 that is intra, predicted, bidirectional."""
    return vop[vop.index(VOP) + 4] >> 6


def not_coded(vop: bytes) -> bytes:
    """The picture's header, for clips of 10 frames a second, with the word that nothing follows."""
    start = vop.index(VOP) + 4
    bits = "".join(f"{byte:08b}" for byte in vop[start : start + 8])
    head = bits[: bits.index("0", 2) + 3 + 4] + "0"
    head += "0" + "1" * (-(len(head) + 1) % 8)
    return VOP + int(head, 2).to_bytes(len(head) // 8, "big")


def pack(pictures: list[bytes]) -> list[bytes]:
    """DivX's way to bring B-frames into AVI: with the frame before, and a picture that is not coded in its place."""
    packed: list[bytes] = []
    for data in pictures:
        if kind_of(data) == 2:
            packed[-1] += data
            packed.append(not_coded(data))
        else:
            packed.append(data.replace(VOP, b"\x00\x00\x01\xb2DivX503b1393p\x00" + VOP, 1) if not packed else data)
    return packed


def mpeg4(path: Path, bf: int = 0) -> Path:
    return write_clip(path, range(40), TENTHS, codec="mpeg4", options={"g": "12", "bf": str(bf), "qscale": "3"})


def packed_bframes(path: Path) -> Path:
    return remuxed(mpeg4(path.with_suffix(".mp4"), bf=1), path, pack)


def some_not_coded(path: Path) -> Path:
    def change(pictures: list[bytes]) -> list[bytes]:
        return [not_coded(p) if i % 7 == 5 and kind_of(p) == 1 else p for i, p in enumerate(pictures)]

    return remuxed(mpeg4(path.with_name("plain.mp4")), path, change)


def dropped_chunks(path: Path) -> Path:
    """MJPEG of which every chunk but each third has no byte, as capture programs drop frames."""
    source = write_clip(path.with_suffix(".mov"), range(40), TENTHS, codec="mjpeg")
    return remuxed(source, path, lambda frames: [data if i % 3 == 0 else b"" for i, data in enumerate(frames)])


def cut(source: Path, target: Path, first: int) -> Path:
    """From packet number `first` on, as FFmpeg's `-ss -c copy` does it: from the keyframe before, which is hidden by an
    edit list or shown early; a transport stream in the middle of its group of pictures."""
    with copying(source, target) as (packets, write, _):
        zero = packets[first].pts
        while target.suffix != ".ts" and not packets[first].is_keyframe:
            first -= 1
        for packet in packets[first:]:
            packet.pts, packet.dts = packet.pts - zero, packet.dts - zero
            write(packet)
    return target


def superframes_split(path: Path) -> Path:
    """VP9 in IVF whose hidden frames have packets of their own, as some programs write them (FFmpeg joins them)."""
    with av.open(str(FIXTURES / "hidden_frames_vp9.webm")) as container:
        stream = container.streams.video[0]
        splitter = av.bitstream.BitStreamFilterContext("vp9_superframe_split", stream)
        whole = [packet for packet in container.demux(stream) if packet.size]
        parts = [(number, bytes(part)) for number, packet in enumerate(whole) for part in splitter.filter(packet)]
        head = struct.pack("<4sHH4sHHIIII", b"DKIF", 0, 32, b"VP90", stream.width, stream.height, 10, 1, len(parts), 0)
    path.write_bytes(head + b"".join(struct.pack("<IQ", len(part), number) + part for number, part in parts))
    return path


SOUND: dict[str, Callable[[Path], Path]] = {
    "packed.avi": packed_bframes,
    "not-coded.avi": some_not_coded,
    "not-coded.mp4": some_not_coded,
    "dropped.avi": dropped_chunks,
    "b-frames.avi": lambda p: mpeg4(p, bf=2),
    "hidden-frames-vp8.webm": lambda p: FIXTURES / "hidden_frames_vp8.webm",
    "hidden-frames-vp9.webm": lambda p: FIXTURES / "hidden_frames_vp9.webm",
    "hidden-frames-vp9.ivf": superframes_split,
    "open-cut.mp4": lambda p: cut(write_clip(p.with_name("open.mp4"), range(90), options=OPEN_GOP), p, 40),
    "open-cut.mkv": lambda p: cut(write_clip(p.with_name("open.mp4"), range(90), options=OPEN_GOP), p, 30),
    "closed-cut.mov": lambda p: cut(write_clip(p.with_name("closed.mp4"), range(90), options=SHORT_GOP), p, 43),
    "mid-group.ts": lambda p: cut(write_clip(p.with_name("closed.mp4"), range(90), options=SHORT_GOP), p, 30),
    "fragmented.mp4": lambda p: write_clip(
        p, range(90), options=SHORT_GOP, muxer={"movflags": "frag_keyframe+empty_moov"}
    ),
    "negative-offsets.mp4": lambda p: write_clip(
        p, range(90), options=SHORT_GOP, muxer={"movflags": "negative_cts_offsets"}
    ),
    "late.mov": lambda p: write_clip(p, range(20, 60), options=SHORT_GOP),
    "phone.3gp": lambda p: write_clip(p, range(30), TENTHS, codec="h263", height=144, width=176),
    "stream.flv": lambda p: write_clip(p, range(60), options=SHORT_GOP),
    "windows.wmv": lambda p: write_clip(p, range(40), codec="wmv2"),
    "tv.vob": lambda p: write_clip(p, range(60), codec="mpeg2video", options={"g": "12", "bf": "2"}),
}


@pytest.mark.parametrize("name", SOUND)
def test_sound_files_of_unusual_kinds(name: str, tmp_path: Path) -> None:
    path = SOUND[name](tmp_path / name)
    expected = every_frame(path)
    assert len(expected) > 10
    video = VideoFile(path)
    assert video.notes == ()
    assert len(video.timeline.ticks) == len(expected)
    last = len(expected) - 1
    for indices in (range(len(expected)), range(3, last, 7), (0, last // 2), (last,)):
        for number, frame in zip(indices, video.frames(list(indices)), strict=True):
            np.testing.assert_array_equal(frame, expected[number], err_msg=f"frame {number} of {list(indices)}")
        assert video.num_lost == 0


def test_packed_b_frames_keep_their_order_and_their_times(tmp_path: Path) -> None:
    path = packed_bframes(tmp_path / "packed.avi")
    assert sum(packet.count(VOP) > 1 for packet in packets_of(path)) > 10
    plain = every_frame(tmp_path / "packed.mp4")
    video = VideoFile(path)
    assert len(video.timeline.ticks) == len(plain) == 40
    assert (np.diff(video.timeline.ticks) == 1).all()
    for frame, expected in zip(video.frames(range(40)), plain, strict=True):
        np.testing.assert_array_equal(frame, expected)


def test_pictures_that_are_not_coded_let_the_one_before_stand(tmp_path: Path) -> None:
    path = some_not_coded(tmp_path / "gaps.mp4")
    kept = {number for number, packet in enumerate(packets_of(path)) if len(packet) > 20}
    assert 30 < len(kept) < 40
    expected = every_frame(path)
    video = read_video(path, SamplingPlan(fps=10.0))
    assert len(video.frames) == 40
    shown = -1
    for number, frame in enumerate(video.frames):
        shown += number in kept
        np.testing.assert_array_equal(frame, expected[shown], err_msg=f"frame {number}")


def test_hidden_frames_are_in_packets_of_their_own(tmp_path: Path) -> None:
    for path in (FIXTURES / "hidden_frames_vp8.webm", superframes_split(tmp_path / "split.ivf")):
        assert len(packets_of(path)) > len(every_frame(path)) == 60


@pytest.mark.parametrize("name", ["plain.avi", "packed.avi", "b-frames.avi", "cut.mp4"])
def test_what_is_cut_off_is_still_named(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "cut.mp4":
        whole = write_clip(tmp_path / "whole.mp4", range(90), options=OPEN_GOP)
        with copying(cut(whole, tmp_path / "part.mp4", 40), path, {"movflags": "faststart"}) as (packets, write, _):
            for packet in packets:
                write(packet)
    else:
        {"plain.avi": mpeg4, "packed.avi": packed_bframes, "b-frames.avi": lambda p: mpeg4(p, bf=2)}[name](path)
    assert VideoFile(path).notes == ()
    half = path.stat().st_size // 2
    os.truncate(path, half if name == "cut.mp4" else path.read_bytes().rindex(b"00dc", 0, -4000))
    (note,) = VideoFile(path).notes
    assert "the file is cut short or damaged" in note
    missing, stated = (int(word) for word in note.split() if word.isdigit())
    assert 5 < missing < stated


def test_a_chunk_that_is_lost_in_the_middle_is_named(tmp_path: Path) -> None:
    if not hasattr(av.video.stream.VideoStream, "index_entries"):
        pytest.skip("PyAV before 17 does not tell what the index names")
    path = mpeg4(tmp_path / "plain.avi")
    data = bytearray(path.read_bytes())
    for _ in range(3):
        at = data.index(b"00dc", len(data) // 2)
        data[at : at + 4] = b"JUNK"
    path.write_bytes(data)
    assert "of its 40 frames are missing" in VideoFile(path).notes[0]


def timelapse(path: Path, orientation: int = 1) -> Path:
    """JPEGs with EXIF as a camera writes them, one after another as MJPEG."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = orientation, "Camera"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=4)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        for number in range(12):
            jpeg = io.BytesIO()
            Image.fromarray(picture(number)).save(jpeg, "JPEG", exif=exif)
            packet = av.Packet(jpeg.getvalue())
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 4), stream, True
            container.mux(packet)
    return path


@pytest.fixture
def no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes the names of all side data from PyAV but that of the display matrix, as if FFmpeg were newer."""
    for number in [number for number, kind in Type._value2member_map_.items() if kind is not Type.DISPLAYMATRIX]:
        monkeypatch.delitem(Type._value2member_map_, number)


@pytest.mark.usefixtures("no_names")
@pytest.mark.parametrize("isolate", [False, True])
def test_side_data_without_a_name(tmp_path: Path, isolate: bool) -> None:
    path = timelapse(tmp_path / "timelapse.avi")
    limits = MediaLimits(isolate=True) if isolate else DEFAULT_LIMITS
    frames = [frame.pixels for frame in open_video(path, SamplingPlan(fps=4.0), limits=limits).frames()]
    assert len(frames) == 12
    np.testing.assert_array_equal(np.stack(frames), np.stack(every_frame(path)))


@pytest.mark.usefixtures("no_names")
def test_the_display_matrix_is_found_beside_side_data_without_a_name(tmp_path: Path) -> None:
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a display matrix")
    # x264 writes what it is into the stream, which is side data of the first frame.
    path = write_clip(tmp_path / "turned.mp4", range(3), rotation=90)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert len(frame.side_data) > 1
        turn = frame.rotation
    assert turn in (90, -90)
    np.testing.assert_array_equal(next(VideoFile(path).frames([0])), np.rot90(every_frame(path)[0], turn // 90))


@pytest.mark.usefixtures("no_names")
def test_side_data_without_a_name_does_not_stop_a_watch(tmp_path: Path) -> None:
    path = timelapse(tmp_path / "timelapse.avi")
    seen = 0
    with LiveReader(str(path), fps=4.0, speed=10.0) as reader:
        while not reader.ended:
            seen += reader.take(timeout_s=5.0) is not None
    assert seen > 0
    assert (reader.counts.received, reader.counts.damaged) == (12, 0)


@pytest.mark.parametrize("colorspace", [0, 3, 8, 14, 15, 17, 200])
def test_a_colour_space_that_the_converter_does_not_know_is_an_unspecified_one(colorspace: int) -> None:
    levels = picture(1)
    frame = av.VideoFrame.from_ndarray(levels, format="rgb24").reformat(format="yuv420p")
    frame.colorspace = 2
    plain = frame_rgb(frame, "a clip")
    frame.colorspace = colorspace
    shown = frame_rgb(frame, "a clip")
    assert shown.shape == levels.shape
    if colorspace in (3, 14, 15, 17, 200):
        np.testing.assert_array_equal(shown, plain)


def test_a_disposition_that_pyav_has_no_name_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "clip.mp4", range(5))

    class Unnamed(IntFlag):
        attached_pic = 1024

        @classmethod
        def _missing_(cls, value: object) -> None:
            raise ValueError(f"{value} is not a valid Disposition")

    monkeypatch.setattr(av.stream, "Disposition", Unnamed)
    assert len(VideoFile(path).timeline.ticks) == 5


@pytest.mark.parametrize("kind", [ValueError, KeyError, TypeError, RuntimeError])
@pytest.mark.parametrize("where", ["opening", "decoding"])
def test_whatever_a_library_raises_is_a_media_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], where: str
) -> None:
    path = write_clip(tmp_path / "clip.mp4", range(5))
    video = VideoFile(path)

    def fail(*_: object, **__: object) -> None:
        raise kind("x is not a valid Y")

    monkeypatch.setattr("vl3edge.runtime.media.video_file.frame_rgb", fail)
    with pytest.raises(MediaError, match=f"clip.mp4: {kind.__name__}: .*unexpected") as caught:
        VideoFile(path) if where == "opening" else list(video.frames([0]))
    assert type(caught.value.__cause__) is kind


def test_a_watch_ends_with_a_media_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_clip(tmp_path / "clip.mp4", range(5))

    def fail(*_: object) -> None:
        raise ValueError("x is not a valid Y")

    monkeypatch.setattr("vl3edge.runtime.live.reader.frame_rgb", fail)
    with LiveReader(str(path), fps=25.0, speed=100.0) as reader, pytest.raises(MediaError, match="ValueError"):
        reader.take(timeout_s=5.0)


def test_sound_files_are_not_called_videos_of_their_cover(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(path), "w") as container:
        sound = container.add_stream("aac", rate=8000, layout="mono")
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 8192), np.float32), format="fltp", layout="mono")
        samples.sample_rate = 8000
        container.mux(sound.encode(samples))
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        container.mux(cover.encode(None))
        container.mux(sound.encode(None))
    with pytest.raises(MediaError, match="no video in it: its only picture is the cover") as caught:
        open_video(path)
    assert "audio, video" not in str(caught.value)


def test_nothing_is_warned_of_sound_files(tmp_path: Path) -> None:
    path = packed_bframes(tmp_path / "packed.avi")
    with warnings.catch_warnings():
        warnings.simplefilter("error", MediaWarning)
        assert len(read_video(path, SamplingPlan(fps=10.0)).frames) >= 39
