"""What the fine model tells: of every lossy step, and of rules that choose tokens."""

from __future__ import annotations

from typing import Any

from tables.markdown import load, machine_line, table

CPU = "Intel(R) Xeon(R) Processor"  # where presets were timed


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


PRESETS = {
    "exact": ("not quantized", "nothing is quantized"),
    "balanced": ("4 bits, head 4, encoder and prompts 8", "the fast one, and the default"),
    "small": ("4 bits, head 4, encoder 8", "the least memory"),
}
"""How each is called among the fine model's ways, and what it is for."""


def presets_table() -> str:
    """What `export --preset` costs on a CPU: a caption at the 2B sizes, and the fine model's answers."""
    ways, result = load("fine")["ways"], load("caption")[CPU]
    rows = []
    for preset, (way, purpose) in PRESETS.items():
        run = result["runs"][f"preset {preset}"]
        size, memory = (f"{run[key]:.1f} GB" for key in ("bundle_gb", "peak_gb"))
        lost = _points(ways[way]["[all]"]["difference"])
        rows.append([f"`{preset}`", purpose, size, f"{run['seconds']:.0f} s, {memory}", lost])
    return table(["preset", "", "bundle", "caption", "points"], rows)


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
