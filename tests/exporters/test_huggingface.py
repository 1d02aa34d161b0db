"""Stock `from_pretrained` loads the folder and gives the program's outputs, or we refuse."""

import json

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from exporters.huggingface import Huggingface
from sparsify.engine.contract import Context
from sparsify.engine.export import write_checked
from sparsify.engine.pipeline import parse
from sparsify.errors import ExportError
from sparsify.ir.axes.groups import heads
from sparsify.ir.axes.shrink.keep import Keep
from sparsify.ir.axes.shrink.shrink import shrink
from sparsify.ir.axes.walk import analyse
from sparsify.ir.trace.trace import trace
from sparsify.pretrained.quiet import quiet
from sparsify.tensors.precision import relative_difference
from tests.ir.axes.families import traced as family_traced


def stock(program, folder):
    name = program.source.model_class
    if name.endswith("ForSequenceClassification"):
        auto = AutoModelForSequenceClassification
    else:
        auto = AutoModel if name == "BertModel" else AutoModelForCausalLM
    with quiet():
        return auto.from_pretrained(folder).eval()


def check_stock(program, folder):
    model = stock(program, folder)
    assert type(model).__name__ == program.source.model_class
    inputs = program.complete({"input_ids": torch.arange(3, 75).view(4, 18) % 60})
    with torch.no_grad():
        result = model(**inputs)
    for name, wanted in zip(program.source.outputs, program.run(inputs), strict=True):
        assert relative_difference(wanted, result[name]) <= 1e-6


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def test_unpruned(family, programs, tmp_path):
    program = programs(family)
    folder = write_checked(Huggingface(), program, tmp_path)
    check_stock(program, folder)
    config = config_of(folder)
    assert config["architectures"] == [program.source.model_class]
    assert config["dtype"] == "float32"
    if "rope_parameters" in config:
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10000.0
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt", "sparsify.pipeline": "said{so=true}"}
        names = set(file.keys())
    own = {name for name, _ in stock(program, folder).named_parameters()}
    assert names == own  # tied weights once
    assert "sparsity_config" not in config


@pytest.mark.parametrize(
    ("family_", "entry", "size"),
    [
        ("llama", "intermediate_size", 86),
        ("gpt2", "n_inner", 128),
        ("opt", "ffn_dim", 128),
        ("bert", "intermediate_size", 128),
        ("bert_classifier", "intermediate_size", 128),
    ],
)
def test_fewer_channels(family_, entry, size, pruned, tmp_path):
    program = pruned(family_, "channels")
    folder = write_checked(Huggingface(), program, tmp_path)
    assert config_of(folder)[entry] == size
    check_stock(program, folder)


