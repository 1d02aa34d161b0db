import pytest
import torch

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError
from sparsify.ir.features.group_mask import group_masks
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.composition import Composition, chain, composition_at, is_composing
from sparsify.ir.views.linear import consumers, effective_weight, feature_size, linears, out_in
from sparsify.ir.views.probe import probe_behind, probes
from sparsify.ir.views.targets import targeted


def by_path(program):
    return {view.weight: view for view in linears(program)}


def test_plain_linears(traced):
    views = by_path(traced("mlp"))
    assert list(views) == ["up.weight", "down.weight", "head.weight"]
    up, head = views["up.weight"], views["head.weight"]
    assert (up.mask, up.branch, up.transposed) == (None, None, False)
    assert (feature_size(head.x), feature_size(head.node)) == (8, 5)
    assert feature_size(up.x) == 8
    assert feature_size(up.node) == 12


def test_linears_of_conv1d_layers_are_transposed(traced):
    program = traced("gpt2")
    views = {v.weight: v for v in targeted(program, ["*"], [])}
    assert len(views) == 8
    for view in views.values():
        stored = program.tensor(view.weight)
        assert view.transposed
        assert out_in(view, stored).shape == (feature_size(view.node), feature_size(view.x))
        assert torch.equal(out_in(view, out_in(view, stored)), stored)


