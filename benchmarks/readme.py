"""Writes the tables of the README and of docs/ from benchmarks/results/, between marker comments.

    python benchmarks/readme.py [--check]

`--check` only compares. Every figure in a table comes through here, so none can outlive the run that made it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def load(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def demo_table() -> str:
    """Exact match of the demo model on held-out clips: the float32 reference and the bundle that ships."""
    reference, bundle = load("demo_float32"), load("demo_bundle")
    rows = []
    for name, line in reference.items():
        if not name.startswith("["):
            continue
        other = bundle[name]
        rows.append(
            [
                name.strip("[]"),
                f"{line['exact']:.1%} of {line['count']}",
                f"{other['exact']:.1%} of {other['count']}",
                f"{other['kl']:.1e}",
                f"{other['lost']} / {other['gained']}",
            ]
        )
    return table(["kind of question", "fp32, torch", "shipped bundle, int4", "KL", "lost / gained"], rows)


def machine_line(result: dict[str, Any]) -> str:
    machine = result["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    note = f" Note: {result['note']}." if "note" in result else ""
    return f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB; {versions}.{note}"


def real_size_table() -> str:
    """Time and peak memory of every step at the released sizes."""
    result = load("real_size")
    rows = [
        [
            step["step"],
            f"{step['seconds']:.0f} s",
            f"{step['peak_gb']:.1f} GB",
            f"{step.get('bundle_gb', '')}",
            f"{step.get('decoder_gb', '')}",
        ]
        for step in result["steps"]
    ]
    return (
        table(["step", "time", "peak memory", "bundle, GB", "of it decoder and embeddings, GB"], rows)
        + f"\n\n{machine_line(result)}"
    )


def quantization_table() -> str:
    """KL and flips for every method at 4 bits, on the demo model and its outlier twin."""
    rows = []
    for row in load("quantization")["rows"]:
        if row["bits"] not in (0, 4, None):
            continue
        flips = (row["lost"] + row["gained"]) / row["questions"]
        rows.append(
            [
                row["model"],
                f"{row['bits']}" if row["bits"] else "",
                f"{row['group_size']}" if row["bits"] else "",
                row["method"],
                f"{row['kl']:.1e}",
                f"{row['nll']:.4f}",
                f"{row['exact']:.2%}",
                f"{flips:.2%}",
            ]
        )
    return table(["model", "bits", "group", "method", "KL", "NLL", "exact", "answers flipped"], rows)


def pruning_table() -> str:
    """What the released, the automatic and a budgeted threshold keep of clips with noise, and what the answers lose."""
    names = {
        "fixed": "`--threshold 0.1`, released",
        "auto": "`--threshold auto`",
        "budget": "`--max-visual-tokens`, half",
    }
    chosen = {("fixed", 0.1), ("auto", None), ("budget", 0.5)}
    rows = [
        [
            f"{row['noise']:g}",
            names[row["rule"]],
            f"{row['tokens']:.0%}",
            f"{row['changed']:.1%}",
            f"{row['idle']:.1%}",
            f"{row['exact']:.2%}",
            f"{row['nll']:.4f}",
        ]
        for row in load("pruning")["rows"]
        if (row["rule"], row["setting"]) in chosen
    ]
    return table(["noise σ", "threshold", "tokens kept", "of changed", "of idle", "exact", "NLL"], rows)


Part = tuple[dict[str, Any], list[list[str]]]  # of the speed table: a machine, and the rows measured on it


def speed_table() -> str:
    """Ratios against what a user would run instead, each pair from one run on one machine."""
    letters: dict[str, str] = {}  # by the machine's line
    rows = []
    for result, part in (*decoder_parts(), *batch_parts(), *caption_parts(), *reading_parts(), *reuse_parts()):
        letter = letters.setdefault(machine_line(result), "ABCDEF"[len(letters)])
        rows += [[*row, letter] for row in part]
    machines = "\n".join(f"- {letter}: {line}" for line, letter in letters.items())
    return f"{table(['work', 'vl3edge', 'against', 'the other', 'ratio', 'on'], rows)}\n\n{machines}"


def headline_table() -> str:
    """Five ratios from one CPU: tokens written, tokens of a prompt read, whole captions."""
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
        mine, other = (entry["peers"][name][f"{key}_tokens_per_s"] for name in ("vl3edge, int4", peer))
        rows.append([work, f"{mine:.1f}", peer, f"{other:.1f}", f"{mine / other:.2f}×"])
    for name, work in (("int4", "as exported by default"), ("int4, encoder and prompts in 8 bits", "both in 8 bits")):
        mine, other = runs[name]["seconds"], runs[transformers]["seconds"]
        what = f"caption of 16 frames in 64 tokens, {work}"
        rows.append([what, f"{mine:.0f} s", transformers, f"{other:.0f} s", f"{other / mine:.2f}×"])
    return f"{table(['work', 'vl3edge', 'against', 'the other', 'ratio'], rows)}\n\n{machine_line(entry)}"


def gpu_table() -> str:
    """A table for every GPU that was measured, each figure beside the best of the peers."""
    names = sorted(path.stem for path in RESULTS.glob("gpu_*.json"))
    return "\n\n".join(gpu_part(load(name)) for name in names)


def gpu_part(result: dict[str, Any]) -> str:
    rows = []
    for key, runs in result["figures"].items():
        work, peers = gpu_work(key), {name: value for name, value in runs.items() if name != "vl3edge"}
        mine = runs.get("vl3edge")
        if work is None or not isinstance(mine, int | float):
            continue
        ratios = {peer: mine / other if key.endswith("per_s") else other / mine for peer, other in peers.items()}
        nearest = min(ratios, key=lambda peer: ratios[peer], default=None)
        if nearest is None:
            rows.append([work, number(mine), "–", "–", "–"])
        else:
            rows.append([work, number(mine), nearest, number(runs[nearest]), f"{ratios[nearest]:.2f}×"])
    lines = machine_line(result)
    if answers := result.get("answers_equal"):
        lines += f" {answers['equal']} of {answers['asked']} answers equal those of {answers['against']}."
    device = f"{result['device']}: " if result.get("device") else ""
    return f"{table(['work', 'vl3edge', 'against', 'the other', 'ratio'], rows)}\n\n{device}{lines}"


def gpu_work(key: str) -> str | None:
    """What a figure of a GPU is, in words; None for one that is not shown."""
    patterns = {
        r"decode_1_at_(\d+)_tokens_per_s": "tokens written a second, context {0:,}",
        r"decode_(\d+)_at_(\d+)_tokens_per_s": "tokens written a second, {0} sequences, context {1:,}",
        r"prefill_(\d+)_tokens_per_s": "tokens of a prompt of {0:,} read a second",
        r"encoder_(\d+)_patches_ms_per_frame": "ms a frame of {0:,} patches",
        r"caption_(\d+)_s": "seconds to caption {0} of a folder",
        r"caption_10_tokens_per_s": "tokens written a second in caption 10",
        r"peak_gpu_memory_mb": "MB of the GPU's memory",
    }
    for pattern, words in patterns.items():
        if found := re.fullmatch(pattern, key):
            return words.format(*map(int, found.groups()))
    return None


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


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
        yield result, caption_rows(result["runs"])


def caption_rows(runs: dict[str, Any]) -> list[list[str]]:
    rows = []
    for name, run in runs.items():
        for peer, theirs in runs.items():
            if peer.startswith("transformers") and not name.startswith("transformers"):
                work = f"caption of {run['frames']:.0f} frames, {run['new_tokens']:.0f} tokens, {name}"
                times = [f"{one['seconds']:.0f} s, {one['peak_gb']:.1f} GB" for one in (run, theirs)]
                rows.append([work, times[0], peer, times[1], f"{theirs['seconds'] / run['seconds']:.1f}×"])
    return rows


def reading_parts() -> Iterator[Part]:
    result = load("reading")
    yield (
        result,
        [
            [
                f"{result['frames']} frames of {result['minutes']} minutes of 1080p, {name}",
                f"{kind['vl3edge_s']:.1f} s",
                "decoding all with PyAV",
                f"{kind['decode_all_s']:.1f} s",
                f"{kind['ratio']:.1f}×",
            ]
            for name, kind in result["kinds"].items()
        ],
    )


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


def encoder_table() -> str:
    """What the 8-bit encoder gains at the released sizes, and what it costs the demo model."""
    parts = load("vision_int8")
    speed, demo = parts["speed"]["result"], parts["demo"]["result"]
    rows = []
    for name, bits, difference in (("float", 16, ""), ("8 bits", 8, f"{speed['relative_difference']:.3f}")):
        found = {
            entry["model"]: entry["groups"]["[all]"]
            for entry in demo
            if entry["vision_bits"] == bits and entry.get("graph") == "vision.onnx"
        }
        answers = found["demo"]
        rows.append(
            [
                name,
                f"{speed['vision_mb'][name]:.0f} MB",
                f"{speed['seconds_per_frame'][name]:.2f} s",
                difference,
                *(f"{found[model]['kl']:.1e}" for model in ("demo", "demo, outlier encoder channels")),
                f"{answers['lost']} / {answers['gained']} of {answers['count']}",
            ]
        )
    frames, height, width = speed["frames"]
    header = ["encoder", "file", f"a frame of {width}×{height}", "features differ by", "KL, demo", "KL, twin"]
    text = table([*header, "answers lost / gained"], rows)
    return f"{text}\n\nTimes: {frames} frames at once, {machine_line(parts['speed'])}"


def prefill_table() -> str:
    """What reading prompts in 8 bits, and a head in 4, cost the demo model and its outlier twin."""
    found: dict[str, dict[str, Any]] = {}
    for entry in load("prefill")["entries"]:
        found.setdefault(entry["variant"], {})[entry["model"]] = entry["groups"]["[all]"]
    rows = []
    for variant, models in found.items():
        row = [variant]
        for name in ("demo", "twin"):
            answers = models[name]
            row += [f"{answers['kl']:.1e}", f"{answers['exact']:.2%}", f"{answers['lost']} / {answers['gained']}"]
        rows.append(row)
    header = ["export", *(f"{what}, {name}" for name in ("demo", "twin") for what in ("KL", "exact", "lost / gained"))]
    return table(header, rows)


def reliability_table() -> str:
    """Faults injected, and what was lost."""
    faults, fuzz, artefacts = load("faults"), load("fuzz")["totals"], load("fuzz_artefacts")["totals"]
    coverage, verified = load("coverage"), load("verify_real")
    planted = [entry for entry in verified.values() if "wrong_weight" in entry]
    sound = [entry for entry in verified.values() if "wrong_weight" not in entry]
    soak, long_run = load("streaming")["demo"]["soak"], load("long_run")["summary"]
    ways = faults["ways"].values()
    lost = {key: sum(way[key] for way in ways) for key in ("lost", "duplicated", "torn", "changed")}
    resident = [window["resident_mb"] for window in soak["windows"]]
    modules = [module for module in load("mutation").values() if "all_mutants" in module]
    counted = ("all_mutants", "run", "killed", "survived", "survivors_explained")
    mutants = {key: sum(module[key] for module in modules) for key in counted}
    rows = [
        [
            "captioning run killed (SIGKILL) at a random moment and continued",
            f"{faults['kills']} kills, {len(faults['ways'])} ways of writing",
            ", ".join(f"{count} {what}" for what, count in lost.items()),
        ],
        [
            "damaged media decoded, sampled and pruned",
            f"{fuzz['inputs']:,} inputs",
            f"{fuzz['crashed']} crashes, {fuzz['hung']} hangs; {fuzz['failed']} wrong errors, fixed",
        ],
        [
            "damaged bundles loaded, chat templates rendered, record files continued",
            f"{artefacts['inputs']:,} inputs",
            f"{artefacts['crashed']} crashes, {artefacts['hung']} hangs; {artefacts['failed']} wrong errors, fixed",
        ],
        [
            "frames pushed into one session",
            f"{soak['frames']:,}",
            f"resident memory {min(resident):.0f} to {max(resident):.0f} MB",
        ],
        [
            "captions in one process",
            f"{long_run['captions']:,}",
            f"CPU time of the last tenth {long_run['cpu_ratio']:.2f} of the first, resident memory "
            f"{long_run['resident_mb']['first_tenth']:.0f} to {long_run['resident_mb']['last_tenth']:.0f} MB, "
            f"file descriptors {long_run['descriptors_range'][0]} to {long_run['descriptors_range'][1]}",
        ],
    ]
    rows.append(
        [
            "mutants of pruning, splicing, sampling and packing (`make mutation`)",
            f"all {mutants['run']:,}" if mutants["run"] == mutants["all_mutants"] else f"{mutants['run']:,} of them",
            f"{mutants['killed']:,} killed by the tests, {mutants['survived']} survived, "
            f"{mutants['survivors_explained']} of them explained",
        ]
    )
    rows.append(
        [
            "lines of `runtime/` that tests run (`make coverage`)",
            f"{coverage['lines']:,} lines",
            f"{coverage['share']:.1%}; {coverage['share_without_those_that_need_a_device']:.1%} without the "
            f"{len(coverage['needs_a_device'])} files that need a GPU",
        ]
    )
    rows.append(
        [
            "`vl3edge verify` at the 2B sizes, random weights",
            f"{len(sound)} sound bundles, {len(planted)} with one wrong weight",
            f"{sum(entry['passed'] for entry in sound)} passed; the stage was named in "
            f"{sum(entry['first_failure'] == entry['wrong_stage'] for entry in planted)} of {len(planted)}",
        ]
    )
    return table(["fault or load", "how much", "result"], rows)


SECTIONS: dict[str, Callable[[], str]] = {
    "headline": headline_table,
    "gpu": gpu_table,
    "demo": demo_table,
    "real-size": real_size_table,
    "quantization": quantization_table,
    "pruning": pruning_table,
    "speed": speed_table,
    "encoder": encoder_table,
    "prefill": prefill_table,
    "reliability": reliability_table,
}


def filled(text: str) -> str:
    """A page's text with every section made anew; KeyError for a marker that no section has."""

    def section(match: re.Match[str]) -> str:
        return f"<!-- {match[1]} -->\n{SECTIONS[match[1]]()}\n<!-- end {match[1]} -->"

    return re.sub(r"<!-- (?!end )([\w-]+) -->\n.*?<!-- end \1 -->", section, text, flags=re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="fail if a page differs from the results")
    options = parser.parse_args()
    texts = {page: page.read_text(encoding="utf-8") for page in PAGES}
    stale = [page for page, text in texts.items() if filled(text) != text]
    if options.check:
        print("\n".join(f"{page.relative_to(ROOT)} differs from the results" for page in stale), file=sys.stderr)
        return int(bool(stale))
    for page in stale:
        page.write_text(filled(texts[page]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
