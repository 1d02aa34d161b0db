"""The op of packed linears: values, gradients, types; and the two roundings that stand in graphs."""

import pytest
import torch
from torch.nn.functional import linear

from sparsify import native
from sparsify.errors import SparsifyError
from sparsify.ir.ops.nm_linear import nm_linear
from sparsify.ir.ops.rounding import quantize_activations, quantize_weight
from sparsify.tensors.masks import keep_nm
from sparsify.tensors.packing.layout import Layout
from sparsify.tensors.packing.packed import pack
from sparsify.tensors.pattern import Pattern
from sparsify.tensors.quantize import absmax_scales, dequantize, round_weight

OUT, IN = 13, 40


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def sparse(pattern="2:4"):
    weight = draw(OUT, IN)
    return weight * keep_nm(weight.abs(), Pattern.parse(pattern))


def packed(values, pattern="2:4"):
    """Bytes, the arguments that follow the bias, and the weight they stand for."""
    weight, asked = sparse(pattern), Pattern.parse(pattern)
    group = 0 if values == "float32" else 32
    layout = Layout(asked.n, asked.m, IN, OUT, values, group)
    sizes = (layout.n, layout.m, IN, OUT, values, group)
    if not group:
        return pack(weight, layout), sizes, weight
    bits = {"int8": 8, "int4": 4}[values]
    scales = absmax_scales(weight, group, bits)
    codes = round_weight(weight, scales, group, bits)
    return pack(codes, layout, scales), sizes, dequantize(codes, scales, group)


@pytest.fixture(params=["found", "unpacked"])
def way(request, monkeypatch):
    """By the kernels where they are built, and by unpacking."""
    if request.param == "unpacked":
        monkeypatch.setattr(native, "library", lambda: None)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("shape", [(IN,), (3, IN), (2, 3, IN), (0, IN), (2, 1, 5, IN)])
@pytest.mark.parametrize("values", ["float32", "int8", "int4"])
def test_the_product_for_any_leading_dimensions(values, shape):
    stored, sizes, weight = packed(values)
    x, bias = draw(*shape, seed=1), draw(OUT, seed=2)
    entering = x if values == "float32" else quantize_activations(x, torch.tensor(True), 32)
    for b in (bias, None):
        found = nm_linear(x, stored, b, *sizes)
        assert found.shape == (*shape[:-1], OUT)
        assert torch.allclose(found, linear(entering, weight, b), atol=1e-5)


@pytest.mark.parametrize("pattern", ["1:4", "1:8", "3:8", "7:8"])
def test_every_pattern_multiplies(pattern):
    stored, sizes, weight = packed("float32", pattern)
    x = draw(4, IN, seed=1)
    assert torch.allclose(nm_linear(x, stored, None, *sizes), linear(x, weight), atol=1e-5)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_computed_in_float32(dtype):
    stored, sizes, weight = packed("float32")
    x, bias = draw(4, IN, seed=1).to(dtype), draw(OUT, seed=2).to(dtype)
    found = nm_linear(x, stored, bias, *sizes)
    assert found.dtype == dtype
    wanted = linear(x.float(), weight, bias.float())
    eps = max(1e-6, torch.finfo(dtype).eps)
    assert torch.allclose(found.float(), wanted, rtol=4 * eps, atol=1e-5)


@pytest.mark.parametrize("values", ["float32", "int8", "int4"])
def test_gradients_are_those_of_the_dense_linear(values):
    stored, sizes, weight = packed(values)
    x, bias, up = draw(2, 3, IN, seed=1), draw(OUT, seed=2), draw(2, 3, OUT, seed=3)
    ours, dense = ([x.clone().requires_grad_(), bias.clone().requires_grad_()] for _ in range(2))
    nm_linear(ours[0], stored, ours[1], *sizes).backward(up)
    linear(dense[0], weight, dense[1]).backward(up)
    assert torch.allclose(ours[0].grad, dense[0].grad, atol=1e-5)
    assert torch.allclose(ours[1].grad, dense[1].grad, atol=1e-5)


