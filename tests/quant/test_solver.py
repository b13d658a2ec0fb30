from __future__ import annotations

import numpy as np
import pytest
import torch
from plain_gptq import plain_gptq

from vl3edge.quant import grid as grids
from vl3edge.quant import solver
from vl3edge.quant.errors import QuantError
from vl3edge.quant.grid import Grid


def trace_error(difference, hessian):
    return float(np.trace(difference @ hessian @ difference.T))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (3, 32), (4, 40), (8, 32), (2, 16), (4, -1)])
def test_codes_equal_plain_column_by_column_gptq(layer, bits, group_size, symmetric, act_order, dtype):
    weight, hessian = layer(out=20, columns=160, seed=bits)
    grid = Grid(bits, group_size, symmetric)
    factor = solver.factorize(hessian.to(dtype), act_order=act_order, damp=0.01)
    result = solver.quantize(weight, hessian.to(dtype), grid, factor)
    expected = plain_gptq(
        weight.numpy(),
        hessian.numpy(),
        result.scales,
        result.zeros,
        grid.max_code,
        act_order=act_order,
        damp=0.01,
    )
    different = int((result.codes != expected).sum())
    # float32 may land on the other side of a tie, which then changes the rest of that row.
    allowed = 0 if dtype == torch.float64 else expected.size // 100
    worst = np.abs(result.codes.astype(int) - expected.astype(int)).max()
    assert different <= allowed, f"{different} of {expected.size} codes differ, the worst by {worst}"


@pytest.mark.parametrize("symmetric", [True, False])
def test_reported_errors_are_the_traces(layer, symmetric):
    weight, hessian = layer(out=20, columns=160)
    grid = Grid(4, 32, symmetric)
    result = solver.quantize(weight, hessian, grid)
    kept = trace_error(weight.numpy() - result.dequantized(), hessian.numpy())
    assert result.error.gptq == pytest.approx(kept, rel=1e-5)
    assert result.error.signal == pytest.approx(trace_error(weight.numpy(), hessian.numpy()), rel=1e-9)
    plain = solver.round_to_nearest(weight, grid, hessian)
    lost = trace_error(weight.numpy() - plain.dequantized(), hessian.numpy())
    assert plain.error.rtn == result.error.rtn == pytest.approx(lost, rel=1e-5)
    assert result.error.gptq < 0.5 * result.error.rtn


@pytest.mark.parametrize("act_order", [True, False])
def test_wide_layers_in_halves_equal_one_leaf(layer, monkeypatch, act_order):
    weight, hessian = layer(out=9, columns=96)
    grid = Grid(4, 32, symmetric=False)
    factor = solver.factorize(hessian, act_order=act_order)
    halves = solver.quantize(weight, hessian, grid, factor)
    monkeypatch.setattr(solver, "_LEAF_COLUMNS", 96)
    leaf = solver.quantize(weight, hessian, grid, factor)
    assert (halves.codes == leaf.codes).all()


def test_uncorrelated_inputs_leave_nothing_to_compensate(layer):
    weight, _ = layer(columns=64)
    hessian = torch.diag(torch.linspace(1, 5, 64, dtype=torch.float64))
    result = solver.quantize(weight, hessian, Grid(4, 32))
    scaling = grids.search(weight, Grid(4, 32), hessian.diagonal() + 0.01 * hessian.diagonal().median())
    assert (result.codes == grids.nearest(weight, scaling, Grid(4, 32)).numpy()).all()


def test_columns_that_are_never_active_are_rounded_to_nearest(layer):
    weight, hessian = layer(columns=96)
    dead = [0, 17, 40, 41, 95]
    hessian[dead] = 0
    hessian[:, dead] = 0
    result = solver.quantize(weight, hessian, Grid(4, 32))
    step = result.scales.astype(np.float64).repeat(32, axis=1)[:, dead]
    ideal = np.clip(np.rint(weight.numpy()[:, dead] / step) + 8, 0, 15)
    assert (result.codes[:, dead] == ideal).all()


def test_loud_channels_do_not_drown_the_damping(layer):
    """The same layer with a few inputs scaled up, and their weights down, loses about as much."""
    weight, hessian = layer(columns=128)
    loudness = torch.ones(128, dtype=torch.float64)
    loudness[::20] = 64.0
    grid = Grid(4, 32)
    plain = solver.quantize(weight, hessian, grid).error
    loud_hessian = hessian * loudness * loudness[:, None]
    loud = solver.quantize(weight / loudness, loud_hessian, grid).error
    assert loud.signal == pytest.approx(plain.signal)
    assert loud.gptq < 2.5 * plain.gptq, f"{loud.gptq / plain.gptq:.2f}"
    # What a share of the mean diagonal would have done.
    diagonal = loud_hessian.diagonal()
    drowned = solver.factorize(loud_hessian, damp=0.01 * float(diagonal.mean() / diagonal.median()))
    assert solver.quantize(weight / loudness, loud_hessian, grid, drowned).error.gptq > 2 * loud.gptq


def test_rank_deficient_hessian_is_solved(layer):
    """Fewer tokens than columns: the usual case of a small calibration set."""
    weight, hessian = layer(columns=96, tokens=20)
    result = solver.quantize(weight.float(), hessian.float(), Grid(4, 32))
    assert result.error.damp == 0.01
    assert result.error.gptq < 0.3 * result.error.rtn


def test_indefinite_hessian_gets_more_damping(layer, warnings_logged):
    _, hessian = layer(columns=64)
    values, vectors = torch.linalg.eigh(hessian)
    values[0] = -0.05 * hessian.diagonal().median()
    factor = solver.factorize((vectors * values) @ vectors.T, damp=0.01)
    assert factor.damp == pytest.approx(0.1)
    assert warnings_logged == ["the Hessian is indefinite with damping 0.01; trying 0.1"]


def test_float32_failure_falls_back_to_float64(layer):
    """Two columns that always move together, and damping below float32's resolution."""
    _, hessian = layer(columns=64)
    hessian[5], hessian[:, 5] = hessian[4].clone(), hessian[:, 4].clone()
    hessian[5, 5] = hessian[4, 4]
    factor = solver.factorize(hessian.float().double(), damp=1e-9)
    assert factor.damp == 1e-9
    assert torch.isfinite(factor.feedback).all()


def test_bad_input_is_refused_by_name(layer):
    weight, hessian = layer(columns=96)
    grid = Grid(4, 32)
    broken = weight.clone()
    broken[3, 3] = torch.nan
    with pytest.raises(QuantError, match=r"layers\.2\.mlp holds NaN or infinity"):
        solver.quantize(broken, hessian, grid, name="layers.2.mlp")
    with pytest.raises(QuantError, match="NaN or infinity; the checkpoint is damaged"):
        solver.round_to_nearest(broken / 0, grid)
    with pytest.raises(QuantError, match="the Hessian holds NaN"):
        solver.quantize(weight, hessian * torch.nan, grid)
    with pytest.raises(QuantError, match="the Hessian is zero"):
        solver.quantize(weight, hessian * 0, grid)
    with pytest.raises(QuantError, match="96 input columns, its Hessian 95"):
        solver.quantize(weight, hessian[:95, :95], grid)
    with pytest.raises(QuantError, match="stays indefinite"):
        solver.factorize(torch.tensor([[1.0, 50.0], [50.0, 1.0]]))
    with pytest.raises(QuantError, match="damp must be above 0"):
        solver.factorize(hessian, damp=0)
    with pytest.raises(QuantError, match="up_proj: group size 128 does not divide 96"):
        solver.quantize(weight, hessian, Grid(4, 128), name="up_proj")
