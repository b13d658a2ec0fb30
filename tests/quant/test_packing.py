from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from quantized import random_linear

from vl3edge.quant import packing
from vl3edge.quant.errors import QuantError

MATMUL_GRIDS = [(3, 32), (4, 16), (4, 32), (4, 128), (4, 96), (4, -1), (8, 32), (8, 64), (8, 128)]


def plain_bits(codes, bits, words_dtype):
    """A bit string built one bit at a time: [n] codes -> words."""
    string = [(int(code) >> bit) & 1 for code in codes for bit in range(bits)]
    width = words_dtype().itemsize * 8
    words = [sum(bit << i for i, bit in enumerate(string[s : s + width])) for s in range(0, len(string), width)]
    return np.array(words, dtype=words_dtype)


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("zero_format", ["v1", "v2"])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, 128, -1])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_gptq_round_trip(bits, group_size, symmetric, zero_format, permuted):
    linear = random_linear(bits, group_size, symmetric=symmetric, permuted=permuted)
    tensors = packing.to_gptq(linear, zero_format)
    back = packing.from_gptq(tensors, bits, zero_format)
    assert np.array_equal(back.dequantized(), linear.dequantized())
    assert np.array_equal(back.zeros, linear.zeros)
    assert back.symmetric == symmetric
    assert back.group_size == linear.group_size
    assert (back.order is None) == (not permuted or group_size == -1)
    assert tensors.qweight.dtype == tensors.qzeros.dtype == tensors.g_idx.dtype == np.int32
    assert np.array_equal(
        tensors.qweight[:, 5].view(np.uint32), plain_bits(codes_as_stored(linear)[5], bits, np.uint32)
    )
    minus = 1 if zero_format == "v1" else 0
    expected = plain_bits(linear.zeros[:, -1] - minus, bits, np.uint32)
    assert np.array_equal(tensors.qzeros[-1].view(np.uint32), expected)


def codes_as_stored(linear):
    codes = np.empty_like(linear.codes)
    codes[:, slice(None) if linear.order is None else linear.order] = linear.codes
    return codes


def test_symmetric_v1_zeros_are_the_known_constant():
    tensors = packing.to_gptq(random_linear(4, 32, symmetric=True), "v1")
    assert (tensors.qzeros == 0x77777777).all()


def test_v1_zero_of_minus_one_is_zero():
    linear = random_linear(4, 32, symmetric=False)
    linear.zeros[3, 1] = 0
    with pytest.raises(QuantError, match="write v2"):
        packing.to_gptq(linear, "v1")
    tensors = packing.to_gptq(linear, "v2")
    v1 = packing.GptqTensors(tensors.qweight, minus_one_per_nibble(tensors.qzeros), tensors.scales, tensors.g_idx)
    assert np.array_equal(packing.from_gptq(v1, 4, "v1").zeros, linear.zeros)


def minus_one_per_nibble(words):
    nibbles = (words.view(np.uint32)[..., None] >> (4 * np.arange(8, dtype=np.uint32))) - np.uint32(1)
    return ((nibbles & 15) << (4 * np.arange(8, dtype=np.uint32))).sum(-1, dtype=np.uint32).view(np.int32)


