from __future__ import annotations

import pytest
import torch

from vl3edge.quant import grid as grids
from vl3edge.quant.errors import QuantError
from vl3edge.quant.grid import Grid


def weighted_error(weight, scaling, grid, importance):
    quantized = grids.values(grids.nearest(weight, scaling, grid), scaling)
    return ((weight - quantized).square() * importance).reshape(*scaling.scales.shape, -1).sum(-1)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", grids.BITS)
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
def test_search_is_never_worse_than_min_max(layer, bits, group_size, symmetric):
    weight, hessian = layer()
    grid = Grid(bits, group_size, symmetric)
    importance = hessian.diagonal()
    plain = weighted_error(weight, grids.min_max(weight, grid), grid, importance)
    searched = weighted_error(weight, grids.search(weight, grid, importance), grid, importance)
    assert (searched <= plain * (1 + 1e-9)).all(), f"max excess {(searched / plain).max():.4f}"
    if bits < 8:
        assert searched.sum() < 0.97 * plain.sum(), f"{searched.sum():.4g} of {plain.sum():.4g}"


def test_search_finds_the_best_scale_of_an_exhaustive_scan(layer):
    weight, _ = layer(out=6, columns=64)
    grid = Grid(4, 32, symmetric=True)
    importance = torch.linspace(1, 3, 64, dtype=torch.float64)
    found = weighted_error(weight, grids.search(weight, grid, importance), grid, importance)
    groups = weight.reshape(6, 2, 32)
    best = torch.full((6, 2), torch.inf, dtype=torch.float64)
    for factor in torch.linspace(0.05, 1.2, 4000, dtype=torch.float64):
        scale = groups.abs().amax(-1, keepdim=True) / 7.5 * factor
        quantized = (torch.round(groups / scale) + 8).clamp(0, 15).sub(8) * scale
        error = ((groups - quantized).square() * importance.reshape(2, 32)).sum(-1)
        best = torch.minimum(best, error)
    ratio = found / best
    assert ratio.max() < 1.1, f"max {ratio.max():.3f}, mean {ratio.mean():.3f}"


def test_unit_importance_equals_none(layer):
    weight, _ = layer()
    grid = Grid(3, 32, symmetric=False)
    a = grids.search(weight, grid)
    b = grids.search(weight, grid, torch.ones(weight.shape[1], dtype=weight.dtype))
    assert torch.equal(a.scales, b.scales)
    assert torch.equal(a.zeros, b.zeros)


def test_chunks_of_rows_give_the_same_grid(layer, monkeypatch):
    weight, hessian = layer(out=50)
    grid = Grid(4, 32, symmetric=False)
    whole = grids.search(weight, grid, hessian.diagonal())
    monkeypatch.setattr(grids, "_CHUNK_ELEMENTS", 7 * weight.shape[1])
    parts = grids.search(weight, grid, hessian.diagonal())
    assert torch.equal(whole.scales, parts.scales)
    assert torch.equal(whole.zeros, parts.zeros)


@pytest.mark.parametrize("bits", grids.BITS)
def test_scales_are_float16_and_zeros_fit_both_file_formats(layer, bits):
    weight, _ = layer()
    for weight_ in (weight, weight.abs(), -weight.abs()):  # one-sided groups would like zero 0
        scaling = grids.search(weight_, Grid(bits, 32, symmetric=False))
        assert torch.equal(scaling.scales, scaling.scales.half().double())
        assert scaling.zeros.min() >= 1
        assert scaling.zeros.max() <= 2**bits - 1


def test_eight_bits_reproduce_a_weight_on_the_grid():
    generator = torch.Generator().manual_seed(1)
    codes = torch.randint(0, 256, (8, 64), generator=generator)
    codes[:, ::32] = 0  # the lowest code is used, so that min-max recovers the scale
    weight = (codes - 128).double() / 128
    scaling = grids.min_max(weight * (255 / 256), Grid(8, 32))
    assert torch.equal(scaling.scales, torch.full_like(scaling.scales, 1 / 128).half().double())


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_groups_stay_zero(symmetric):
    weight = torch.zeros(4, 64)
    grid = Grid(4, 32, symmetric)
    for scaling in (grids.min_max(weight, grid), grids.search(weight, grid)):
        assert (grids.values(grids.nearest(weight, scaling, grid), scaling) == 0).all()
        assert (scaling.scales > 0).all()


def test_bad_grids_are_refused():
    with pytest.raises(QuantError, match="bits must be one of 2, 3, 4, 8, not 5"):
        Grid(5)
    with pytest.raises(QuantError, match="group_size must be positive"):
        Grid(4, 0)
    with pytest.raises(QuantError, match=r"group size 128 does not divide 1120 input columns.*16, 32, -1"):
        Grid(4, 128).columns_per_group(1120)
