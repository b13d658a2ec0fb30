"""Images of every mode come out upright and as Pillow's RGB; what is no image is one clear line."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from clips import picture
from PIL import Image

from vl3edge.runtime.errors import MediaError
from vl3edge.runtime.media.image import load_image
from vl3edge.runtime.media.limits import MediaLimits

PICTURE = picture(7)


@pytest.mark.torch
@pytest.mark.parametrize("name", ["cat.jpg", "chart.jpg"])
def test_real_images_equal_transformers(media: Path, name: str) -> None:
    from reference import transformers_module

    transformers_module()
    from transformers.image_utils import load_image as reference

    expected = np.asarray(reference(str(media / name)).convert("RGB"))
    np.testing.assert_array_equal(load_image(media / name), expected)
    np.testing.assert_array_equal(load_image(str(media / name)), expected)
    np.testing.assert_array_equal(load_image(Image.open(media / name)), expected)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "LAB", "PA"])
def test_modes_become_pillows_rgb(mode: str) -> None:
    image = Image.fromarray(PICTURE)
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(PICTURE[:, :, 0]))
    np.testing.assert_array_equal(load_image(image), np.asarray(image.convert("RGB")))


def test_palette_with_transparency(tmp_path: Path) -> None:
    path = tmp_path / "palette.png"
    image = Image.fromarray(PICTURE).convert("P")
    image.save(path, transparency=3)
    np.testing.assert_array_equal(load_image(path), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_greyscale_is_scaled(tmp_path: Path, suffix: str) -> None:
    levels = np.arange(64 * 32, dtype=np.uint16).reshape(32, 64) * 32
    path = tmp_path / f"grey{suffix}"
    Image.fromarray(levels).save(path)
    np.testing.assert_array_equal(load_image(path), np.repeat((levels >> 8).astype(np.uint8)[:, :, None], 3, axis=2))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int) -> None:
    image = Image.fromarray(PICTURE)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    # As EXIF 2.3 defines it: where the stored row 0 and column 0 are in the picture.
    turns = {1: 0, 2: 0, 3: 2, 4: 2, 5: 3, 6: 3, 7: 1, 8: 1}
    mirrored = {2, 4, 5, 7}
    expected = PICTURE[:, ::-1] if orientation in mirrored else PICTURE
    if orientation in (5, 7):
        expected = np.rot90(PICTURE, turns[orientation])[:, ::-1]
    else:
        expected = np.rot90(expected, turns[orientation])
    np.testing.assert_array_equal(load_image(path), expected)


def test_animations_give_their_first_frame(tmp_path: Path) -> None:
    path = tmp_path / "moving.gif"
    first, second = (Image.fromarray(picture(n)).convert("P") for n in (0, 9))
    first.save(path, save_all=True, append_images=[second], duration=100)
    np.testing.assert_array_equal(load_image(path), np.asarray(first.convert("RGB")))


def test_arrays() -> None:
    np.testing.assert_array_equal(load_image(PICTURE), PICTURE)
    np.testing.assert_array_equal(load_image(np.dstack([PICTURE, PICTURE[:, :, 0]])), PICTURE)
    np.testing.assert_array_equal(load_image(PICTURE[:, :, 1]), np.repeat(PICTURE[:, :, 1:2], 3, axis=2))
    with pytest.raises(MediaError, match="must be uint8 with levels 0 to 255, not float64"):
        load_image(PICTURE / 255)  # type: ignore[arg-type]
    with pytest.raises(MediaError, match=r"shape \[H, W, 3\], not \[1, 2, 3, 4\]"):
        load_image(np.zeros((1, 2, 3, 4), np.uint8))
    with pytest.raises(MediaError, match=r"not \[0, 5, 3\]"):
        load_image(np.zeros((0, 5, 3), np.uint8))


def cut(path: Path) -> Path:
    Image.fromarray(PICTURE).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    return path


def written(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def huge_png(path: Path) -> Path:
    """A PNG of 60,000 × 60,000 pixels according to its header, and of a few bytes."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return written(path, b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 9) + b"IDAT" + bytes(13))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p / "nowhere.png", "nowhere.png: there is no such file"),
        (lambda p: written(p / "empty.png", b""), "empty.png: the file is empty"),
        (lambda p: written(p / "text.png", b"Hello, world.\n" * 50), "text.png: not an image in a format"),
        (lambda p: cut(p / "cut.png"), "cut.png: the image is damaged or cut short"),
        (lambda p: cut(p / "cut.jpg"), "cut.jpg: the image is damaged or cut short"),
        (lambda p: huge_png(p / "huge.png"), "huge.png: .*more than the limit of 67,108,864"),
        (lambda p: p, "this is a folder"),
    ],
    ids=["missing", "empty", "text", "cut-png", "cut-jpeg", "huge", "folder"],
)
def test_what_is_no_image_is_one_clear_line(tmp_path: Path, make, message: str) -> None:
    path = make(tmp_path)
    with pytest.raises(MediaError, match=message) as caught:
        load_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_our_own_limit_of_pixels(tmp_path: Path) -> None:
    limits = MediaLimits(max_pixels=96 * 64 - 1)
    path = tmp_path / "large.png"
    Image.fromarray(PICTURE).save(path)
    for source in (path, Image.fromarray(PICTURE), PICTURE):
        with pytest.raises(MediaError, match="96×64 pixels exceed the limit of 6,143"):
            load_image(source, limits)
