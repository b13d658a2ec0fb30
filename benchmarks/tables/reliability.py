"""Faults injected, loads carried, and what was lost."""

from __future__ import annotations

from tables.markdown import load, table


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
