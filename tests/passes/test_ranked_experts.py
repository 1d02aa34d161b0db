"""Experts that are ranked by a sigmoid, or by shares and a bias: masked and removed alike."""

import pytest
import torch
from transformers import AutoModelForCausalLM
from zoo_models import small_config, small_model

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError
from sparsify.ir.axes.walk import analyse
from sparsify.ir.trace.trace import trace

# The bias that moves the ranking and not the shares, by the end of its name; None has none.
FAMILIES = {
    "deepseek_v3": "e_score_correction_bias",
    "glm4_moe": "e_score_correction_bias",
    "minimax_m2": "e_score_correction_bias",
    "ernie4_5_moe": "e_score_correction_bias",
    "afmoe": "expert_bias",
}
KEPT = [0, 3]


def program_of(family, **changes):
    """The program of a small mixture, whose biases want experts that are to go."""
    if changes:
        config = small_config(family)
        for name, value in changes.items():
            setattr(config, name, value)
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    else:
        model = small_model(family, "AutoModelForCausalLM")
    lifted = torch.tensor([0.0, 4.0, 3.0, 0.5])
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if name.endswith(FAMILIES[family]):
                value.copy_(lifted.expand_as(value))
    return trace(model, copy=True)


def masks_of(program):
    return [path for path, _ in program.tensors() if path.endswith("experts_mask")]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_was_masked_is_what_is_removed(family):
    program = program_of(family)
    dense = program.run()[0]
    parse("insert-masks{of=experts}").run(program, Context())
    torch.testing.assert_close(program.run()[0], dense)
    for path in masks_of(program):
        mask = torch.zeros(4, dtype=torch.bool)
        mask[KEPT] = True
        program.put(path, mask)
    masked = program.run()[0]
    assert (masked - dense).abs().max() > 1e-3 * dense.abs().max()
    parse("prune-experts").run(program, Context())
    torch.testing.assert_close(program.run()[0], masked, rtol=1e-4, atol=1e-5)
    biases = [v for path, v in program.tensors() if path.endswith(FAMILIES[family])]
    assert biases
    assert all(bias.flatten().tolist() == [0.0, 0.5] for bias in biases)


def test_a_choice_among_one_group_is_none():
    """Two groups are chosen by the two best of each; one group is there whatever they are."""
    for groups, choices in ((1, 1), (2, 3)):
        program = program_of("deepseek_v3", n_group=groups, topk_group=1)
        topk = torch.ops.aten.topk.default
        assert len(program.graph.find_nodes(op="call_function", target=topk)) == choices


def test_experts_in_several_groups_stay():
    program = program_of("deepseek_v3", n_group=2, topk_group=1)
    assert not analyse(program).routers
    with pytest.raises(OptionError, match="no prunable experts"):
        parse("insert-masks{of=experts}").check(program, Context())


def test_what_is_no_softmax_is_neither_counted_nor_clustered():
    said = r"the experts of @model\.layers\.1\.mlp\.gate\.weight are ranked by more than a softmax"
    program = program_of("deepseek_v3")
    with pytest.raises(OptionError, match=said):
        parse("insert-probes{of=routers}").check(program, Context())
    parse("insert-masks{of=experts}").run(program, Context())
    program.features |= {"stats"}  # as of another mixture
    with pytest.raises(OptionError, match=said):
        parse("choose-masks{of=experts score=frequency sparsity=0.5}").run(program, Context())
