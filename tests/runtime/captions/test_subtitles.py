"""Subtitles as a player reads them: FFmpeg's own demuxers and decoders are the judges."""

from __future__ import annotations

import re
from pathlib import Path

import av
import pytest

from vl3edge.runtime.captions.records import text_line
from vl3edge.runtime.captions.subtitles import subtitles
from vl3edge.runtime.jobs import CaptionResult

Cue = tuple[float, float, str]


def as_played(path: Path) -> list[Cue]:
    """Start, end and text of every cue, in seconds; markup that a player would obey is left in the text."""
    cues = []
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[0]
        for packet in container.demux(stream):
            if packet.size:
                start = float(packet.pts * packet.time_base)
                texts = [
                    event.ass.decode().split(",", 8)[8]
                    for subtitle in packet.decode()
                    for event in ([subtitle] if hasattr(subtitle, "ass") else subtitle)
                ]
                cues.append((start, start + float(packet.duration * packet.time_base), "".join(texts)))
    return cues


def played(text: str, style: str, folder: Path) -> list[Cue]:
    path = folder / f"captions.{style}"
    path.write_text(text, encoding="utf-8", newline="")
    return as_played(path)


@pytest.mark.parametrize("style", ["srt", "vtt"])
def test_a_player_reads_every_cue(style: str, tmp_path: Path) -> None:
    records = [
        CaptionResult("a.mp4", caption="Third: ünï 🙂 日本", start_s=36000.0, end_s=36061.25),
        CaptionResult("a.mp4", caption="First", start_s=0.0, end_s=59.9996),
        CaptionResult("a.mp4", caption="Second\n\nline\ttwo", start_s=60.0, end_s=120.5),
        CaptionResult("a.mp4", error="broken", start_s=120.5, end_s=130.0),
        CaptionResult("a.mp4", caption=" \n", start_s=130.0, end_s=140.0),
        CaptionResult("a.mp4", caption="It never stops.", find="it stops", found=False),
        CaptionResult("a.mp4", caption="At 3.0s.", find="it stops", found=True, start_s=150.0, end_s=150.0),
    ]
    assert played(subtitles(records, style), style, tmp_path) == [
        (0.0, 60.0, "First"),
        (60.0, 120.5, "Second line two"),
        (150.0, 151.0, "it stops"),
        (36000.0, 36061.25, "Third: ünï 🙂 日本"),
    ]


def event(start: float, end: float, seen: tuple[float, float]) -> CaptionResult:
    return CaptionResult(
        "a.mp4", "?", start_s=start, end_s=end, find="x", found=True, seen_start_s=seen[0], seen_end_s=seen[1]
    )


TIGHT: dict[str, tuple[list[CaptionResult], list[tuple[float, float]]]] = {
    "tenths": (
        [CaptionResult("a.mp4", "x", start_s=k / 10, end_s=(k + 1) / 10) for k in range(30)],
        [(k / 10, (k + 1) / 10) for k in range(30)],
    ),
    "an event at the end of the film": ([event(9.0, 9.0, (0.0, 9.0))], [(8.0, 9.0)]),
    "an event shortly before": ([event(8.75, 8.8, (0.0, 9.0))], [(8.0, 9.0)]),
    "an event in a short part": ([event(9.2, 9.2, (9.0, 9.5))], [(9.0, 9.5)]),
    "events on either side of a border": (
        [event(9.0, 9.0, (6.0, 9.0)), event(9.0, 9.0, (9.0, 12.0))],
        [(8.0, 9.0), (9.0, 10.0)],
    ),
    "a picture": ([CaptionResult("a.jpg", "x")], [(0.0, 1.0)]),
    "a film of a moment": ([CaptionResult("a.gif", "x", start_s=0.0, end_s=0.04)], [(0.0, 0.04)]),
    "hundredths from an odd time": (
        [CaptionResult("a.mp4", "x", start_s=0.0005 + k / 100, end_s=0.0105 + k / 100) for k in range(3)],
        [(0.001, 0.011), (0.011, 0.021), (0.021, 0.031)],
    ),
}


@pytest.mark.parametrize("style", ["srt", "vtt"])
@pytest.mark.parametrize("case", TIGHT)
def test_cues_keep_within_their_part(case: str, style: str, tmp_path: Path) -> None:
    records, times = TIGHT[case]
    assert [(start, end) for start, end, _ in played(subtitles(records, style), style, tmp_path)] == [
        pytest.approx(span, abs=1e-6) for span in times
    ]


HOSTILE = [
    "1\n00:00:00,000 --> 00:00:09,000\nmine",
    "a --> b --> c",
    "<b>bold</b> <i>x</i> <font color=red>red</font>",
    "a < b > c & d &lt; &amp;",
    "<v Speaker>said <00:00:01.000> it</v>",
    r"{\an8}top {\b1}bold",
    "\x1b[31mred\x07\r\nNOTE this\n\nSTYLE\n::cue{}",
    "WEBVTT",
]


@pytest.mark.parametrize("style", ["srt", "vtt"])
@pytest.mark.parametrize("caption", HOSTILE)
def test_a_caption_cannot_steer_the_player(caption: str, style: str, tmp_path: Path) -> None:
    records = [
        CaptionResult("a.mp4", caption=caption, start_s=0.0, end_s=2.0),
        CaptionResult("a.mp4", caption="end", start_s=2.0, end_s=4.0),
    ]
    cues = played(subtitles(records, style), style, tmp_path)
    assert [(start, end) for start, end, _ in cues] == [(0.0, 2.0), (2.0, 4.0)]
    # FFmpeg turns markup into {\…}, and writes a brace of the text as \{ or \{{}; word joiners show nothing.
    shown = cues[0][2].replace("\u2060", "")
    plain = " ".join(re.sub(r"[\x00-\x08\x0b-\x1f]", "", caption).split())
    assert shown.replace(r"\{{}", "{").replace(r"\{", "{") == plain
    assert cues[1][2] == "end"


def test_plain_text() -> None:
    piece = CaptionResult("a\n.mp4", caption="A cat.", start_s=59.96, end_s=3600.0, segment=2, segments=3)
    assert text_line(piece, several=True) == "a .mp4: [0:01:00.0 - 1:00:00.0] A cat.\n"
    assert text_line(CaptionResult("a.mp4", caption="A cat."), several=False) == "A cat.\n"
    assert text_line(CaptionResult("a.mp4", error="broken"), several=True) == ""
    found = CaptionResult("a.mp4", caption="At 3 s.", find="x", found=True, start_s=3.0, end_s=4.5)
    assert text_line(found, several=False) == "0:00:03.0 - 0:00:04.5\n"
    missing = CaptionResult("a.mp4", caption="Never.", find="x", found=False)
    assert text_line(missing, several=False) == "not found: Never.\n"
