"""What the bytes of a packet say of its picture without decoding it: whether decoding may start there, whether it is
shown, whether it is whole.
"""

from __future__ import annotations

import re

VOP = b"\x00\x00\x01\xb6"
"""Begins every picture of MPEG-4 Part 2 (Xvid, DivX)."""
_LAYER = re.compile(rb"\x00\x00\x01[\x20-\x2f]")


class Bitstream:
    """The packets of one stream. codec: its name in FFmpeg; extradata: the headers that the container keeps apart."""

    def __init__(self, codec: str, extradata: bytes | None) -> None:
        self._codec = codec
        self._length_bytes = _nal_length_bytes(codec, extradata)
        self._time_bits = _time_bits(extradata) if codec == "mpeg4" and extradata else 0

    def start(self, data: bytes) -> tuple[bool, bool]:
        """Whether decoding may start at a packet that the container calls a keyframe, and whether cleanly, so that
        nothing after it refers to anything before."""
        return _h264_start(data, self._length_bytes) if self._codec == "h264" else (True, True)

    def is_whole(self, data: bytes) -> bool:
        """False for packets of H.264 and HEVC whose units do not fill them."""
        return not self._length_bytes or _units_fill(data, self._length_bytes)

    def is_packed(self, data: bytes) -> bool:
        """Whether a packet holds several pictures that are shown one by one: the packed B-frames of DivX and Xvid."""
        return self._codec == "mpeg4" and data.count(VOP) > 1

    def is_hidden(self, data: bytes) -> bool:
        """Whether a packet gives no picture: an alternative reference frame of VP8 or VP9 in a packet of its own, or
        one of MPEG-4 that says that nothing changes."""
        if self._codec == "vp8":
            return not data[0] & 0b10000
        if self._codec == "vp9":
            return _vp9_is_hidden(data)
        return self._time_bits > 0 and _is_not_coded(data, self._time_bits)


def _vp9_is_hidden(data: bytes) -> bool:
    if data[-1] >> 5 == 0b110:  # which ends a superframe, and one of its frames is shown
        return False
    # Two bits of marker, two of profile and, in profile 3, one that is reserved; then show_existing_frame, frame_type
    # and show_frame.
    bits = data[0] << 1 if data[0] & 0b110000 == 0b110000 else data[0]
    return not bits & 0b1010


def _time_bits(extradata: bytes) -> int:
    """Bits in which pictures of MPEG-4 Part 2 state their time, by the header of their layer; 0 if there is none."""
    layer = _LAYER.search(extradata)
    bits = _bits(extradata[layer.end() : layer.end() + 32]) if layer else ""
    at = 17 if bits[9:10] == "1" else 10  # random_accessible_vol, type, and a version with a priority
    at += 20 if bits[at : at + 4] == "1111" else 4  # the aspect ratio, by number or in full
    if bits[at : at + 1] == "1":  # chroma format, low_delay, and maybe a buffer
        at += 83 if bits[at + 4 : at + 5] == "1" else 4
    resolution = bits[at + 4 : at + 20]  # after the shape and a marker
    return max(1, (int(resolution, 2) - 1).bit_length()) if len(resolution) == 16 else 0


def _is_not_coded(data: bytes, time_bits: int) -> bool:
    start = data.find(VOP)
    bits = _bits(data[start + 4 : start + 20]) if start >= 0 else ""
    # Its type, seconds as ones with a zero at the end, a marker, its time, a marker, and vop_coded.
    seconds = bits.find("0", 2)
    at = seconds + 3 + time_bits
    return seconds >= 0 and bits[at : at + 1] == "0"


def _bits(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def _nal_length_bytes(codec: str, extradata: bytes | None) -> int:
    """How many bytes hold the length of a unit of H.264 or HEVC; 0 for start codes between units, or other codecs."""
    at = {"h264": 4, "hevc": 21}.get(codec)
    if at is None or not extradata or len(extradata) <= at or extradata[0] != 1:
        return 0
    return (extradata[at] & 3) + 1


def _units_fill(data: bytes, length_bytes: int) -> bool:
    """Whether units, each after its length, fill a packet to the last byte."""
    at = 0
    while at + length_bytes < len(data):
        at += length_bytes + int.from_bytes(data[at : at + length_bytes], "big")
    return at == len(data)


def _h264_start(data: bytes, length_bytes: int) -> tuple[bool, bool]:
    """Whether decoding may start at an H.264 packet that the container calls a keyframe, and whether cleanly.

    Cleanly at an instantaneous decoding refresh (unit type 5); else at a picture of intra slices. Gradual refresh,
    which containers also mark, begins with a picture that is predicted in part.
    """
    at = 0
    while True:
        if length_bytes:
            unit = at + length_bytes
            at = unit + int.from_bytes(data[at:unit], "big")
        else:
            start = data.find(b"\x00\x00\x01", at)
            unit = at = start + 3 if start >= 0 else len(data)
        if unit + 1 >= len(data):
            return False, False
        kind = data[unit] & 31
        if kind == 5:
            return True, True
        if kind == 1:
            # Exp-Golomb codes of first_mb_in_slice, 0, and slice_type, 7 or 2: the two names of an intra slice.
            head = data[unit + 1]
            return head == 0b10001000 or head >> 4 == 0b1011, False
