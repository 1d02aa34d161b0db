"""An adapter named by itself is merged into a model, and a hub id may be asked for at a revision."""

import json
import logging
import shutil

import pytest
import torch
from huggingface_hub import constants

from sparsify.errors import DataError, OptionError
from sparsify.pretrained.load import load_model
from sparsify.pretrained.quiet import quiet

# peft asks the model library by a name that it is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
IDS = torch.arange(3, 12)[None]
ABOUT = "adapter_config.json"


@pytest.fixture(scope="module")
def base(build, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "small"
    with quiet():
        build("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def adapter(build, base, tmp_path):
    """The folder of an adapter of the base, and the logits of the base with it."""
    peft = pytest.importorskip("peft")

    def make(config=None):
        how = config or peft.LoraConfig(
            target_modules=["q_proj", "up_proj"], r=4, init_lora_weights=False
        )
        adapted = peft.get_peft_model(build("llama"), how).eval()
        adapted.save_pretrained(tmp_path / "adapter")
        state(tmp_path / "adapter", base_model_name_or_path=str(base))
        return tmp_path / "adapter", adapted(IDS).logits

    return make


def state(folder, **entries):
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps({**about, **entries}))


def refusal(error, name, **options):
    with pytest.raises(error) as caught:
        load_model(str(name), **options)
    return str(caught.value)


def test_an_adapter_is_put_on_a_model(base, adapter, caplog):
    folder, wanted = adapter()
    plain = load_model(str(base))[0](IDS).logits
    model, _ = load_model(str(base), adapter=str(folder))
    assert torch.allclose(model(IDS).logits, wanted, atol=1e-5)
    assert not torch.allclose(plain, wanted, atol=1e-2)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert model.config._name_or_path == str(base)
    assert [record for record in caplog.records if record.name == "sparsify"] == []


def test_an_adapter_of_a_model_of_another_name_is_said(base, adapter, caplog):
    folder, wanted = adapter()
    state(folder, base_model_name_or_path="some/other")
    with caplog.at_level(logging.WARNING, logger="sparsify"):
        model, _ = load_model(str(base), adapter=str(folder))
    assert torch.allclose(model(IDS).logits, wanted, atol=1e-5)
    assert caplog.messages == [
        f"the adapter in '{folder}' was trained on 'some/other', and is put on '{base}'"
    ]


def test_the_adapter_beside_a_model_and_another_one(base, adapter, tmp_path):
    folder, _ = adapter()
    both = tmp_path / "small"
    shutil.copytree(base, both)
    for path in folder.glob("adapter_*"):
        shutil.copy(path, both)
    assert "give merge_adapter=True" in refusal(DataError, both, adapter=str(folder))
    twice, _ = load_model(str(both), merge_adapter=True, adapter=str(folder))
    once, plain = load_model(str(both), merge_adapter=True)[0], load_model(str(base))[0]
    name = "model.layers.0.mlp.up_proj.weight"
    step = once.get_parameter(name) - plain.get_parameter(name)
    assert torch.allclose(twice.get_parameter(name), plain.get_parameter(name) + 2 * step)


def test_adapters_that_do_not_fit(base, adapter, build, tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    assert refusal(DataError, base, adapter="none") == (
        "'none' holds no adapter (adapter_config.json); name a folder that peft has saved one in"
    )
    folder, _ = adapter(peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3))
    assert refusal(DataError, base, adapter=str(folder)) == (
        f"the adapter in '{folder}' could not be merged: "
        "a PROMPT_TUNING adds tokens, which no weight can hold"
    )
    shutil.rmtree(folder)
    folder, _ = adapter()
    with quiet():
        build("gpt2").save_pretrained(tmp_path / "other")
    said = refusal(DataError, tmp_path / "other", adapter=str(folder))
    assert said.startswith(f"the adapter in '{folder}' could not be merged: Target modules ")
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    assert refusal(DataError, base, adapter=str(folder)) == (
        f"merging the adapter in '{folder}' needs the package 'peft'; "
        'run: pip install "sparsify-fx[peft]"'
    )


@pytest.fixture
def hub(base, tmp_path, monkeypatch):
    """A cache of the hub that holds `me/small` at `main` and, with weights of zeros, at `v1`."""
    root = tmp_path / "models--me--small"
    (root / "refs").mkdir(parents=True)
    for name, commit in (("main", "a" * 40), ("v1", "b" * 40)):
        (root / "refs" / name).write_text(commit)
        shutil.copytree(base, root / "snapshots" / commit)
    with quiet():
        model, _ = load_model(str(base))
        torch.nn.init.zeros_(model.lm_head.weight)
        model.save_pretrained(root / "snapshots" / ("b" * 40))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_hub_id_at_a_revision(hub):
    main, old = load_model("me/small")[0], load_model("me/small", revision="v1")[0]
    assert bool(main.lm_head.weight.any())
    assert not bool(old.lm_head.weight.any())
    said = refusal(DataError, "me/small", revision="v2")
    assert said.startswith("no model could be loaded from 'me/small': ")


def test_a_revision_is_of_a_hub_id(base):
    for name in (base, "embedded"):
        assert refusal(OptionError, name, revision="v1") == (
            f"'{name}' lies on this disk; --revision is for hub ids"
        )
