"""Several single-threaded processes that train together: on a small machine much faster than several threads."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed


def run_ranks(ranks: int, worker: Callable[..., None], *arguments: object) -> None:
    """Calls `worker(rank, *arguments)` in each of several processes, which can average gradients.

    Raises RuntimeError if one fails.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        workers = [
            context.Process(target=_join, args=(rank, ranks, meeting, worker, arguments), daemon=True)
            for rank in range(ranks)
        ]
        for process in workers:
            process.start()
        for process in workers:
            process.join()
    if any(process.exitcode for process in workers):
        raise RuntimeError(f"a training process failed: exit codes {[process.exitcode for process in workers]}")


def _join(rank: int, ranks: int, meeting: str, worker: Callable[..., None], arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=ranks)
    worker(rank, *arguments)
    torch.distributed.destroy_process_group()
