"""How far a decoder in TensorRT is: the decoder in standard operators (opset 24), run by ONNX Runtime and compiled.

    python benchmarks/tensorrt_decoder.py CHECKPOINT [--tokens 48]

Greedy tokens of the standard graph in float32 are compared with those of the graph that ships; a cache of fixed
capacity starts full of junk, and the mask is made in the graph from the positions. The same graph with int4 weights
(rounded, groups of 32) is compared with its own dequantized weights. In float16 with int4 weights it is then compiled
by TensorRT for RTX, which needs no GPU. Writes benchmarks/results/tensorrt_decoder.json.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from machine import describe
from onnx import TensorProto, helper, numpy_helper

from vl3edge.export.graphs.decoder import PREFIX, DecoderBuilder, export_decoder, rotary_tables, text_spec
from vl3edge.export.parity import load_session
from vl3edge.export.tensor_source import Float32Source
from vl3edge.models.checkpoint import Checkpoint
from vl3edge.models.config import TextConfig
from vl3edge.runtime.backends.tensorrt_library import import_tensorrt, make_logger
from vl3edge.runtime.decode.decoder import Decoder
from vl3edge.runtime.decode.graph import DecoderGraph

RESULTS = Path(__file__).parent / "results" / "tensorrt_decoder.json"
CAPACITY, GROUP = 256, 32


class StandardDecoder:
    """Emits the graph. weights: "whole", "int4" (DequantizeLinear) or "dequantized" (the same values, whole)."""

    def __init__(self, source: Float32Source, config: TextConfig, fp16: bool, weights: str) -> None:
        self.source, self.config, self.weights = source, config, weights
        self.type = TensorProto.FLOAT16 if fp16 else TensorProto.FLOAT
        self.dtype = np.dtype(np.float16 if fp16 else np.float32)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []

    def node(self, op: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def norm(self, x: str, weight: str) -> str:
        scale = self.constant(weight, self.source.array(weight).astype(self.dtype))
        return self.node("RMSNormalization", [x, scale], f"{weight}.out", axis=-1, epsilon=self.config.rms_norm_eps)

    def linear(self, x: str, name: str, bias: bool = False) -> str:
        weight = self.source.array(f"{name}.weight").T
        if self.weights == "whole":
            product = self.node("MatMul", [x, self.constant(f"{name}.w", weight.astype(self.dtype))], name)
        else:
            product = self.node("MatMul", [x, self.rounded(name, weight)], name)
        if not bias:
            return product
        return self.node(
            "Add",
            [product, self.constant(f"{name}.b", self.source.array(f"{name}.bias").astype(self.dtype))],
            f"{name}.biased",
        )

    def rounded(self, name: str, weight: np.ndarray) -> str:
        rows, columns = weight.shape
        groups = weight.reshape(rows // GROUP, GROUP, columns)
        scales = (np.abs(groups).max(axis=1) / 7).astype(self.dtype)
        codes = np.clip(np.round(groups / scales[:, None].astype(np.float32)), -8, 7)
        if self.weights == "dequantized":
            return self.constant(f"{name}.w", (codes * scales[:, None]).reshape(rows, columns).astype(self.dtype))
        values = codes.reshape(-1).astype(np.int8).tolist()
        self.initializers.append(helper.make_tensor(f"{name}.q", TensorProto.INT4, [rows, columns], values))
        inputs = [f"{name}.q", self.constant(f"{name}.s", scales)]
        return self.node("DequantizeLinear", inputs, f"{name}.w", axis=0, block_size=GROUP)

    def heads(self, x: str, count: int) -> str:
        shape = self.constant(f"{x}.shape", np.array([0, 0, count, self.config.head_dim], np.int64))
        return self.node("Transpose", [self.node("Reshape", [x, shape], f"{x}.split")], f"{x}.heads", perm=[0, 2, 1, 3])

    def build(self) -> onnx.ModelProto:
        config = self.config
        tables = rotary_tables(config.head_dim, config.rope_theta, CAPACITY)
        for name, table in zip(("cos", "sin"), tables, strict=True):
            self.constant(name, table[:, : config.head_dim // 2].astype(self.dtype))
        slots = self.constant("slots", np.arange(CAPACITY, dtype=np.int64)[None, None, None])
        axes = self.constant("axes", np.array([1, 3], np.int64))
        seen = self.node("LessOrEqual", [slots, self.node("Unsqueeze", ["position_ids", axes], "places")], "seen")
        low = self.constant("low", np.array(-6e4, self.dtype))
        self.node("Where", [seen, self.constant("zero", np.zeros((), self.dtype)), low], "mask")
        hidden, cache = "inputs_embeds", [1, config.num_kv_heads, CAPACITY, config.head_dim]
        value = helper.make_tensor_value_info
        inputs = [value(hidden, self.type, [1, "S", config.hidden_size])]
        inputs += [value("write_indices", TensorProto.INT64, [1]), value("position_ids", TensorProto.INT64, [1, "S"])]
        outputs = [value("logits", self.type, [1, "S", config.vocab_size])]
        for layer in range(config.num_layers):
            stem = f"{PREFIX}layers.{layer}."
            inputs += [value(f"past.{layer}.{kind}", self.type, cache) for kind in ("key", "value")]
            outputs += [value(f"present.{layer}.{kind}", self.type, cache) for kind in ("key", "value")]
            hidden = self.layer(hidden, stem, layer)
        logits = self.head(self.norm(hidden, f"{PREFIX}norm.weight"))
        self.node("Identity", [logits], "logits")
        graph = helper.make_graph(self.nodes, "decoder", inputs, outputs, self.initializers)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=11)

    def layer(self, hidden: str, stem: str, layer: int) -> str:
        config = self.config
        x = self.norm(hidden, f"{stem}input_layernorm.weight")
        q, k, v = (self.linear(x, f"{stem}self_attn.{part}_proj", bias=True) for part in "qkv")
        q, k = (
            self.node("RotaryEmbedding", [each, "cos", "sin", "position_ids"], f"{each}.turned", num_heads=count)
            for each, count in ((q, config.num_heads), (k, config.num_kv_heads))
        )
        for name, each in (("key", k), ("value", v)):
            update = self.heads(each, config.num_kv_heads)
            past = f"past.{layer}.{name}"
            self.node("TensorScatter", [past, update, "write_indices"], f"present.{layer}.{name}", axis=2)
        attended = self.node(
            "Attention",
            [self.heads(q, config.num_heads), f"present.{layer}.key", f"present.{layer}.value", "mask"],
            f"{stem}attended",
            scale=config.head_dim**-0.5,
        )
        attended = self.node("Transpose", [attended], f"{attended}.t", perm=[0, 2, 1, 3])
        flat = self.constant(f"{stem}flat", np.array([0, 0, config.num_heads * config.head_dim], np.int64))
        attended = self.node("Reshape", [attended, flat], f"{attended}.flat")
        hidden = self.node("Add", [hidden, self.linear(attended, f"{stem}self_attn.o_proj")], f"{stem}sum1")
        x = self.norm(hidden, f"{stem}post_attention_layernorm.weight")
        gate, up = (self.linear(x, f"{stem}mlp.{part}_proj") for part in ("gate", "up"))
        active = self.node("Mul", [gate, self.node("Sigmoid", [gate], f"{gate}.sigmoid")], f"{gate}.silu")
        inside = self.node("Mul", [active, up], f"{stem}mlp.inside")
        return self.node("Add", [hidden, self.linear(inside, f"{stem}mlp.down_proj")], f"{stem}sum2")

    def head(self, x: str) -> str:
        name = f"{PREFIX}embed_tokens.weight" if self.config.tie_word_embeddings else "lm_head.weight"
        return self.node("MatMul", [x, self.constant("head", self.source.array(name).T.astype(self.dtype))], "scores")


def greedy(model: onnx.ModelProto, table: np.ndarray, prompt: np.ndarray, count: int) -> tuple[list[int], np.ndarray]:
    """Tokens and logits [count, vocab], over a cache that begins full of junk; the prompt goes in two chunks."""
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    # ONNX Runtime makes MatMulNBits of int4 weights, by default with activations rounded to 8 bits.
    settings.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    caches = {t.name: np.full(t.shape, 7, np.float32) for t in session.get_inputs() if t.name.startswith("past")}
    tokens: list[int] = []
    logits = []
    chunks, start = [prompt[:5], prompt[5:]], 0
    while len(tokens) < count:
        x = table[chunks.pop(0)] if chunks else table[tokens[-1:]]
        places = np.arange(start, start + len(x))[None]
        feeds = {"inputs_embeds": x[None], "write_indices": places[0, :1], "position_ids": places, **caches}
        found = dict(zip(names, session.run(None, feeds), strict=True))
        caches = {name: found[name.replace("past", "present")] for name in caches}
        start += len(x)
        if not chunks:
            logits.append(found["logits"][0, -1])
            tokens.append(int(logits[-1].argmax()))
    return tokens, np.stack(logits)


def shipped(checkpoint: Checkpoint, prompt: np.ndarray, table: np.ndarray, count: int) -> tuple[list[int], np.ndarray]:
    """The same from the graph that ships, unquantized."""
    config, source = checkpoint.config.text, Float32Source(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        export_decoder(lambda graph: DecoderBuilder(graph, config, source, "fp32"), Path(folder), None)
        decoder = Decoder(DecoderGraph(load_session(Path(folder) / "decoder.onnx")), text_spec(config))
        decoder.prefill(table[prompt])
        tokens, logits = [decoder.token], [decoder.logits[0].copy()]
        while len(tokens) < count:
            decoder.step(table[tokens[-1:]])
            tokens.append(decoder.token)
            logits.append(decoder.logits[0].copy())
    return tokens, np.stack(logits)


def compile_for_rtx(model: onnx.ModelProto) -> dict[str, Any]:
    """What TensorRT for RTX makes of a graph, for a prefill of up to 128 tokens and for one."""
    trt = import_tensorrt("rtx")
    lines: list[str] = []
    logger, errors = make_logger(trt, lambda message: lines.extend(message.splitlines()))
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model.SerializeToString()):
        return {"parsed": False, "error": errors[:1]}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for sizes in ((1, 64, 128), (1, 1, 1)):
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            shapes = [tuple(s if axis == -1 else axis for axis in tensor.shape) for s in sizes]
            profile.set_shape(tensor.name, *shapes)
        config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    kernels = {m.group(1) for line in lines if (m := re.match(r"Name: (_gem[mv]_mha_v\d_\w+), ", line))}
    return {
        "parsed": True,
        "built_mb": None if plan is None else round(plan.nbytes / 1e6, 2),
        "errors": [" ".join(error.split())[:200] for error in errors],
        "unused_inputs": [line for line in lines if line.startswith("Unused Input")],
        "fused_attentions_prefill": sum(name.startswith("_gemm_mha") for name in kernels),
        "fused_attentions_step": sum(name.startswith("_gemv_mha") for name in kernels),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--tokens", type=int, default=48)
    options = parser.parse_args()
    checkpoint = Checkpoint.open(options.checkpoint)
    config, source = checkpoint.config.text, Float32Source(checkpoint)
    table = source.array(f"{PREFIX}embed_tokens.weight")
    prompt = np.random.default_rng(0).integers(0, config.vocab_size, 24)

    def standard(fp16: bool, weights: str) -> onnx.ModelProto:
        return StandardDecoder(source, config, fp16, weights).build()

    def compared(a: tuple[list[int], np.ndarray], b: tuple[list[int], np.ndarray]) -> dict[str, Any]:
        return {"same_tokens": a[0] == b[0], "max_logit_difference": float(np.abs(a[1] - b[1]).max())}

    whole, int4, dequantized = (
        greedy(standard(False, weights), table, prompt, options.tokens) for weights in ("whole", "int4", "dequantized")
    )
    result = {
        "machine": describe(),
        "checkpoint": checkpoint.config.name,
        "layers": config.num_layers,
        "tokens": options.tokens,
        "standard_against_shipped": compared(whole, shipped(checkpoint, prompt, table, options.tokens)),
        "int4_against_dequantized": compared(int4, dequantized),
        "rtx_float16_int4": compile_for_rtx(standard(True, "int4")),
        "rtx_float32": compile_for_rtx(standard(False, "whole")),
    }
    print(json.dumps(result, indent=1))
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
