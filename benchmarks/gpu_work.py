"""What `gpu.py` measures of vl3edge and of its peers: one function a step, which gives figures as they are known.

Names of figures end in their unit. Medians after one call that is not counted.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from backends import median_s, peak_memory
from peers import import_transformers

from vl3edge.runtime import GenerationConfig, PruningConfig, SamplingPlan, VideoLlama3
from vl3edge.runtime.backends.select import select_backend
from vl3edge.runtime.bundle.bundle import open_bundle
from vl3edge.runtime.kernels.select import chosen_decoder, open_decoders
from vl3edge.runtime.prompt.splice import EmbeddingTable
from vl3edge.runtime.roofline import step_bytes

Figure = tuple[str, Any]


@dataclass(frozen=True)
class Sizes:
    """encoder: (frames, rows of patches, columns). prefill: tokens. decode: (sequences, tokens of context)."""

    encoder: tuple[tuple[int, int, int], ...]
    prefill: tuple[int, ...]
    decode: tuple[tuple[int, int], ...]
    new_tokens: int
    frames: int

    @property
    def context(self) -> int:
        """Room for the longest of them."""
        return max(*self.prefill, *(context for _, context in self.decode)) + self.new_tokens + 8


SIZES = {
    "released": Sizes(
        ((16, 20, 34), (4, 52, 92), (1, 104, 184)),
        (1000, 8000),
        ((1, 1000), (1, 16000), (4, 1000), (8, 1000), (16, 1000)),
        64,
        16,
    ),
    "tiny": Sizes(((2, 4, 6), (1, 8, 8)), (60, 200), ((1, 60), (3, 60)), 6, 4),
}


def load(options: argparse.Namespace) -> VideoLlama3:
    backend = select_backend(options.backend, decodes=options.decoder != "kernels")
    return VideoLlama3(open_bundle(options.bundle), backend, decoder=options.decoder)


def parity(options: argparse.Namespace, sizes: Sizes) -> Iterator[Figure]:
    """The same clip on the CPU: largest differences by stage, and greedy tokens that are equal."""
    name = options.backend + ("+kernels" if options.decoder == "kernels" else "")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "parity.json"
        command = [sys.executable, str(Path(__file__).with_name("backends.py")), str(options.bundle), str(options.clip)]
        command += ["--backends", "cpu", name, "--max-frames", "4", "--new-tokens", "16", "--repeat", "1"]
        subprocess.run([*command, "--name", "here", "--json", str(path)], stdout=subprocess.DEVNULL, check=False)
        found = json.loads(path.read_text(encoding="utf-8"))["here"]["backends"][name]
    if "error" in found:
        raise RuntimeError(found["error"])
    yield "parity_tokens_equal", found["tokens_equal"]
    for stage, gap in found["difference"].items():
        yield f"parity_{stage}_relative", gap["max"] / gap["largest_value"]


def encoder(options: argparse.Namespace, sizes: Sizes) -> Iterator[Figure]:
    model = load(options)
    vision, side = model._encoder._vision, model.bundle.manifest.vision.patch_size
    for count, rows, columns in sizes.encoder:
        size = (rows * side, columns * side)
        frames = np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)
        at_once = vision.frames_per_call(*size)
        chunks = [frames[start : start + at_once] for start in range(0, count, at_once)]
        seconds = median_s(lambda chunks=chunks: [vision.features(chunk) for chunk in chunks], options.repeat)  # type: ignore[misc]
        yield f"encoder_{rows * columns}_patches_ms_per_frame", 1e3 * seconds / count


def prefill(options: argparse.Namespace, sizes: Sizes) -> Iterator[Figure]:
    model = load(options)
    decoder = model._decoders.make()
    for tokens in sizes.prefill:
        embeddings = prompt_of(model, tokens)
        decoder.reserve(tokens + 8)

        def work(embeddings: np.ndarray = embeddings) -> None:
            decoder.rewind(0)
            decoder.prefill(embeddings)
            int(decoder.token)  # has come to the host

        yield f"prefill_{tokens}_tokens_per_s", tokens / median_s(work, options.repeat)


def decode(options: argparse.Namespace, sizes: Sizes) -> Iterator[Figure]:
    model = load(options)
    for rows, context in sizes.decode:
        decoder = model._decoders.make()
        decoder.resize(rows, decoder.roomiest(context + sizes.new_tokens + 8))
        for row in range(rows):
            decoder.prefill(prompt_of(model, context), row=row)
        for _ in range(2):  # the first is captured
            decoder.advance(decoder.tokens.copy(), model._table)
        decoder.tokens  # noqa: B018 waits
        begin = time.perf_counter()
        for _ in range(sizes.new_tokens):
            decoder.advance(decoder.tokens.copy(), model._table)
        decoder.tokens  # noqa: B018 waits
        yield f"decode_{rows}_at_{context}_tokens_per_s", rows * sizes.new_tokens / (time.perf_counter() - begin)
        decoder.resize(0, 0)


def memory(options: argparse.Namespace, sizes: Sizes) -> Iterator[Figure]:
    """The decoder alone: what it took of the GPU for a prompt and some tokens, and its weights and cache in that."""
    backend = select_backend(options.backend, decodes=options.decoder != "kernels")
    if backend.device is None:
        return
    bundle = open_bundle(options.bundle)
    before = backend.device.free_bytes()
    decoders = open_decoders(chosen_decoder(options.decoder, backend.name, bundle, backend.device), backend, bundle)
    decoder, table, (_, context) = decoders.make(), EmbeddingTable.of(bundle), sizes.decode[0]
    decoder.reserve(context + sizes.new_tokens)
    decoder.prefill(table.rows(np.random.default_rng(0).integers(0, bundle.manifest.text.vocab_size, context)))
    for _ in range(sizes.new_tokens):
        decoder.advance(decoder.tokens.copy(), table)
    decoder.tokens  # noqa: B018 waits
    yield "decoder_gpu_memory_mb", round((before - backend.device.free_bytes()) / 1e6)
    yield "decoder_weights_and_cache_mb", round((step_bytes(bundle, 0) + decoder.cache.num_bytes) / 1e6)


def captions(options: argparse.Namespace, sizes: Sizes) -> Iterator[Figure]:
    """A folder of ten clips of different lengths; the first with all that it has to wait for."""
    device = select_backend(options.backend, decodes=options.decoder != "kernels").device  # and the libraries
    memory: dict[str, Any] = {}
    with peak_memory(device, memory):
        begin = time.perf_counter()
        model = load(options)
        for number in range(1, 11):
            plan = SamplingPlan(fps=8.0, max_frames=max(1, sizes.frames * number // 10))
            clip = model.encode(options.clip, plan, PruningConfig(enabled=False))
            answer = model.ask(clip, "Describe this video.", GenerationConfig(max_new_tokens=sizes.new_tokens))
            if number in (1, 10):
                yield f"caption_{number}_s", time.perf_counter() - begin
            begin = time.perf_counter()
    if answer.stats.generated_tokens > 1:
        yield "caption_10_tokens_per_s", (answer.stats.generated_tokens - 1) / answer.stats.decode_s
    if memory["peak_gpu_memory_mb"] is not None:
        yield "peak_gpu_memory_mb", memory["peak_gpu_memory_mb"]


def prompt_of(model: VideoLlama3, tokens: int) -> np.ndarray:
    """Embeddings float32 [tokens, hidden] of random ids."""
    return model._table.rows(np.random.default_rng(0).integers(0, model.bundle.manifest.text.vocab_size, tokens))


def transformers_eager(options: argparse.Namespace, sizes: Sizes) -> Iterator[Figure]:
    """With sdpa: the encoder, prompts and steps; random weights of the bundle's sizes, made where they run."""
    torch, transformers = import_transformers()
    yield from _transformers_encoder(torch, transformers, options, sizes)
    yield from _transformers_decoder(torch, transformers, options, sizes, static=False)
    if torch.cuda.is_available():
        yield "peak_gpu_memory_mb", round(torch.cuda.max_memory_allocated() / 1e6)


