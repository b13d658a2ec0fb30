"""Names of the files of a bundle that more than one module asks for."""

from __future__ import annotations

SPECIAL_TOKENS = "tokenizer_config.json"
"""Beside tokenizer.json; of a bundle, it holds the names of the special tokens and nothing else."""
DECODER_GRAPH, FP16_DECODER_GRAPH, PREFILL_GRAPH = "decoder.onnx", "decoder-fp16.onnx", "decoder-prefill.onnx"
"""The decoder's graphs in a bundle: for CPUs; for NVIDIA GPUs, whose attention takes float16; for prompts on CPUs."""

VISION_GRAPHS = ("vision", "projector-image", "projector-video")
"""The graphs of the vision path, without ".onnx"."""
ENCODER_GRAPH = "vision"
"""The one of them that a bundle of the vision encoder alone has."""

HEAD_TOKENS = "head-tokens.npy"
"""The tokens that the rows of the output head stand for, where it has not the whole vocabulary."""


def fp16_file(stem: str) -> str:
    """The file of a graph of the vision path that computes in float16, for NVIDIA GPUs."""
    return f"{stem}-fp16.onnx"
