"""Checks in one pass, before any work, that a checkpoint's values are finite and fit the type they will be stored in.

A NaN or infinity in one weight spoils every answer, and usually shows only long after the export. Tensors are read in
file order, a few million elements at a time, and their memory is released.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .checkpoint import Checkpoint
from .errors import CheckpointError

LARGEST_FP16 = 65504.0
_ELEMENTS_AT_ONCE = 1 << 22
_BYTES_HELD = 1 << 28  # of the mapped files
_TOLD = 10


def check_values(checkpoint: Checkpoint, largest: Callable[[str], float]) -> None:
    """Raises CheckpointError, naming the first ten, for tensors with NaN, infinity or too large values.

    largest: by a tensor's canonical name, the largest value that its stored type can hold.
    """
    problems, held = [], 0
    for name in checkpoint.names:
        tensor = checkpoint.tensor(name)
        if not tensor.is_floating_point():
            continue
        if problem := _problem(tensor, largest(name)):
            stored = checkpoint.stored_name(name)
            problems.append(f"{name}{'' if stored == name else f' (stored as {stored})'} {problem}")
        held += tensor.nbytes
        del tensor
        if held > _BYTES_HELD:
            checkpoint.release()
            held = 0
    checkpoint.release()
    if problems:
        more = f"; and {len(problems) - _TOLD} more" if len(problems) > _TOLD else ""
        raise CheckpointError(f"{checkpoint.folder} cannot be used: {'; '.join(problems[:_TOLD])}{more}")


def _problem(tensor: torch.Tensor, largest: float) -> str | None:
    size = 0.0
    for part in tensor.reshape(-1).split(_ELEMENTS_AT_ONCE):
        low, high = (float(value) for value in torch.aminmax(part))  # NaN if there is one
        size = max(size, -low, high)
        if not size < float("inf") or low != low:
            return "holds NaN or infinity: the file is damaged, or the training diverged"
    if size > largest:
        how = "to keep them, export with --precision fp32 --quant none, for the CPU"
        return f"has values up to {size:.3g}, above float16's limit of {largest:,.0f}: {how}"
    return None
