"""What the released sizes cost on this machine: export and caption with random weights of VideoLLaMA3-2B's shapes.

    python benchmarks/real_size.py --media CLIP --work FOLDER [--preset 2b] [--variant fp32 fp16 int4]
    python benchmarks/real_size.py --media CLIP --work FOLDER --variant gptq --kill-after 14 --results FILE

"int4" rounds to nearest: on random weights GPTQ has nothing to show but its time. "gptq" is an export as it is by
default, with all of its calibration; --kill-after kills it once so many layers are stored, and runs it again. Every
step is its own process, so that its peak memory (resident set, mapped weights included) is its own. Writes
benchmarks/results/real_size.json. Needs about 25 GB of disk for the 2B model.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from machine import describe

from vl3edge.export.quantize import work_folder
from vl3edge.quant.workfolder import hidden_states_file

VARIANTS = {
    "fp32": ["--quant", "none", "--precision", "fp32"],
    "fp16": ["--quant", "none", "--precision", "fp16"],
    "int4": [
        *("--quant", "rtn", "--calibration-tokens", "1024"),
        *("--head-bits", "8", "--vision-bits", "16", "--prefill-bits", "16"),
    ],
    "gptq": [],
}
RESULTS = Path(__file__).parent / "results" / "real_size.json"


def measured(name: str, command: list[str], log: Path, until: Callable[[], bool] | None = None) -> dict[str, Any]:
    """Runs a command with its output in a file; its wall time in seconds and peak resident memory in GB.

    until: asked every second; the command is killed as soon as it is true, and must not have ended before.
    """
    print(f"{name}: {' '.join(command)}", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    child = os.fork()
    if child == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.execvp(command[0], command)
    if until is not None:
        while not (until() or os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
            time.sleep(1)
        os.kill(child, signal.SIGKILL)
    _, status, usage = os.wait4(child, 0)
    seconds = time.perf_counter() - begin
    if status != (0 if until is None else signal.SIGKILL):
        raise SystemExit(f"{name} failed:\n{log.read_text(encoding='utf-8')}")
    result = {"step": name, "seconds": round(seconds, 1), "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2)}
    print(result, file=sys.stderr, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--media", required=True, help="a video of at least 8 s")
    parser.add_argument("--work", type=Path, required=True, help="an empty folder for checkpoint and bundles")
    parser.add_argument("--preset", default="2b")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--note", help="what else the reader should know, such as other load on the machine")
    parser.add_argument("--kill-after", type=int, metavar="LAYERS", help="kill the export of gptq once, and resume it")
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FILE")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    checkpoint, log = options.work / "checkpoint", options.work / "log.txt"
    vl3edge = str(Path(sys.executable).parent / "vl3edge")
    write = [
        sys.executable,
        "-m",
        "vl3edge.models.synthetic",
        options.preset,
        str(checkpoint),
        "--dtype",
        "bfloat16",
    ]
    steps = []
    if not checkpoint.exists():
        steps.append(measured("write a random checkpoint (bf16)", write, log))
    for variant in options.variant:
        bundle = options.work / f"bundle-{variant}"
        export = [vl3edge, "export", str(checkpoint), "-o", str(bundle), "--force", *VARIANTS[variant]]
        if variant == "gptq" and options.kill_after:
            last = hidden_states_file(work_folder(bundle), options.kill_after)
            steps.append(
                measured(f"export, {variant}, killed after {options.kill_after} layers", export, log, last.exists)
            )
        step = measured(f"export, {variant}", export, log)
        step["bundle_gb"] = round(sum(f.stat().st_size for f in bundle.iterdir()) / 1e9, 2)
        steps.append(step)
        caption = [vl3edge, "caption", options.media, "-m", str(bundle), "--max-frames", "8"]
        step = measured(f"caption 8 frames, 32 tokens, {variant}", [*caption, "--max-new-tokens", "32"], log)
        line = next(line for line in log.read_text(encoding="utf-8").splitlines() if "[1/1]" in line)
        step["report"] = line.split(": ", 2)[2]  # without the clip's path
        steps.append(step)
        decoder = sum(f.stat().st_size for f in (*bundle.glob("decoder*"), *bundle.glob("embeddings*")))
        step["decoder_gb"] = round(decoder / 1e9, 2)
        shutil.rmtree(bundle)
    result = {"machine": describe(), "preset": options.preset, "media": Path(options.media).name, "steps": steps}
    if options.note:
        result["note"] = options.note
    options.results.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
