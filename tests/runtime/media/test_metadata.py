"""Titles and names in any encoding: what is not UTF-8 stops no clip, with any version of PyAV."""

from __future__ import annotations

import os
from pathlib import Path

import av
import numpy as np
import pytest
from clips import every_frame, picture, write_clip
from streams import http_stream, paced, transport_stream

from vl3edge.runtime.live.source import SourceOptions, open_live_source
from vl3edge.runtime.media.video_file import VideoFile

TITLE = b"the title of a clip"
ENCODED = {
    "cp1252": "déjà vu à Orléans".encode("cp1252"),
    "shift-jis": "動画の題名".encode("shift-jis"),
    "cut utf-8": "été à la mer".encode()[:-1] + b"\xc3",
    "no encoding": bytes(range(0x80, 0x93)),
}


def with_title(data: bytes, title: bytes) -> bytes:
    """The same bytes with another title in the place of `TITLE`, padded to its length."""
    assert TITLE in data
    return data.replace(TITLE, title.ljust(len(TITLE), b"."))


def titled_clip(folder: Path, kind: str, part: str) -> Path:
    """A clip with `TITLE` in its container or its stream."""
    plain = write_clip(folder / f"plain.{kind}", range(12), options={"bf": "0"})  # packets with times, to be copied
    titled = folder / f"titled.{kind}"
    with av.open(str(plain)) as source, av.open(str(titled), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        if part == "container":
            target.metadata["title"] = TITLE.decode()
        else:
            stream.metadata["handler_name" if kind == "mp4" else "title"] = TITLE.decode()
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    return titled


@pytest.mark.parametrize("encoding", ENCODED)
@pytest.mark.parametrize(
    ("kind", "part"),
    [("mp4", "container"), ("mp4", "stream"), ("mkv", "container"), ("mkv", "stream"), ("avi", "container")],
)
def test_a_title_that_is_not_utf8_stops_no_clip(tmp_path: Path, kind: str, part: str, encoding: str) -> None:
    path = titled_clip(tmp_path, kind, part)
    expected = every_frame(path)
    path.write_bytes(with_title(path.read_bytes(), ENCODED[encoding]))
    for frame, decoded in zip(VideoFile(path).frames(range(12)), expected, strict=True):
        np.testing.assert_array_equal(frame, decoded)
    source = open_live_source(str(path), SourceOptions())
    assert source.is_recording
    source.container.close()


@pytest.mark.parametrize("encoding", ENCODED)
def test_nor_one_of_a_network_stream(encoding: str) -> None:
    pieces = transport_stream([picture(number) for number in range(12)], fps=12, title=TITLE.decode())
    script = paced([with_title(pieces[0], ENCODED[encoding]), *pieces[1:]], 0.0)
    with http_stream(lambda _: script) as (address, _):
        source = open_live_source(address, SourceOptions(timeout_s=5.0))
        assert (source.stream.height, source.stream.width) == (64, 96)
        source.container.close()


@pytest.mark.parametrize("name", [b"caf\xe9.mp4", "映画.mp4".encode(), b"\xff\xfe.mkv"])
def test_a_clip_whose_name_is_not_utf8(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    written = write_clip(tmp_path / f"plain{path.suffix}", range(12))
    expected = every_frame(written)
    written.rename(path)
    for frame, decoded in zip(VideoFile(path).frames(range(12)), expected, strict=True):
        np.testing.assert_array_equal(frame, decoded)
