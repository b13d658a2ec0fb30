"""Which other files an ONNX file reads: the locations of its external data, found without the onnx package.

A graph may name any path as the home of a weight. ONNX Runtime refuses those that leave the folder in its newer
versions only (1.23.0 was seen to read absolute paths, `..` and links), so a bundle's graphs are held to the files that
its manifest lists. For that the protocol-buffer encoding is walked along the fields that lead to tensors; all else is
skipped by its length.

Source: onnx.proto and https://protobuf.dev/programming-guides/encoding/.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

# Per message the fields that can hold a tensor, by number, and what they hold. A test compares them with onnx.proto.
CHILDREN = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
}
_KEY, _VALUE = 1, 2  # of StringStringEntryProto
_MAX_BYTES = 64 << 20  # weights lie in files of their own
_MAX_DEPTH = 100  # of protocol buffers' own readers
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def external_files(path: Path) -> set[str]:
    """The locations that the graph's tensors name, verbatim.

    Raises ValueError for a file that is not in ONNX's encoding or too large, OSError where it cannot be read.
    """
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it has more than {_MAX_BYTES >> 20} MiB")
    return set(_locations(memoryview(path.read_bytes()), "ModelProto", 0))


def _locations(message: memoryview, kind: str, depth: int) -> Iterator[str]:
    if depth > _MAX_DEPTH:
        raise ValueError("its messages are nested too deeply")
    children = CHILDREN[kind]
    for number, value in _fields(message):
        child = children.get(number)
        if child is None:
            continue
        if value is None:
            raise ValueError(f"field {number} of a {kind} is not a message")
        if child != "StringStringEntryProto":
            yield from _locations(value, child, depth + 1)
            continue
        entry = {key: bytes(part or b"") for key, part in _fields(value)}
        if entry.get(_KEY) == b"location":
            yield entry.get(_VALUE, b"").decode("utf-8")


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview | None]]:
    """Number and content of every field; None for the content of numbers, which lead nowhere."""
    position, end = 0, len(message)
    while position < end:
        tag, position = _varint(message, position)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == _VARINT:
            _, position = _varint(message, position)
            yield number, None
            continue
        if wire_type == _BYTES:
            length, position = _varint(message, position)
        elif wire_type in (_FIXED64, _FIXED32):
            length = 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError("it is not encoded as an ONNX file")
        if position + length > end:
            raise ValueError("it is cut short")
        yield number, message[position : position + length] if wire_type == _BYTES else None
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """A number and the position after it."""
    value = shift = 0
    while True:
        if position >= len(message) or shift > 63:
            raise ValueError("it is cut short or damaged")
        byte = message[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position
