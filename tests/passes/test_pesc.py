"""insert-experts and its training: E1 to E8 of the reference."""

import pytest
import torch
import transformers
from torch.nn.functional import gelu, linear

from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.errors import OptionError, PipelineError
from sparsify.ir.axes.feed_forward import feed_forwards
from sparsify.ir.features.experts import experts_beside
from sparsify.ir.run.segments import run_to
from sparsify.ir.storage.folder import load, save
from sparsify.ir.tensor_names import expert_branches, feature_of
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.linear import linears
from sparsify.recipes import recipe
from sparsify.train.balance import Balance, balance

EXPERTS = "insert-experts{experts=4 top=2 rank=3 scale=0.5}"
LEARNT = "train{steps=3 batch=4 lr=0.02 update=experts balance=0.01}"


def run(program, pipeline, data=None, figures=None):
    context = Context(data=data, figures={} if figures is None else figures)
    return parse(pipeline).run(program, context)


def trained(program, text):
    return run(program, f"{EXPERTS} | {LEARNT}", text)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bert-base"])
def test_blocks_are_found_by_their_channels(family, traced):
    found = feed_forwards(traced(family))
    assert len(found) == 2
    for block in found:
        assert block.first.node.meta["val"].shape[-1] > block.last.node.meta["val"].shape[-1]


def test_ranks_of_attention_are_no_block():
    """Queries and keys of a low rank, normalised: linears with channels of one value, no feed-forward."""
    config = transformers.DeepseekV2Config(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=16, vocab_size=60, first_k_dense_replace=1,
    )  # fmt: skip
    (block,) = feed_forwards(trace(transformers.DeepseekV2ForCausalLM(config).eval()))
    assert block.last.weight == "model.layers.0.mlp.down_proj.weight"


def test_a_classifiers_hidden_layer_is_no_block():
    config = transformers.RobertaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        vocab_size=60, num_labels=3, max_position_embeddings=40,
    )  # fmt: skip
    (block,) = feed_forwards(trace(transformers.RobertaForSequenceClassification(config).eval()))
    assert block.last.weight == "roberta.encoder.layer.0.output.dense.weight"


@pytest.mark.parametrize(("family", "top"), [("llama", 1), ("llama", 4), ("gpt2", 2)])
def test_outputs_are_the_dense_ones_at_first(family, top, traced):
    dense = traced(family).run()[0]
    program = run(traced(family), f"insert-experts{{experts=4 top={top} rank=3}}")
    assert len(experts_beside(program)) == 2
    assert torch.equal(program.run()[0], dense)


def test_what_is_computed_is_the_loop_over_experts(traced, text):
    """Every token through its best experts, one after the other, with B no longer zero."""
    program = trained(traced("llama"), text)
    one = experts_beside(program)[1]
    views = {view.weight: view for view in linears(program)}
    block = feed_forwards(program)[1]
    nodes = [block.first.x, one.output, one.total]
    x, u, y = (value.flatten(0, 1) for value in run_to(program.module, program.sample, nodes))
    router, _, a, b, *_ = (
        program.tensor(path).detach() if program.has(path) else None
        for path in expert_branches(one.weight)
    )
    wanted = []
    x, u, y = x.detach(), u.detach(), y.detach()
    for token, state in zip(x, u, strict=True):
        kept, numbers = linear(token, router).topk(2)
        total = state.clone()
        for gate, expert in zip(kept.softmax(0), numbers.tolist(), strict=True):
            rows = slice(3 * expert, 3 * expert + 3)
            total += 0.5 * gate * linear(gelu(linear(state, a[rows])), b[:, rows])
        wanted.append(total)
    assert float((y - u).abs().max()) > 1e-3
    assert torch.allclose(y, torch.stack(wanted), atol=1e-6)
    assert views[one.weight].node is one.output


def test_gates_sum_to_one_and_spare_the_others(traced, text):
    program = trained(traced("llama"), text)
    (gates,) = (
        node.args[0]
        for node in program.graph.nodes
        if "layers_0_mlp_down_proj_weight_experts_spread" in str(node.args[1:])
    )
    (values,) = run_to(program.module, program.sample, [gates])
    assert torch.allclose(values.sum(-1), torch.ones(values.shape[:-1]), atol=1e-6)
    assert bool(((values > 0).sum(-1) == 2).all())


