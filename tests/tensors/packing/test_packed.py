"""Packed weights against bytes written one by one from the text of docs/packed.md."""

import itertools
import math
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sparsify.tensors.packing import packed as module
from sparsify.tensors.packing.packed import Layout, dense, pack, unpack

PATTERNS = [(1, 4), (2, 4), *((n, 8) for n in range(1, 8))]
VALUES = [("float32", 0), *itertools.product(["int8", "int4"], [32, 64, 96, 128])]
LIMIT = {"int8": 127, "int4": 7}
quick = settings(deadline=None, max_examples=60)


def draw_weight(layout: Layout, seed: int, density: float = 0.9) -> tuple[Tensor, Tensor | None]:
    """A weight that keeps the pattern, with groups that hold fewer nonzeros, and its scales."""
    generator = torch.Generator().manual_seed(seed)
    out, inputs, m = layout.out_features, layout.in_features, layout.m
    shape = (out, -(-inputs // m), m)
    keep = torch.rand(shape, generator=generator).argsort(2).argsort(2) < layout.n
    keep &= torch.rand(shape, generator=generator) < density
    keep = keep.flatten(1)[:, :inputs]
    if not layout.group:
        weight = torch.randn(out, inputs, generator=generator)
        return torch.where(keep, weight, 0.0), None
    limit = LIMIT[layout.values]
    codes = torch.randint(-limit, limit + 1, (out, inputs), generator=generator)
    scales = torch.rand(out, layout.groups, generator=generator).half()
    return torch.where(keep, codes, 0).to(torch.int8), scales


def entries(row: list[float], layout: Layout) -> list[tuple[float, int]]:
    """Stored entries of one row: value and index, zeros at the lowest free columns."""
    row = row + [0] * (layout.padded - len(row))
    stored = []
    for start in range(0, layout.padded, layout.m):
        group = row[start : start + layout.m]
        columns = [c for c, value in enumerate(group) if value != 0]
        free = [c for c, value in enumerate(group) if value == 0]
        columns += free[: layout.n - len(columns)]
        stored += [(group[c], c) for c in sorted(columns)]
    return stored


def float_block(rows: list[list[tuple[float, int]]], layout: Layout) -> bytes:
    fields, bits = (16, 2) if layout.m == 4 else (8, 4)
    block = b""
    for first in range(0, len(rows[0]), fields):
        for row in rows:
            word = sum(row[first + i][1] << (bits * i) for i in range(fields))
            block += struct.pack("<I", word)
        for i in range(fields):
            block += struct.pack("<8f", *(row[first + i][0] for row in rows))
    return block


def rounded_block(
    rows: list[list[tuple[float, int]]], scales: list[list[float]], layout: Layout
) -> bytes:
    slots = layout.group * layout.n // (4 * layout.m)
    block = b""
    for group in range(layout.padded // layout.group):
        block += struct.pack("<8e", *(scale[group] for scale in scales))
        low = bytearray(32 * math.ceil(slots / 4))
        third = bytearray(32 * math.ceil(slots / 8)) if layout.m == 8 else bytearray()
        stored = bytearray(32 * slots)
        if layout.values == "int4":
            stored = bytearray(b"\x88" * (32 * math.ceil(slots / 2)))
        for s, r, i in itertools.product(range(slots), range(8), range(4)):
            value, index = rows[r][4 * (slots * group + s) + i]
            at = 4 * r + i
            low[32 * (s // 4) + at] |= (index & 3) << (2 * (s % 4))
            if layout.m == 8:
                third[32 * (s // 8) + at] |= (index >> 2) << (s % 8)
            if layout.values == "int8":
                stored[32 * s + at] = int(value) & 255
            else:  # nibbles start at 8: flip them to the code plus 8
                stored[32 * (s // 2) + at] ^= (8 ^ int(value) + 8) << (4 * (s % 2))
        block += low + third + stored
    return block


def oracle(weight: Tensor, scales: Tensor | None, layout: Layout) -> bytes:
    rows = [entries(row, layout) for row in weight.tolist()]
    rows += [entries([0.0], layout)] * (-len(rows) % 8)
    packed = b""
    for first in range(0, len(rows), 8):
        part = rows[first : first + 8]
        if scales is None:
            packed += float_block(part, layout)
        else:
            known = scales.tolist()[first : first + 8]
            known += [[0.0] * layout.groups] * (8 - len(known))
            packed += rounded_block(part, known, layout)
    return packed


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    (n, m), (values, group) = draw(st.sampled_from(PATTERNS)), draw(st.sampled_from(VALUES))
    return Layout(n, m, draw(st.integers(1, 200)), draw(st.integers(1, 20)), values, group)


@pytest.mark.parametrize(("values", "group"), VALUES)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_bytes_are_those_of_the_text(n: int, m: int, values: str, group: int) -> None:
    layout = Layout(n, m, 137, 11, values, group)
    weight, scales = draw_weight(layout, seed=n * m)
    packed = pack(weight, layout, scales)
    assert packed.dtype == torch.uint8
    assert bytes(packed.tolist()) == oracle(weight, scales, layout)


@quick
@given(layouts(), st.integers(0, 2**31), st.sampled_from([0.0, 0.5, 1.0]))
def test_unpack_inverts_pack(layout: Layout, seed: int, density: float) -> None:
    weight, scales = draw_weight(layout, seed, density)
    packed = pack(weight, layout, scales)
    assert list(packed.shape) == [layout.nbytes]
    back, back_scales = unpack(packed, layout)
    assert back.dtype == weight.dtype
    assert back.view(torch.int8).equal(weight.view(torch.int8))
    assert (back_scales is None) == (scales is None)
    if scales is None or back_scales is None:
        assert dense(packed, layout).equal(weight)
        return
    assert back_scales.equal(scales)
    columns = torch.arange(layout.in_features) // layout.group
    product = weight.double() * scales.double()[:, columns]
    assert dense(packed, layout).double().equal(product)


@quick
@given(layouts())
def test_sizes_are_those_of_the_text(layout: Layout) -> None:
    spans = {
        4: {1: 64, 2: 32},
        8: dict(zip(range(1, 8), [64, 32, 64, 16, 64, 32, 64], strict=True)),
    }
    assert layout.span == (layout.group or spans[layout.m][layout.n])
    assert layout.padded == math.ceil(layout.in_features / layout.span) * layout.span
    assert layout.blocks == math.ceil(layout.out_features / 8)
    assert layout.nbytes == layout.blocks * layout.block_bytes
    assert layout.bytes_per_weight == layout.nbytes / (layout.out_features * layout.in_features)


@pytest.mark.parametrize(
    ("pattern", "values", "group", "expected"),
    [
        ((2, 4), "float32", 0, 2.125),
        ((4, 8), "float32", 0, 2.25),
        ((1, 4), "float32", 0, 1.0625),
        ((2, 8), "float32", 0, 1.125),
        ((2, 4), "int8", 128, 0.641),
        ((4, 8), "int8", 128, 0.703),
        ((1, 4), "int8", 128, 0.328),
        ((2, 8), "int8", 128, 0.359),
        ((2, 4), "int4", 128, 0.391),
        ((2, 4), "int4", 64, 0.406),
        ((2, 4), "int4", 32, 0.438),
        ((4, 8), "int4", 128, 0.453),
        ((1, 4), "int4", 128, 0.203),
        ((2, 8), "int4", 128, 0.234),
    ],
)
def test_bytes_for_each_weight(
    pattern: tuple[int, int], values: str, group: int, expected: float
) -> None:
    layout = Layout(*pattern, 2048, 512, values, group)
    assert layout.bytes_per_weight == pytest.approx(expected, abs=0.00051)


def test_the_smallest_and_oddest_floats_survive_bit_for_bit() -> None:
    odd = [-0.0, 1e-45, -1e-45, math.inf, -math.inf, 3.4028235e38, 1.1754944e-38, 5.0]
    weight = torch.zeros(1, 4 * len(odd))
    weight[0, 3::4] = torch.tensor(odd)
    layout = Layout(1, 4, weight.shape[1], 1)
    back, _ = unpack(pack(weight, layout), layout)
    assert back.view(torch.int32).equal(weight.view(torch.int32))


def test_a_negative_zero_takes_the_room_that_nonzeros_leave() -> None:
    weight = torch.tensor([[0.0, 0.0, -0.0, 3.0, -0.0, 1.0, 2.0, -0.0]])
    layout = Layout(2, 4, 8, 1)
    back, _ = unpack(pack(weight, layout), layout)
    assert back.equal(weight)
    assert torch.signbit(back).tolist() == [[False, False, True, *[False] * 5]]


def test_the_size_of_a_slab_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for values, group in [("float32", 0), ("int8", 64), ("int4", 32)]:
        layout = Layout(3, 8, 100, 37, values, group)
        weight, scales = draw_weight(layout, seed=5)
        whole = pack(weight, layout, scales)
        with monkeypatch.context() as patch:
            patch.setattr(module, "SLAB", 2 * 8 * layout.padded)
            assert pack(weight, layout, scales).equal(whole)
            assert unpack(whole, layout)[0].equal(weight)


def test_any_memory_order_and_gradient_is_packed_the_same() -> None:
    layout = Layout(2, 4, 40, 12)
    weight, _ = draw_weight(layout, seed=3)
    view = weight.T.contiguous().T.requires_grad_()
    packed = pack(view, layout)
    assert packed.equal(pack(weight, layout))
    spread = torch.stack([packed, packed], 1)[:, 0]
    assert unpack(spread, layout)[0].equal(weight)


@pytest.mark.parametrize(("values", "group"), VALUES)
def test_bytes_may_begin_anywhere(values: str, group: int) -> None:
    layout = Layout(2, 4, 20, 3, values, group)
    weight, scales = draw_weight(layout, seed=4)
    packed = pack(weight, layout, scales)
    for offset in (1, 2, 3):
        file = torch.cat([torch.zeros(offset, dtype=torch.uint8), packed])
        back, back_scales = unpack(file[offset:], layout)
        assert back.equal(weight)
        assert scales is None or (back_scales is not None and back_scales.equal(scales))
