"""The decode variant, step by step with its cache, against the program on the whole sequence."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    BartConfig,
    BartForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OpenAIGPTConfig,
    OpenAIGPTLMHeadModel,
)
from zoo_models import small_model

from sparsify.data.sequences import TextData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import TraceError, VerifyError
from sparsify.ir.decode.caches import empty_past, past_inputs, public_name
from sparsify.ir.decode.variant import decoder
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.packed import block_weights
from tests.ir.axes.families import traced as family_traced

HALVED = (
    "insert-masks{of=heads,channels} | choose-masks{of=heads,channels sparsity=0.5} | "
    "prune-heads | prune-channels"
)
INSIDE = "insert-masks{of=heads} | choose-masks{of=heads sparsity=0.5 rule=inside} | prune-heads"
SHORTER = "insert-masks{of=layers} | choose-masks{of=layers sparsity=0.5} | prune-layers"
BLOCKS = "insert-masks{of=blocks} | choose-masks{of=blocks sparsity=0.25} | prune-layers{of=blocks}"
NARROW = "insert-masks{of=hidden} | choose-masks{of=hidden sparsity=0.5} | prune-hidden"
EXPERTS = "insert-masks{of=experts} | choose-masks{of=experts sparsity=0.5} | prune-experts"
PACKED = "insert-masks | choose-masks{pattern=2:4} | fold-masks | pack-nm"
ROUNDED = (
    "insert-quantizers{{values=int4 group=32 targets=*_{0}_*}} | choose-scales{{targets=*_{0}_*}} | "
    "pack-dense"
)


def stepped(program, ids, pieces):
    """Logits `[batch, length, vocabulary]` of ids fed piece by piece, and the last caches."""
    past, found = dict(empty_past(program, len(ids))), []
    end = 0
    for piece in pieces:
        start, end = end, end + piece
        batch = {"input_ids": ids[:, start:end], **past}
        batch["attention_mask"] = torch.ones(len(ids), end, dtype=torch.long)
        if "position_ids" in program.sample:
            batch["position_ids"] = torch.arange(start, end).expand(len(ids), -1)
        logits, *caches = program.run(batch)
        past = dict(zip(past_inputs(program), caches, strict=True))
        found.append(logits)
    return torch.cat(found, 1), past


@pytest.mark.parametrize("removed", [SHORTER, BLOCKS], ids=["layers", "blocks"])
@pytest.mark.parametrize(
    "added", ["insert-experts{experts=3 rank=2}", "insert-adapters{ratio=0.3}"]
)
def test_blocks_go_from_under_what_passes_have_added(added, removed, traced):
    """A block is known by a matrix of the model's own: the variant is made before anything is added."""
    program = parse(added).run(traced("llama"))
    with torch.no_grad():
        for path, value in program.tensors():
            if path.endswith(("_experts_b", "_adapter_b")):
                value.normal_(std=0.2, generator=torch.Generator().manual_seed(1))
    parse(removed).run(program)
    ids = program.sample["input_ids"]
    wanted = program.run({"input_ids": ids})[0]
    found, _ = stepped(decoder(program), ids, (2, ids.shape[1] - 2))
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_layers_that_follow_one_another_go():
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=12,
        num_attention_heads=2,
        vocab_size=64,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    program = trace(LlamaForCausalLM(config).eval())
    with torch.no_grad():
        for layer in (1, 2, 3, 5):
            program.tensor(f"model.layers.{layer}.mlp.up_proj.weight").mul_(0.01)
    parse("insert-masks{of=layers} | choose-masks{of=layers sparsity=0.3334} | prune-layers").run(
        program
    )
    assert [len(gone) for gone in program.plan["layers"]] == [4]
    made = decoder(program)
    left = {path.split(".")[2] for path, _ in made.tensors() if ".layers." in path}
    assert left == {"0", "4", "6", "7", "8", "9", "10", "11"}
    # Numbered anew: the fourth cache is the eighth layer's, and the eighth no longer the eighth's.
    kinds = ("key", "value")
    assert past_inputs(made) == [f"past_key_values_{i}_{kind}" for i in range(8) for kind in kinds]
    ids = program.sample["input_ids"]
    wanted = program.run({"input_ids": ids})[0]
    found, _ = stepped(made, ids, (4, 1, 8))
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("family", "pipeline"),
    [
        ("llama", f"{HALVED} | {SHORTER}"),
        ("qwen3", f"{INSIDE} | {PACKED}"),
        ("gpt2", f"{SHORTER} | {PACKED}"),
        ("opt", HALVED),
        ("gemma2", f"{NARROW} | {BLOCKS}"),
        ("mixtral", EXPERTS),
    ],
)
def test_a_cache_changes_nothing(family, pipeline):
    program = family_traced(family)
    parse(pipeline).run(program)
    made = decoder(program)
    ids = torch.randint(0, 60, (2, 23), generator=torch.Generator().manual_seed(5))
    whole = program.run({"input_ids": ids})[0]
    logits, past = stepped(made, ids, (9, 1, 1, 4, 8))
    assert float((logits - whole).abs().max()) <= 1e-5 * float(whole.abs().max())
    # The longest sequence that the caches hold, and as many heads as are left.
    assert {value.shape[2] for value in past.values()} == {23}
    assert all(value.shape[:2] == made.sample[n].shape[:2] for n, value in past.items())
    assert sum(p.numel() for p in made.module.parameters()) == sum(
        p.numel() for p in program.module.parameters()
    )


