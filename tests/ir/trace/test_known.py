"""Inputs whose numbers decide sizes, loops over what was hit, and masks of a rule."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel
from transformers.masking_utils import create_causal_mask

import sparsify
from sparsify.errors import SparsifyError, TraceError
from sparsify.ir.storage.folder import save
from sparsify.ir.trace.trace import trace
from sparsify.train.program_model import ProgramModel

GRID = torch.tensor([[1, 2, 2], [1, 2, 4]])


class Patches(nn.Module):
    """Patches of pictures of several sizes behind each other, each with a row of a table for its place."""

    def __init__(self):
        super().__init__()
        self.places = nn.Embedding(8, 6)
        self.mix = nn.Linear(6, 6)

    def forward(self, patches, grid):
        ends = torch.repeat_interleave(grid[:, 1] * grid[:, 2], grid[:, 0]).cumsum(0).tolist()
        rows = torch.cat([torch.arange(h * w) for _, h, w in grid.tolist()])
        x = patches + self.places(rows)
        bounds = torch.tensor([0, *ends])
        parts = torch.split(x, (bounds[1:] - bounds[:-1]).tolist())
        means = torch.stack([part.mean(0) for part in parts])
        counted = torch.repeat_interleave(means, grid[:, 1] * grid[:, 2], dim=0)
        return self.mix(x + counted)


@pytest.fixture(scope="module")
def patches():
    torch.manual_seed(0)
    return Patches().eval()


@pytest.fixture(scope="module")
def inputs():
    draw = torch.Generator().manual_seed(1)
    return {"patches": torch.randn(12, 6, generator=draw), "grid": GRID}


@pytest.fixture(scope="module")
def program(patches, inputs):
    return trace(patches, inputs)


def test_numbers_that_decide_sizes_are_taken_as_they_are(program, patches, inputs):
    assert list(program.sample) == ["patches"]
    assert program.source.known == {"grid": GRID.tolist()}
    for batch in (inputs, {"patches": inputs["patches"]}):
        torch.testing.assert_close(program.run(batch)[0], patches(**inputs))


def test_other_numbers_are_refused_in_a_sentence(program, inputs, tmp_path):
    other = {**inputs, "grid": GRID.flip(0)}
    said = r"was traced for grid \[\[1, 2, 2\], \[1, 2, 4\]\], and was given \[\[1, 2, 4\], \[1, 2, 2\]\]"
    with pytest.raises(SparsifyError, match=said):
        program.run(other)
    save(program, tmp_path / "p")
    read = sparsify.load(tmp_path / "p")
    assert read.source == program.source
    with pytest.raises(SparsifyError, match=said):
        read.run(other)
    wrapped = ProgramModel(program.clone())
    wrapped(**inputs)
    with pytest.raises(SparsifyError, match=said):
        wrapped(**other)


def test_it_is_said_that_they_are(patches, inputs, caplog):
    trace(patches, inputs)
    assert "can be followed at one grid at a time, here [[1, 2, 2], [1, 2, 4]]; give" in caplog.text


def test_what_varies_is_never_taken_as_it_is(patches, inputs):
    with pytest.raises(TraceError, match="data-dependent"):
        trace(patches, inputs, {"grid": {0: "pictures"}, "patches": {0: "places"}})


class Halves(nn.Module):
    """Needs an even number of rows, and says so by an op."""

    def forward(self, x):
        return torch.cat(x.split([x.shape[0] // 2, x.shape[0] - int(x.shape[0]) // 2])).squeeze(0)


def test_the_line_that_fixes_a_size_is_the_models(caplog):
    program = trace(Halves(), {"x": torch.randn(6, 3)}, {"x": {0: "rows"}})
    assert "here 6 (by line" in caplog.text
    assert "of test_known.py, in forward: 'return torch.cat" in caplog.text
    # A dimension that is not 1 is squeezed by nobody.
    assert "squeeze" not in str(program.graph)


class Hit(nn.Module):
    """Tokens go to one of some linears each; those that none goes to are not visited."""

    def __init__(self, *, also=False):
        super().__init__()
        self.choose = nn.Linear(6, 4)
        self.experts = nn.ModuleDict({f"expert_{i}": nn.Linear(6, 6) for i in range(4)})
        self.also = also

    def forward(self, x):
        chosen = nn.functional.one_hot(self.choose(x).argmax(-1), 4)
        found = torch.zeros_like(x)
        for place in torch.greater(chosen.sum(0), 0).nonzero():
            (rows,) = torch.where(chosen[:, place[0]] > 0)
            found.index_add_(0, rows, self.experts[f"expert_{place[0]}"](x[rows]))
            if self.also:
                found = found + 1
        return found


def test_loops_over_what_was_hit_go_over_all():
    torch.manual_seed(0)
    whole = Hit().eval()
    x = torch.randn(9, 6)
    program = trace(whole, {"x": x}, {"x": {0: "tokens"}})
    for tokens in (x, x[:2], torch.randn(30, 6)):
        torch.testing.assert_close(program.run({"x": tokens})[0], whole(tokens))


class Listed(nn.Module):
    """Columns of where something holds are no loop over it."""

    def forward(self, x):
        (rows,) = torch.nonzero(input=x[:, 0] > 0).unbind(1)
        (same,) = (x[:, 0] > 0).nonzero().unbind(1)
        return torch.zeros_like(x).index_add(0, rows, x[same])


def test_where_it_holds_stays_what_it_is():
    x = torch.randn(9, 6, generator=torch.Generator().manual_seed(3))
    program = trace(Listed(), {"x": x}, {"x": {0: "tokens"}})
    for tokens in (x, -x[:5]):
        torch.testing.assert_close(program.run({"x": tokens})[0], Listed()(tokens))


def test_a_loop_that_does_something_for_what_was_not_hit_is_refused():
    torch.manual_seed(0)
    with pytest.raises(TraceError, match=r"is not Hit: .* its output 'output' differs"):
        trace(Hit(also=True).eval(), {"x": torch.randn(2, 6)}, {"x": {0: "tokens"}})


class Ruled(LlamaModel):
    """Each query sees keys of its own parity alone, by a rule for one query and one key."""

    def forward(self, input_ids, attention_mask=None, return_dict=None):
        hidden = self.embed_tokens(input_ids)
        places = torch.arange(input_ids.shape[1])

        def rule(row, head, query, key):
            return places[query] % 2 == places[key] % 2

        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=None,
            position_ids=None,
            and_mask_function=rule,
        )
        return torch.where(mask[:, 0], 1.0, 0.0) @ hidden


def test_masks_of_a_rule_are_followed():
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    whole = Ruled(config).eval()
    program = trace(whole)
    ids = torch.randint(3, 32, (3, 20), generator=torch.Generator().manual_seed(0))
    found = program.run({"input_ids": ids})[0]
    torch.testing.assert_close(found, whole(ids))
    assert program.dynamic["input_ids"] == {0: "batch", 1: "length"}
