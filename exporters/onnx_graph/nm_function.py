"""The op `sparsify.NMLinear` in standard ONNX operators, for a runtime without our kernels.

    X [..., in], W uint8 [bytes], B [out]  ->  Y [..., out] = round(X) dense(W)^T + B

One body decodes every pattern and value type of docs/packed.md, because a model has one function of
a name. It decodes 8 rows at a time, in each run anew: a loop is what no runtime folds into constants
when it opens a model, and folding would hold every step of every weight in memory at once. The
operators are in every runtime that knows operator set 18.
"""

import math

import onnx
from onnx import AttributeProto, helper

from exporters.onnx_graph.function_body import (
    BOOL,
    FLOAT,
    INT32,
    INT64,
    STRING,
    UINT8,
    Body,
    Operand,
    Value,
)

DOMAIN, NAME, VERSION = "sparsify", "NMLinear", 1
INTEGERS = ("n", "m", "in_features", "out_features", "group", "layout")
# 2 ** (exponent - bias - bits of the fraction): subnormal numbers first, infinity last.
_SINGLE = [2.0 ** (max(e, 1) - 150) for e in range(255)] + [math.inf]
_HALF = [2.0 ** (max(e, 1) - 25) for e in range(31)] + [math.inf]


def function(opset: int) -> onnx.FunctionProto:
    """The function `sparsify.NMLinear` for a model of an operator set, 18 or later."""
    body = Body()
    sizes = {name: body.attribute(name, AttributeProto.INT) for name in INTEGERS}
    values = body.attribute("values", AttributeProto.STRING)
    x, bias = Value(body, "X", FLOAT), Value(body, "B", FLOAT)
    blocks = (sizes["out_features"] + 7) // 8
    single, rounded = _Single(body, sizes), _Rounded(body, sizes, values)
    near, rows = body.choose(
        body.scalar(sizes["group"]).to(BOOL),
        lambda: [rounded.activations(x), body.stacked(body.scalar(blocks), rounded.block)],
        lambda: [body.op("Identity", x), body.stacked(body.scalar(blocks), single.block)],
    )
    weight = rows.shaped(blocks * 8, sizes["in_features"]).between(0, 0, sizes["out_features"])
    result = body.op("MatMul", near, weight.permuted(1, 0)) + bias
    body.op("Identity", result)
    body.nodes[-1].output[:] = ["Y"]
    opsets = [helper.make_opsetid("", opset)]
    names = [*INTEGERS, "values"]
    return helper.make_function(DOMAIN, NAME, ["X", "W", "B"], ["Y"], body.nodes, opsets, names)


