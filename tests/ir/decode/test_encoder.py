"""Decode variants of models with an encoder: step by step, and as two graphs, against the whole program."""

import pytest
import torch
import transformers

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import TraceError
from sparsify.ir.decode.caches import cross_names, empty_past, past_inputs, public_name
from sparsify.ir.decode.encoder import crosses, encoder_inputs, parted
from sparsify.ir.decode.variant import decoder
from sparsify.ir.trace.trace import trace
from tests.ir.decode.encoders import MODELS, model, traced

HALVED = (
    "insert-masks{of=heads,channels} | choose-masks{of=heads,channels sparsity=0.5} | "
    "prune-heads | prune-channels"
)
SHORTER = "insert-masks{of=layers} | choose-masks{of=layers sparsity=0.4} | prune-layers"
BLOCKS = "insert-masks{of=blocks} | choose-masks{of=blocks sparsity=0.15} | prune-layers{of=blocks}"
NARROW = "insert-masks{of=hidden} | choose-masks{of=hidden sparsity=0.25} | prune-hidden"
PACKED = "insert-masks | choose-masks{pattern=2:4} | fold-masks | pack-nm"
ADAPTED = "insert-lora{rank=4 alpha=8.0} | fold-lora"


def given_to(program, rows, length):
    """Other inputs of the encoder than the sample's: more rows, another length, padding on the right."""
    draw = torch.Generator().manual_seed(7)
    if "input_ids" in program.sample:
        mask = torch.ones(rows, length, dtype=torch.long)
        mask[0, -3:] = 0
        ids = torch.randint(3, 60, (rows, length), generator=draw)
        return {"input_ids": ids, "attention_mask": mask}
    shape = program.sample["input_features"].shape[1:]
    return {"input_features": torch.randn(rows, *shape, generator=draw)}


def stepped(program, given, ids, pieces):
    """Logits of the decoder's ids fed piece by piece, the encoder run once, each by its own graph."""
    first, then = parted(decoder(program))
    handed = dict(zip(cross_names(crosses(decoder(program))), first.run(given), strict=True))
    read = {name: value for name, value in given.items() if name in then.sample}
    past, found, end = dict(empty_past(then, len(ids))), [], 0
    for piece in pieces:
        start, end = end, end + piece
        logits, *new = then.run({"decoder_input_ids": ids[:, start:end], **read, **past, **handed})
        past = dict(zip(past_inputs(then), new, strict=True))
        found.append(logits)
    return torch.cat(found, 1)


@pytest.mark.parametrize(
    ("name", "pipeline"),
    [
        *((name, f"{HALVED} | {SHORTER} | {PACKED}") for name in MODELS),
        ("bart", HALVED),
        ("t5", ""),
        ("t5", BLOCKS),
        ("whisper", SHORTER),
    ],
    ids=["bart-all", "t5-all", "whisper-all", "bart-halved", "t5", "t5-blocks", "whisper-layers"],
)
def test_two_graphs_are_the_program(name, pipeline):
    program = traced(name)
    if pipeline:
        parse(pipeline).run(program, Context())
    given = given_to(program, 3, 10)
    ids = torch.randint(3, 60, (3, 11), generator=torch.Generator().manual_seed(5))
    wanted = program.run({**given, "decoder_input_ids": ids})[0]
    found = stepped(program, given, ids, (3, 1, 1, 6))
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_a_narrower_model_goes_on():
    """Whisper's hidden size is one for both halves."""
    program = traced("whisper")
    parse(f"{NARROW} | {ADAPTED}").run(program, Context())
    given = given_to(program, 2, 0)
    ids = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(5))
    wanted = program.run({**given, "decoder_input_ids": ids})[0]
    found = stepped(program, given, ids, (2, 4))
    assert float((found - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


def test_each_graph_has_its_own_weights():
    first, then = parted(decoder(traced("t5")))
    held = [{path for path, _ in part.tensors()} for part in (first, then)]
    both = held[0] & held[1]
    assert both == {"lm_head.weight"}  # rows of one table, which the head is too
    assert all(
        path.startswith(("encoder.", "lm_head.")) or "EncDecAttention" in path for path in held[0]
    )
    assert not any("EncDecAttention.k" in path or "EncDecAttention.v" in path for path in held[1])
    assert list(first.sample) == ["input_ids", "attention_mask"]
    assert [name for name in then.sample if "values" not in name] == [
        "attention_mask",
        "decoder_input_ids",
    ]


def test_arguments_that_reach_the_encoder_too_ask_nothing_of_it():
    """This model hands what its forward is told of caches to its encoder, which refuses them."""
    config = transformers.SwitchTransformersConfig(
        vocab_size=60,
        d_model=32,
        d_kv=8,
        d_ff=24,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        num_experts=2,
        decoder_start_token_id=0,
    )
    torch.manual_seed(0)
    made = transformers.SwitchTransformersForConditionalGeneration(config).eval()
    assert crosses(decoder(trace(made))) == 2


def test_names_and_lengths():
    joint = decoder(traced("bart"))
    assert crosses(joint) == 3
    first, then = parted(joint)
    assert first.source.outputs == tuple(public_name(name) for name in cross_names(3))
    assert then.dynamic["cross_key_values_2_value"] == {0: "batch", 2: "length"}
    assert then.dynamic["decoder_input_ids"] == {0: "batch", 1: "target_length"}
    # What is heard has one length here, since the model's code fixes it.
    _, then = parted(decoder(traced("whisper")))
    assert then.dynamic["cross_key_values_0_key"] == {0: "batch"}
    assert then.sample["cross_key_values_0_key"].shape[2] == 20


def test_a_layer_that_goes_takes_what_it_read():
    program = traced("bart")
    with torch.no_grad():  # the middle one of the decoder does next to nothing
        for path, value in program.tensors():
            if "decoder.layers.1" in path and ("out_proj" in path or "fc2" in path):
                value.mul_(1e-3)
    parse("insert-masks{of=layers} | choose-masks{of=layers sparsity=0.2} | prune-layers").run(
        program, Context()
    )
    joint = decoder(program)
    assert crosses(joint) == len(past_inputs(joint)) // 2 == 2
    assert joint.source.outputs[-1] == "cross_key_values.1.value"


def test_a_decoder_that_no_longer_reads_its_encoder_is_refused():
    program = traced("t5")
    with torch.no_grad():
        for path, value in program.tensors():
            if "EncDecAttention.o" in path:
                value.mul_(1e-4)
    parse(BLOCKS.replace("0.15", "0.24")).run(program, Context())
    with pytest.raises(TraceError, match="reads what was encoded any longer"):
        decoder(program)


def test_a_program_without_ids_for_its_decoder_is_refused():
    program = traced("bart")
    del program.sample["decoder_input_ids"]
    with pytest.raises(TraceError, match="no text to go on"):
        encoder_inputs(program)


def test_a_decoder_with_a_mask_is_refused():
    ids = torch.randint(3, 60, (2, 7), generator=torch.Generator().manual_seed(1))
    inputs = {
        "input_ids": ids,
        "decoder_input_ids": ids[:, :5].contiguous(),
        "decoder_attention_mask": torch.ones(2, 5, dtype=torch.long),
    }
    dims = {name: {0: "batch", 1: "length" if name == "input_ids" else "target"} for name in inputs}
    program = trace(model("bart"), inputs, dims, copy=True)
    with pytest.raises(TraceError, match="takes decoder_attention_mask beside its ids"):
        decoder(program)
