"""Times the variants of a bundle's kernels on this device and says which is fastest for what.

A variant is timed where it will run: the decoder's own step, or prompt, of which nothing but that variant's launches is
let through, captured once and launched as a whole. So it reads the weights of every layer in turn, as a step does, and
finds none of them in the GPU's caches that would not be there then; and what the host takes for a launch is not in it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from ..bundle.kernel_set import KernelSet, KernelSpec
from ..bundle.tuning import TunedFor, TunedKernel, Tuning
from ..decode.kv_cache import KvCache
from ..errors import BackendError
from .launcher import Launcher
from .network import Network
from .scratch import CacheTable, prompt_chunk
from .tiles import MANY_ROWS, Rule, Tiles

CONTEXT, LONG_CONTEXT = 1000, 8000
"""Tokens in each row of the steps that are timed, and in one row alone, where attention is chosen for what is long;
fewer if the model has no room for them."""
_ROWS, _MOST_ROWS = 2 * MANY_ROWS, 16  # of a step of many rows: what is timed, and what it stands for
_PROMPTS = (64, 512)
_WARM_UPS, _RUNS = 2, 9
_PROMPT_LAUNCHES = 4  # arithmetic takes their time, and a layer is like another
_HOPELESS = 2.0  # times as long as the best so far: timed once
_STEP = ("product", "gated_product", "attend")
_STEP_OF_MANY = ("few_product", "prompt_product", "attend")
_PROMPT = ("prompt_product", "dense_product", "attend_prompt")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class _Load:
    """A run of the decoder whose kernels are chosen by it.

    functions: of those that are. most: launches that are timed; None for all.
    """

    up_to: int
    functions: tuple[str, ...]
    run: Callable[[], None]
    most: int | None = None


class _Sieve:
    """A launcher that lets through what is named in `passes`, `most` launches of a run at most."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self.memory, self.captures = launcher.memory, launcher.captures
        self.description, self.tuned_for = launcher.description, launcher.tuned_for
        self.prefers_dense = launcher.prefers_dense
        self.passes: frozenset[str] = frozenset()
        self.most: int | None = None
        self.passed = 0

    def launch(self, kernel: KernelSpec, grid: Sequence[int], arguments: Sequence[int]) -> None:
        if kernel.name in self.passes and (self.most is None or self.passed < self.most):
            self.passed += 1
            self._launcher.launch(kernel, grid, arguments)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        def begun() -> None:  # a capture may run it twice
            self.passed = 0
            work()

        return self._launcher.capture(begun)


