"""Do the tests notice a wrong operator? Cosmic Ray's mutants of four modules, each against the module's own tests.

    python benchmarks/mutation.py [module ...] [--count 100] [--survivors]        # needs `pip install cosmic-ray`

Each mutant is one changed operator, number, comparison, condition, decorator or loop. No file is changed: a child
process forked from one that has imported the heavy libraries loads the mutant in the module's place and runs the tests,
which saves importing torch and transformers for each, as Cosmic Ray's own runner would. Mutants that differ in type
annotations alone are left out: they are never evaluated. A mutant that survives is explained in
mutation_equivalents.json or is a gap in the tests. Writes results/mutation.json; other modules keep their entry.

All mutants take long, so every outcome is noted in .cache/mutation at once and a run that was stopped goes on where
it was, as long as the tests are the same. With --survivors, after tests were added, what earlier tests killed counts
as killed and only the rest runs; the result says how many those were.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import gc
import hashlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "mutation.json"
EQUIVALENTS = ROOT / "benchmarks" / "mutation_equivalents.json"
NOTES = ROOT / ".cache" / "mutation"
TIMEOUT_S = 20.0
TESTS = {
    "runtime/vision/difffp.py": ["tests/runtime/vision/test_difffp.py", "-k", "not real_clips"],
    "runtime/prompt/splice.py": ["tests/runtime/prompt/test_splice.py"],
    "runtime/decode/sampler.py": ["tests/runtime/decode/test_sampler.py"],
    "quant/packing.py": ["tests/quant/test_packing.py", "-k", "not under_a_second"],
}
HEAVY = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "hypothesis", "xdist", "av", "PIL.Image")


@dataclass(frozen=True)
class Mutant:
    operator: str
    line: int
    before: str
    after: str
    source: str


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant that differs from `source` in what is executed, each text once."""
    seen = {_executed(source)}
    nodes = list(ast_nodes(get_ast(source)))
    for name in sorted(operator_names()):
        if get_operator(name).arguments():
            continue
        operator = get_operator(name)()
        for occurrence in range(sum(len(list(operator.mutation_positions(node))) for node in nodes)):
            changed = mutate_code(source, operator, occurrence)
            if changed is None or (executed := _executed(changed)) in seen:
                continue
            seen.add(executed)
            yield Mutant(name.removeprefix("core/"), *_changed_line(source, changed), changed)


def _executed(source: str) -> str:
    """The syntax tree without annotations; the source itself where it does not parse."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return source
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if getattr(node, field, None) is not None:
                setattr(node, field, ast.Constant(None))
    return ast.dump(tree)


def _changed_line(before: str, after: str) -> tuple[int, str, str]:
    """Number of the first changed line, and the changed lines of both."""
    a, b = before.splitlines(), after.splitlines()
    changes = [o for o in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes() if o[0] != "equal"]
    _, start, end, other_start, other_end = changes[0]
    if other_start == other_end:  # a decorator is gone: say of what
        end, other_end = end + 1, other_end + 1
    joined = [" ".join(line.strip() for line in lines) for lines in (a[start:end], b[other_start:other_end])]
    return start + 1, *joined


class _Replacement(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads one module from a given text, with its file's name."""

    def __init__(self, name: str, path: Path, source: str) -> None:
        self._name, self._path, self._source = name, path, source

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._name:
            return None
        return importlib.util.spec_from_file_location(fullname, self._path, loader=self)

    def exec_module(self, module: ModuleType) -> None:
        exec(compile(self._source, str(self._path), "exec"), module.__dict__)


def _import_what_never_changes() -> None:
    """Everything slow to import, and none of the package but its models, which import no module under test."""
    sys.path.insert(0, str(ROOT / "tests"))
    for name in HEAVY:
        importlib.import_module(name)
    reference = importlib.import_module("reference")
    reference.transformers_module()
    importlib.import_module("vl3edge.export.pipeline")
    importlib.import_module("transformers").VideoLlama3VideoProcessor  # noqa: B018  (it is imported when asked for)
    for name in list(sys.modules):
        if name.startswith(("vl3edge.runtime", "vl3edge.quant", "vl3edge.export")):
            del sys.modules[name]
    gc.collect()
    gc.freeze()  # a child that collects what it inherits copies it all: four fifths of its time


