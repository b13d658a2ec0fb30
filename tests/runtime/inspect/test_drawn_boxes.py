"""Boxes drawn on a frame: where the lines are, and that nothing else changes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vl3edge.runtime import Box
from vl3edge.runtime.inspect.boxes import COLOURS, drawn, picture_bytes, sheet

GREY = np.full((200, 300, 3), 120, np.uint8)


def test_lines_are_on_the_inside_of_the_edges() -> None:
    image = np.asarray(drawn(GREY, [Box(None, 20, 30, 120, 90), Box(None, 0, 100, 300, 200)]))
    for colour, (x0, y0, x1, y1) in zip(COLOURS, ((20, 30, 120, 90), (0, 100, 300, 200)), strict=False):
        for edge in (image[y0, x0:x1], image[y1 - 1, x0:x1], image[y0:y1, x0], image[y0:y1, x1 - 1]):
            assert (edge == colour).all()
        assert (image[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] == 120).all()
    inside = np.zeros((200, 300), bool)
    inside[30:90, 20:120] = inside[100:200] = True
    assert (image[~inside] == 120).all()
    assert (GREY == 120).all()  # what was given is not drawn on


@pytest.mark.parametrize(
    "box",
    [
        Box("a label far longer than the picture is wide, and then some more of it", 250, 0, 300, 200),
        Box("low", 290, 195, 300, 200),
        Box("猫 é\nü", 0, 0, 1, 1),
    ],
)
def test_labels_fit_in_any_picture(box: Box) -> None:
    plain = np.asarray(drawn(GREY, [Box(None, box.x0, box.y0, box.x1, box.y1)]))
    assert (np.asarray(drawn(GREY, [box])) != plain).any()
    for height, width in ((1, 1), (3, 500), (500, 3)):
        size = drawn(np.zeros((height, width, 3), np.uint8), [Box(box.label, 0, 0, width, height)]).size
        assert size == (width, height)


def test_a_label_is_above_its_box_where_there_is_room() -> None:
    labelled = np.asarray(drawn(GREY, [Box("cat", 50, 100, 150, 150)]))
    assert (labelled[:100] != 120).any()
    assert (labelled[102:148, 52:148] == 120).all()


def test_a_sheet_has_every_picture() -> None:
    pictures = [Image.new("RGB", (60, 40), colour) for colour in COLOURS[:5]]
    page = np.asarray(sheet(pictures, ["1 s", "2 s", "3 s", "4 s", "5 s"]))
    for colour in COLOURS[:5]:
        assert (page == colour).all(axis=2).sum() == 60 * 40
    wide = sheet([Image.new("RGB", (4000, 2000))] * 2, ["1 s", "2 s"])
    assert wide.width < 2100


@pytest.mark.parametrize(("suffix", "kind"), [(".png", "PNG"), (".jpg", "JPEG"), (".jpeg", "JPEG")])
def test_formats(suffix: str, kind: str) -> None:
    opened = Image.open(io.BytesIO(picture_bytes(drawn(GREY, [Box(None, 20, 30, 120, 90)]), suffix)))
    assert (opened.format, opened.size) == (kind, (300, 200))
    assert np.abs(np.asarray(opened).astype(int)[60, 100] - 120).max() < 8
