"""What the fine model tells: of every lossy step, and of rules that choose tokens."""

from __future__ import annotations

from typing import Any

from tables.markdown import load, machine_line, table

CPU = "AMD EPYC"  # where captions were timed


def _points(difference: dict[str, Any] | None) -> str:
    if difference is None:
        return "–"
    value, low, high = (100 * difference[name] for name in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def fine_table() -> str:
    """Each way beside float32 with every token, over all questions."""
    result = load("fine")
    rows = []
    for way, lines in result["ways"].items():
        line = lines["[all]"]
        p = "–" if line["difference"] is None else f"{line['difference']['p']:.2g}"
        rows.append([way, f"{line['exact']:.1%}", f"{line['kl']:.1e}", _points(line["difference"]), p])
    count = result["ways"]["float32"]["[all]"]["count"]
    header = ["way", "exact", "KL", "points against float32", "p"]
    return f"{table(header, rows)}\n\n{count:,} questions about {result['clips']} clips; {machine_line(result)}"


# What each preset is for; its run among the captions; what the fine model calls it, the first that was asked counts.
PRESETS = {
    "exact": ("float32: the tokens of transformers", "", ("not quantized",)),
    "balanced": (
        "the fast one, and the default",
        "int4, encoder and prompts in 8 bits",
        ("4 bits, head 4, encoder and prompts 8", "4 bits, groups of 32, head 4, encoder and prompts 8"),
    ),
    "small": ("the least memory", "int4, encoder in 8 bits", ("4 bits, head 4, encoder 8",)),
}


def presets_table() -> str:
    """What `export --preset` costs on a CPU: a caption at the 2B sizes, and the fine model's answers."""
    ways, runs = load("fine")["ways"], load("caption")[CPU]["runs"]
    (whole,) = (step for step in load("real_size")["steps"] if step["step"] == "caption 8 frames, 32 tokens, fp32")
    rows = []
    for preset, (purpose, name, called) in PRESETS.items():
        run = runs.get(name, {})
        seconds = f"{run['seconds']:.0f} s" if run else "not timed"
        asked = next((ways[way]["[all]"]["difference"] for way in called if way in ways), None)
        unasked = "none: they are equal" if preset == "exact" else "not asked yet"
        peak = run.get("peak_gb", whole["peak_gb"])
        rows.append([f"`{preset}`", purpose, seconds, f"{peak:.1f} GB", _points(asked) if asked else unasked])
    return table(["preset", "", "a caption", "peak memory", "points"], rows)


def fine_kinds_table() -> str:
    """Float32 by kind of question, with all tokens and with a random half."""
    ways = load("fine")["ways"]
    rows = [
        [kind.strip("[]"), str(line["count"]), f"{line['exact']:.1%}", f"{ways['random half'][kind]['exact']:.1%}"]
        for kind, line in ways["float32"].items()
    ]
    return table(["kind of question", "questions", "all tokens", "a random half"], rows)


def fine_pruning_table() -> str:
    """Every rule over all clips, and on pans; beside the largest changes where this was measured."""
    result = load("fine_pruning")
    rows = {(row["rule"], row["share"], row["clips"]): row for row in result["rows"]}
    lines = []
    for (rule, share, clips), row in rows.items():
        if clips == "all":
            panning = _points(rows[rule, share, "panning"]["difference"])
            name = rule if share is None else f"{rule}, {share:.0%}"
            over = _points(row.get("over"))
            lines.append(
                [name, f"{row['tokens']:.0%}", f"{row['exact']:.1%}", _points(row["difference"]), panning, over]
            )
    header = ["rule", "tokens kept", "exact", "points against all tokens", "on panning clips", "against `budget`"]
    return f"{table(header, lines)}\n\n{result['clips']} clips; {machine_line(result)}"
