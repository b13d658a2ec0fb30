"""What a file is by its bytes: a picture of some format, or something for FFmpeg to read.

Most formats are known by Pillow's own look at their first bytes, and some that it does not read by those listed here.
Three need more: HEIF and AVIF pictures lie in the same boxes as an MP4 film, and FFmpeg would show their first tile;
raw Motion JPEG begins as its first picture does; and TGA has no signature at all.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Callable, Iterator
from typing import BinaryIO

from PIL import Image

PREFIX_BYTES = 64
"""Enough for a signature, and for the brands of an ISO file that are looked at before the rest is there."""

NOT_PICTURES = frozenset({"MPEG", "FLI", "BUFR", "GRIB", "HDF5"})
"""What Pillow knows by name and cannot show, or FFmpeg plays as the film it is."""

_HOLDERS = {
    b"%PDF-": "a PDF document",
    b"PK\x03\x04": "a ZIP archive, or a document that is one (.docx, .pptx)",
    b"Rar!\x1a\x07": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7-Zip archive",
    b"\x1f\x8b\x08": "a gzip archive",
    b"\xfd7zXZ\0": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"BZh": "a bzip2 archive",
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": "an Office document",
}
_TAR_AT = 257

TGA_SUFFIXES = frozenset({".tga", ".icb", ".vda", ".vst"})
MJPEG_SUFFIXES = frozenset({".mjpg", ".mjpeg"})

_SIGNED = frozenset({"PNG", "GIF", "WEBP", "TIFF", "JPEG2000"})
"""Known by four bytes or more: a file that begins so and cannot be read is damaged, and nothing else."""

STILL_BRANDS = frozenset(
    {b"mif1", b"mif2", b"heic", b"heix", b"heim", b"heis", b"avif", b"avci", b"jpeg", b"j2ki", b"vvic", b"miaf"}
)
FFMPEG_FORMATS = {name: f"{name.lower()}_pipe" for name in ("EXR", "DPX", "PAM", "PFM", "PHM", "HDR")}
FFMPEG_FORMATS["JXL"] = "jpegxl_pipe"
"""FFmpeg's names for pictures that Pillow does not read by itself, under names of our own."""

_FFMPEG_MAGIC = {
    b"\x76\x2f\x31\x01": "EXR",
    b"SDPX": "DPX",
    b"XPDS": "DPX",
    b"P7\n": "PAM",
    b"PF\n": "PFM",
    b"PH\n": "PHM",
    b"Ph\n": "PHM",
    b"#?RADIANCE": "HDR",
    b"\xff\x0a": "JXL",
    b"\0\0\0\x0cJXL \r\n\x87\n": "JXL",
}

