"""Videos from every kind of source, whole or in chunks, sampled on their own clocks."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from clips import picture, write_clip
from PIL import Image

from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.errors import ConfigError, MediaError, MediaWarning
from vl3edge.runtime.media.resize import PixelBudget, resize_rgb, target_size
from vl3edge.runtime.media.video import open_video, read_video

FRAMES = np.stack([picture(n) for n in range(12)])
ALL = SamplingPlan(fps=1000.0, max_frames=3000)


def save_pictures(folder: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        Image.fromarray(FRAMES[number]).save(folder / name)
    return folder


def test_folders_are_sorted_by_the_value_of_numbers_and_count_as_3_fps(tmp_path: Path) -> None:
    save_pictures(tmp_path, [f"frame {n}.png" for n in range(12)])
    (tmp_path / ".hidden.png").write_bytes(b"nothing")
    (tmp_path / "notes.txt").write_text("nothing")
    video = read_video(tmp_path)
    assert video.timestamps_s == (0.0, 1.0, 2.0, 3.0)
    assert (video.source_fps, video.num_source_frames, video.duration_s) == (3.0, 12, 4.0)
    np.testing.assert_array_equal(video.frames, FRAMES[[2, 5, 8, 11]])
    np.testing.assert_array_equal(read_video(tmp_path, source_fps=12.0).frames, FRAMES[[11]])
    assert read_video(str(tmp_path), SamplingPlan(start_s=1.0, end_s=3.0)).timestamps_s == (1.0, 2.0)


def test_pictures_of_other_sizes_are_brought_to_the_size_of_the_first(tmp_path: Path) -> None:
    Image.fromarray(FRAMES[0]).save(tmp_path / "1.png")
    Image.fromarray(picture(1, 100, 50)).save(tmp_path / "2.png")
    video = read_video(tmp_path, SamplingPlan(fps=3.0))
    np.testing.assert_array_equal(video.frames[0], FRAMES[0])
    np.testing.assert_array_equal(video.frames[1], resize_rgb(picture(1, 100, 50), (64, 96)))


def test_a_folder_without_pictures_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(MediaError, match="there are no pictures in this folder"):
        open_video(tmp_path)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png"])
def test_animations_have_their_own_clock(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"moving{suffix}"
    pictures = [Image.fromarray(frame) for frame in FRAMES[:4]]
    options = {"lossless": True} if suffix == ".webp" else {}
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=[400, 1000, 700, 300], **options)
    reader = open_video(path, SamplingPlan(fps=2.0))
    # Shown from 0, 0.4, 1.4 and 2.1 s on, to 2.4 s: the last before 0.5, 1, 1.5 and 2 s.
    assert reader.timestamps_s == (0.0, 0.5, 1.0, 1.5)
    assert (reader.num_source_frames, reader.duration_s) == (4, 2.4)
    frames = [f.pixels for f in reader.frames()]
    expected = []
    with Image.open(path) as image:
        for number in (1, 1, 2, 2):
            image.seek(number)
            expected.append(np.asarray(image.convert("RGB")))
    np.testing.assert_array_equal(frames, expected)


def test_hasty_animations_are_slowed_down_as_players_do(tmp_path: Path) -> None:
    path = tmp_path / "hasty.gif"
    pictures = [Image.fromarray(frame) for frame in FRAMES[:10]]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=10)
    assert open_video(path).duration_s == pytest.approx(1.0)


def test_a_still_picture_is_a_video_of_one_frame(tmp_path: Path, media: Path) -> None:
    path = tmp_path / "still.png"
    Image.fromarray(FRAMES[3]).save(path)
    video = read_video(path)
    np.testing.assert_array_equal(video.frames, FRAMES[3:4])
    assert video.timestamps_s == (0.0,)
    assert read_video(media / "cat.jpg").frames.shape[0] == 1


def test_animations_cut_short_give_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "cut.gif"
    pictures = [Image.fromarray(frame) for frame in FRAMES]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=100)
    with Image.open(path) as image:
        image.seek(4)
        expected = np.asarray(image.convert("RGB"))
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.warns(MediaWarning, match=r"cut\.gif: the file is damaged or cut short after 5 frames"):
        video = read_video(path)
    np.testing.assert_array_equal(video.frames, expected[None])
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(MediaError, match=r"cut\.gif: the picture is damaged or cut short"):
        read_video(path)


def test_arrays_need_a_clock() -> None:
    np.testing.assert_array_equal(read_video(FRAMES, ALL, source_fps=4.0).frames[::250], FRAMES)
    video = read_video(FRAMES, SamplingPlan(fps=2.0), source_fps=4.0)
    np.testing.assert_array_equal(video.frames, FRAMES[1::2])
    assert video.timestamps_s == (0.0, 0.5, 1.0, 1.5, 2.0, 2.5)
    video = read_video(FRAMES[:4], timestamps_s=[0.0, 0.7, 1.0, 2.9])
    np.testing.assert_array_equal(video.frames, FRAMES[[1, 2, 3]])
    with pytest.raises(ConfigError, match="give either source_fps or timestamps_s"):
        open_video(FRAMES)
    with pytest.raises(ConfigError, match="12 frames but 2 timestamps"):
        open_video(FRAMES, timestamps_s=[0.0, 1.0])
    with pytest.raises(ConfigError, match="each must be after the one before"):
        open_video(FRAMES[:3], timestamps_s=[0.0, 1.0, 1.0])
    with pytest.raises(MediaError, match=r"uint8 \[F, H, W, 3\], not float64"):
        open_video(FRAMES / 255, source_fps=1.0)  # type: ignore[arg-type]


def test_lists_of_images_count_as_a_folder_does() -> None:
    pictures = [Image.fromarray(frame) for frame in FRAMES]
    np.testing.assert_array_equal(read_video(pictures).frames, FRAMES[[2, 5, 8, 11]])
    np.testing.assert_array_equal(read_video(pictures, source_fps=1.0).frames, FRAMES)
    with pytest.raises(MediaError, match="list of images is empty"):
        open_video([])


def test_everything_is_known_before_frames_are_decoded(media: Path) -> None:
    reader = open_video(media / "nasa_13013.mp4", SamplingPlan(fps=2.0, max_frames=20))
    assert (reader.num_frames, len(reader.timestamps_s)) == (20, 20)
    budget = PixelBudget(14, 2, 3136, 1_000_000)
    size = target_size(reader.height, reader.width, budget, reader.num_frames)
    whole = read_video(media / "nasa_13013.mp4", SamplingPlan(fps=2.0, max_frames=20), budget)
    assert whole.frames.shape == (20, *size, 3)
    chunks = list(reader.chunks(size, chunk_frames=6))
    assert [c.start for c in chunks] == [0, 6, 12, 18]
    assert sum((c.timestamps_s for c in chunks), ()) == whole.timestamps_s
    np.testing.assert_array_equal(np.concatenate([c.frames for c in chunks]), whole.frames)


def test_memory_stays_that_of_a_few_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "large.mp4", range(40), height=480, width=640, options={"preset": "ultrafast"})
    reader = open_video(path, SamplingPlan(fps=25.0))
    tracemalloc.start()
    assert sum(1 for _ in reader.frames((56, 84))) == 40
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # A frame of full size is 0.9 MB; forty of them would be 37 MB.
    assert peak < 6e6, f"{peak / 1e6:.1f} MB"


def test_resizing_follows_the_rule_of_the_budget(media: Path) -> None:
    plan = SamplingPlan(max_frames=2)
    full = read_video(media / "nasa_13013.mp4", plan).frames
    for budget in (PixelBudget(14, 2, 3136, 200_000), PixelBudget.from_tokens(14, 2, 16, 300)):
        size = target_size(*full.shape[1:3], budget, 2)
        expected = np.stack([resize_rgb(frame, size, budget.rule) for frame in full])
        np.testing.assert_array_equal(read_video(media / "nasa_13013.mp4", plan, budget).frames, expected)
