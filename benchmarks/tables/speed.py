"""Speed and memory against what a user would run instead."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tables.markdown import load, machine_line, table

Part = tuple[dict[str, Any], list[list[str]]]  # of the speed table: a machine, and the rows measured on it


def headline_table() -> str:
    """Four ratios from one CPU: tokens written, tokens of a prompt read, a whole caption; as exported by default."""
    cpu = "AMD EPYC"
    (entry,) = load("peers")[cpu].values()
    runs = load("caption")[cpu]["runs"]
    genai, transformers = "ONNX Runtime GenAI, int4", "transformers, bfloat16"
    rows = []
    for key, peer, work in (
        ("decode", genai, "tokens written a second"),
        ("decode", transformers, "tokens written a second"),
        ("prefill", genai, "tokens of a prompt read a second"),
    ):
        names = ("vl3edge, int4, head in 4 bits, prompts in 8", peer)
        mine, other = (entry["peers"][name][f"{key}_tokens_per_s"] for name in names)
        rows.append([work, f"{mine:.1f}", peer, f"{other:.1f}", f"{mine / other:.2f}×"])
    mine, other = (runs[name]["seconds"] for name in ("int4, encoder and prompts in 8 bits", transformers))
    rows.append(
        ["caption of 16 frames in 64 tokens", f"{mine:.0f} s", transformers, f"{other:.0f} s", f"{other / mine:.2f}×"]
    )
    return f"{table(['work', 'vl3edge', 'against', 'the other', 'ratio'], rows)}\n\n{machine_line(entry)}"


def real_size_table() -> str:
    """Time and peak memory of every step at the released sizes."""
    results = [load(name) for name in ("real_size", "real_size_gptq", "real_size_7b")]
    rows = [
        [
            result["preset"].upper(),
            step["step"],
            f"{step['seconds']:.0f} s",
            f"{step['peak_gb']:.1f} GB",
            f"{step.get('bundle_gb', '')}",
            f"{step.get('decoder_gb', '')}",
        ]
        for result in results
        for step in result["steps"]
        if "export" in step["step"] or "caption" in step["step"]
    ]
    machines = "\n\n".join(dict.fromkeys(map(machine_line, results)))
    header = ["", "step", "time", "peak memory", "bundle, GB", "of it decoder and embeddings, GB"]
    return f"{table(header, rows)}\n\n{machines}"


_TERMS = {
    "base": "libraries",
    "weights": "weights",
    "frames": "frames",
    "vision": "encoder",
    "tokens": "tokens",
    "kv": "KV cache",
    "prefill": "prompt",
}


def memory_table() -> str:
    """Peak memory of a process at the 2B sizes, in MB: the estimate, item by item, and what was measured."""
    rows = []
    for row in load("memory")["rows"]:
        if row["bundle"].startswith("2B"):
            what = f"{row['bundle']}: {row['frames']} frames, {row['context_tokens']:,} tokens"
            terms = [f"{row['terms_mb'][term]:,.0f}" for term in _TERMS]
            rows.append([what, *terms, f"{row['estimated_mb']:,}", f"{row['measured_mb']:,}"])
    return table(["", *_TERMS.values(), "together", "measured"], rows)


def speed_table() -> str:
    """Ratios against what a user would run instead, each pair from one run on one machine."""
    letters: dict[str, str] = {}  # by the machine's line
    rows = []
    for result, part in (
        *decoder_parts(),
        *batch_parts(),
        *caption_parts(),
        *reading_parts(),
        *reuse_parts(),
        *draft_parts(),
    ):
        letter = letters.setdefault(machine_line(result), "ABCDEF"[len(letters)])
        rows += [[*row, letter] for row in part]
    machines = "\n".join(f"- {letter}: {line}" for line, letter in letters.items())
    return f"{table(['work', 'vl3edge', 'against', 'the other', 'ratio', 'on'], rows)}\n\n{machines}"


def decoder_parts() -> Iterator[Part]:
    for contexts in load("peers").values():
        for context, entry in sorted(contexts.items(), key=lambda item: int(item[0])):
            yield {"machine": entry["machine"]}, decoder_rows(int(context), entry)


def decoder_rows(context: int, entry: dict[str, Any]) -> list[list[str]]:
    rows = []
    peers = dict(entry["peers"])
    ours = {name: peers.pop(name) for name in entry["peers"] if name.startswith("vl3edge")}
    memory = peers.pop("memory, read only", None)
    for key in ("decode", "prefill"):
        types = [name for name in peers if name.startswith("transformers")]
        fastest = max(types, key=lambda name: peers[name][f"{key}_tokens_per_s"])
        names = [name for name in peers if name not in types or name == fastest]
        for own, run in ours.items():
            work = f"{key}, {context:,} tokens of context, {own.removeprefix('vl3edge, ')}"
            mine = run[f"{key}_tokens_per_s"]
            for name in names:
                theirs = peers[name][f"{key}_tokens_per_s"]
                rows.append([work, f"{mine:.1f} tokens/s", name, f"{theirs:.1f} tokens/s", f"{mine / theirs:.2f}×"])
            if memory is not None and key == "decode":
                read, limit = mine * run["bytes_per_token"], memory["bytes_per_s"]
                against = ["memory bandwidth, measured", f"{limit / 1e9:.1f} GB/s", f"{read / limit:.0%}"]
                rows.append([work, f"{read / 1e9:.1f} GB/s", *against])
    return rows


def batch_parts() -> Iterator[Part]:
    result, rows = load("batch"), []
    for bundle in result["bundles"]:
        one, *_, most = bundle["batches"]
        work = f"decode of {most['batch']} clips together, {bundle['bundle']}"
        times = [f"{batch['tokens_per_s']:,.0f} tokens/s" for batch in (most, one)]
        rows.append([work, times[0], "sequential", times[1], f"{most['times_batch_1']:.1f}×"])
    yield result, rows


def caption_parts() -> Iterator[Part]:
    for result in load("caption").values():
        yield result, caption_rows(result["runs"], result.get("checkpoint", ""))


def caption_rows(runs: dict[str, Any], checkpoint: str) -> list[list[str]]:
    """checkpoint: the type of the weights that transformers read, which its memory depends on; "" where unknown."""
    rows = []
    source = f" from a checkpoint in {checkpoint}" if checkpoint else ""
    for name, run in runs.items():
        for peer, theirs in runs.items():
            if peer.startswith("transformers") and not name.startswith("transformers"):
                work = f"caption of {run['frames']:.0f} frames, {run['new_tokens']:.0f} tokens, {name}"
                times = [f"{one['seconds']:.0f} s, {one['peak_gb']:.1f} GB" for one in (run, theirs)]
                rows.append([work, times[0], peer, times[1] + source, f"{theirs['seconds'] / run['seconds']:.1f}×"])
    return rows


def reading_parts() -> Iterator[Part]:
    for name, kind in load("reading")["kinds"].items():
        row = [
            f"{kind['frames']} frames of {kind['minutes']} minutes of 1080p, {name}",
            f"{kind['vl3edge_s']:.1f} s",
            "decoding all with PyAV",
            f"{kind['decode_all_s']:.1f} s",
            f"{kind['ratio']:.1f}×",
        ]
        yield kind, [row]


def reuse_parts() -> Iterator[Part]:
    works = {
        "second_question": ("first token of a second question", "of the first"),
        "static_clip": ("caption of a clip without motion", "reuse and DiffFP off"),
    }
    for name, entry in load("reuse").items():
        rows = []
        for key, (work, against) in works.items():
            times = [f"{entry[key][speed]:.2f} s" for speed in ("fast_s", "slow_s")]
            rows.append([f"{work}, {name}", times[0], against, times[1], f"{entry[key]['ratio']:.1f}×"])
        yield entry, rows


_DRAFTED = {
    "segments": "one question about 16 pieces of films",
    "questions": "different ones",
    "drawn": "drawn answers",
}


def draft_parts() -> Iterator[Part]:
    result, rows = load("drafts"), []
    for name, row in result["rows"].items():
        times = [f"{row['tokens'] / row[key]:,.0f} tokens/s" for key in ("seconds_drafted", "seconds")]
        rows.append(
            [f"decode with 8 drafts, {_DRAFTED[name]}", times[0], "without drafts", times[1], f"{row['ratio']:.2f}×"]
        )
    yield result, rows