_SEQUENCES = frozenset({b"msf1", b"hevc", b"hevx", b"hevm", b"hevs", b"avis", b"avcs", b"vvis"})
_MJPEG_SEARCH_BYTES = 1 << 24
_JPEG_MARKER = re.compile(rb"\xff[^\0\xff\xd0-\xd7]")
_NEXT_JPEG = re.compile(rb"[\0\r\n]*\xff\xd8\xff")
_JPEG_SIZE = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""The markers of segments that state the size of a JPEG."""


def starts_as_picture(prefix: bytes) -> bool:
    """Whether a file with these first bytes (PREFIX_BYTES of them, if it has so many) may be a picture."""
    if prefix[4:8] == b"ftyp":
        return prefix[8:12] in STILL_BRANDS | _SEQUENCES
    return bool(_accepting(prefix) or _ffmpeg_format(prefix))


def picture_format(file: BinaryIO, suffix: str = "") -> str | None:
    """Pillow's name of a picture's format, or one of FFMPEG_FORMATS; None if it is none, or FFmpeg reads it better.

    file: at its beginning, and able to seek. suffix: of its name in lower case, which decides where bytes cannot.
    Raises OSError.
    """
    prefix = file.read(PREFIX_BYTES)
    if prefix[4:8] == b"ftyp":
        return _iso_format(file, prefix)
    accepting = _accepting(prefix)
    if "JPEG" in accepting:
        return None if _is_motion_jpeg(prefix + file.read(_MJPEG_SEARCH_BYTES), suffix) else "JPEG"
    for name in accepting:
        if name in _SIGNED or _opens(file, name):
            return name
    return _ffmpeg_format(prefix) or ("TGA" if _is_tga(file, prefix, suffix) else None)


def _is_motion_jpeg(data: bytes, suffix: str) -> bool:
    """Whether JPEGs lie back to back: a film, unless they differ in size (a photograph and its preview), or the first
    says that the others belong to it."""
    size, end = _first_jpeg(data)
    following = _NEXT_JPEG.match(data, end)
    if following is None:
        return False
    return suffix in MJPEG_SUFFIXES or (
        b"MPF\0" not in data[:end] and _first_jpeg(data[following.end() - 3 :])[0] == size
    )


def _first_jpeg(data: bytes) -> tuple[bytes, int]:
    """The height and width of a JPEG, as its bytes have them, and where it ends; what its segments hold is skipped."""
    size, at = b"", 2
    while found := _JPEG_MARKER.search(data, at):
        marker, at = data[found.end() - 1], found.end()
        if marker == 0xD9:
            return size, at
        if marker in _JPEG_SIZE:
            size = data[at + 3 : at + 7]
        at += int.from_bytes(data[at : at + 2], "big")
    return size, len(data)


def holder_of(file: BinaryIO | io.RawIOBase) -> str | None:
    """What a file is, in words, if it is one that others are packed in; None if not. file: at its beginning.

    FFmpeg would look through it for anything that it can play: the pictures of a document as a film. Raises OSError.
    """
    prefix = file.read(_TAR_AT + 5) or b""
    if prefix[_TAR_AT:] == b"ustar":
        return "a tar archive"
    return next((words for magic, words in _HOLDERS.items() if prefix.startswith(magic)), None)


def iso_brands(prefix: bytes) -> tuple[bytes, frozenset[bytes]]:
    """The major brand of an ISO file (MP4, HEIF, AVIF), and all that its first bytes name."""
    size = int.from_bytes(prefix[:4], "big")
    names = prefix[8 : min(size, len(prefix))]
    return names[:4], frozenset(names[at : at + 4] for at in (0, *range(8, len(names) - 3, 4)))


def _iso_format(file: BinaryIO, prefix: bytes) -> str | None:
    """HEIF or AVIF for pictures and animations of these; None for films, which sequences of HEVC pictures are, too."""
    major, brands = iso_brands(prefix)
    if not brands & (STILL_BRANDS | _SEQUENCES):
        return None
    parts = set(_top_boxes(file))
    is_avif = bool(brands & {b"avif", b"avis"})
    if b"moov" in parts and major not in STILL_BRANDS:
        return "AVIF" if is_avif and major in _SEQUENCES else None
    return "AVIF" if is_avif and not brands & {b"heic", b"heix"} else "HEIF"


def _top_boxes(file: BinaryIO) -> Iterator[bytes]:
    end = file.seek(0, os.SEEK_END)
    at = 0
    for _ in range(64):
        file.seek(at)
        head = file.read(16)
        if len(head) < 8:
            return
        yield head[4:8]
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        at += size
        if size < 8 or at >= end:
            return


def _accepting(prefix: bytes) -> list[str]:
    """The formats of Pillow that know these first bytes as theirs."""
    Image.init()
    return [
        name
        for name, (_, accept) in Image.OPEN.items()
        if name not in NOT_PICTURES | {"AVIF", "DIB", "HEIF"} and accept is not None and _accepts(accept, prefix)
    ]


def _accepts(accept: Callable[[bytes], bool | str], prefix: bytes) -> bool:
    try:
        return bool(accept(prefix))
    except (IndexError, struct.error):  # some look at bytes that a tiny file lacks
        return False


def _ffmpeg_format(prefix: bytes) -> str | None:
    return next((name for magic, name in _FFMPEG_MAGIC.items() if prefix.startswith(magic)), None)


def _opens(file: BinaryIO, name: str) -> bool:
    """Whether the header, too, is that of the format."""
    file.seek(0)
    try:
        Image.open(file, formats=[name])
    except Image.DecompressionBombError:
        return True
    except Exception:  # Pillow's readers raise whatever their parsing stumbles over
        return False
    return True


def _is_tga(file: BinaryIO, prefix: bytes, suffix: str) -> bool:
    """A header that can be one, and the suffix, the footer of TGA 2.0, or just the length that the header states."""
    if len(prefix) < 18 or not _opens(file, "TGA"):
        return False
    if suffix in TGA_SUFFIXES:
        return True
    has_palette, kind, depth = prefix[1], prefix[2], prefix[16]
    if (kind & 7 == 1) != (has_palette == 1):  # what begins with 00 00 01, as MPEG does, claims a palette and has none
        return False
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 18))
    if file.read(18) == b"TRUEVISION-XFILE.\0":
        return True
    width, height, entries = (int.from_bytes(prefix[at : at + 2], "little") for at in (12, 14, 5))
    palette = has_palette * entries * (prefix[7] + 7 >> 3)
    return kind < 8 and size == 18 + prefix[0] + palette + width * height * (depth + 7 >> 3)