class _Trial(Tiles):
    """Notes the variants among which there is a choice, and what the rules would take; takes the one that is tried."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[tuple[str, ...], tuple[Sequence[KernelSpec], KernelSpec]] = {}
        self.tried: KernelSpec | None = None

    def of(self, variants: Sequence[KernelSpec], count: int, rule: Rule) -> KernelSpec:
        usual = rule(variants, count)
        if len(variants) > 1:
            self.asked.setdefault(tuple(variant.name for variant in variants), (variants, usual))
        return self.tried if self.tried is not None and self.tried in variants else usual


class Tuner:
    """The kernels of one bundle on one device, with memory for its loads. clock: seconds, for tests."""

    def __init__(self, kernels: KernelSet, launcher: Launcher, clock: Callable[[], float] = time.perf_counter) -> None:
        self._here: TunedFor | None = launcher.tuned_for
        self._sieve, self._trial, self._clock = _Sieve(launcher), _Trial(), clock
        self._network = Network(kernels, self._sieve, self._trial)
        self._held: list[Any] = []  # memory that the loads work in
        self._combining = frozenset(k.name for k in kernels.manifest.kernels if k.function == "combine")
        chunk = prompt_chunk(kernels.text, launcher)  # as the decoder reckons it, after the weights
        limit = kernels.text.max_position_embeddings
        self._prompts = sorted({min(size, limit) for size in (*_PROMPTS, chunk)})

    def tune(self, progress: Progress = lambda done, total: None) -> Tuning:
        """Times every variant. progress: called with (choices made, choices in all). Raises BackendError."""
        if self._here is None:
            raise BackendError("kernels are tuned on an NVIDIA GPU: this launcher has none")
        loads = [*self._steps(), *self._of_prompts()]
        self._network.launcher.memory.synchronize()
        questions = [(load, *question) for load in loads for question in self._questions(load)]
        choices = []
        for load, variants, usual in questions:
            choices.append(self._fastest(load, variants, usual))
            progress(len(choices), len(questions))
        return Tuning(self._here, tuple(choices))

    def _steps(self) -> Iterator[_Load]:
        """Of one row, and of many."""
        network, limit = self._network, self._network.text.max_position_embeddings - 1
        loads = ((1, MANY_ROWS - 1, LONG_CONTEXT, _STEP), (_ROWS, _MOST_ROWS, CONTEXT, _STEP_OF_MANY))
        for rows, up_to, context, functions in loads:
            table = self._cache(rows, min(context, limit) + 1)
            vectors, chosen = network.vectors(rows, steps=True), network.choices(rows)
            chosen.lengths.write(np.full(rows, min(context, limit)))
            yield _Load(up_to, functions, partial(network.step, rows, vectors, chosen, chosen, table))

    def _of_prompts(self) -> Iterator[_Load]:
        network, most = self._network, self._prompts[-1]
        table, vectors = self._cache(1, most), network.vectors(most)
        lengths = network.launcher.memory.zeros((1,), np.int32)
        self._held.append(lengths)
        for count in self._prompts:
            run = partial(network.prompt, count, vectors, lengths.address, table, 0)
            yield _Load(count, _PROMPT, run, _PROMPT_LAUNCHES)

    def _cache(self, rows: int, capacity: int) -> int:
        """The address of the table of a new cache."""
        memory = self._network.launcher.memory
        cache, table = KvCache(self._network.text, memory, np.float16), CacheTable(memory, self._network.text)
        cache.resize(rows, capacity)
        table.write(cache)
        self._held += [cache, table]
        return table.address

    def _questions(self, load: _Load) -> list[tuple[Sequence[KernelSpec], KernelSpec]]:
        """The choices that a load has to make, with what the rules would take."""
        self._trial.asked, self._trial.tried = {}, None
        self._sieve.passes = frozenset()
        load.run()
        return [asked for asked in self._trial.asked.values() if asked[1].function in load.functions]

    def _fastest(self, load: _Load, variants: Sequence[KernelSpec], usual: KernelSpec) -> TunedKernel:
        best: float | None = None
        times: dict[str, float] = {}
        problem: BackendError | None = None
        for variant in sorted(variants, key=lambda variant: variant is not usual):  # the usual one first
            try:
                times[variant.name] = self._seconds(load, variant, best)
            except BackendError as e:  # as where a block of this GPU has not the shared memory
                problem = e
                continue
            best = min(times.values())
        if problem is not None and not times:
            raise problem
        name = min(times, key=lambda name: times[name])
        of_usual = times.get(usual.name, times[name])
        return TunedKernel(name, load.up_to, round(times[name] * 1e6, 2), round(of_usual * 1e6, 2), len(times))

    def _seconds(self, load: _Load, variant: KernelSpec, best: float | None) -> float:
        """Of one launch."""
        self._trial.tried, self._sieve.most = variant, load.most
        self._sieve.passes = frozenset({variant.name})
        if variant.function == "attend":
            self._sieve.passes |= self._combining  # whose work depends on the parts
        run = self._network.launcher.capture(load.run)
        seconds = [self._timed(run) for _ in range(_WARM_UPS)]
        launches = max(1, self._sieve.passed)
        if best is not None and seconds[-1] / launches > _HOPELESS * best:
            return seconds[-1] / launches
        return median(self._timed(run) for _ in range(_RUNS)) / launches

    def _timed(self, run: Callable[[], Any]) -> float:
        begin = self._clock()
        run()
        self._network.launcher.memory.synchronize()
        return self._clock() - begin