def test_what_learns(traced, text):
    """Experts, routers and branches: all else is bitwise what it was."""
    program = run(traced("llama"), f"insert-lora{{rank=2}} | {EXPERTS}")
    before = {path: value.detach().clone() for path, value in program.tensors()}
    program = run(program, LEARNT, text)
    known = set(before)
    moved = {p for p, value in program.tensors() if not torch.equal(value, before[p])}
    assert {feature_of(path, known) for path in moved} == {"experts", "lora"}
    ends = {path.rsplit("_", 1)[1] for path in moved if feature_of(path, known) == "experts"}
    assert ends == {"router", "a", "b"}


@pytest.mark.parametrize(("steps", "weight", "moved"), [(1, 0, 1), (1, 1, 2), (2, 0, 3)])
def test_which_tensors_have_a_gradient(steps, weight, moved, traced, text):
    """B alone at first; the router too by the balance loss; all three from the second step on."""
    program = run(traced("llama"), EXPERTS)
    paths = [
        path for block in experts_beside(program) for path in expert_branches(block.weight)[:4]
    ]
    before = {path: program.tensor(path).clone() for path in paths if program.has(path)}
    how = f"steps={steps} batch=2 lr=0.01 warmup=0.0 schedule=constant"
    program = run(program, f"train{{{how} update=experts balance={weight}}}", text)
    found = {p for p, value in before.items() if not torch.equal(value, program.tensor(p))}
    assert len({path.rsplit("_", 1)[1] for path in found}) == moved


