from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from quantized import random_linear

from vl3edge.quant.linear import LayerError, concatenated


def test_dequantized_undoes_the_order():
    linear = random_linear(4, 32, symmetric=False, permuted=True, out=3, columns=64)
    weight = linear.dequantized()
    for n, k in ((0, 0), (2, 63), (1, 40)):
        value = linear.scales[n, k // 32].astype(np.float32) * (int(linear.codes[n, k]) - int(linear.zeros[n, k // 32]))
        assert weight[n, linear.order[k]] == value


def test_rows_and_concatenation_are_inverse():
    linear = random_linear(4, 32, symmetric=False, permuted=True)
    linear = replace(linear, bias=np.arange(64, dtype=np.float32))
    parts = [linear.rows(0, 40), linear.rows(40, 64)]
    assert np.array_equal(parts[1].dequantized(), linear.dequantized()[40:])
    whole = concatenated(parts)
    assert np.array_equal(whole.dequantized(), linear.dequantized())
    assert np.array_equal(whole.bias, linear.bias)
    assert whole.error is None


def test_errors_of_concatenated_layers_add_up():
    a = replace(random_linear(4, 32, symmetric=True), error=LayerError(1.0, 3.0, 10.0, 0.01))
    b = replace(a, error=LayerError(2.0, 4.0, 20.0, 0.1))
    assert concatenated([a, b]).error == LayerError(3.0, 7.0, 30.0, 0.1)


def test_layers_that_differ_are_not_concatenated():
    linear = random_linear(4, 32, symmetric=True)
    others = (
        random_linear(8, 32, symmetric=True),
        random_linear(4, 64, symmetric=True),
        random_linear(4, 32, symmetric=True, permuted=True),
        replace(linear, bias=np.zeros(64, np.float32)),
    )
    for other in others:
        with pytest.raises(ValueError, match="cannot be one product"):
            concatenated([linear, other])
