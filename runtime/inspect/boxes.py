"""Boxes drawn on the pictures they are about (with Pillow alone)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ..prompt.boxes import Box
from .frames import Rgb, encoded
from .inspection import shortened

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""What a picture with boxes can be saved as, by the suffix of its file."""
COLOURS = ((230, 25, 75), (0, 130, 200), (245, 130, 48), (60, 180, 75), (145, 30, 180), (255, 225, 25))
_WIDEST = 960  # pixels of a picture that shares a sheet with others
_GAP, _INK, _PAPER = 12, (23, 32, 44), (246, 247, 249)


def drawn(frame: Rgb, boxes: Sequence[Box]) -> Image.Image:
    """A frame, uint8 [H, W, 3], with lines along the inside of its boxes' edges, and their labels."""
    image = Image.fromarray(frame).convert("RGB")
    draw = ImageDraw.Draw(image)
    shorter = min(image.size)
    line, font = max(1, round(shorter / 200)), _font(max(11, round(shorter / 28)))
    for number, box in enumerate(boxes):
        colour = COLOURS[number % len(COLOURS)]
        draw.rectangle((box.x0, box.y0, box.x1 - 1, box.y1 - 1), outline=colour, width=line)
    for number, box in enumerate(boxes):  # over the lines of all others
        if box.label:
            _label(draw, image.size, box, COLOURS[number % len(COLOURS)], font)
    return image


def sheet(pictures: Sequence[Image.Image], titles: Sequence[str]) -> Image.Image:
    """Pictures of one size, each under its title, row by row; wide ones are made smaller."""
    columns = math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].size
    if width > _WIDEST:
        width, height = _WIDEST, max(1, round(height * _WIDEST / width))
    font = _font(18)
    head = 18 + _GAP
    page = Image.new("RGB", (columns * (width + _GAP) + _GAP, rows * (head + height + _GAP)), _PAPER)
    draw = ImageDraw.Draw(page)
    for number, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        row, column = divmod(number, columns)
        left, top = _GAP + column * (width + _GAP), row * (head + height + _GAP)
        draw.text((left, top + _GAP // 2), title, _INK, font)
        page.paste(picture.resize((width, height), Image.Resampling.LANCZOS), (left, top + head))
    return page


def picture_bytes(image: Image.Image, suffix: str) -> bytes:
    """The content of a picture's file. suffix: one of FORMATS."""
    kind = FORMATS[suffix]
    return encoded(image, kind, **({"quality": 92, "subsampling": 0} if kind == "JPEG" else {}))


def _label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: Box,
    colour: tuple[int, int, int],
    font: ImageFont.FreeTypeFont,
) -> None:
    """Above the box where there is room, else within it; always within the picture."""
    text = shortened(box.label or "")
    _, _, right, bottom = draw.textbbox((2, 1), text, font)
    width, height = math.ceil(right) + 2, math.ceil(bottom) + 2
    left = max(0, min(box.x0, size[0] - width))
    top = box.y0 - height if box.y0 >= height else min(box.y0, max(0, size[1] - height))
    draw.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)
    is_bright = colour[0] * 0.3 + colour[1] * 0.59 + colour[2] * 0.11 > 140
    draw.text((left + 2, top + 1), text, (0, 0, 0) if is_bright else (255, 255, 255), font)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own, which has Latin letters, or a common one of the system with more."""
    for name in ("DejaVuSans.ttf", "arial.ttf"):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)  # every build that can be installed from PyPI has FreeType
    return font