def run_matmul(tensors, x, out, accuracy_level):
    names, values = ["x", "packed", "scales"], [tensors.packed, tensors.scales.astype(np.float32)]
    if tensors.zero_points is not None:
        names.append("zeros")
        values.append(tensors.zero_points)
    initializers = [numpy_helper.from_array(v, n) for n, v in zip(names[1:], values, strict=True)]
    nodes = []
    if tensors.order is not None:
        initializers.append(numpy_helper.from_array(tensors.order, "order"))
        nodes.append(helper.make_node("Gather", ["x", "order"], ["sorted"], axis=-1))
        names[0] = "sorted"
    nodes.append(
        helper.make_node(
            "MatMulNBits", names, ["y"], domain="com.microsoft", K=x.shape[-1], N=out, bits=tensors.bits,
            block_size=tensors.block_size, accuracy_level=accuracy_level,
        )
    )  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "matmul",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [*x.shape[:-1], out])],
        initializers,
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize(("level", "tolerance"), [(0, 1e-6), (1, 1e-6), (4, 1e-5)])
@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group_size"), MATMUL_GRIDS)
def test_matmul_nbits_equals_the_dequantized_product(bits, group_size, symmetric, permuted, level, tolerance, rows):
    linear = random_linear(bits, group_size, symmetric=symmetric, permuted=permuted, columns=384)
    tensors = packing.to_matmul_nbits(linear)
    assert (tensors.zero_points is None) == symmetric
    x = np.random.default_rng(1).standard_normal((rows, 384)).astype(np.float32)
    got = run_matmul(tensors, x, 64, level)
    inputs = x.astype(np.float64)
    if level == 4:  # the operator rounds each block of its (sorted) inputs to 8 bits
        order = np.arange(384) if linear.order is None else linear.order
        inputs[:, order] = rounded_to_8_bits(inputs[:, order], tensors.block_size)
    wanted = inputs @ linear.dequantized().T.astype(np.float64)
    difference = np.abs(got - wanted) / np.sqrt((wanted**2).mean())
    rms = np.sqrt((difference**2).mean())
    assert rms < tolerance, f"rms {rms:.2e}, max {difference.max():.2e}, mean {difference.mean():.2e}"