def test_a_decoder_that_asks_its_mask_which_way_it_goes():
    """BART's decoder alone makes a mask of ones where none is given, and asks for its values."""
    torch.manual_seed(0)
    sizes = {"d_model": 32, "decoder_ffn_dim": 48, "decoder_attention_heads": 4}
    config = BartConfig(vocab_size=60, decoder_layers=2, max_position_embeddings=64, **sizes)
    program = trace(BartForCausalLM(config), copy=True)
    made = decoder(program)
    ids = torch.randint(3, 60, (2, 12), generator=torch.Generator().manual_seed(5))
    whole = program.run({"input_ids": ids})[0]
    logits, past = stepped(made, ids, (5, 1, 6))
    assert float((logits - whole).abs().max()) <= 1e-5 * float(whole.abs().max())
    assert len(past) == 4


def test_the_caches_have_the_size_of_what_is_left():
    program = parse(f"{HALVED} | {SHORTER}").run(family_traced("llama"))
    made = decoder(program)
    assert [public_name(name) for name in made.sample if name.startswith("past")] == [
        "past_key_values.0.key",
        "past_key_values.0.value",
    ]
    assert made.source.outputs == ("logits", "present.0.key", "present.0.value")
    assert made.sample["past_key_values_0_key"].shape == (2, 2, 7, 8)


def test_tensors_are_shared():
    program = family_traced("llama")
    made = decoder(program)
    for path, value in program.module.named_parameters():
        assert made.tensor(path).data_ptr() == value.data_ptr()


def test_variants_of_one_model_leave_each_other_alone():
    """The trace they begin with is kept by config; what is done to one must not show in the next."""
    dense, less = family_traced("llama"), parse(f"{HALVED} | {PACKED}").run(family_traced("llama"))
    first = decoder(dense)
    text, outputs = to_text(first), first.run()
    small = decoder(less)
    again = decoder(dense)
    assert to_text(small) != text == to_text(first) == to_text(again)
    assert all(torch.equal(a, b) for a, b in zip(outputs, first.run(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(outputs, again.run(), strict=True))
    other = {**dense.source.config, "rms_norm_eps": 0.1}
    dense.source = replace(dense.source, config=other)
    with pytest.raises(VerifyError, match="the program with a cache gives logits that differ by"):
        decoder(dense)


def test_a_folded_bias_comes_along():
    program = family_traced("llama")
    draw = torch.Generator().manual_seed(1)
    words = TextData(torch.randint(0, 60, (240,), generator=draw), 12)
    parse(
        "insert-probes | calibrate{samples=8} | insert-masks{of=heads,channels} | "
        "choose-masks{of=heads,channels score=fluctuation sparsity=0.5} | insert-bias | "
        "choose-bias | remove-probes | fold-bias | prune-heads | prune-channels"
    ).run(program, Context(data=words))
    assert program.has("model.layers.0.mlp.down_proj.bias")
    made = decoder(program)
    ids = torch.randint(0, 60, (1, 8), generator=torch.Generator().manual_seed(5))
    logits, _ = stepped(made, ids, (5, 3))
    torch.testing.assert_close(logits, program.run({"input_ids": ids})[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "chosen", "feature"),
    [
        ("llama", "insert-adapters{ratio=0.2} | choose-adapters{by=naive}", "adapters"),
        ("gpt2", "insert-slorb{k=8} | choose-slorb", "slorb"),
    ],
)
@pytest.mark.parametrize("packs", [False, True])
def test_branches_beside_packed_weights_come_along(family, chosen, feature, packs):
    program = family_traced(family)
    sparse = f"insert-masks | choose-masks{{pattern=2:4}} | {chosen} | fold-masks | pack-nm"
    parse(f"{sparse} | {ROUNDED.format(feature.rstrip('s'))}" if packs else sparse).run(program)
    made = decoder(program)
    assert made.features == {"packed", feature}
    ids = torch.randint(0, 60, (2, 11), generator=torch.Generator().manual_seed(5))
    whole = program.run({"input_ids": ids})[0]
    logits, _ = stepped(made, ids, (6, 1, 4))
    assert float((logits - whole).abs().max()) <= 1e-5 * float(whole.abs().max())
    branches = [path for path, _ in program.tensors() if feature.rstrip("s") in path]
    assert branches
    assert all(made.tensor(path).data_ptr() == program.tensor(path).data_ptr() for path in branches)


def test_packed_ends_come_along():
    program = family_traced("llama")
    ends = "insert-quantizers{values=int8 group=32 ends=true} | choose-scales | pack-dense"
    parse(f"{PACKED} | {ends}").run(program)
    made = decoder(program)
    assert made.features == {"packed"}
    assert [view.is_table for view in block_weights(made)] == [True, False]
    for view in block_weights(program):
        for path in (view.codes, view.scales):
            assert made.tensor(path).data_ptr() == program.tensor(path).data_ptr()


def test_what_cannot_be_decoded():
    old = OpenAIGPTConfig(vocab_size=60, n_positions=32, n_embd=32, n_layer=1, n_head=2)
    with pytest.raises(TraceError, match="BertForSequenceClassification does not generate"):
        decoder(family_traced("bert"))
    with pytest.raises(TraceError, match="has no cache that a decoder could carry along"):
        decoder(trace(OpenAIGPTLMHeadModel(old).eval()))
    with pytest.raises(TraceError, match=r"still holds mask\.weights; fold or remove it first"):
        decoder(parse("insert-masks").run(family_traced("llama")))
    plain = trace(torch.nn.Linear(4, 4), {"input": torch.randn(2, 4)})
    with pytest.raises(TraceError, match="Linear is no class of transformers"):
        decoder(plain)


def test_a_model_that_writes_ids_it_does_not_take_is_refused():
    """It reads words, and writes pieces of sound."""
    sounding = small_model("higgs_audio_v2", "AutoModel")
    with pytest.raises(TraceError, match="chooses among 8,192 ids and takes 96: what it writes is"):
        decoder(trace(sounding))
