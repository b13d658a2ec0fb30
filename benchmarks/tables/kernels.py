"""The tables of docs/gpu.md about the decoder's kernels, from benchmarks/results/decoder_kernels.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tables.markdown import load, table

Json = Mapping[str, Any]
_SHORT = {"Orin Nano Super": "Orin Nano", "AGX Orin 64 GB": "AGX Orin", "Thor T5000": "Thor"}


def least_s(launch: Json, device: Json) -> float:
    """The least time of one launch on a device, by what it reads and computes."""
    rate = device["tensor" if launch["tensor_cores"] else "vector"]
    return max(launch["bytes"] / device["bandwidth"], launch["operations"] / rate)


def total_s(launches: Iterable[Json], device: Json) -> float:
    return sum(launch["count"] * least_s(launch, device) for launch in launches)


def launches_table(result: Json, run: str) -> tuple[list[str], list[list[str]]]:
    """A run of the 2B sizes launch by launch: what each takes on each device at least, in µs; ° by operations."""
    devices: Json = result["devices"]
    rows = []
    for launch in result["2b"][run]:
        times = []
        for device in devices.values():
            bound = launch["bytes"] / device["bandwidth"] < least_s(launch, device)
            times.append(f"{least_s(launch, device) * 1e6:,.1f}{'°' if bound else ''}")
        size, operations = launch["bytes"] / 1e6, launch["operations"] / 1e6
        rows.append([launch["name"], str(launch["count"]), f"{size:,.3f}", f"{operations:,.2f}", *times])
    everything = [launch["count"] * launch["bytes"] / 1e6 for launch in result["2b"][run]]
    work = [launch["count"] * launch["operations"] / 1e6 for launch in result["2b"][run]]
    totals = [f"{total_s(result['2b'][run], device) * 1e3:,.2f} ms" for device in devices.values()]
    count = sum(launch["count"] for launch in result["2b"][run])
    rows.append(["**all**", str(count), f"{sum(everything):,.0f}", f"{sum(work):,.0f}", *totals])
    return ["launch", "times", "MB", "MFLOP", *(_SHORT.get(name, name) for name in devices)], rows


def limits_table(result: Json) -> tuple[list[str], list[list[str]]]:
    """Tokens a second that no kernel can pass, and what other ways of storing would make of them."""
    works = {
        "step": "written, context 1,000, {size}",
        "step, context 16,000": "written, context 16,000, {size}",
        "step, head of 8 bits": "written, head in 8 bits, {size}",
        "step, head of English words": "written, head of English words, {size}",
        "step, layers of 2 bits": "written, layers in 2 bits, {size}",
        "prompt": "read, a chunk of 2,048, {size}",
    }
    rows = []
    for size in ("2b", "7b"):
        for run, name in works.items():
            tokens = result["prompt_tokens"] if run == "prompt" else 1
            times = [total_s(result[size][run], device) for device in result["devices"].values()]
            rows.append([name.format(size=size.upper()), *(f"{tokens / seconds:,.0f}" for seconds in times)])
    return ["tokens a second, at most", *(_SHORT.get(name, name) for name in result["devices"])], rows


def registers_table(result: Json) -> tuple[list[str], list[list[str]]]:
    """Of every function's variants at both sizes: registers and shared memory, the least and the most; spills."""
    named = dict.fromkeys(name for kernel in result["2b"]["kernels"] for name in kernel if name.startswith("cubin-"))
    targets = sorted(named, key=lambda name: float(name.removeprefix("cubin-")))
    found: dict[str, list[Json]] = {}
    for size in ("2b", "7b"):
        for kernel in result[size]["kernels"]:
            found.setdefault(kernel["function"], []).append(kernel)
    rows = []
    for function, kernels in sorted(found.items()):
        compiled = {target: [kernel[target] for kernel in kernels if target in kernel] for target in targets}
        registers = [_range(facts[0] for facts in compiled[target]) for target in targets]
        everywhere = [facts for each in compiled.values() for facts in each]
        spilled, shared = sum(facts[1] for facts in everywhere), _range(facts[2] >> 10 for facts in everywhere)
        rows.append([f"`{function}`", str(len(kernels)), *registers, shared, str(spilled)])
    header = ["kernel", "variants", *(f"registers, {target.removeprefix('cubin-')}" for target in targets)]
    return [*header, "shared, KiB", "spilled"], rows


def sources(result: Json) -> str:
    return "\n".join(f"- {name}: {device['source']}." for name, device in result["devices"].items())


def _range(values: Iterable[int]) -> str:
    ordered = sorted(values)
    if not ordered:  # not compiled for it
        return "–"
    return f"{ordered[0]}" if ordered[0] == ordered[-1] else f"{ordered[0]}–{ordered[-1]}"


def kernel_launches(run: str) -> str:
    return table(*launches_table(load("decoder_kernels"), run))


def kernel_limits() -> str:
    result = load("decoder_kernels")
    return f"{table(*limits_table(result))}\n\n{sources(result)}"


def kernel_registers() -> str:
    return table(*registers_table(load("decoder_kernels")))
