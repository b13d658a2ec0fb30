"""Damage done to media files: bytes, and the structure of MP4 boxes, transport packets and PNG chunks.

Every mutation is a function of (data, random generator) and gives new data; all are deterministic in the generator.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable

Mutation = Callable[[bytes, random.Random], bytes]

INTERESTING = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1_000_000_000)
CONTAINERS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"moof", b"traf"})


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    mutated = bytearray(data)
    for _ in range(rng.choice((1, 3, 30, 300))):
        mutated[rng.randrange(len(mutated))] ^= 1 << rng.randrange(8)
    return bytes(mutated)


def flip_header_bits(data: bytes, rng: random.Random) -> bytes:
    """The first and the last bytes are where containers keep their index."""
    mutated = bytearray(data)
    reach = min(len(mutated), rng.choice((64, 512, 4096)))
    for _ in range(rng.randint(1, 12)):
        at = rng.randrange(reach)
        mutated[at if rng.random() < 0.5 else len(mutated) - 1 - at] = rng.randrange(256)
    return bytes(mutated)


def set_number(data: bytes, rng: random.Random) -> bytes:
    """A number that programs stumble over, where some other number may have been."""
    mutated = bytearray(data)
    size = rng.choice((1, 2, 4, 8))
    if len(mutated) > size:
        at = rng.randrange(min(len(mutated), rng.choice((512, 8192, len(mutated)))) - size or 1)
        value = rng.choice(INTERESTING) % (1 << 8 * size)
        mutated[at : at + size] = value.to_bytes(size, rng.choice(("big", "little")))
    return bytes(mutated)


def truncate(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def drop_start(data: bytes, rng: random.Random) -> bytes:
    return data[rng.randrange(min(len(data), 4096)) :]


def duplicate_stretch(data: bytes, rng: random.Random) -> bytes:
    start, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    stop = min(stop, start + 65536)
    return data[:stop] + data[start:stop] * rng.choice((1, 2, 20)) + data[stop:]


def swap_stretches(data: bytes, rng: random.Random) -> bytes:
    a, b, c, d = sorted(rng.randrange(len(data) + 1) for _ in range(4))
    return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]


def zero_stretch(data: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    count = min(len(data) - start, rng.choice((4, 64, 1024, 16384)))
    return data[:start] + bytes(count) + data[start + count :]


def boxes(data: bytes, start: int = 0, end: int | None = None) -> list[tuple[int, int, bytes]]:
    """Every box of an MP4 at any depth: (where it starts, where it ends, its type)."""
    found = []
    end = len(data) if end is None else end
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", data[start : start + 8])
        if size < 8 or start + size > end:
            break
        found.append((start, start + size, kind))
        if kind in CONTAINERS:
            found += boxes(data, start + 8, start + size)
        start += size
    return found


def change_box(data: bytes, rng: random.Random) -> bytes:
    """One MP4 box: its size, its type, a number inside it, or the whole box dropped or doubled."""
    found = boxes(data)
    if not found:
        return set_number(data, rng)
    start, end, kind = rng.choice(found)
    change = rng.randrange(6)
    if change == 0:
        return data[:start] + struct.pack(">I", rng.choice(INTERESTING)) + data[start + 4 :]
    if change == 1:
        return data[: start + 4] + rng.choice(found)[2] + data[start + 8 :]
    if change == 2:
        return data[:start] + data[end:]
    if change == 3:
        return data[:end] + data[start:end] + data[end:]
    if kind in CONTAINERS or end - start < 16:
        return flip_bits(data, rng)
    mutated = bytearray(data)
    for _ in range(rng.randint(1, 4)):  # tables of times, sizes and places
        at = rng.randrange(start + 8, end - 3)
        mutated[at : at + 4] = struct.pack(">I", rng.choice((*INTERESTING, rng.getrandbits(32))))
    return bytes(mutated)


def shuffle_transport_packets(data: bytes, rng: random.Random) -> bytes:
    """Packets of 188 bytes swapped, doubled or lost; other files are cut into pieces of that size all the same."""
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    for _ in range(rng.randint(1, 20)):
        at = rng.randrange(len(packets))
        change = rng.randrange(3)
        if change == 0:
            other = rng.randrange(len(packets))
            packets[at], packets[other] = packets[other], packets[at]
        elif change == 1:
            packets.insert(at, packets[rng.randrange(len(packets))])
        elif len(packets) > 1:
            del packets[at]
    return b"".join(packets)


def change_png_chunk(data: bytes, rng: random.Random) -> bytes:
    """A number in a chunk of a PNG, its checksum made right again; other files get a number anywhere."""
    if not data.startswith(b"\x89PNG"):
        return set_number(data, rng)
    chunks, at = [], 8
    while at + 12 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        chunks.append((at, size))
        at += 12 + size
    at, size = rng.choice(chunks)
    if size < 4:
        return data[:at] + data[at + 12 + size :]
    body = bytearray(data[at + 4 : at + 8 + size])
    place = rng.randrange(4, len(body) - 3)
    body[place : place + 4] = struct.pack(">I", rng.choice(INTERESTING))
    return data[: at + 4] + bytes(body) + struct.pack(">I", zlib.crc32(body)) + data[at + 12 + size :]


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits,
    flip_header_bits,
    set_number,
    truncate,
    drop_start,
    duplicate_stretch,
    swap_stretches,
    zero_stretch,
    change_box,
    change_box,
    change_box,
    shuffle_transport_packets,
    change_png_chunk,
)


def mutate(data: bytes, seed: int) -> tuple[bytes, list[str]]:
    """The file `seed` makes of `data`: one to four mutations one after the other, and their names."""
    rng = random.Random(seed)
    names = []
    for _ in range(rng.choice((1, 1, 2, 4))):
        mutation = rng.choice(MUTATIONS)
        names.append(mutation.__name__)
        data = mutation(data, rng) or b"\0"
    return data, names