class _Decoder:
    """Writes nodes that read one block of 8 rows; sizes are int64 `[1]`."""

    def __init__(self, body: Body, sizes: dict[str, Value]) -> None:
        self.body = body
        self.n, self.m, self.columns = sizes["n"], sizes["m"], sizes["in_features"]

    def bytes(self, number: Value, runs: Value, size: Value) -> Value:
        """The bytes `[runs, size]` of a block."""
        packed, length = Value(self.body, "W", UINT8), runs * size
        return packed.between(0, length * number, length * (number + 1)).shaped(runs, size)

    def dense(self, index: Value, values: Value, entries: Value) -> Value:
        """Entries `[8, entries]` at their columns, zeros elsewhere: `[8, in]`."""
        body = self.body
        zero, one = body.constant(0, INT64), body.constant(1, INT64)
        place = body.op("Range", zero, body.scalar(entries), one)
        column = index.to(INT64) + place // self.n * self.m
        shape = body.sizes(8, entries // self.n * self.m)
        zeros = body.op("Expand", body.constant(0.0, FLOAT), shape)
        dense = body.op("ScatterElements", zeros, column, values, axis=1)
        return dense.between(1, 0, self.columns)

    def number(
        self, top: Value, exponent: Value, fraction: Value, unit: int, powers: list[float]
    ) -> Value:
        """`+- (fraction + unit) * power`, without the unit where the exponent is zero; exact."""
        whole = fraction + self.body.op("Min", exponent, 1) * unit
        sign = (1 - top // 128 * 2).to(FLOAT)
        return whole.to(FLOAT) * self.body.constant(powers, FLOAT).at(exponent) * sign


class _Single(_Decoder):
    """float32: chunks of 8 words of indices, then vectors of 8 values."""

    def __init__(self, body: Body, sizes: dict[str, Value]) -> None:
        super().__init__(body, sizes)
        self.fields = 64 // self.m
        shared = body.constant([0, 1, 2, 1, 4, 1, 2, 1], INT64).at(self.n)  # gcd(n, fields)
        span = 64 // shared
        self.chunks = (self.columns + span - 1) // span * span * self.n // 64
        self.size = self.fields * 32 + 32
        self.entries = self.chunks * self.fields
        # A byte holds four fields of 2 bits or two of 4.
        self.steps = body.constant([1, 4, 16, 64], INT32).between(0, 0, 4, self.m // 4)

    def block(self, number: Value) -> Value:
        """The rows `[8, in]` of a block."""
        data = self.bytes(number, self.chunks, self.size)
        words = data.between(1, 0, 32).shaped(self.chunks, 8, 4, 1).to(INT32)
        index = (words // self.steps % self.m.to(INT32)).permuted(1, 0, 2, 3)
        vectors = data.between(1, 32, self.size).shaped(self.entries, 8, 4)
        values = self.value(vectors.permuted(2, 1, 0)).shaped(8, self.entries)
        return self.dense(index.shaped(8, self.entries), values, self.entries)

    def value(self, data: Value) -> Value:
        """float32 from its bytes `[4, ...]`: `[1, ...]`."""
        first, second, third, top = (data.between(0, i, i + 1).to(INT32) for i in range(4))
        fraction = first + second * 2**8 + third % 128 * 2**16
        return self.number(top, top % 128 * 2 + third // 128, fraction, 2**23, _SINGLE)


class _Rounded(_Decoder):
    """int8 and int4: scale groups of scales, bits of indices and values in vectors of 32 bytes."""

    def __init__(self, body: Body, sizes: dict[str, Value], values: Value) -> None:
        super().__init__(body, sizes)
        # Without scale groups these sizes stand for nothing, but must not divide by zero.
        self.group = body.op("Max", sizes["group"], 32)
        self.groups = (self.columns + self.group - 1) // self.group
        # There is no comparison of strings before operator set 19: count the different ones.
        both = body.op("Concat", values, body.constant(["int4"], STRING), axis=0)
        nibbles = 2 - body.op("Shape", body.op("Unique", both), type=INT64)
        self.slots = self.group * self.n // (self.m * 4)
        self.each = nibbles + 1
        self.vectors = (self.slots + nibbles) // self.each
        self.low, self.third = (self.slots + 3) // 4, (self.slots + 7) // 8
        self.weight = (self.m // 8 * 4).to(INT32)  # of the third bit
        self.values = self.low * 32 + 16 + self.third * (self.m // 8 * 32)
        self.base = (256 - nibbles * 240).to(INT32)
        self.shift = (128 - nibbles * 128).to(INT32)

    def block(self, number: Value) -> Value:
        """The rows `[8, in]` of a block, times their scales."""
        body, groups = self.body, self.groups
        data = self.bytes(number, groups, self.values + self.vectors * 32)
        quarters = body.constant([1, 4, 16, 64], INT32)
        eighths = body.constant([2**bit for bit in range(8)], INT32)
        index = self.fields(data, 16, self.low, quarters, 4, 4)
        # For M = 4 there is no third bit: what stands in its place is read and counts nothing.
        third = self.fields(data, self.low * 32 + 16, self.third, eighths, 8, 2)
        steps = body.constant([1, 16], INT32).between(0, 0, self.each)
        codes = self.fields(data, self.values, self.vectors, steps, self.each, self.base)
        # Two's complement of a byte, or a nibble stored plus 8.
        codes = (codes + self.shift) % self.base - self.base // 2
        scales = self.scale(data.between(1, 0, 16).shaped(groups, 8, 2).permuted(2, 1, 0))
        entries = groups * self.slots * 4
        values = codes.to(FLOAT).shaped(8, groups, self.slots * 4) * scales.shaped(8, groups, 1)
        return self.dense(index + third * self.weight, values.shaped(8, entries), entries)

    def fields(
        self,
        data: Value,
        start: Operand,
        vectors: Value,
        steps: Value,
        each: Operand,
        base: Operand,
    ) -> Value:
        """Fields of vectors of 32 bytes, `each` to a byte, lowest bits first: `[8, entries]`."""
        groups, slots = self.groups, self.slots
        part = data.between(1, start, vectors * 32 + start).shaped(groups, vectors, 1, 32)
        fields = part.to(INT32) // steps.shaped(each, 1) % base
        fields = fields.shaped(groups, vectors * each, 32).between(1, 0, slots)
        entries = fields.shaped(groups, slots, 8, 4).permuted(2, 0, 1, 3)
        return entries.shaped(8, groups * slots * 4)

    def scale(self, data: Value) -> Value:
        """float16 from its bytes `[2, ...]`, as float32 `[1, ...]`."""
        first, top = (data.between(0, i, i + 1).to(INT32) for i in range(2))
        return self.number(top, top % 128 // 4, first + top % 4 * 2**8, 2**10, _HALF)

    def activations(self, x: Value) -> Value:
        """`X` rounded to 127 steps of the largest magnitude in each scale group."""
        body, full = self.body, self.groups * self.group
        lead = body.op("Shape", x, type=INT64).between(0, 0, -1)
        zero, last = body.constant(0.0, FLOAT), body.constant([-1], INT64)
        padded = body.op("Pad", x, body.sizes(0, full - self.columns), zero, last)
        grouped = padded.shaped(lead, self.groups, self.group)
        largest = body.op("ReduceMax", body.op("Abs", grouped), last, keepdims=1)
        nothing = body.op("Equal", largest, zero, type=BOOL)
        divisor = body.op("Where", nothing, body.constant(1.0, FLOAT), largest, type=FLOAT)
        codes = body.op("Round", grouped * (body.constant(127.0, FLOAT) / divisor))
        return (codes * (largest / 127.0)).shaped(lead, full).between(-1, 0, self.columns)
