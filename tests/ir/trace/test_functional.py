"""Writes into tensors and through their views, as models spell them: the program equals the model."""

import pytest
import torch
from torch import nn

from sparsify.errors import TraceError
from sparsify.ir.storage.folder import load, save
from sparsify.ir.trace.functional import is_mutable
from sparsify.ir.trace.trace import trace


def slices(y):
    z = y.new_zeros(y.shape)
    z[..., :4].copy_(y[..., 4:])
    z[..., 4::2] = 3
    w = z[..., 2:6]
    z.mul_(2)
    w += 1
    return z + y, w


def shapes(y):
    z = y.clone()
    flat = z.view(-1)
    turned = z.transpose(0, 1)
    flat.add_(1)
    turned[0] *= 2
    z.unsqueeze(0).squeeze(0).permute(1, 2, 0).sub_(3)
    return z, flat * turned.sum()


def by_size(y):
    z = y.clone()
    z.transpose(0, 1).reshape(-1).zero_()  # a copy, but for one row, where it is a view
    return z


def pieces(y):
    z = y.clone()
    first, second = z.chunk(2, -1)
    first.mul_(second)
    rows = z.unbind(-1)
    rows[1].fill_(2)
    z.split([3, 5], -1)[1].add_(rows[1][..., None])
    return z, first + second


def picked(y):
    z, mask = y * 1, y > 0
    z[mask] = 0
    z.masked_fill_(z > 1, 1)
    z[..., 1][:, 0] = 7
    z.index_put_((torch.tensor([0]),), y[0] + 1, accumulate=True)
    counts = torch.zeros(3, dtype=torch.long)
    counts[1] = 2
    counts.add_(counts)
    mask &= z > 0.5
    torch.add(z, 1, out=z)
    z.diagonal(dim1=1, dim2=2).add_(5)
    values, _ = y.topk(2, -1)
    values /= values.sum()
    return z, counts * 1.0, mask * 1.0, values


def renamed(y):
    z = y.clone()
    seen = z[0]
    z.unsqueeze_(0)
    z.mul_(3)
    constant = torch.tensor([1.0, 2.0])
    constant[0] = 5
    return z, seen, constant + 0 * y.sum()


class Writes(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.body = body

    def forward(self, x):
        return self.body(self.linear(x))


@pytest.mark.parametrize("body", [slices, shapes, pieces, picked, renamed])
def test_writes_become_values(body, tmp_path):
    model = Writes(body).eval()
    program = trace(model, {"x": torch.randn(2, 3, 8)}, {"x": {0: "batch", 1: "length"}})
    assert not any(is_mutable(node) for node in program.graph.nodes)
    x = torch.randn(4, 6, 8)
    with torch.no_grad():
        wanted = model(x)
    for found, value in zip(program.run({"x": x}), wanted, strict=True):
        assert torch.equal(found, value)
    save(program, tmp_path / "p")
    assert torch.equal(load(tmp_path / "p").run({"x": x})[0], wanted[0])


class Counts(nn.Module):
    def __init__(self, always):
        super().__init__()
        self.always = always
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x):
        if self.training or self.always:
            self.seen[:2].add_(1)
        return x + self.seen


def test_state_is_refused_and_untouched():
    model = Counts(always=True)
    with pytest.raises(TraceError) as error:
        trace(model, {"x": torch.ones(2, 8)})
    assert str(error.value) == (
        "Counts could not be traced: in evaluation mode too the code in the model's own forward "
        "writes into its own tensor 'seen' (aten.add_.Tensor)"
    )
    assert torch.equal(model.seen, torch.zeros(8))


def test_state_of_training_alone_is_left_out():
    model = Counts(always=False)
    program = trace(model, {"x": torch.ones(2, 8)})
    assert torch.equal(program.run()[0], torch.ones(2, 8))
    assert torch.equal(model.seen, torch.zeros(8))
    assert model.training


def test_a_write_that_cannot_be_followed_is_refused():
    def through_type(y):
        z = y.clone()
        z.view(torch.int32).zero_()
        return z

    with pytest.raises(TraceError, match=r"writes through aten.view.dtype, which cannot be undone"):
        trace(Writes(through_type), {"x": torch.ones(2, 8)})


def test_memory_that_is_shared_at_some_sizes_alone_is_found():
    with pytest.raises(TraceError, match="is not Writes: at batch 1, length 2 its output 'output'"):
        trace(Writes(by_size), {"x": torch.randn(2, 3, 8)}, {"x": {0: "batch", 1: "length"}})


class Refilled(nn.Module):
    """A buffer that each run overwrites before it reads it, and one that it reads first."""

    def __init__(self, *, reads):
        super().__init__()
        self.reads = reads
        self.register_buffer("table", torch.ones(8))

    def forward(self, x):
        before = self.table + 1 if self.reads else 0
        self.table.copy_(torch.where(x.sum() > 0, x.mean((0, 1)), x[0, 0]))
        return x * self.table + before


def test_a_buffer_that_is_overwritten_before_it_is_read_keeps_nothing(tmp_path):
    model, x = Refilled(reads=False), torch.randn(2, 5, 8)
    program = trace(model, {"x": x}, {"x": {0: "batch", 1: "length"}})
    assert torch.equal(model.table, torch.ones(8))
    other = torch.randn(3, 4, 8)
    assert torch.equal(load(save(program, tmp_path / "p")).run({"x": other})[0], model(other))


def test_a_buffer_that_is_read_before_it_is_written_is_state():
    with pytest.raises(
        TraceError, match=r"writes into its own tensor 'table' \(aten.copy_.default\)"
    ):
        trace(Refilled(reads=True), {"x": torch.randn(2, 5, 8)})


def test_an_op_that_no_program_holds_is_told_at_once():
    class Draws(nn.Module):
        def forward(self, x):
            return x + torch.ops.aten._fft_r2c(x, [2], 0, True).real.sum()

    with pytest.raises(TraceError) as error:
        trace(Draws(), {"x": torch.randn(2, 5, 8)})
    assert str(error.value) == (
        "Draws could not be traced: the code in module '' calls 'aten._fft_r2c.default', "
        "which is not an op of a program"
    )