def rounded_to_8_bits(x, block):
    blocks = x.reshape(len(x), -1, block)
    scale = np.abs(blocks).max(-1, keepdims=True) / 127
    return (np.rint(blocks / scale) * scale).reshape(x.shape)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_matmul_nbits_round_trip(bits, symmetric):
    linear = random_linear(bits, 32, symmetric=symmetric, columns=96)
    tensors = packing.to_matmul_nbits(linear)
    back = packing.from_matmul_nbits(tensors)
    for name in ("codes", "scales", "zeros"):
        assert np.array_equal(getattr(back, name), getattr(linear, name)), name
    if not symmetric:  # three zero points fill no whole number of bytes
        assert tensors.zero_points.shape == (len(linear.codes), -(-3 * bits // 8))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "wide"), [(2, 4), (3, 4), (3, 8), (4, 8)])
def test_wider_codes_are_the_same_weights(bits, wide, symmetric):
    linear = random_linear(bits, 32, symmetric=symmetric)
    result = packing.widened(linear, wide)
    assert result.symmetric == symmetric
    assert np.array_equal(result.dequantized(), linear.dequantized())


@pytest.mark.parametrize(
    ("bits", "group", "columns", "out"),
    [(4, 40, 40, 8), (4, 2, 96, 8), (4, 2, 640, 8), (8, 4, 12, 4), (4, 32, 64, 1024), (2, 16, 16, 16)],
)
def test_gptq_layers_of_few_words_and_many_groups(bits, group, columns, out):
    linear = random_linear(bits, group, symmetric=False, out=out, columns=columns)
    back = packing.from_gptq(packing.to_gptq(linear, "v2"), bits, "v2")
    assert np.array_equal(back.dequantized(), linear.dequantized())
    assert back.group_size == group


def test_formats_are_told_by_their_letters():
    """As a file of settings has them, not one object with the literals here."""
    linear = random_linear(4, 32, symmetric=False)
    read = "".join(["v", "1"])
    assert np.array_equal(packing.to_gptq(linear, read).qzeros, packing.to_gptq(linear, "v1").qzeros)
    assert np.array_equal(packing.from_gptq(packing.to_gptq(linear, "v1"), 4, read).zeros, linear.zeros)
    linear.zeros[0, 0] = 0
    with pytest.raises(QuantError, match="write v2"):
        packing.to_gptq(linear, read)


def test_bytes_of_a_packed_layer():
    tensors = packing.to_matmul_nbits(random_linear(4, 32, symmetric=False, permuted=True))
    parts = [tensors.packed, tensors.scales, tensors.zero_points, tensors.order]
    assert tensors.num_bytes == sum(part.nbytes for part in parts)
    symmetric = packing.to_matmul_nbits(random_linear(4, 32, symmetric=True))
    assert symmetric.num_bytes == 64 * (256 // 2 + 8 * 2)


@pytest.mark.parametrize("pack", [packing.to_gptq, packing.to_matmul_nbits])
def test_packed_layers_are_told_apart_by_identity_and_stay_as_they_are(pack):
    """Compared by value, two of them would raise, for what they hold are arrays."""
    first, second = (pack(random_linear(4, 32, symmetric=True)) for _ in range(2))
    assert len({first, first, second}) == 2
    with pytest.raises(FrozenInstanceError):
        first.scales = second.scales


def test_words_that_hold_no_whole_codes_are_counted():
    with pytest.raises(QuantError, match=r"^4 words do not hold whole codes of 3 bits"):
        packing.unpack_words(np.zeros((4, 7), np.int32), 3)


@pytest.mark.parametrize("group", [-1, 8, 7])
def test_columns_in_groups_that_are_not_there_are_refused(group):
    tensors = packing.to_gptq(random_linear(4, 32, symmetric=True))
    tensors.g_idx[0] = group
    with pytest.raises(QuantError, match="does not split 256 columns into 8 groups"):
        packing.from_gptq(tensors, 4, "v1")


def test_blocks_are_of_128_unless_others_are_asked_for():
    assert packing.to_matmul_nbits(random_linear(4, 256, symmetric=True)).block_size == 128


@pytest.mark.parametrize(
    ("group", "asked", "block"), [(1024, 512, 256), (512, 256, 256), (512, 128, 128), (96, 128, 32)]
)
def test_blocks_are_no_larger_than_the_operator_has_or_was_asked_for(group, asked, block):
    linear = random_linear(4, group, symmetric=False, out=8, columns=3072)
    tensors = packing.to_matmul_nbits(linear, largest_block=asked)
    assert tensors.block_size == block
    assert tensors.packed.shape == (8, 3072 // block, block // 2)
    assert np.array_equal(packing.from_matmul_nbits(tensors).dequantized(), linear.dequantized())


def test_true_sizes_are_packed_in_under_a_second(benchmark_clock):
    linear = random_linear(4, 128, symmetric=False, out=8960, columns=1536)
    for pack in (packing.to_gptq, packing.to_matmul_nbits):
        with benchmark_clock() as seconds:
            pack(linear)
        assert seconds() < 1.0, f"{pack.__name__} took {seconds():.2f} s"
    tensors = packing.to_gptq(linear)
    with benchmark_clock() as seconds:
        packing.from_gptq(tensors, 4, "v1")
    assert seconds() < 1.0, f"from_gptq took {seconds():.2f} s"


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 12), (64, 10), (12, 64), (64, 63), (100, 64)])
def test_layers_that_do_not_fill_words_are_refused(inputs, outputs):
    """Found as a mutant that lived: 12 outputs had 8 zero points, and nobody said so."""
    tensors = packing.GptqTensors(
        np.zeros((inputs * 4 // 32, outputs), np.int32),
        np.zeros((1, outputs * 4 // 32), np.int32),
        np.ones((1, outputs), np.float16),
        np.zeros(inputs, np.int32),
    )
    with pytest.raises(QuantError, match=f"{inputs} inputs and {outputs} outputs of 4 bits do not fill words"):
        packing.from_gptq(tensors, 4, "v1")


def test_what_does_not_fit_is_refused():
    odd = random_linear(4, 12, symmetric=True, columns=36, out=8)
    with pytest.raises(QuantError, match="8 codes of 4 bits together, which do not divide 36"):
        packing.to_gptq(odd)
    with pytest.raises(QuantError, match="no blocks for groups of 12: use a multiple of 16"):
        packing.to_matmul_nbits(odd)
    tensors = packing.to_gptq(random_linear(4, 32, symmetric=True))
    with pytest.raises(QuantError, match=r"qweight has shape \(32, 64\), not \(64, 64\) at 8 bits"):
        packing.from_gptq(tensors, 8, "v1")
    with pytest.raises(QuantError, match=r"qweight has shape \(32, 64\), not \(16, 64\) at 2 bits"):
        packing.from_gptq(tensors, 2, "v1")
    tensors.g_idx[0] = 5
    with pytest.raises(QuantError, match="does not split 256 columns into 8 groups"):
        packing.from_gptq(tensors, 4, "v1")