def transformers_static(options: argparse.Namespace, sizes: Sizes) -> Iterator[Figure]:
    """Steps over a static cache, compiled as transformers does it, with CUDA graphs."""
    torch, transformers = import_transformers()
    yield from _transformers_decoder(torch, transformers, options, sizes, static=True)


def _transformers_encoder(torch: Any, transformers: Any, options: argparse.Namespace, sizes: Sizes) -> Iterator[Figure]:
    spec = open_bundle(options.bundle).manifest.vision
    config = transformers.models.video_llama_3.VideoLlama3VisionConfig(
        hidden_size=spec.hidden_size,
        intermediate_size=spec.intermediate_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        patch_size=spec.patch_size,
    )
    model = _made(torch, transformers.models.video_llama_3.VideoLlama3VisionModel, config)
    where = next(model.parameters())
    for count, rows, columns in sizes.encoder:
        grid = torch.tensor([[1, rows, columns]] * count, device=where.device)
        pixels = torch.rand(count * rows * columns, 3 * spec.patch_size**2, device=where.device, dtype=where.dtype)
        merge = torch.tensor([2] * count, device=where.device)
        work = _finished(torch, lambda pixels=pixels, grid=grid, merge=merge: model(pixels, grid, merge))
        yield (
            f"encoder_{rows * columns}_patches_ms_per_frame",
            1e3 * median_s(work, min(3, options.repeat)) / count,
        )


