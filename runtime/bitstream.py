"""What the bytes of a packet say of its picture, without decoding it: whether decoding may start there, whether it
shows one, whether it is whole.
"""

from __future__ import annotations

VOP = b"\x00\x00\x01\xb6"
"""Begins every picture of MPEG-4 Part 2 (Xvid, DivX)."""


def nal_length_bytes(codec: str, extradata: bytes | None) -> int:
    """How many bytes hold the length of a unit of H.264 or HEVC; 0 for start codes between units, or other codecs."""
    at = {"h264": 4, "hevc": 21}.get(codec)
    if at is None or not extradata or len(extradata) <= at or extradata[0] != 1:
        return 0
    return (extradata[at] & 3) + 1


def units_fill(data: memoryview, length_bytes: int) -> bool:
    """Whether units, each after its length, fill a packet to the last byte."""
    at = 0
    while at + length_bytes < len(data):
        at += length_bytes + int.from_bytes(data[at : at + length_bytes], "big")
    return at == len(data)


def h264_start(data: bytes, length_bytes: int) -> tuple[bool, bool]:
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


def is_packed(codec: str, data: memoryview) -> bool:
    """Whether a packet holds several pictures that are shown one by one: the packed B-frames of DivX and Xvid."""
    return codec == "mpeg4" and bytes(data).count(VOP) > 1


def is_hidden(codec: str, data: memoryview) -> bool:
    """Whether a packet of VP8 or VP9 is decoded without being shown: an alternative reference frame of its own."""
    if codec == "vp8":
        return not data[0] & 0b10000
    if codec != "vp9" or data[-1] >> 5 == 0b110:  # which ends a superframe, and one of its frames is shown
        return False
    # Two bits of marker, two of profile and, in profile 3, one that is reserved; then show_existing_frame, frame_type
    # and show_frame.
    bits = data[0] << (1 if data[0] & 0b110000 == 0b110000 else 0)
    return not bits & 0b1010
