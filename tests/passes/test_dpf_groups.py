"""DPF of channels and heads: masks of the weights that take them in, moved by one ranking of all."""

import pytest
import torch
from torch import nn

from sparsify.data.sequences import TensorData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import PipelineError
from sparsify.ir.features.group_mask import group_masks
from sparsify.ir.run.straight_groups import straight_groups
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.select.groups import unit_cost
from sparsify.select.moving_groups import MovingGroups
from sparsify.train.program_model import ProgramModel

MOVING = (
    "insert-masks{{of={0}}} | train{{steps=40 batch=8 lr=0.02 weight_decay=0.1 "
    "masks=every{{steps=4 sparsity=0.5 schedule=cubic until=0.6 of={0}}}}}"
)


def run(program, pipeline, data):
    context = Context(data=data, seed=0)
    return parse(pipeline).run(program, context), context.figures.get("train", [])


class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 3)
        self.head = nn.Linear(3, 1, bias=False)

    def forward(self, x):
        return self.head(torch.tanh(self.down(torch.nn.functional.gelu(self.up(x)))))


def test_columns_that_are_masked_get_the_gradient_of_zeros_in_their_place():
    torch.manual_seed(0)
    x, labels = torch.randn(5, 4), torch.randn(5)
    program = trace(Wide(), {"x": x}, {"x": {0: "batch"}})
    program, _ = run(program, "insert-masks{of=channels targets=down}", None)
    (mask,) = group_masks(program)
    program.tensor(mask.path).copy_(torch.tensor([True, False, True, True, False, True]))
    kept, text = program.tensor(mask.path), to_text(program)
    w = {path: value.detach().double() for path, value in program.tensors()}

    def loss(down):
        h = torch.nn.functional.gelu(x.double() @ w["up.weight"].T + w["up.bias"])
        y = torch.tanh(h @ down.T + w["down.bias"]) @ w["head.weight"].T
        return (y[:, 0] - labels.double()).square().mean()

    point = (w["down.weight"] * kept).requires_grad_()
    (wanted,) = torch.autograd.grad(loss(point), point)
    model, batch = ProgramModel(program).train(), {"x": x, "labels": labels}
    plain = model(**batch)["loss"]
    plain.backward()
    down, up = program.tensor("down.weight"), program.tensor("up.weight")
    assert not bool(down.grad[:, ~kept].any())  # outside the block a masked column is dead
    of_rows = up.grad.clone()
    down.grad, up.grad = None, None
    with straight_groups(program, [mask]):
        loss_inside = model(**batch)["loss"]
        loss_inside.backward()
    assert torch.allclose(loss_inside, plain, atol=1e-7)
    assert torch.allclose(down.grad.double(), wanted, atol=1e-6)
    assert bool((down.grad[:, ~kept].abs() > 1e-5).all())
    assert torch.allclose(up.grad, of_rows, atol=1e-7)
    assert not bool(up.grad[~kept].any())
    assert to_text(program) == text


@pytest.mark.parametrize("name", ["llama", "gpt2", "routed"])
def test_the_block_changes_no_output(name, traced, text):
    kinds = "heads,channels"
    program, _ = run(
        traced(name),
        f"insert-masks{{of={kinds}}} | choose-masks{{of={kinds} sparsity=0.5 scope=global}}",
        None,
    )
    batch = text.batch([0, 1])
    before = program.run(batch)[0]
    with straight_groups(
        program, [site.mask for site in MovingGroups(program, kinds.split(",")).sites]
    ):
        assert torch.allclose(program.run(batch)[0], before, atol=1e-6)
    assert torch.equal(program.run(batch)[0], before)


@pytest.mark.parametrize("kinds", ["channels", "heads", "heads,channels"])
def test_groups_go_by_their_parameters_come_back_and_freeze(kinds, traced, text):
    program, rows = run(traced("llama"), MOVING.format(kinds), text)
    moving = MovingGroups(program, kinds.split(","))
    gone = whole = 0.0
    for site in moving.sites:
        cost, mask = (
            unit_cost(program, site, "groups") / site.per_group,
            program.tensor(site.mask.path),
        )
        gone, whole = gone + cost * int((~mask).sum()), whole + cost * mask.numel()
    # Of the four KV groups two may stay in one place, where one always does.
    assert (0.25 if kinds == "heads" else 0.4) <= gone / whole <= 0.5 + 1e-9
    assert rows[-1]["sparsity"] == pytest.approx(gone / whole)
    at = {row["step"] - 1: row for row in rows[:-1] if "reactivated" in row}
    assert [at[step]["reactivated"] for step in (28, 32, 36)] == [0, 0, 0]
    assert [at[step]["flips"] for step in (28, 32, 36)] == [0, 0, 0]
    if kinds == "channels":  # small enough to come within one of what is asked for
        shares = [at[step]["sparsity"] for step in (4, 8, 12, 16, 20, 24, 28)]
        wanted = [0.5 - 0.5 * (1 - step / 24) ** 3 for step in (4, 8, 12, 16, 20, 24, 24)]
        assert shares == pytest.approx(wanted, abs=1 / 192)
    still = [site.mask.path for site in moving.sites]
    assert all(bool(program.tensor(path).any()) for path in still)
    passes = " | ".join(f"prune-{kind}" for kind in kinds.split(","))
    batch = text.batch([0, 1])
    before = program.run(batch)[0]
    pruned, _ = run(program, passes, text)
    assert torch.allclose(pruned.run(batch)[0], before, atol=1e-4)


def test_channels_come_back_with_feedback_and_never_without():
    """Two channels that do the same: the kept one shrinks, the masked one's columns learn in its place."""
    torch.manual_seed(3)
    x = torch.randn(64, 4)
    data = TensorData({"x": x, "labels": x[:, 0] * 0.5})
    counts = {}
    for feedback in ("true", "false"):
        torch.manual_seed(5)
        program = trace(Wide(), {"x": x[:3]}, {"x": {0: "batch"}})
        _, rows = run(
            program,
            "insert-masks{of=channels targets=down} | train{steps=120 batch=16 lr=0.05 schedule=constant "
            f"masks=every{{steps=2 sparsity=0.5 of=channels feedback={feedback}}}}}",
            data,
        )
        counts[feedback] = sum(row.get("reactivated", 0) for row in rows)
    assert counts["true"] > 0
    assert counts["false"] == 0


def test_what_reads_a_masked_input_too_is_refused(traced, text):
    with pytest.raises(PipelineError, match="adapters"):
        run(
            traced("llama"),
            "insert-masks{of=channels} | insert-adapters{ratio=0.3} | "
            "train{steps=4 masks=every{steps=1 sparsity=0.5 of=channels}}",
            text,
        )
