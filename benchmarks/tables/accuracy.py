"""What quantization, 8-bit products and pruning cost in accuracy."""

from __future__ import annotations

from typing import Any

from tables.markdown import load, machine_line, table


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
        "budget": "largest changes, half",
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
