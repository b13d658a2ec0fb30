"""Media read in another process: the same frames; and whatever befalls that process costs one clip."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from clips import SHORT_GOP, picture, write_clip
from PIL import Image

from vl3edge.runtime import VideoLlama3
from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.errors import MediaError, MediaWarning
from vl3edge.runtime.media import isolated as isolation
from vl3edge.runtime.media.image import load_image
from vl3edge.runtime.media.isolated import GRACE_S
from vl3edge.runtime.media.limits import MediaLimits
from vl3edge.runtime.media.video import open_source, open_video

ISOLATED = MediaLimits(isolate=True)
PLAN = SamplingPlan(fps=5)


def frames(path: Path, limits: MediaLimits) -> list[np.ndarray]:
    return [frame.pixels for frame in open_video(path, PLAN, limits=limits).frames((56, 84))]


def image_pixels(path: Path, limits: MediaLimits) -> np.ndarray:
    return next(iter(open_source(path, limits, kind="image").frames([0])))


def process() -> isolation.ReaderProcess:
    """The process that waits for the next clip."""
    waiting = isolation._idle._process
    assert waiting is not None
    return waiting


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", range(60), options=SHORT_GOP)


@pytest.mark.parametrize("name", ["nasa_13013.mp4", "corrupted.mp4"])
def test_the_frames_are_the_same(media: Path, name: str) -> None:
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", MediaWarning)
        expected = frames(media / name, MediaLimits())
        ours = [str(warning.message) for warning in warned]
        warned.clear()
        found = frames(media / name, ISOLATED)
        assert [str(warning.message) for warning in warned] == ours
    assert len(found) == len(expected) > 1
    for number, (frame, other) in enumerate(zip(found, expected, strict=True)):
        np.testing.assert_array_equal(frame, other, err_msg=f"frame {number}")


def test_pictures_folders_and_animations(tmp_path: Path) -> None:
    Image.fromarray(picture(1)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(image_pixels(tmp_path / "a.png", ISOLATED), load_image(tmp_path / "a.png"))
    for source in (tmp_path, tmp_path / "a.png"):
        np.testing.assert_array_equal(frames(source, ISOLATED), frames(source, MediaLimits()))


def test_one_process_serves_many_clips_and_refusals(clip: Path, tmp_path: Path) -> None:
    frames(clip, ISOLATED)
    first = process().pid
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:500])
    with pytest.raises(MediaError, match=r"broken\.mp4: not a video that FFmpeg can read"):
        frames(broken, ISOLATED)
    frames(clip, ISOLATED)
    assert process().pid == first


@pytest.mark.parametrize("sent", [signal.SIGSEGV, signal.SIGKILL])
def test_a_crash_costs_one_clip(tmp_path: Path, sent: signal.Signals) -> None:
    # Large enough that most frames are not on their way yet when the process ends.
    path = write_clip(tmp_path / "clip.mp4", range(60), options=SHORT_GOP, height=480, width=640)
    reader = open_video(path, PLAN, limits=ISOLATED)
    pid = process().pid
    coming = reader.frames((56, 84))
    next(coming)
    os.kill(pid, sent)
    with pytest.raises(MediaError, match=rf"clip\.mp4: the process that read it was killed by {sent.name}"):
        list(coming)
    assert len(frames(path, ISOLATED)) == 12


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM])
def test_a_process_that_dies_while_it_waits_costs_nothing(clip: Path, tmp_path: Path, sent: signal.Signals) -> None:
    expected = frames(clip, MediaLimits())
    Image.fromarray(picture(1)).save(tmp_path / "a.png")

    def end_it(is_over: bool) -> None:
        dying = process()
        os.kill(dying.pid, sent)
        if is_over:
            dying._process.wait()

    for is_over in (True, False):  # noticed before the request, or as it is made
        reader = open_video(clip, PLAN, limits=ISOLATED)
        end_it(is_over)
        np.testing.assert_array_equal([frame.pixels for frame in reader.frames((56, 84))], expected)
        end_it(is_over)
        np.testing.assert_array_equal(image_pixels(tmp_path / "a.png", ISOLATED), picture(1))


def test_a_process_that_never_begins_is_tried_twice(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for ever, and the file is not blamed."""
    frames(clip, ISOLATED)
    process().kill()
    started = tmp_path / "started"
    command = tmp_path / "python"
    command.write_text(f"#!/bin/sh\necho >> {started}\nexit 3\n")
    command.chmod(0o755)
    monkeypatch.setattr("sys.executable", str(command))
    monkeypatch.setattr(isolation._idle, "_process", None)
    with pytest.raises(MediaError, match=r"clip\.mp4: the process that was to read it exited with status 3"):
        open_video(clip, PLAN, limits=ISOLATED)
    assert started.read_text() == "\n\n"


def test_a_hang_costs_the_time_that_a_clip_may_take(clip: Path) -> None:
    limits = MediaLimits(isolate=True, max_read_s=3.0)
    reader = open_video(clip, PLAN, limits=limits)
    pid = process().pid
    os.kill(pid, signal.SIGSTOP)
    begin = time.perf_counter()
    with pytest.raises(MediaError, match="reading it takes more than 3 s"):
        list(reader.frames((56, 84)))
    assert time.perf_counter() - begin < 3.0 + GRACE_S + 5
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert len(frames(clip, ISOLATED)) == 12


def test_memory_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("RGB", (8000, 8000)).save(path)
    tight = MediaLimits(isolate=True, max_isolated_bytes=300_000_000)
    with pytest.raises(MediaError, match=r"large\.png: reading it takes more than 0\.3 GB \(max_isolated_bytes\)"):
        image_pixels(path, tight)
    assert image_pixels(path, ISOLATED).shape == (8000, 8000, 3)


def test_frames_that_nobody_takes_any_more(clip: Path) -> None:
    coming = open_video(clip, PLAN, limits=ISOLATED).frames((56, 84))
    next(coming)
    coming.close()  # type: ignore[attr-defined]
    assert len(frames(clip, ISOLATED)) == 12


def test_two_clips_at_once(clip: Path) -> None:
    expected = frames(clip, MediaLimits())
    found: list[list[np.ndarray]] = []
    run: Callable[[], None] = lambda: found.append(frames(clip, ISOLATED))  # noqa: E731
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [np.array_equal(one, expected) for one in found] == [True, True]


def test_a_model_with_isolated_media(clip: Path) -> None:
    plain = VideoLlama3.load(backend="cpu", num_threads=1).encode(clip)
    isolated = VideoLlama3.load(backend="cpu", num_threads=1, limits=ISOLATED).encode(clip)
    np.testing.assert_array_equal(isolated.visual.tokens, plain.visual.tokens)
