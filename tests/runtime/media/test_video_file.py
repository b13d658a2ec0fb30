"""Video files: only what is needed is decoded, and it is what decoding everything, or FFmpeg's fps filter, gives."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import LONG_GOP, OPEN_GOP, SHORT_GOP, every_frame, fps_filter, picture, write_clip

from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.errors import MediaError, MediaWarning
from vl3edge.runtime.media.limits import MediaLimits
from vl3edge.runtime.media.video import open_video, read_video
from vl3edge.runtime.media.video_file import VideoFile

VFR = np.cumsum(np.random.default_rng(0).integers(5, 400, 60)).tolist()
MS = Fraction(1, 1000)

CLIPS: dict[str, Callable[[Path], Path]] = {
    "long-gop.mp4": lambda p: write_clip(p, range(90), options=LONG_GOP),
    "short-gop.mp4": lambda p: write_clip(p, range(90), options=SHORT_GOP),
    "open-gop.mp4": lambda p: write_clip(p, range(90), options=OPEN_GOP),
    "open-gop.ts": lambda p: write_clip(p, range(90), options=OPEN_GOP),
    "gradual-refresh.mp4": lambda p: write_clip(
        p, range(90), options={"x264-params": "intra-refresh=1:keyint=20:bframes=0"}
    ),
    "vfr.mkv": lambda p: write_clip(p, VFR, MS, options=OPEN_GOP),
    "late.mkv": lambda p: write_clip(p, [t + 730 for t in VFR], MS, options=SHORT_GOP),
    "ntsc.mp4": lambda p: write_clip(p, range(0, 60 * 1001, 1001), Fraction(1, 30000), options=SHORT_GOP),
    "open-gop-hevc.mp4": lambda p: write_clip(
        p, range(60), codec="libx265", options={"x265-params": "keyint=15:open-gop=1:bframes=4:log-level=none"}
    ),
    "mpeg4.avi": lambda p: write_clip(p, range(60), codec="mpeg4", options={"g": "12", "bf": "2"}),
    "mpeg2.mpg": lambda p: write_clip(p, range(60), codec="mpeg2video", options={"g": "12", "bf": "2"}),
    "vp8-hidden-frames.webm": lambda p: write_clip(
        p,
        range(50),
        codec="libvpx",
        options={"g": "20", "deadline": "realtime", "auto-alt-ref": "1", "lag-in-frames": "10"},
    ),
    "mjpeg.mov": lambda p: write_clip(p, range(40), codec="mjpeg"),
}


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory, media: Path) -> Callable[[str], Path]:
    """A clip by name: written at first use, or one of the shared media."""
    folder = tmp_path_factory.mktemp("clips")

    def get(name: str) -> Path:
        if name not in CLIPS:
            return media / name
        path = folder / name
        return path if path.exists() else CLIPS[name](path)

    return get


SOUND = [*CLIPS, "nasa_13013.mp4", "h265_video.mp4"]


@pytest.mark.parametrize("name", SOUND)
def test_any_frames_are_those_of_decoding_everything(clip: Callable[[str], Path], name: str) -> None:
    path = clip(name)
    expected = every_frame(path)
    video = VideoFile(path)
    assert len(video.timeline.ticks) == len(expected)
    rng = np.random.default_rng(0)
    plans = [range(start, len(expected), step) for step in (3, 20, 33, 50) for start in (0, 2)]
    plans += [sorted(rng.choice(len(expected), 4, replace=False).tolist()) for _ in range(4)]
    for indices in plans:
        frames = list(video.frames(indices))
        assert len(frames) == len(indices)
        assert video.num_lost == 0
        for number, frame in zip(indices, frames, strict=True):
            np.testing.assert_array_equal(frame, expected[number], err_msg=f"frame {number} of {list(indices)}")


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("rate", ["0.5", "1", "3", "29.97", "60"])
def test_sampling_equals_ffmpegs_fps_filter(clip: Callable[[str], Path], name: str, rate: str) -> None:
    if name == "nasa_13013.mp4" and float(rate) > 3:
        pytest.skip("390 large frames; the rate is tested on the others")
    if name == "ntsc.mp4" and rate != "0.5" and int(av.__version__.split(".")[0]) < 16:
        pytest.skip("this FFmpeg tells the filter no durations, so that it ends where the last frame begins")
    # The one difference: a clip too short for the filter gives its last frame.
    expected = fps_filter(clip(name), rate) or every_frame(clip(name))[-1:]
    video = read_video(clip(name), SamplingPlan(fps=float(rate), max_frames=10_000))
    assert len(video.frames) == len(expected)
    for number, (frame, other) in enumerate(zip(video.frames, expected, strict=True)):
        np.testing.assert_array_equal(frame, other, err_msg=f"output {number}")


def test_only_the_needed_packets_are_decoded(clip: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip("short-gop.mp4")
    video = VideoFile(path)
    fed = []
    stream_of = VideoFile._stream

    def spying(self: VideoFile, container, options, *rest):
        stream = stream_of(self, container, options, *rest)

        class Codec:
            def __setattr__(self, name: str, value: str) -> None:
                setattr(stream.codec_context, name, value)

            def decode(self, packet):
                if packet is not None:
                    fed.append((packet.pts, stream.codec_context.skip_frame))
                return stream.codec_context.decode(packet)

            def flush_buffers(self) -> None:
                stream.codec_context.flush_buffers()

        class Stream:
            codec_context = Codec()

        Stream.stream = stream
        return Stream()

    monkeypatch.setattr(VideoFile, "_stream", spying)
    monkeypatch.setattr("vl3edge.runtime.media.video_file.read_packets", lambda c, s, clock: c.demux(s.stream))
    list(video.frames([30, 80]))
    # Two groups of at most twelve pictures, and one packet more for each.
    assert len(fed) <= 2 * 13
    assert [skip for ticks, skip in fed if ticks in (30 * 512, 80 * 512)] == ["DEFAULT", "DEFAULT"]
    assert sum(skip == "NONREF" for _, skip in fed) == len(fed) - 2


def test_late_sound_and_late_video(tmp_path: Path) -> None:
    path = tmp_path / "late.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=10)
        video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
        video.codec_context.time_base = MS
        sound = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000 * 4), np.int16), format="s16", layout="mono")
        samples.sample_rate, samples.pts = 8000, 0
        container.mux(sound.encode(samples))
        for number in range(30):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = 730 + 100 * number, MS
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
    reader = open_video(path)
    assert reader.timestamps_s == pytest.approx((0.73, 1.73, 2.73))
    assert reader.duration_s == pytest.approx(3.73)
    for frame, expected in zip(reader.frames(), fps_filter(path, "1"), strict=True):
        np.testing.assert_array_equal(frame.pixels, expected)


def test_the_best_of_two_video_streams_is_read(media: Path) -> None:
    reader = open_video(media / "nasa_13013.mp4")
    assert (reader.height, reader.width, reader.num_source_frames) == (270, 480, 390)
    assert reader.source_fps == pytest.approx(30000 / 1001)
    assert reader.duration_s == pytest.approx(13.013)
    assert reader.timestamps_s == tuple(float(t) for t in range(13))


def test_rotation_is_applied(media: Path, tmp_path: Path) -> None:
    plain = every_frame(media / "video_90.mov")
    assert plain[0].shape == (320, 568, 3)
    frames = list(VideoFile(media / "video_90.mov").frames([0, 2]))
    # A matrix of −90° asks for a clockwise turn.
    np.testing.assert_array_equal(frames[0], np.rot90(plain[0], -1))
    np.testing.assert_array_equal(frames[1], np.rot90(plain[2], -1))
    for degrees in (90, 180, 270):
        path = write_clip(tmp_path / f"{degrees}.mp4", range(3), rotation=degrees)
        with av.open(str(path)) as container:
            turn = next(container.decode(video=0)).rotation
        turned = next(VideoFile(path).frames([0]))
        np.testing.assert_array_equal(turned, np.rot90(every_frame(path)[0], turn // 90))


def test_avi_without_times_of_presentation(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "h264.avi", range(40), options=SHORT_GOP)
    expected = every_frame(path)
    video = VideoFile(path)
    for number, frame in enumerate(video.frames(range(40))):
        np.testing.assert_array_equal(frame, expected[number], err_msg=f"frame {number}")
    assert np.abs(video.timeline.ticks - np.arange(40)).max() <= 3


def test_raw_streams_without_any_times(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "raw.h264", range(50), options=SHORT_GOP)
    expected = every_frame(path)
    reader = open_video(path, SamplingPlan(fps=5.0))
    assert reader.num_frames == 10
    for number, frame in enumerate(reader.frames()):
        np.testing.assert_array_equal(frame.pixels, expected[5 * number + 4])


@pytest.mark.parametrize("fps", [1.0, 2.0, 10.0])
def test_damage_is_survived_and_counted(media: Path, fps: float) -> None:
    decodable = {}
    with av.open(str(media / "corrupted.mp4")) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            decodable.update({f.pts // 1024: f.to_ndarray(format="rgb24") for f in frames})
    assert 30 < len(decodable) < 50
    step = round(10 / fps)
    wanted = range(step - 1, 50, step)
    lost = sum(number not in decodable for number in wanted)
    reader = open_video(media / "corrupted.mp4", SamplingPlan(fps=fps))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        frames = list(reader.frames())
    for number, frame in zip(wanted, frames, strict=True):
        stand_in = max((n for n in decodable if n <= number), default=min(decodable))
        np.testing.assert_array_equal(frame.pixels, decodable[stand_in], err_msg=f"frame {number}")
    messages = [str(w.message) for w in caught if w.category is MediaWarning]
    # The damage is told even where no sample depends on it.
    assert len(messages) == 1
    assert (
        f"corrupted.mp4: the file is damaged: {50 - len(decodable)} of its 50 frames cannot be decoded" in messages[0]
    )
    assert (f"{lost} of the {len(wanted)} frames sampled are damaged" in messages[0]) == bool(lost)
    assert len(reader.warnings) == 1 + bool(lost)


def test_a_clip_cut_in_the_middle_gives_what_is_there(clip: Callable[[str], Path], tmp_path: Path) -> None:
    whole = clip("open-gop.ts")
    cut = tmp_path / "cut.ts"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    expected = every_frame(whole)
    video = read_video(cut, SamplingPlan(fps=5.0))
    assert 4 <= len(video.frames) <= 12
    for number, frame in enumerate(video.frames[:-1]):
        np.testing.assert_array_equal(frame, expected[5 * number + 4], err_msg=f"output {number}")


def test_a_file_cut_behind_its_index_says_what_is_missing(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.mp4", range(100), options=SHORT_GOP, muxer={"movflags": "faststart"})
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    expected = every_frame(whole)
    with pytest.warns(MediaWarning, match=r"cut\.mp4: the file is cut short.*of its 100 frames are missing$"):
        video = read_video(cut, SamplingPlan(fps=25.0))
    assert 30 < len(video.frames) < 60
    # The last but one in the order shown may come after it in the file, and be gone.
    for number, frame in enumerate(video.frames[:-2]):
        np.testing.assert_array_equal(frame, expected[number], err_msg=f"frame {number}")


def write_sound(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8192), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def without_index(clip: Path, path: Path) -> Path:
    data = clip.read_bytes()
    assert data.rindex(b"moov") > len(data) // 2
    path.write_bytes(data[: data.rindex(b"moov") - 4])
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, c: p / "nowhere.mp4", "nowhere.mp4: there is no such file"),
        (lambda p, c: (p / "empty.mp4", (p / "empty.mp4").touch())[0], "empty.mp4: the file is empty"),
        (lambda p, c: (p / "text.mp4", (p / "text.mp4").write_text("Hello, world.\n" * 99))[0], "not a video"),
        (lambda p, c: write_sound(p / "sound.m4a"), "sound.m4a: there is no video in it, only: audio"),
        (lambda p, c: without_index(c, p / "no-index.mp4"), "no-index.mp4: not a video.*cut short before its index"),
    ],
    ids=["missing", "empty", "text", "sound", "no-index"],
)
def test_what_is_no_video_is_one_clear_line(
    clip: Callable[[str], Path],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    make: Callable[[Path, Path], Path],
    message: str,
) -> None:
    path = make(tmp_path, clip("long-gop.mp4"))
    capfd.readouterr()
    with pytest.raises(MediaError, match=message) as caught:
        open_video(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_errors_of_the_system_are_told_apart(clip: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise av.error.PermissionError(13, "Permission denied")

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(MediaError, match="no permission to read it"):
        open_video(clip("long-gop.mp4"))


@pytest.mark.parametrize("change", ["sound in its place", "another codec", "gone"])
def test_a_file_that_changes_between_its_two_passes_is_a_media_error(tmp_path: Path, change: str) -> None:
    """Found by captioning a file that was cut and written again meanwhile."""
    path = tmp_path / "clip.mp4"
    write_clip(path, range(20), options=SHORT_GOP)
    video = VideoFile(path)
    if change == "sound in its place":
        write_sound(tmp_path / "sound.m4a").replace(path)
    elif change == "another codec":
        path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    else:
        path.unlink()
    message = "there is no such file" if change == "gone" else "the file changed while being read"
    with pytest.raises(MediaError, match=message):
        list(video.frames([0, 5]))


def test_damaged_throughout_is_an_error(clip: Callable[[str], Path], tmp_path: Path) -> None:
    data = bytearray(clip("mjpeg.mov").read_bytes())
    start, end = data.index(b"mdat") + 4, data.rindex(b"moov") - 4
    data[start:end] = bytes(end - start)
    path = tmp_path / "zeros.mov"
    path.write_bytes(data)
    with pytest.raises(MediaError, match=r"zeros\.mov: no frame of its video can be decoded"):
        open_video(path)


def test_cover_pictures_are_not_video(tmp_path: Path) -> None:
    path = tmp_path / "song.mp4"
    with av.open(str(write_sound(tmp_path / "sound.m4a"))) as source, av.open(str(path), "w") as container:
        sound = container.add_stream_from_template(source.streams.audio[0])
        cover = container.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
        attached = av.stream.Disposition.attached_pic
        cover.disposition = attached if int(av.__version__.split(".")[0]) >= 16 else attached.value
        container.mux(cover.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        container.mux(cover.encode(None))
        for packet in source.demux(audio=0):
            if packet.size:
                packet.stream = sound
                container.mux(packet)
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(MediaError, match=r"song\.mp4: there is no video in it"):
        open_video(path)


def test_hostile_sizes_are_refused(clip: Callable[[str], Path]) -> None:
    with pytest.raises(MediaError, match=r"long-gop\.mp4: 96×64 pixels exceed the limit of 6,143"):
        open_video(clip("long-gop.mp4"), limits=MediaLimits(max_pixels=96 * 64 - 1))


def test_decoded_frames_are_given_back_at_once(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "turned.mov", range(40), options=SHORT_GOP, rotation=90)
    gc.collect()
    gc.disable()  # frames in a reference cycle would wait for it
    try:
        assert len(list(open_video(path, SamplingPlan(fps=25)).frames())) == 40
        alive = sum(isinstance(item, av.VideoFrame) for item in gc.get_objects())
    finally:
        gc.enable()
    assert alive <= 1, f"{alive} of FFmpeg's frames are still in memory"