def test_masks_and_branches_are_seen_and_composed(traced):
    program = parse("insert-masks | insert-lora{rank=2 alpha=6}").run(traced("mlp"))
    view = by_path(program)["down.weight"]
    assert view.mask == "down.weight_mask"
    assert (view.branch.a, view.branch.b, view.branch.scale) == (
        "down.weight_lora_a", "down.weight_lora_b", 3.0,
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        mask, b = program.tensor(view.mask), program.tensor(view.branch.b)
        mask.copy_(torch.rand(8, 12, generator=generator) > 0.5)
        b.copy_(torch.randn(8, 2, generator=generator))
    a, weight = program.tensor(view.branch.a), program.tensor("down.weight")
    wanted = (weight + 3.0 * b @ a) * mask
    assert torch.allclose(effective_weight(program, view), wanted, atol=1e-6)
    x = torch.randn(1, 2, 8, generator=generator)
    hidden = torch.nn.functional.gelu(
        torch.nn.functional.layer_norm(
            x, [8], program.tensor("norm.weight"), program.tensor("norm.bias")
        )
        @ effective_weight(program, by_path(program)["up.weight"]).t()
        + program.tensor("up.bias")
    )
    y = (x + hidden @ wanted.t() + program.tensor("down.bias")) @ program.tensor("head.weight").t()
    assert torch.allclose(program.run({"x": x})[0], y, atol=1e-5)


def test_the_parts_of_a_composition_are_read_off_the_chain(traced):
    program = parse("insert-quantizers{group=32} | insert-lora{rank=2} | insert-masks").run(
        traced("mlp")
    )
    view = by_path(program)["down.weight"]
    found = composition_at(view.operand)
    assert found == Composition("down.weight", view.mask, view.branch, view.quantizer)
    targets = [
        node.op if node.op == "get_attr" else str(node.target) for node in chain(view.operand)
    ]
    assert targets == [
        "sparsify.quantize_weight.default", "aten.mul.Tensor", "aten.add.Tensor", "get_attr",
    ]  # fmt: skip
    assert (view.quantizer.values, view.quantizer.group) == ("int8", 32)
    assert view.input_quantizer.on == "down.weight_quantizer_on"
    assert view.x is view.input_quantizer.node
    assert all(is_composing(node, "down.weight") for node in chain(view.operand)[:-1])
    assert not is_composing(view.node, "down.weight")
    assert composition_at(view.x) is None


def test_probes_are_seen_and_found_behind_a_group_mask(traced):
    program = parse("insert-probes{gram=true} | insert-masks{of=channels}").run(traced("mlp"))
    found = list(probes(program))
    assert [p.statistics[0] for p in found] == ["up.weight_probe_count", "down.weight_probe_count"]
    assert len(found[0].statistics) == 5
    down = by_path(program)["down.weight"]
    (mask,) = group_masks(program)
    assert (mask.kind, mask.path) == ("channels", "down.weight_channels_mask")
    assert mask.product is down.x
    assert mask.x is found[1].node
    assert probe_behind(down.x) == found[1]
    assert probe_behind(by_path(program)["head.weight"].x) is None


def test_star_leaves_out_the_head_but_its_name_does_not(traced):
    program = traced("mlp")
    assert [v.weight for v in targeted(program, ["*"], [])] == ["up.weight", "down.weight"]
    assert [v.weight for v in targeted(program, ["head"], [])] == ["head.weight"]
    assert [v.weight for v in targeted(program, ["*"], ["up*"])] == ["down.weight"]
    assert [v.weight for v in targeted(program, ["d*.weight", "up"], [])] == [
        "up.weight", "down.weight",
    ]  # fmt: skip


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_star_never_touches_embedding_or_head(family, traced):
    program = traced(family)
    paths = [v.weight for v in targeted(program, ["*"], [])]
    assert paths
    assert not any("embed" in path or "wte" in path or "head" in path for path in paths)


@pytest.mark.parametrize("glob", ["*", "**", "*.weight", "?*", "[a-z]*", "*d*"])
def test_a_head_is_taken_only_by_its_name_without_wildcards(glob, traced):
    program = traced("mlp")
    assert [v.weight for v in targeted(program, [glob, "up"], [])] == (["up.weight", "down.weight"])
    assert [v.weight for v in targeted(program, [glob, "head"], [])][-1] == "head.weight"
    with pytest.raises(OptionError) as caught:
        targeted(program, ["head*"], [])
    assert str(caught.value) == (
        "the target 'head*' matches nothing but the output head; name it without wildcards: head.weight"
    )


def test_a_tied_head_is_spared_by_every_glob(traced):
    program = traced("block")
    for glob in ("*", "**", "*.weight"):
        assert "head.weight" not in [v.weight for v in targeted(program, [glob], [])]
    assert "head.weight" in [v.weight for v in targeted(program, ["head.weight"], [])]


def test_what_a_pass_has_added_is_taken_by_globs_for_it_alone(traced):
    masked = "insert-masks | choose-masks{pattern=2:4} | insert-adapters{ratio=0.3}"
    program = parse(masked).run(traced("block"), Context())
    own = {"up.weight", "down.weight"}
    for glob in ("*", "**", "*.weight*", "up*"):
        assert {v.weight for v in targeted(program, [glob], [])} & own
        assert not any("adapter" in v.weight for v in targeted(program, [glob], []))
    assert all("adapter" in v.weight for v in targeted(program, ["*_adapter_*"], []))


def test_tied_head_has_two_readers(traced):
    program = traced("block")
    assert len(consumers(program, "head.weight")) == 2
    assert len(consumers(program, "out.weight")) == 1
    assert "head.weight" not in [v.weight for v in targeted(program, ["*"], [])]


def test_a_glob_that_matches_nothing_names_the_nearest(traced):
    for targets, ignore in ((["dwn.weight"], []), (["*"], ["dwn.weight"])):
        with pytest.raises(OptionError) as caught:
            targeted(traced("mlp"), targets, ignore)
        assert str(caught.value) == (
            "the target 'dwn.weight' matches no linear; did you mean 'down.weight'?"
        )


def test_a_weight_that_the_model_itself_scales_is_no_named_weight():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(6, 4))
            self.gain = torch.nn.Parameter(torch.randn(6, 1))

        def forward(self, x):
            return torch.nn.functional.linear(x, self.weight * self.gain)

    program = trace(Scaled(), {"x": torch.randn(2, 4)})
    assert linears(program) == []
