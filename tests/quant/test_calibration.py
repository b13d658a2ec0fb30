from __future__ import annotations

from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from vl3edge.quant.calibration import calibration_items, collect
from vl3edge.quant.conversations import PAIRS
from vl3edge.quant.errors import QuantError
from vl3edge.quant.scenes import render_scene
from vl3edge.quant.sequences import CalibrationSequence


def sequence(length):
    return CalibrationSequence(np.zeros((length, 4), np.float32))


def test_scenes_depend_on_their_seed_alone():
    a, b, c = render_scene(3), render_scene(3), render_scene(4)
    assert np.array_equal(a, b)
    assert a.dtype == np.uint8
    assert a.shape[0] == 8
    assert a.shape[1] % 28 == a.shape[2] % 28 == 0
    assert a.shape != c.shape or (a != c).mean() > 0.5


def test_scenes_are_varied_where_it_matters():
    """Some clips change everywhere, some hardly at all; the spectrum falls with frequency as natural images' does."""
    changed = []
    for seed in range(16):
        frames = render_scene(seed, 3).astype(float)
        changed.append((np.abs(np.diff(frames, axis=0)) > 0).mean())
        assert 10 < frames.std() < 100
    assert min(changed) < 0.3 < 0.9 < max(changed)
    grey = render_scene(0, 1)[0].mean(axis=-1)
    power = np.abs(np.fft.rfft2(grey - grey.mean())) ** 2
    assert power[1:8, 1:8].mean() > 100 * power[40:80, 40:80].mean()


def test_without_media_there_are_videos_images_and_every_turn():
    items = list(calibration_items())
    assert {item.kind for item in items} == {"video", "image"}
    assert {item.exchange for item in items} == set(PAIRS)
    assert all(len(item.media) == 1 for item in items if item.kind == "image")
    assert all(len(item.media) >= 6 for item in items if item.kind == "video")


def test_each_file_gets_two_different_turns():
    paths = [Path("a.mp4"), Path("b.jpg"), Path("c.mp4")]
    items = list(calibration_items(paths))
    assert [item.media for item in items] == paths * 2
    for first, second in zip(items[:3], items[3:], strict=True):
        assert first.exchange != second.exchange


def test_tokens_are_limited_and_some_sequences_held_out():
    lengths = iter(range(100, 200))
    taken = []

    def embed(item):
        taken.append(item)
        return sequence(next(lengths))

    result = collect(calibration_items(), embed, max_tokens=1500)
    assert 1500 <= result.num_tokens < 1500 + 200
    assert len(result.held_out) == 2
    assert [len(s.embeddings) for s in result.held_out] == [101, 109]
    assert len(taken) == len(result.calibration) + 2


def test_unusable_media_are_skipped_and_named_when_nothing_is_left(warnings_logged):
    paths = [Path("broken.mp4"), Path("fine.mp4")]

    def embed(item):
        if item.media.name == "broken.mp4":
            raise OSError("no frame can be decoded")
        return sequence(10)

    result = collect(calibration_items(paths), embed)
    assert (len(result.calibration), len(result.held_out)) == (1, 1)
    assert warnings_logged == ["calibration skips broken.mp4: no frame can be decoded"] * 2  # once per turn
    with pytest.raises(QuantError, match=r"none of the calibration media can be used: broken\.mp4: no frame"):
        collect(calibration_items(paths[:1]), embed)


def test_one_sequence_is_measured_on_itself():
    result = collect(islice(calibration_items(), 1), lambda item: sequence(10))
    assert result.held_out == result.calibration
