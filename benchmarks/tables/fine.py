"""What the fine model tells: of every lossy step, and of rules that choose tokens."""

from __future__ import annotations

from typing import Any

from tables.markdown import load, machine_line, table


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


def fine_kinds_table() -> str:
    """Float32 by kind of question, with all tokens and with a random half."""
    ways = load("fine")["ways"]
    rows = [
        [kind.strip("[]"), str(line["count"]), f"{line['exact']:.1%}", f"{ways['random half'][kind]['exact']:.1%}"]
        for kind, line in ways["float32"].items()
    ]
    return table(["kind of question", "questions", "all tokens", "a random half"], rows)


def fine_pruning_table() -> str:
    """Every rule over all clips, and on pans."""
    result = load("fine_pruning")
    rows = {(row["rule"], row["share"], row["clips"]): row for row in result["rows"]}
    lines = []
    for (rule, share, clips), row in rows.items():
        if clips == "all":
            panning = _points(rows[rule, share, "panning"]["difference"])
            name = rule if share is None else f"{rule}, {share:.0%}"
            lines.append([name, f"{row['tokens']:.0%}", f"{row['exact']:.1%}", _points(row["difference"]), panning])
    header = ["rule", "tokens kept", "exact", "points against all tokens", "on panning clips"]
    return f"{table(header, lines)}\n\n{result['clips']} clips; {machine_line(result)}"
