"""What is checked before a run are the weights that are selected, not every linear."""

import pytest
import torch
from torch import nn

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError
from sparsify.ir.trace.trace import trace


class Odd(nn.Module):
    """`x [batch, 66]` -> 66: `up` takes 66 features in, `down` the 96 channels."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(66, 96), nn.Linear(96, 66)
        self.head = nn.Linear(66, 5)

    def forward(self, x):
        return self.head(x + self.down(torch.relu(self.up(x))))


@pytest.fixture(scope="module")
def odd():
    torch.manual_seed(0)
    return trace(Odd(), {"x": torch.randn(3, 66)}, {"x": {0: "batch"}})


def test_a_pattern_is_held_against_the_masked_weights_alone(odd):
    program = odd.clone()
    parse("insert-masks{targets=down} | choose-masks{pattern=2:4} | fold-masks").run(
        program, Context()
    )
    assert float((program.tensor("down.weight") == 0).float().mean()) == 0.5
    assert bool((program.tensor("up.weight") != 0).all())
    again = odd.clone()
    parse("insert-masks{targets=down}").run(again, Context())
    parse("choose-masks{pattern=2:4}").check(again, Context())


@pytest.mark.parametrize("masks", ["insert-masks", "insert-masks{targets=up}"])
def test_a_masked_weight_that_cannot_hold_the_pattern_is_refused_before_the_run(odd, masks):
    with pytest.raises(OptionError, match=r"@up\.weight"):
        parse(f"{masks} | choose-masks{{pattern=2:4}}").check(odd, Context())


def test_masks_that_are_folded_and_inserted_elsewhere_are_followed(odd):
    text = "insert-masks{targets=up} | fold-masks | insert-masks{targets=down} | choose-masks{pattern=2:4}"
    parse(text).check(odd, Context())


def test_targets_without_a_mask_are_refused_before_the_run(odd):
    with pytest.raises(OptionError) as caught:
        parse("insert-masks{targets=down} | choose-masks{sparsity=0.5 targets=up}").check(
            odd, Context()
        )
    assert str(caught.value) == (
        "pass 2 of 2, 'choose-masks{sparsity=0.5 targets=up}', no target has a mask; widen the targets, "
        "or those of insert-masks (an output head has to be named)"
    )
