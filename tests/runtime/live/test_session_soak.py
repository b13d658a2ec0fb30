"""Hours of a stream: memory and time per frame stay flat once the context is full."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vl3edge.runtime import VideoLlama3
from vl3edge.runtime.decode.generate import join
from vl3edge.runtime.media.video import open_video

CLIP = Path(__file__).parents[2] / "fixtures" / "demo_clip.mp4"
FRAMES = 20_000


def resident_mb() -> float:
    """Memory of this process that is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_memory_and_time_are_flat_over_20000_frames() -> None:
    model = VideoLlama3.load(num_threads=1)
    clip = open_video(CLIP).read().frames
    session = model.open_session()
    reported = 0
    memory, seconds, answers = [], [], set()
    for number in range(FRAMES):
        report = session.push(clip[number % len(clip)], float(number))
        reported += report.dropped_frames
        seconds.append(report.seconds)
        if number % 500 == 499:
            answers.add(join(session.ask("What colour is it?", keep=number % 1000 == 999)).text)
            memory.append(resident_mb())
    assert session.num_seen == FRAMES
    assert session.num_frames + session.dropped_frames == FRAMES
    assert reported == session.dropped_frames > FRAMES - 1000
    assert session.num_tokens <= session.max_tokens
    assert answers == {"Red."}
    full = memory[4:]  # after 2,500 frames the context has been full several times over
    assert max(full) - min(full) < 8, full
    quarters = [float(np.median(part)) for part in np.split(np.array(seconds), 4)]
    assert max(quarters[1:]) < 1.5 * min(quarters[1:]), quarters