def _transformers_decoder(
    torch: Any, transformers: Any, options: argparse.Namespace, sizes: Sizes, static: bool
) -> Iterator[Figure]:
    text = open_bundle(options.bundle).manifest.text
    config = transformers.Qwen2Config(
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_hidden_layers=text.num_layers,
        num_attention_heads=text.num_heads,
        num_key_value_heads=text.num_kv_heads,
        vocab_size=text.vocab_size,
        max_position_embeddings=max(text.max_position_embeddings, sizes.context),
        tie_word_embeddings=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = _made(torch, transformers.Qwen2ForCausalLM, config)
    device = next(model.parameters()).device

    def generate(rows: int, context: int, new: int) -> float:
        ids = torch.randint(0, text.vocab_size, (rows, context), device=device)
        kept = {"cache_implementation": "static"} if static else {}
        asked = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, **kept}
        return median_s(_finished(torch, lambda: model.generate(ids, **asked)), 1)

    firsts = {}
    for tokens in () if static else sizes.prefill:
        firsts[1, tokens] = generate(1, tokens, 1)
        yield f"prefill_{tokens}_tokens_per_s", tokens / firsts[1, tokens]
    for rows, context in sizes.decode[:1] if static else sizes.decode:
        first = firsts.get((rows, context)) or generate(rows, context, 1)
        steps = rows * (sizes.new_tokens - 1)
        seconds = generate(rows, context, sizes.new_tokens) - first
        yield f"decode_{rows}_at_{context}_tokens_per_s", steps / max(seconds, 1e-9)


def genai(options: argparse.Namespace, sizes: Sizes) -> Iterator[Figure]:
    """ONNX Runtime GenAI; its model says itself whether it runs in a CUDA graph (`enable_cuda_graph`)."""
    import onnxruntime_genai as og

    model = og.Model(str(options.genai))
    for rows, context in [*((0, tokens) for tokens in sizes.prefill), *sizes.decode]:
        settings = og.GeneratorParams(model)
        settings.set_search_options(max_length=context + sizes.new_tokens + 8, do_sample=False, batch_size=max(1, rows))
        ids = np.random.default_rng(0).integers(100, 300, (max(1, rows), context)).astype(np.int32)
        for counted in (False, True):
            generator = og.Generator(model, settings)
            begin = time.perf_counter()
            generator.append_tokens(ids)
            generator.generate_next_token()
            prefilled = time.perf_counter()
            for _ in range(sizes.new_tokens if rows else 0):
                generator.generate_next_token()
            seconds = time.perf_counter() - prefilled
            if counted and not rows:
                yield f"prefill_{context}_tokens_per_s", context / (prefilled - begin)
            elif counted:
                yield f"decode_{rows}_at_{context}_tokens_per_s", rows * sizes.new_tokens / seconds


def _made(torch: Any, kind: Any, config: Any) -> Any:
    """A model with random weights, in float16 on a GPU."""
    where, dtype = ("cuda", torch.float16) if torch.cuda.is_available() else ("cpu", torch.float32)
    config._attn_implementation = "sdpa"
    with torch.device(where):
        return kind(config).to(dtype).eval()


def _finished(torch: Any, work: Callable[[], Any]) -> Callable[[], Any]:
    def run() -> None:
        with torch.inference_mode():
            work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    return run
