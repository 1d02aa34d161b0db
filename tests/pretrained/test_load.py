"""A model is loaded when its files hold exactly what its class wants; all else is said in a sentence."""

import json
import logging
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from sparsify.errors import DataError, TraceError
from sparsify.ir.storage.folder import load, save
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.ir.trace.weightless import trace_weightless
from sparsify.pretrained.load import load_model, load_tokenizer
from sparsify.pretrained.quiet import quiet

UP = "model.layers.1.mlp.up_proj.weight"
PARTIAL = "mend the config or the files, or give allow_partial=True (--allow-partial)"
TRUST = (
    "comes with Python code of its own, which runs only when you say so: read it, then give "
    "trust_remote_code=True (--trust-remote-code)"
)


@pytest.fixture(scope="session")
def saved(build, tmp_path_factory):
    """The folder of a family's model, written once."""
    made = {}

    def write(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            with quiet():
                build(family).save_pretrained(made[family])
        return made[family]

    return write


@pytest.fixture
def changed(saved, tmp_path):
    """A copy of a folder with other tensors and entries of its config."""

    def make(family="llama", tensors=None, **entries):
        place = tmp_path / "model"
        shutil.copytree(saved(family), place)
        if tensors is not None:
            held = tensors(load_file(place / "model.safetensors"))
            save_file(held, place / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((place / "config.json").read_text())
        config.update(entries)
        kept = {key: value for key, value in config.items() if value is not None}
        (place / "config.json").write_text(json.dumps(kept))
        return place

    return make


def without(*names):
    return lambda held: {k: v for k, v in held.items() if k not in names}


def before(prefix):
    return lambda held: {prefix + k: v for k, v in held.items()}


def refusal(place, **options):
    with pytest.raises(DataError) as caught:
        load_model(str(place), **options)
    return str(caught.value)


def test_a_missing_tensor_is_named(changed):
    place = changed(tensors=without(UP))
    assert refusal(place) == (
        f"the tensors of '{place}' are not those of LlamaForCausalLM: 1 missing ({UP}); {PARTIAL}"
    )


def test_what_is_missing_is_random_only_when_asked_and_alike_every_time(changed, caplog):
    place = changed(tensors=without(UP))
    with caplog.at_level(logging.WARNING, logger="sparsify"):
        one, two = (load_model(str(place), allow_partial=True)[0] for _ in range(2))
    assert torch.equal(one.get_parameter(UP), two.get_parameter(UP))
    assert bool(one.get_parameter(UP).any())
    assert caplog.messages[0] == (
        f"the tensors of '{place}' are not those of LlamaForCausalLM: 1 missing ({UP}); "
        "those that are missing are random"
    )


@pytest.mark.parametrize(
    ("prefix", "writer"),
    [("_orig_mod.", ", as torch.compile puts it"), ("module.", ", as DataParallel puts it"),
     ("mine.", "")],
)  # fmt: skip
def test_a_prefix_before_every_name_is_seen(prefix, writer, changed):
    place = changed(tensors=before(prefix))
    assert refusal(place) == (
        f"the tensors of '{place}' are not those of LlamaForCausalLM: "
        "21 missing (lm_head.weight, model.embed_tokens.weight, "
        "model.layers.0.input_layernorm.weight and 18 more), "
        f"21 unexpected ({prefix}lm_head.weight, {prefix}model.embed_tokens.weight, "
        f"{prefix}model.layers.0.input_layernorm.weight and 18 more); "
        f"every name in the files has '{prefix}' before it{writer}; "
        "save the model itself, not what wraps it"
    )


def test_both_shapes_of_a_tensor_of_another_size_are_told(changed):
    place = changed(tensors=lambda held: {**held, UP: held[UP][:90].contiguous()})
    sentence = (
        f"the tensors of '{place}' are not those of LlamaForCausalLM: 1 of another size "
        f"({UP} is [90, 64] in the files and [96, 64] in the model); "
        "config.json and the weights are not of one model"
    )
    assert refusal(place) == sentence
    assert refusal(place, allow_partial=True) == sentence


def test_biases_that_the_config_switches_off_are_unexpected(changed):
    def biased(held):
        return {**held, "model.layers.0.self_attn.q_proj.bias": torch.ones(64)}

    assert "1 unexpected (model.layers.0.self_attn.q_proj.bias)" in refusal(changed(tensors=biased))


def test_a_missing_expert_is_named_by_its_name_in_the_files(changed):
    expert = "model.layers.0.block_sparse_moe.experts.3.w1.weight"
    place = changed("routed", without(expert))
    assert refusal(place) == (
        f"the tensors of '{place}' are not those of MixtralForCausalLM: 1 missing ({expert}); "
        "mend the config or the files"
    )


@pytest.mark.parametrize("family", ["gpt2", "opt", "bert-base", "routed"])
def test_what_a_class_ties_or_gives_up_is_not_missing(family, saved):
    assert load_model(str(saved(family)))[1] is None  # no empty tokenizer either


def test_an_unknown_class_is_refused(changed):
    place = changed(architectures=["LlamaForCausalML"])
    assert refusal(place) == (
        f"'{place}' is a LlamaForCausalML, which transformers {transformers.__version__} does not know; "
        "did you mean 'LlamaForCausalLM'?; install the version that its config.json names"
    )


def test_a_config_without_a_class_means_the_one_that_generates(changed):
    assert type(load_model(str(changed(architectures=None)))[0]).__name__ == "LlamaForCausalLM"


def test_a_config_without_a_class_that_may_mean_several_is_refused(changed):
    place = changed("bert", architectures=None)
    assert refusal(place) == (
        f"the config.json of '{place}' names no class of model, and a bert may be several; "
        'add its class to the file, as in "architectures": ["BertForSequenceClassification"]'
    )


def test_adapters_are_recognised(changed, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    place, alone = changed(), tmp_path / "alone"
    alone.mkdir()
    about = json.dumps({"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "model")})
    for folder in (place, alone):
        (folder / "adapter_config.json").write_text(about)
        assert refusal(folder) == (
            f"'{folder}' holds an adapter (adapter_config.json), which is no part of the weights; "
            "give merge_adapter=True (--merge-adapter) to add it to them, or take it out of the folder"
        )
        assert refusal(folder, merge_adapter=True).endswith(
            "needs the package 'peft'; run: pip install \"sparsify-fx[peft]\""
        )
        with pytest.raises(DataError, match="merge it first: sparsify"):
            trace_weightless(str(folder), "float32")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_an_adapter_is_merged_when_asked(build, changed, tmp_path):
    peft = pytest.importorskip("peft")
    place, alone = changed(), tmp_path / "alone"
    how = peft.LoraConfig(target_modules=["q_proj", "up_proj"], r=4, init_lora_weights=False)
    adapted = peft.get_peft_model(build("llama"), how).eval()
    adapted.save_pretrained(alone)
    shutil.copytree(alone, place, dirs_exist_ok=True)
    about = json.loads((alone / "adapter_config.json").read_text())
    about["base_model_name_or_path"] = str(tmp_path / "model")
    (alone / "adapter_config.json").write_text(json.dumps(about))
    ids = torch.arange(3, 12)[None]
    with pytest.raises(TraceError, match="PeftModel carries adapters"):
        trace(adapted)
    for folder in (place, alone):
        model, _ = load_model(str(folder), merge_adapter=True)
        assert torch.allclose(model(ids).logits, adapted(ids).logits, atol=1e-5)
        assert trace(model).source.model_class == "LlamaForCausalLM"
    held = load_file(alone / "adapter_model.safetensors")
    name = sorted(held)[0]
    del held[name]
    save_file(held, alone / "adapter_model.safetensors", metadata={"format": "pt"})
    assert f"1 missing ({name})" in refusal(alone, merge_adapter=True)


def test_what_wraps_a_model_is_taken_off(build, traced):
    model, wanted = build("llama"), to_text(traced("llama"))
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert to_text(trace(wrapped)) == wanted


def test_a_model_that_carries_adapters_is_not_traced(build):
    model = build("llama")
    model.peft_config = {"default": None}
    with pytest.raises(TraceError) as caught:
        trace(nn.DataParallel(model))
    assert str(caught.value) == (
        "LlamaForCausalLM carries adapters (default), which are no part of the weights; "
        "merge them: save it and give merge_adapter=True to sparsify.load_model"
    )


OWN = """
from transformers import LlamaConfig, LlamaForCausalLM
print("RAN")
class OwnConfig(LlamaConfig):
    model_type = "own"
class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""
AUTO = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}


def test_code_of_others_runs_only_when_asked(changed, tmp_path, monkeypatch, capsys):
    place = changed(architectures=["OwnForCausalLM"], auto_map=AUTO, model_type="own")
    (place / "own.py").write_text(OWN)
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked on standard input"))
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache")
    )
    assert refusal(place) == f"'{place}' {TRUST}"
    with pytest.raises(DataError, match="own, which runs only when you say so"):
        trace_weightless(str(place), "float32")
    assert "RAN" not in capsys.readouterr().out
    assert type(load_model(str(place), trust_remote_code=True)[0]).__name__ == "OwnForCausalLM"
    assert "RAN" in capsys.readouterr().out


def test_code_of_a_tokenizer_is_not_run_by_a_saved_program(traced, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked on standard input"))
    save(traced("llama"), tmp_path / "program")
    (tmp_path / "program" / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own.Own", None]}})
    )
    with pytest.raises(DataError) as caught:
        load(tmp_path / "program")
    assert str(caught.value) == f"the tokenizer of '{tmp_path / 'program'}' {TRUST}"


def test_a_broken_tokenizer_is_not_taken_for_none(changed):
    place = changed()
    assert load_tokenizer(str(place)) is None
    (place / "tokenizer.json").write_text("{")
    with pytest.raises(DataError, match=r"the tokenizer of '.*' could not be loaded: ."):
        load_tokenizer(str(place))


@pytest.mark.parametrize("name", ["", "./none", "/nowhere/x", "no/where/x"])
def test_a_path_that_leads_nowhere_is_called_so(name):
    with pytest.raises(DataError) as error:
        load_model(name)
    assert str(error.value) == f"there is no folder '{name}'; a model is a folder or a hub id"
