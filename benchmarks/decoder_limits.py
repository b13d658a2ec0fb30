"""What a step and a prompt of the decoder's kernels cannot do without: bytes and floating-point operations by launch.

Counted from a decoder's sizes, each array once where a launch reads or writes it. Devices by the figures that their
maker publishes; the least time is the larger of bytes over bandwidth and operations over the rate of the units that do
them. It is a limit, no measurement: what a launch takes to begin and end is in none of it.
"""

from __future__ import annotations

from typing import Any

from vl3edge.export.kernels.shape import DecoderShape, MatrixKind

CONTEXT = 1000
PROMPT = 2048
SPLITS = 32  # parts of a context that are attended to side by side, in a step of one row

# bandwidth: bytes a second. tensor: floating-point operations a second, float16 with sums in float32, dense. vector:
# those of float32 outside tensor cores, where the products of a step are made.
DEVICES: dict[str, dict[str, Any]] = {
    "Orin Nano Super": {
        "bandwidth": 102e9,
        "tensor": 16.7e12,
        "vector": 2.1e12,
        "source": "Jetson Orin Nano Super data sheet: 102 GB/s, 67 sparse INT8 TOPS (a quarter of it), 1,024 cores at "
        "1.02 GHz",
    },
    "AGX Orin 64 GB": {
        "bandwidth": 204.8e9,
        "tensor": 42.5e12,
        "vector": 5.3e12,
        "source": "Jetson AGX Orin technical brief: 204.8 GB/s, 170 sparse INT8 TOPS of the GPU (a quarter of it), "
        "5.3 FP32 TFLOPS",
    },
    "Thor T5000": {
        "bandwidth": 273e9,
        "tensor": 258e12,
        "vector": 8.1e12,
        "source": "Jetson Thor data sheet: 273 GB/s, 2,070 sparse FP4 TFLOPS (an eighth of it), 2,560 cores at "
        "1.57 GHz",
    },
    "RTX 4060": {
        "bandwidth": 272e9,
        "tensor": 30.2e12,
        "vector": 15.1e12,
        "source": "GeForce RTX 4060 specifications: 272 GB/s, 15.1 FP32 TFLOPS, twice as many in the tensor cores "
        "with sums in float32",
    },
    "RTX 4090": {
        "bandwidth": 1008e9,
        "tensor": 165.2e12,
        "vector": 82.6e12,
        "source": "Ada GPU architecture white paper: 1,008 GB/s, 165.2 and 82.6 TFLOPS",
    },
    "H200": {
        "bandwidth": 4.8e12,
        "tensor": 989e12,
        "vector": 67e12,
        "source": "H200 data sheet: 4.8 TB/s, 989 and 67 TFLOPS",
    },
}

Launch = dict[str, Any]


def stored(matrix: MatrixKind, outputs: int) -> int:
    """Bytes of codes and scales."""
    return outputs * (matrix.inputs * matrix.bits // 8 + 2 * matrix.inputs // matrix.group)


class Counts:
    """Of one decoder, whose layers are stored alike."""

    def __init__(self, shape: DecoderShape) -> None:
        text = self._text = shape.text
        self._shape = shape
        self._width = (text.num_heads + 2 * text.num_kv_heads) * text.head_dim
        self._heads = text.num_heads * text.head_dim
        roles = ("qkv", "output", "gate", "down")
        (self._qkv,), (self._output,), (self._gate,), (self._down,) = (shape.matrices[role] for role in roles)

    def step(self, context: int = CONTEXT) -> list[Launch]:
        """The launches of a step of one row."""
        text, layers = self._text, self._text.num_layers
        hidden, wide, vocabulary = text.hidden_size, text.intermediate_size, text.num_logits
        parts = text.num_heads * SPLITS * (text.head_dim + 2) * 4
        position = 2 * text.num_kv_heads * text.head_dim * 2
        row = stored(self._shape.embeddings, 1)
        return [
            _launch("embedding", 1, row + 4 * hidden, 2 * hidden),
            self._product("qkv", layers, self._qkv, self._width, 8 * hidden + 4 * self._width),
            _launch("attention", layers, 2 * self._width + context * position + parts, 4 * self._heads * context, True),
            _launch("its parts combined", layers, parts + 2 * self._heads, 2 * self._heads * SPLITS),
            self._product("output", layers, self._output, hidden, 2 * self._heads + 8 * hidden),
            self._product("gate and up", layers, self._gate, 2 * wide, 8 * hidden + 2 * wide),
            self._product("down", layers, self._down, hidden, 2 * wide + 8 * hidden),
            self._product("head", 1, self._shape.head, vocabulary, 8 * hidden + 4 * vocabulary),
            _launch("best of a block", 1, 4 * vocabulary, vocabulary),
            _launch("choice", 1, 8 * -(-vocabulary // 1024), 0),
        ]

    def prompt(self, tokens: int = PROMPT) -> list[Launch]:
        """The launches of a chunk at the beginning of a prompt, its token after it not chosen."""
        text, layers = self._text, self._text.num_layers
        hidden, wide = text.hidden_size, text.intermediate_size
        rest = layers - 1  # of the last layer only keys and values are wanted
        position = 2 * text.num_kv_heads * text.head_dim * 2
        seen = tokens * (tokens + 1) // 2

        def product(name: str, count: int, matrix: MatrixKind, outputs: int, other: int) -> Launch:
            return self._product(name, count, matrix, outputs, tokens * other, tokens)

        return [
            _launch("norms", layers + rest, tokens * 6 * hidden, tokens * 4 * hidden),
            product("qkv", layers, self._qkv, self._width, 2 * hidden + 2 * self._width),
            _launch("rotation, cache written", layers, tokens * (4 * self._width + position), tokens * 3 * self._width),
            _launch("attention", rest, tokens * (4 * self._heads + position), 4 * self._heads * seen, True),
            product("output", rest, self._output, hidden, 2 * self._heads + 8 * hidden),
            product("gate", rest, self._gate, wide, 2 * hidden + 2 * wide),
            product("up", rest, self._gate, wide, 2 * hidden + 4 * wide),
            product("down", rest, self._down, hidden, 2 * wide + 8 * hidden),
        ]

    @staticmethod
    def _product(name: str, count: int, matrix: MatrixKind, outputs: int, other: int, tokens: int = 1) -> Launch:
        """other: bytes beside the weights. Of one token it is made outside tensor cores."""
        return _launch(name, count, stored(matrix, outputs) + other, 2 * tokens * outputs * matrix.inputs, tokens > 1)


def _launch(name: str, count: int, num_bytes: int, operations: int, tensor_cores: bool = False) -> Launch:
    return {"name": name, "count": count, "bytes": num_bytes, "operations": operations, "tensor_cores": tensor_cores}