def test_balance_by_hand():
    """Even: the number of places a token has. All to one expert: E times its probability."""
    even = torch.full((4, 4), 0.25)
    numbers = torch.tensor([[0, 1], [1, 2], [2, 3], [3, 0]])
    assert float(balance(even, numbers, None)) == pytest.approx(2)
    assert float(balance(even, numbers[:, :1], None)) == pytest.approx(1)
    skew = torch.tensor([[0.7, 0.1, 0.1, 0.1]] * 4)
    assert float(balance(skew, torch.zeros(4, 1, dtype=torch.long), None)) == pytest.approx(2.8)
    # Of a token that is padding nothing counts.
    mixed = torch.cat([skew[:1], even[:1]])
    one = torch.zeros(2, 1, dtype=torch.long)
    assert float(balance(mixed, one, torch.tensor([[1, 0]]))) == pytest.approx(2.8)
    # The softmax over the chosen alone says E whatever the router does, and has no gradient.
    scores = torch.randn(16, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    each = scores.softmax(-1)
    loss = balance(each, each.topk(2).indices, None)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert loss.item() != pytest.approx(8)
    assert float(gradient.abs().max()) > 1e-4


def test_masked_experts_have_no_part_in_the_balance(traced):
    """The loss over the experts that are left, as though the others were gone."""
    masked = "insert-masks{of=experts} | choose-masks{of=experts sparsity=0.5}"
    program = run(traced("routed"), masked)
    pruned = run(program.clone(), "prune-experts")
    found = []
    for one in (program, pruned):
        loss = Balance(one)
        values = run_to(one.module, one.sample, list(loss.watched))
        found.append(loss(values, one.sample).item())
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    # E is three, not six.
    scores, numbers = (value.flatten(0, -2) for value in values)
    mask = pruned.sample["attention_mask"]
    assert balance(scores.softmax(-1), numbers, mask, 6).item() == pytest.approx(2 * found[1])
    assert 2 <= found[1] < 3


def test_balance_is_in_the_loss_and_the_figures(traced, text):
    figures = {}
    program = run(traced("llama"), EXPERTS)
    run(program, "train{steps=2 batch=2 update=experts balance=0.5}", text, figures)
    for row in figures["train"]:
        assert row["loss"] == pytest.approx(row["task"] + 0.5 * row["balance"], rel=1e-5)
        assert 1.9 < row["balance"] < 4


def test_balance_draws_tokens_apart(traced, text):
    """Without a task loss a router that sends most tokens to the same experts learns to spread them."""
    figures = {}
    program = run(traced("llama"), EXPERTS)
    for one in experts_beside(program):
        program.tensor(expert_branches(one.weight)[0]).data.mul_(20)
    how = "steps=30 batch=8 lr=0.01 update=experts task=0.0 distill=kl balance=1.0"
    run(program, f"train{{{how}}}", text, figures)
    first, *_, last = figures["train"]
    print(first["balance"], last["balance"])
    assert 1.9 < last["balance"] < first["balance"] - 0.03


@pytest.mark.parametrize("options", ["recompute=layers", "accumulate=2", "precision=bf16"])
def test_balance_with_the_other_options(options, traced, text):
    """The same figures as plainly, a step over two halves within what halves of a batch differ by."""
    rows = []
    for more in ("", options):
        figures = {}
        program = run(traced("llama"), EXPERTS)
        batch = "batch=2" if "accumulate" in more else "batch=4"
        how = f"steps=2 {batch} lr=0.01 update=experts balance=0.1 {more}"
        run(program, f"train{{{how}}}", text, figures)
        rows.append(figures["train"])
    for plain, other in zip(*rows, strict=True):
        close = 1e-5 if "recompute" in options else 0.02
        assert other["loss"] == pytest.approx(plain["loss"], rel=close)
        assert other["balance"] == pytest.approx(plain["balance"], rel=max(close, 0.05))


def test_a_mixtures_own_routers_are_balanced(traced, text):
    program = traced("routed")
    assert len(Balance(program).watched) == 2
    figures = {}
    run(program, "train{steps=2 batch=2 balance=0.01}", text, figures)
    assert all(1.5 < row["balance"] < 6 for row in figures["train"])


def test_the_parameters_are_those_of_the_formula(traced):
    """`layers (E d + 2 E b d)`; of 32 layers of 4096 with 8 experts of rank 512, 1.0747 billion."""
    before = sum(p.numel() for p in traced("llama").module.parameters())
    after = sum(p.numel() for p in run(traced("llama"), EXPERTS).module.parameters())
    assert after - before == 2 * (4 * 64 + 2 * 4 * 3 * 64)
    assert 32 * (8 * 4096 + 2 * 8 * 512 * 4096) == 1_074_790_400


def test_it_is_saved_exported_and_read_back(traced, text, tmp_path):
    program = run(
        traced("llama"), f"insert-lora{{rank=2}} | {EXPERTS} | {LEARNT} | fold-lora", text
    )
    assert program.features == {"experts"}
    save(program, tmp_path / "program")
    again = load(tmp_path / "program")
    assert torch.equal(again.run()[0], program.run()[0])
    # Read back and compared by the engine.
    paths = export(program, tmp_path / "exports", ["onnx", "onnx-decode"])
    assert set(paths) == {"onnx", "onnx-decode"}


def test_the_recipe_leaves_experts_and_nothing_else(traced, text):
    steps = recipe("pesc").text.replace("steps=200 batch=16", "steps=2 batch=2")
    program = run(traced("gpt2"), steps.replace("rank=64", "rank=4"), text)
    assert program.features == {"experts"}
    assert len(experts_beside(program)) == 2


def test_a_scale_may_stand_in_b(traced, text):
    program = trained(traced("llama"), text)
    wanted = program.run()[0]
    plain = run(traced("llama"), EXPERTS.replace(" scale=0.5", ""))
    for path, value in program.tensors():
        half = path.endswith("_experts_b")
        plain.tensor(path).data.copy_(value * 0.5 if half else value)
    assert torch.allclose(plain.run()[0], wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ("insert-experts{top=9}", "top=9 is not from 1 to experts=8"),
        ("insert-experts{top=0}", "top=0 is not from 1 to experts=8"),
        ("insert-experts{rank=0}", "rank=0 makes no branch; it must be at least 1"),
        ("insert-experts{scale=0}", "scale=0.0 would leave the experts out; the paper takes 0.25"),
        (
            "insert-experts{targets=*q_proj*}",
            "no target ends a feed-forward block; one that does is @model.layers.0.mlp.down_proj.weight",
        ),
    ],
)
def test_what_cannot_be_meant(steps, sentence, traced):
    with pytest.raises(OptionError) as caught:
        run(traced("llama"), steps)
    assert sentence in str(caught.value)


def test_what_has_no_router_has_no_balance(traced, text):
    with pytest.raises(OptionError, match="the program has no router that it can read"):
        run(traced("llama"), "train{steps=1 batch=2 balance=0.1}", text)
    with pytest.raises(PipelineError, match="experts"):
        run(traced("llama"), "train{steps=1 batch=2 update=experts}", text)
    with pytest.raises(OptionError, match="no target ends a feed-forward block"):
        run(traced("routed"), "insert-experts")