@pytest.mark.parametrize(("family_", "size"), [("llama", 8), ("qwen2", 8), ("qwen3", 16)])
def test_fewer_heads(family_, size, pruned, tmp_path):
    program = pruned(family_, "heads")
    folder = write_checked(Huggingface(), program, tmp_path)
    config = config_of(folder)
    heads = [config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim")]
    assert heads == [4, 2, size]
    check_stock(program, folder)


@pytest.mark.parametrize(
    ("family_", "kind", "entry", "size"),
    [
        ("llama", "hidden", "hidden_size", 32),
        ("mixtral", "hidden", "hidden_size", 32),
        ("mixtral", "experts", "num_local_experts", 3),
        ("qwen2-moe", "experts", "num_experts", 3),
    ],
)
def test_a_smaller_width_and_fewer_experts(family_, kind, entry, size, tmp_path):
    program = parse(
        f"insert-masks{{of={kind}}} | choose-masks{{of={kind} sparsity=0.5}} | prune-{kind}"
    ).run(family_traced(family_))
    folder = write_checked(Huggingface(), program, tmp_path)
    assert config_of(folder)[entry] == size
    check_stock(program, folder)
    if kind == "experts":  # one by one, as checkpoints have them that older releases read
        with safe_open(folder / "model.safetensors", "pt") as file:
            names = list(file.keys())
        experts = {name.partition(".experts.")[2].partition(".")[0] for name in names}
        assert experts == {"", "0", "1", "2"}


@pytest.mark.parametrize(
    ("family_", "said"),
    [
        ("gpt2", "no config of GPT2LMHeadModel has the program's shapes"),
        # The class multiplies embeddings by the root of the width.
        (
            "gemma3",
            "or a scale that it computes from a size, is another in the program",
        ),
    ],
)
def test_a_smaller_width_that_no_config_can_say(family_, said, tmp_path):
    program = parse(
        "insert-masks{of=hidden} | choose-masks{of=hidden sparsity=0.5} | prune-hidden"
    ).run(family_traced(family_))
    with pytest.raises(ExportError, match=said):
        write_checked(Huggingface(), program, tmp_path)


@pytest.mark.parametrize(("family_", "entry"), [("gpt2", "n_head"), ("opt", "num_attention_heads")])
def test_fewer_heads_that_no_shape_shows(family_, entry, tmp_path):
    """Half of the width and half of the heads: as many heads of half the size have the same shapes."""
    kinds = "heads,hidden"
    program = parse(
        f"insert-masks{{of={kinds}}} | choose-masks{{of={kinds} sparsity=0.5}} | prune-heads | prune-hidden"
    ).run(family_traced(family_))
    folder = write_checked(Huggingface(), program, tmp_path)
    assert config_of(folder)[entry] == 2
    check_stock(program, folder)


def test_traced_again_is_the_same_program(pruned, tmp_path):
    program = pruned("llama", "channels")
    folder = write_checked(Huggingface(), program, tmp_path)
    again = trace(stock(program, folder))
    assert all(torch.equal(again.tensor(path), value) for path, value in program.tensors())


@pytest.mark.parametrize("family_", ["gpt2", "opt", "bert"])
def test_heads_that_no_config_can_say(family_, pruned, tmp_path):
    program = pruned(family_, "heads")
    with pytest.raises(ExportError) as caught:
        write_checked(Huggingface(), program, tmp_path)
    said = str(caught.value)
    assert said.startswith(f"no config of {program.source.model_class} has the program's shapes: ")
    assert ".weight is [" in said
    assert said.endswith("more; export to onnx or safetensors")
    assert list(tmp_path.iterdir()) == []


def test_uneven_layers(pruned, tmp_path):
    with pytest.raises(ExportError) as caught:
        write_checked(Huggingface(), pruned("llama", "channels", "first"), tmp_path)
    assert "mlp.down_proj.weight is [64, " in str(caught.value)
    assert str(caught.value).endswith(
        "prune every layer to the same sizes, or export to onnx or safetensors"
    )


def test_a_number_of_heads_that_the_class_refuses(programs, tmp_path):
    program = programs("llama")
    keep = Keep()
    for attention in heads(analyse(program)):
        keep.heads(attention, range(6))
    shrink(program, keep)
    with pytest.raises(ExportError, match=r"it refuses num_attention_heads=6: .*not a multiple of"):
        write_checked(Huggingface(), program, tmp_path)


def test_shapes_fit_but_the_function_does_not(programs, tmp_path):
    program = programs("llama")
    other = program.source.config | {"rms_norm_eps": 0.5}
    program.source = type(program.source)(
        other, program.source.model_class, program.source.output_class, program.source.outputs
    )
    with pytest.raises(ExportError, match="has the program's shapes, but its model gives outputs"):
        write_checked(Huggingface(), program, tmp_path)


def test_plain_module(tmp_path):
    program = trace(torch.nn.Linear(4, 4), {"input": torch.randn(2, 4)})
    with pytest.raises(ExportError, match="traced from Linear; export to onnx or safetensors"):
        write_checked(Huggingface(), program, tmp_path)


def test_tokenizer_and_generation_config(programs, tokenizer, tmp_path):
    program = programs("llama")
    program.tokenizer = tokenizer
    folder = write_checked(Huggingface(), program, tmp_path)
    found = {path.name for path in folder.iterdir()}
    assert {"config.json", "model.safetensors", "generation_config.json"} <= found
    assert {"tokenizer.json", "tokenizer_config.json"} <= found


@pytest.mark.parametrize(
    ("family_", "count", "last"),
    [
        ("llama", "num_hidden_layers", "model.layers.0.mlp.down_proj.weight"),
        ("qwen3", "num_hidden_layers", "model.layers.0.mlp.down_proj.weight"),  # says `layer_types`
        ("gpt2", "n_layer", "transformer.h.0.mlp.c_proj.weight"),
        ("distilbert", "n_layers", "distilbert.transformer.layer.1.ffn.lin2.weight"),
    ],
)
def test_layers_that_stay_are_numbered_without_gaps(family_, count, last, tmp_path):
    program = parse("insert-masks{of=layers}").run(family_traced(family_))
    program.tensor(f"{last}_layers_mask").fill_(False)
    parse("prune-layers").run(program)
    folder = write_checked(Huggingface(), program, tmp_path)
    assert config_of(folder)[count] == 1
    check_stock(program, folder)
    model = stock(program, folder)
    assert not any(last.replace(".0.", ".1.") in name for name in model.state_dict())
    assert program.has(last.replace(".0.", ".1.")) == (".0." in last)  # the program keeps its names


def test_removed_blocks_are_refused(programs, tmp_path):
    program = parse(
        "insert-masks{of=blocks} | choose-masks{of=blocks sparsity=0.25} | prune-layers{of=blocks}"
    ).run(programs("llama"), Context())
    with pytest.raises(
        ExportError, match="cannot leave out the 1 blocks that prune-layers removed"
    ):
        write_checked(Huggingface(), program, tmp_path)
