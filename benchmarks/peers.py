"""Prefill and decoding of the released 2B decoder against what a user would run instead, on the same machine.

    python benchmarks/peers.py --bundle NAME=BUNDLE … --work FOLDER [--context 1000] [--new-tokens 128] [--rounds 3]

Each BUNDLE is an int4 export of the 2B sizes (`benchmarks/real_size.py` makes one; NAME says its options); FOLDER
receives a Qwen2 checkpoint of the same sizes with random weights, and the int4 model that ONNX Runtime GenAI's own
builder makes of it, unless they are there. Needs `pip install onnxruntime-genai==0.18.0`, transformers and torch. GenAI
runs at its best: as many threads as cores, and no more room in its cache than the run needs. Peers take turns, each in
a process of its own, and the median of the rounds counts; a loop that only reads memory runs in every round. Writes one
entry for each CPU and length of context to benchmarks/results/peers.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, keep
from turns import Figures, medians, run_alone

RESULTS = Path(__file__).parent / "results" / "peers.json"
SIZES = {
    "hidden_size": 1536,
    "intermediate_size": 8960,
    "num_hidden_layers": 28,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
}


def rates(context: int, steps: int, prefill_s: float, decode_s: float) -> Figures:
    return {"prefill_tokens_per_s": context / prefill_s, "decode_tokens_per_s": steps / decode_s}


def run_vl3edge(options: argparse.Namespace, folder: str) -> Figures:
    from vl3edge.runtime.backends.onnxruntime import select_backend
    from vl3edge.runtime.bundle.bundle import open_bundle
    from vl3edge.runtime.decode.decoder import Decoder
    from vl3edge.runtime.decode.graph import load_decoder_graph
    from vl3edge.runtime.prompt.splice import EmbeddingTable
    from vl3edge.runtime.roofline import step_bytes

    bundle = open_bundle(folder)
    text = bundle.manifest.text
    table = EmbeddingTable.of(bundle)
    decoder = Decoder(load_decoder_graph(select_backend("cpu"), bundle), text)
    prompt = table.rows(token_ids(options.context))
    decoder.reserve(options.context + options.new_tokens + 8)
    decoder.prefill(prompt[:64])  # to warm up
    decoder.rewind(0)
    begin = time.perf_counter()
    decoder.prefill(prompt)
    prefilled = time.perf_counter()
    for _ in range(options.new_tokens):
        decoder.step(table.rows(decoder.tokens))
    decode_s = time.perf_counter() - prefilled
    figures = rates(options.context, options.new_tokens, prefilled - begin, decode_s)
    return figures | {"bytes_per_token": step_bytes(bundle, options.context)}


def run_genai(options: argparse.Namespace) -> Figures:
    import onnxruntime_genai as og

    model = og.Model(str(options.work / "genai-int4"))
    settings = og.GeneratorParams(model)
    settings.set_search_options(max_length=options.context + options.new_tokens + 8, do_sample=False)

    def generator() -> Any:
        return og.Generator(model, settings)

    generator().append_tokens(token_ids(64).astype(np.int32))  # to warm up
    run = generator()
    begin = time.perf_counter()
    run.append_tokens(token_ids(options.context).astype(np.int32))
    run.generate_next_token()
    prefilled = time.perf_counter()
    for _ in range(options.new_tokens):
        run.generate_next_token()
    return rates(options.context, options.new_tokens, prefilled - begin, time.perf_counter() - prefilled)


def run_transformers(options: argparse.Namespace, dtype: str) -> Figures:
    torch, transformers = import_transformers()
    model = transformers.Qwen2ForCausalLM.from_pretrained(
        options.work / "qwen", dtype=getattr(torch, dtype), attn_implementation="sdpa"
    ).eval()
    ids = torch.from_numpy(token_ids(options.context))[None]
    with torch.inference_mode():
        model(ids[:, :64], logits_to_keep=1)  # to warm up
        begin = time.perf_counter()
        out = model(ids, use_cache=True, logits_to_keep=1)
        prefilled = time.perf_counter()
        for _ in range(options.new_tokens):
            token = out.logits[:, -1:].argmax(-1)
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
        decode_s = time.perf_counter() - prefilled
    return rates(options.context, options.new_tokens, prefilled - begin, decode_s)


def run_memory(options: argparse.Namespace) -> Figures:
    from vl3edge.runtime.host import cores
    from vl3edge.runtime.roofline import read_bandwidth

    return {"bytes_per_s": read_bandwidth(cores())}


PEERS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "ONNX Runtime GenAI, int4": run_genai,
    "transformers, bfloat16": lambda options: run_transformers(options, "bfloat16"),
    "transformers, float32": lambda options: run_transformers(options, "float32"),
    "memory, read only": run_memory,
}


def token_ids(count: int) -> np.ndarray:
    """int64 [count], the same in every run; below the ids of a small tokenizer's special tokens."""
    return np.random.default_rng(0).integers(1000, SIZES["vocab_size"] - 1000, count)


