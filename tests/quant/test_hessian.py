from __future__ import annotations

import pytest
import torch

from vl3edge.quant import hessian
from vl3edge.quant.hessian import InputMoments


@pytest.mark.parametrize("block", [7, 16, 1024])
@pytest.mark.parametrize("weighted", [False, True])
def test_moments_equal_the_weighted_mean_of_outer_products(monkeypatch, block, weighted):
    monkeypatch.setattr(hessian, "_BLOCK_COLUMNS", block)
    generator = torch.Generator().manual_seed(3)
    parts = [torch.randn(n, 40, generator=generator) for n in (5, 1, 31)]
    weights = [torch.rand(len(p), generator=generator) if weighted else None for p in parts]
    moments = InputMoments(40)
    for part, weight in zip(parts, weights, strict=True):
        moments.add(part, weight)
    x = torch.cat(parts).double()
    w = torch.cat([torch.ones(len(p)) if v is None else v for p, v in zip(parts, weights, strict=True)]).double()
    expected = (x * w[:, None]).T @ x / w.sum()
    result = moments.mean()
    difference = (result - expected).abs()
    assert difference.max() < 1e-6, f"max {difference.max():.2e}, mean {difference.mean():.2e}"
    assert torch.equal(result, result.T)


def test_nothing_added_is_zero():
    moments = InputMoments(4)
    moments.add(torch.ones(3, 4), torch.zeros(3))
    assert torch.equal(moments.mean(), torch.zeros(4, 4))
    assert torch.equal(InputMoments(4).mean(), torch.zeros(4, 4))
