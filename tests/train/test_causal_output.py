"""Whether labels are those of the next token: found by the program, whatever last digits do."""

import pytest
import torch
import transformers
from torch import nn

from sparsify.ir.trace.trace import trace
from sparsify.train.losses import TaskLoss, output_is_causal


class Mixes(nn.Module):
    """Logits of each id, plus a share of the mean over all positions, or of those before."""

    def __init__(self, share, later):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.share, self.later = nn.Embedding(9, 9), share, later

    def forward(self, input_ids):
        x = self.table(input_ids)
        places = torch.arange(1, x.shape[1] + 1, device=x.device)[:, None]
        seen = x.mean(1, keepdim=True) if self.later else x.cumsum(1) / places
        return x + self.share * seen


@pytest.mark.parametrize(
    ("share", "later", "wanted"),
    [
        (0.3, False, True),
        (0.3, True, False),
        (0.02, True, False),
        (1e-6, True, True),
        (0.0, True, True),
    ],
)
@pytest.mark.parametrize("length", [2, 3, 10])
def test_last_digits_are_no_dependence(share, later, wanted, length):
    ids = torch.arange(2 * length).reshape(2, length) % 9
    program = trace(Mixes(share, later).eval(), {"input_ids": ids}, {"input_ids": {0: "batch"}})
    assert output_is_causal(program) is wanted


@pytest.mark.parametrize("fill", [0, 1, 8])
def test_ids_that_are_all_the_same(fill):
    ids = torch.full((2, 6), fill)
    program = trace(Mixes(0.5, False).eval(), {"input_ids": ids}, {"input_ids": {0: "batch"}})
    assert output_is_causal(program)


def test_products_of_experts_in_other_groups():
    """Sixteen experts: other tokens change how rows are grouped, and so the last digits of all of them."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=500, hidden_size=128, intermediate_size=192, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=16, num_experts_per_tok=2,
    )  # fmt: skip
    program = trace(transformers.MixtralForCausalLM(config).eval())
    assert TaskLoss(program).shifted
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(0, 500, (2, 40), generator=draw)
    logits = program.run({"input_ids": ids})[0]
    wanted = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    found = TaskLoss(program)([logits], {"input_ids": ids, "labels": ids})
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)


def test_encoders_are_no_writers(traced):
    assert not output_is_causal(traced("bert-base"))
    assert output_is_causal(traced("gpt2"))