def import_transformers() -> tuple[Any, Any]:
    """torch and transformers, which import torchvision where it is installed: see tests/reference.py."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from reference import transformers_module

    return torch, transformers_module()


def prepare(work: Path) -> None:
    """The Qwen2 checkpoint and GenAI's model of it, as its builder makes them."""
    if not (work / "qwen").exists():
        torch, transformers = import_transformers()
        config = transformers.Qwen2Config(**SIZES, rope_theta=1e6, tie_word_embeddings=True, eos_token_id=0)
        with torch.device("meta"):
            model = transformers.Qwen2ForCausalLM(config)
        model = model.to(torch.bfloat16).to_empty(device="cpu")
        for name, value in model.named_parameters():
            torch.nn.init.normal_(value, std=0.02)
            if "norm" in name:
                value.data.fill_(1)
        model.tie_weights()
        model.save_pretrained(work / "qwen")
        tokenizers = Path(__file__).parent.parent / "models" / "demo" / "checkpoint" / "tokenizer.json"
        transformers.PreTrainedTokenizerFast(tokenizer_file=str(tokenizers)).save_pretrained(work / "qwen")
    target = work / "genai-int4"
    if not target.exists():
        build = "import sys, runpy, reference; reference.transformers_module(); sys.argv = ['builder', *sys.argv[1:]]; "
        build += "runpy.run_module('onnxruntime_genai.models.builder', run_name='__main__')"
        where = ["-m", str(work / "qwen"), "-o", str(target), "-c", str(work / "cache"), "-p", "int4", "-e", "cpu"]
        # Not from here: the builder has a module of its own that is called `quantization`.
        subprocess.run([sys.executable, "-c", build, *where], check=True, cwd=Path(__file__).parents[1] / "tests")
    settings = json.loads((target / "genai_config.json").read_text(encoding="utf-8"))
    options = settings["model"]["decoder"]["session_options"]
    from vl3edge.runtime.host import cores

    options["intra_op_num_threads"] = cores()  # its default of one thread halves it
    (target / "genai_config.json").write_text(json.dumps(settings, indent=4), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", nargs="+", required=True, metavar="NAME=BUNDLE")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--context", type=int, default=1000)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    ours = {f"vl3edge, {name}": folder for name, folder in (item.split("=", 1) for item in options.bundle)}
    if options.worker:
        run = PEERS.get(options.worker)
        print(json.dumps(run(options) if run else run_vl3edge(options, ours[options.worker])))
        return
    prepare(options.work)
    rounds = [{name: run_alone(__file__, name) for name in [*ours, *options.peers]} for _ in range(options.rounds)]
    entry = {
        "machine": describe(),
        "new_tokens": options.new_tokens,
        "rounds": options.rounds,
        "peers": medians(rounds),
        "runs": rounds,
    }
    keep(RESULTS, entry, str(options.context))


if __name__ == "__main__":
    main()
