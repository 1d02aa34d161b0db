"""Decode variants that carry states: step by step against the program, in ONNX Runtime against the model."""

import pytest
import torch
import transformers

from sparsify.disk.files import notes
from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.errors import TraceError
from sparsify.ir.decode.caches import empty_past, past_inputs
from sparsify.ir.decode.variant import decoder
from sparsify.ir.trace.trace import trace
from sparsify.runtime.caches import GrowingCaches, SharedCaches, empty_caches
from sparsify.runtime.generate import load_onnx
from tests.ir.decode.test_variant import NARROW, SHORTER, stepped
from tests.ir.stateful import MODELS, model, program

TOKENS = 20
PROMPT = torch.tensor([[9, 8, 3, 7, 5, 6], [0, 0, 0, 4, 11, 20]])
MASK = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 0, 1, 1, 1]])
KEYS, MAMBA = ("key", "value"), ("conv", "state")
CHANNELS = "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5} | prune-channels"
HELD = {
    "lfm2": (("conv",), KEYS, ("conv",)),
    "mamba": (MAMBA, MAMBA),
    "mamba2": (MAMBA, MAMBA),
    "jamba": (MAMBA, KEYS),
    "qwen3_next": (MAMBA, KEYS),
    "rwkv": (("state", "state1", "state2", "state3", "state4"),),
}


def _of(layer, kinds):
    return [f"past_key_values_{layer}_{kind}" for kind in kinds]


@pytest.mark.parametrize("name", MODELS)
def test_steps_give_what_the_whole_sequence_gives(name):
    made, whole = decoder(program(name)), program(name)
    assert past_inputs(made) == [x for i, held in enumerate(HELD[name]) for x in _of(i, held)]
    ids = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(3))
    logits = whole.run({"input_ids": ids})[0]
    found, caches = stepped(made, ids, (4, 1, 1, 3))
    assert (found - logits).abs().max() < 1e-4 * logits.abs().max()
    # The states matter: from empty ones the second half is another.
    alone, _ = stepped(made, ids[:, 4:], (5,))
    assert (alone - logits[:, 4:]).abs().max() > 1e-3 * logits.abs().max()
    for cache, start in empty_past(made, 2).items():
        grown = cache.endswith(KEYS)
        assert caches[cache].shape[2] == (9 if grown else start.shape[2])


@pytest.mark.parametrize("name", MODELS)
def test_it_writes_what_the_model_writes(name, tmp_path):
    folder = export(program(name), tmp_path, ["onnx-decode"])["onnx-decode"]
    found = load_onnx(folder, threads=1)
    caches = empty_caches(found.session, 1, 9)
    assert isinstance(caches, SharedCaches if KEYS in HELD[name] else GrowingCaches)
    for ids, mask in ((PROMPT[:1], MASK[:1]), (PROMPT, MASK)):
        options = {"max_new_tokens": TOKENS, "do_sample": False, "pad_token_id": 0}
        # The library's own steps through RWKV's state mix the rows of a batch.
        options["use_cache"] = name != "rwkv"
        model(name).generation_config.eos_token_id = None
        wanted = model(name).generate(ids, attention_mask=mask, **options)
        made = found.generate(ids, mask=mask, tokens=TOKENS, stop=[])
        assert torch.equal(made.ids, wanted)
    assert notes(folder) == [
        "onnxruntime-genai and Optimum do not run this model, since its layers carry states that are no "
        "keys or values: there is no genai_config.json"
    ]
    assert not (folder / "genai_config.json").exists()


@pytest.mark.parametrize(
    ("name", "pipeline"), [("lfm2", SHORTER), ("lfm2", NARROW), ("mamba", CHANNELS)]
)
def test_what_passes_removed_is_gone_from_the_variant(name, pipeline):
    made = parse(pipeline).run(program(name), Context())
    ids = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(3))
    wanted = made.run({"input_ids": ids})[0]
    variant = decoder(made)
    found, _ = stepped(variant, ids, (4, 1, 4))
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()
    if pipeline is CHANNELS:
        assert variant.sample["past_key_values_0_conv"].shape[1] == 32
        assert variant.sample["past_key_values_0_state"].shape[1] == 32
    if pipeline is SHORTER:
        layers = {name.split("_")[3] for name in past_inputs(variant)}
        assert layers == {str(i) for i in range(3 - len(made.plan["layers"][0]))}


@pytest.mark.parametrize(
    ("gone", "left"),
    [(0, [*_of(0, KEYS), *_of(1, ("conv",))]), (1, [*_of(0, ("conv",)), *_of(1, ("conv",))])],
)
def test_layers_of_any_kind_go(gone, left):
    """Without its attention a variant measures nothing by caches; masks are still as long as the text."""
    made = program("lfm2")
    with torch.no_grad():
        for path, value in made.tensors():
            if path.startswith(f"model.layers.{gone}.") and value.dim() > 1:
                value.mul_(1e-3)
    parse(SHORTER).run(made, Context())
    assert made.plan["layers"] == [[f"model.layers.{gone}.feed_forward.w2.weight_layers_mask"]]
    ids = torch.randint(1, 64, (2, 9), generator=torch.Generator().manual_seed(3))
    wanted = made.run({"input_ids": ids})[0]
    variant = decoder(made)
    assert past_inputs(variant) == left
    found, _ = stepped(variant, ids, (4, 1, 4))
    assert (found - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_a_prompt_that_a_state_would_have_to_begin_with_is_refused():
    made = parse("insert-prompt{tokens=2 init=words}").run(program("lfm2"), Context())
    decoder(made.clone())  # switched off it is nothing
    parse("choose-prompt").run(made, Context())
    with pytest.raises(TraceError, match="'past_key_values_0_conv' is a state that would begin"):
        decoder(made)


def indexed():
    """Attention that picks four tokens by a short key of each."""
    config = transformers.DeepseekV32Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=48,
        moe_intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        kv_lora_rank=16,
        q_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        index_topk=4,
        index_n_heads=16,  # of a score that none of few heads gives, several tokens would have none
        index_head_dim=16,
        first_k_dense_replace=1,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    return transformers.DeepseekV32ForCausalLM(config).eval()


def test_keys_by_which_tokens_are_picked_are_carried():
    whole = trace(indexed())
    made = decoder(whole)
    kinds = (*KEYS, "index")
    assert past_inputs(made) == [*_of(0, kinds), *_of(1, kinds)]
    assert made.dynamic["past_key_values_0_index"] == {0: "batch", 1: "past"}
    ids = torch.randint(1, 64, (2, 11), generator=torch.Generator().manual_seed(3))
    logits = whole.run({"input_ids": ids})[0]
    found, caches = stepped(made, ids, (5, 1, 1, 4))
    assert (found - logits).abs().max() < 1e-4 * logits.abs().max()
    assert caches["past_key_values_1_index"].shape == (2, 11, 16)
    # They matter: other keys pick other tokens.
    with torch.no_grad():
        for path, value in made.tensors():
            if "indexer.wk" in path:
                value.neg_()
    moved, _ = stepped(made, ids, (5, 1, 1, 4))
    assert (moved - logits).abs().max() > 1e-3 * logits.abs().max()
