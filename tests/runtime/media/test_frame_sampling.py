"""Which frames are chosen and when: parts of clips, streams that start late, transformers' rule by index."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from vl3edge.runtime.config import SamplingPlan
from vl3edge.runtime.errors import MediaError
from vl3edge.runtime.media.frame_sampling import Timeline, as_fraction, choose_frames, regular_timeline


def chosen(timeline: Timeline, **plan: object) -> tuple[list[int], list[float]]:
    samples = choose_frames(timeline, SamplingPlan(**plan), "clip")  # type: ignore[arg-type]
    return samples.indices.tolist(), [round(t, 6) for t in samples.timestamps_s]


def test_one_per_second_takes_the_last_frame_of_each_second() -> None:
    assert chosen(regular_timeline(100, 25.0)) == ([24, 49, 74, 99], [0, 1, 2, 3])


def test_a_clip_too_short_for_the_filter_gives_its_last_frame() -> None:
    assert chosen(regular_timeline(10, 25.0)) == ([9], [0])
    assert chosen(regular_timeline(1, 25.0), fps=30.0) == ([0], [0])


def test_a_higher_rate_repeats_frames() -> None:
    assert chosen(regular_timeline(3, 2.0), fps=4.0) == ([0, 0, 1, 1, 2, 2], [0, 0.25, 0.5, 0.75, 1, 1.25])


def test_a_gap_repeats_the_frame_on_screen() -> None:
    times = Timeline(np.array([0, 100, 200, 3500, 3600]), 3700, Fraction(1, 1000), 10.0)
    assert chosen(times) == ([2, 2, 2], [0, 1, 2])
    assert chosen(times, start_s=1.5) == ([2, 2], [1.5, 2.5])


def test_more_than_max_frames_are_thinned_as_linspace_truncates() -> None:
    expected = np.linspace(0, 99, 7, dtype=int)
    assert chosen(regular_timeline(100, 1.0), max_frames=7) == (expected.tolist(), expected.tolist())
    assert chosen(regular_timeline(100, 1.0), max_frames=1) == ([0], [0])


def test_a_million_samples_cost_nothing_when_few_are_wanted() -> None:
    indices, times = chosen(regular_timeline(90_000, 25.0), fps=1_000_000.0, max_frames=3)
    assert (indices, times) == ([0, 44999, 89999], [0.0, 1799.999999, 3599.999999])


def test_a_part_has_the_clips_own_times() -> None:
    clip = regular_timeline(100, 10.0)
    assert chosen(clip, start_s=2.0, end_s=5.0) == ([29, 39, 49], [2, 3, 4])
    assert chosen(clip, start_s=7.5) == ([84, 94], [7.5, 8.5])
    assert chosen(clip, end_s=2.0) == ([9, 19], [0, 1])
    assert chosen(clip, start_s=2.0, end_s=2.3) == ([22], [2])


def test_a_stream_that_starts_late_is_counted_on_the_clips_clock() -> None:
    late = Timeline(np.arange(700, 3700, 100), 3700, Fraction(1, 1000), 10.0)
    # As the filter: frames at 0.7 to 0.9 belong to its output 0, and it ends at 3; labels run from the first frame.
    assert chosen(late) == ([2, 12, 22], [0.7, 1.7, 2.7])
    assert chosen(late, start_s=0.2) == ([2, 12, 22], [0.7, 1.7, 2.7])
    assert chosen(late, start_s=1.0, end_s=3.0) == ([12, 22], [1, 2])


@pytest.mark.parametrize("plan", [{"start_s": 10.0}, {"start_s": 11.0, "end_s": 12.0}])
def test_a_part_outside_the_clip_is_an_error(plan: dict[str, float]) -> None:
    with pytest.raises(MediaError, match=r"clip: no frames.*runs from 0\.000 to 10\.000 s"):
        choose_frames(regular_timeline(100, 10.0), SamplingPlan(**plan), "clip")


def test_the_part_that_was_asked_for_is_named_as_it_was_asked() -> None:
    with pytest.raises(MediaError, match=r"no frames from 500 s on: "):
        choose_frames(regular_timeline(100, 10.0), SamplingPlan(start_s=500), "clip")
    with pytest.raises(MediaError, match=r"no frames from 10 s to 12\.5 s: "):
        choose_frames(regular_timeline(100, 10.0), SamplingPlan(start_s=10, end_s=12.5), "clip")


def test_labels_are_spaced_as_numpy_arange_does() -> None:
    late = Timeline(np.arange(1, 400), 400, Fraction(1, 7), 7.0)
    times = choose_frames(late, SamplingPlan(fps=3.3, max_frames=1000), "clip").timestamps_s
    assert list(times) == np.arange(1 / 7, 1 / 7 + 60, 1 / 3.3)[: len(times)].tolist()


def test_rates_are_the_fractions_they_stand_for() -> None:
    assert [as_fraction(x) for x in (29.97, 1 / 3, 30000 / 1001, 0.1)] == [
        Fraction(2997, 100),
        Fraction(1, 3),
        Fraction(30000, 1001),
        Fraction(1, 10),
    ]
    assert as_fraction(1e-9) == Fraction(1e-9)


@pytest.mark.torch
def test_index_rule_equals_transformers() -> None:
    from reference import transformers_module

    transformers_module()
    from transformers import VideoLlama3VideoProcessor
    from transformers.video_utils import VideoMetadata

    processor = VideoLlama3VideoProcessor()
    rng = np.random.default_rng(0)
    for _ in range(400):
        total = int(rng.integers(1, 3000))
        source_fps = float(rng.choice([25.0, 30000 / 1001, 23.976, 10.0, 59.94, 7.3]))
        fps = float(rng.choice([0.1, 0.5, 1.0, 2.0, 3.0, 24.0]))
        max_frames = int(rng.choice([1, 7, 32, 180]))
        metadata = VideoMetadata(total_num_frames=total, fps=source_fps)
        expected = processor.sample_frames(metadata, fps=fps, max_frames=max_frames)
        # Where total / (total / n) comes out above n, transformers asks for a frame past the end, and gets none.
        expected = expected[expected < total]
        metadata.frames_indices = expected.tolist()
        samples = choose_frames(
            regular_timeline(total, source_fps), SamplingPlan(fps=fps, max_frames=max_frames, rule="index"), "clip"
        )
        assert samples.indices.tolist() == expected.tolist(), (total, source_fps, fps, max_frames)
        np.testing.assert_allclose(samples.timestamps_s, metadata.timestamps)


def test_index_rule_on_a_part() -> None:
    assert chosen(regular_timeline(100, 10.0), start_s=2.0, end_s=8.0, rule="index") == (
        [20, 30, 40, 50, 60, 70],
        [2, 3, 4, 5, 6, 7],
    )
