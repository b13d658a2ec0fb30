"""Small layers with correlated inputs, some channels much louder than others, as in language models."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

torch.set_num_threads(1)

Layer = tuple[torch.Tensor, torch.Tensor]


@pytest.fixture
def layer() -> Callable[..., Layer]:
    """layer(out, columns, seed) -> weight [out, in] and Hessian [in, in], both float64."""

    def make(out: int = 24, columns: int = 128, seed: int = 0, tokens: int = 400) -> Layer:
        generator = torch.Generator().manual_seed(seed)
        normal = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
        mixing = normal(columns, columns) / columns**0.5 + 0.5 * torch.eye(columns, dtype=torch.float64)
        loud = torch.exp(normal(columns))
        inputs = (normal(tokens, columns) @ mixing) * loud
        weight = normal(out, columns) * 0.05 / loud.sqrt()
        weight[0, 3] = 0.6  # an outlier that a searched grid should clip
        return weight, inputs.T @ inputs

    return make


@pytest.fixture
def warnings_logged() -> Iterator[list[str]]:
    """Messages that vl3edge.quant logs as warnings during the test."""
    messages: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, handler = logging.getLogger("vl3edge.quant"), Collector(logging.WARNING)
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)


@pytest.fixture
def benchmark_clock() -> Callable[[], AbstractContextManager[Callable[[], float]]]:
    """`with benchmark_clock() as seconds:` then seconds() is the CPU time the block took."""

    @contextmanager
    def clock() -> Iterator[Callable[[], float]]:
        start = time.process_time()
        end: list[float] = []
        yield lambda: end[0] - start
        end.append(time.process_time())

    return clock