def test_gradients_only_where_they_are_wanted():
    stored, sizes, _ = packed("float32")
    bias = draw(OUT).requires_grad_()
    nm_linear(draw(4, IN), stored, bias, *sizes).sum().backward()
    assert torch.equal(bias.grad, torch.full((OUT,), 4.0))
    x = draw(IN).requires_grad_()
    nm_linear(x, stored, None, *sizes).sum().backward()
    assert x.grad.shape == (IN,)


def operations():
    stored, sizes, _ = packed("int8")
    x, scales = draw(2, IN).requires_grad_(), torch.rand(OUT, 2).half()
    yield nm_linear, (x, stored, draw(OUT).requires_grad_(), *sizes)
    yield quantize_weight, (sparse().requires_grad_(), scales, "int8", 32)
    yield quantize_weight, (sparse().t().requires_grad_(), scales, "int4", 32, True)
    for on in (True, False):
        wide = draw(IN, 2).t().requires_grad_()
        yield quantize_activations, (wide, torch.tensor(on), 32)


@pytest.mark.parametrize("number", range(5))
def test_the_ops_keep_the_rules_of_torch(number):
    op, arguments = list(operations())[number]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op, arguments, test_utils=checks)


def test_sizes_that_do_not_fit_are_refused_by_the_type():
    stored, sizes, _ = packed("float32")
    with torch.device("meta"):
        x, short = torch.empty(2, IN), torch.empty(len(stored) - 1, dtype=torch.uint8)
        bytes_ = torch.empty(len(stored), dtype=torch.uint8)
        assert nm_linear(x, bytes_, None, *sizes).shape == (2, OUT)
        with pytest.raises(SparsifyError, match=rf"2:4 float32 .* is uint8 \[{len(stored)}\]"):
            nm_linear(x, short, None, *sizes)
        with pytest.raises(SparsifyError, match=r"takes \[\.\.\., 40\]"):
            nm_linear(torch.empty(2, IN + 1), bytes_, None, *sizes)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("values", "bits"), [("int8", 8), ("int4", 4)])
def test_a_rounded_weight_is_scale_times_code(values, bits, transposed):
    weight = draw(OUT, IN)
    scales = absmax_scales(weight, 32, bits)
    scales[:, 1] *= 0.7  # clips
    scales[3] = 0  # not chosen: stays
    wanted = dequantize(round_weight(weight, scales, 32, bits), scales, 32)
    wanted[3] = weight[3]
    stored = weight.t().contiguous() if transposed else weight
    stored.requires_grad_()
    found = quantize_weight(stored, scales, values, 32, transposed)
    up = draw(*stored.shape, seed=1)
    found.backward(up)
    assert torch.equal(found.t() if transposed else found, wanted)
    assert torch.equal(stored.grad, up)


def test_roundings_that_are_off_are_the_identity_bit_for_bit():
    weight = torch.tensor([[0.0, -0.0, 1e-40, 3.0], [float("inf"), float("nan"), -1.0, 2.0]])
    scales, off = torch.zeros(2, 1, dtype=torch.float16), torch.tensor(False)
    for found in (
        quantize_weight(weight, scales, "int4", 32),
        quantize_activations(weight, off, 32),
    ):
        assert torch.equal(found.view(torch.int32), weight.view(torch.int32))


def test_rounded_inputs_have_a_step_for_each_token_and_group():
    x = draw(2, 3, IN)
    x[1, 2, :32] = 0
    x.requires_grad_()
    found = quantize_activations(x, torch.tensor(True), 32)
    for part in (slice(0, 32), slice(32, IN)):
        steps = x[..., part].detach().abs().amax(-1, keepdim=True) / 127
        codes = found[..., part].detach() / steps.clamp_min(1e-30)
        assert torch.allclose(codes, codes.round(), atol=1e-3)
        assert float((found - x)[..., part].detach().abs().max()) <= 0.51 * float(steps.max())
    up = draw(2, 3, IN, seed=1)
    found.backward(up)
    assert torch.equal(x.grad, up)