def outcome(module: str, source: str) -> str:
    """What the module's tests make of `source` in its place: passed, failed or timeout."""
    child = os.fork()
    if child == 0:
        os.setsid()
        sink = os.open(os.devnull, os.O_WRONLY)
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        name = "vl3edge." + module.removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, _Replacement(name, ROOT / module, source))
        code = 1
        try:
            code = int(
                pytest.main(
                    ["-x", "-q", "--tb=no", "--noconftest", "-p", "no:cacheprovider", "-p", "no:xdist", *TESTS[module]]
                )
            )
        finally:
            os._exit(code)
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return "passed" if status == 0 else "failed"
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return "timeout"


class Outcomes:
    """Outcomes of one module's mutants, each written down as soon as it is known."""

    def __init__(self, module: str, count_earlier_kills: bool) -> None:
        self._tests = _digest((ROOT / TESTS[module][0]).read_text(), *TESTS[module])
        self._path = NOTES / f"{module.replace('/', '.')}.jsonl"
        self._known: dict[str, str] = {}
        self.killed_earlier = 0
        self._count_earlier_kills = count_earlier_kills
        NOTES.mkdir(parents=True, exist_ok=True)
        notes = self._path.read_text().splitlines() if self._path.exists() else []
        self._earlier: set[str] = set()
        for note in map(json.loads, notes):
            if note["tests"] == self._tests:
                self._known[note["mutant"]] = note["outcome"]
            elif note["outcome"] != "passed":
                self._earlier.add(note["mutant"])

    def of(self, module: str, mutant: Mutant) -> str:
        digest = _digest(mutant.source)
        if digest in self._known:
            return self._known[digest]
        if self._count_earlier_kills and digest in self._earlier:
            self.killed_earlier += 1
            return "failed"
        found = outcome(module, mutant.source)
        with self._path.open("a") as file:
            file.write(json.dumps({"tests": self._tests, "mutant": digest, "outcome": found}) + "\n")
        return found


def _digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def measure(module: str, count: int | None, survivors_only: bool, reasons: dict[str, str]) -> dict[str, Any]:
    source = (ROOT / module).read_text()
    if (found := outcome(module, source)) != "passed":
        raise SystemExit(f"{module}: its own tests: {found}")
    every = list(mutants(source))
    chosen = every[:: -(-len(every) // count)] if count else every
    outcomes = Outcomes(module, survivors_only)
    start, counts, survivors = time.monotonic(), Counter[str](), []
    print(f"{module}: {len(every)} mutants", flush=True)
    for number, mutant in enumerate(chosen):
        found = outcomes.of(module, mutant)
        counts[found] += 1
        if found == "passed":
            reason = reasons.get(mutant.after, "")
            survivors.append(
                {"line": mutant.line, "before": mutant.before, "after": mutant.after, "explanation": reason}
            )
            print(f"{module}:{mutant.line} {mutant.operator}: {mutant.after}{'' if reason else '   UNEXPLAINED'}")
        if number % 20 == 19:
            print(f"{module}: {number + 1} of {len(chosen)}, {time.monotonic() - start:.0f} s", flush=True)
    return {
        "all_mutants": len(every),
        "run": len(chosen),
        "killed": counts["failed"] + counts["timeout"],
        "of_them_by_timeout": counts["timeout"],
        "of_them_by_earlier_tests": outcomes.killed_earlier,
        "survived": counts["passed"],
        "survivors_explained": sum(bool(s["explanation"]) for s in survivors),
        "tests": " ".join(TESTS[module]),
        "survivors": survivors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=list(TESTS), metavar="module", help=", ".join(TESTS))
    parser.add_argument("--count", type=int, help="run so many mutants of each, evenly spread; without it all")
    parser.add_argument("--survivors", action="store_true", help="do not run again what earlier tests killed")
    options = parser.parse_args()
    os.chdir(ROOT)
    _import_what_never_changes()
    reasons = {line: entry["why"] for entry in json.loads(EQUIVALENTS.read_text()) for line in entry["lines"]}
    for module in options.modules:
        entry = measure(module, options.count, options.survivors, reasons)
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        RESULTS.write_text(json.dumps(results | {module: entry}, indent=1, ensure_ascii=False) + "\n")
        print(module, {key: value for key, value in entry.items() if key != "survivors"}, flush=True)


if __name__ == "__main__":
    main()
