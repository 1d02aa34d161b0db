"""`--adapter` and `--revision`: of the model that a verb opens first, and of no file that we have written."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from sparsify.ir.storage.folder import load
from sparsify.pretrained.quiet import quiet

# peft asks the model library by a name that it is giving up.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
MASKS = "insert-masks | choose-masks{sparsity=0.5} | fold-masks"
NAME = "model.layers.0.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def adapter(model, tmp_path_factory):
    """A folder with an adapter of the model, and the weight NAME with it."""
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapter")
    with quiet():
        whole = AutoModelForCausalLM.from_pretrained(model)
    how = peft.LoraConfig(target_modules=["up_proj"], r=2, init_lora_weights=False)
    adapted = peft.get_peft_model(whole, how)
    adapted.save_pretrained(folder)
    return folder, adapted.merge_and_unload().get_parameter(NAME).detach()


@pytest.fixture(scope="module")
def out(model, adapter, cli, tmp_path_factory):
    """The folder of a run on the model with its adapter."""
    folder = tmp_path_factory.mktemp("out") / "out"
    code, _, error = cli(
        "run", "--model", model, "--adapter", adapter[0], "--pipeline", MASKS, "--out", folder
    )
    assert (code, error) == (0, "")
    return folder


def test_a_run_is_of_the_model_with_its_adapter(model, adapter, out, cli, tmp_path):
    weight = load(out / "safetensors").tensor(NAME)
    kept = weight != 0
    assert float(kept.float().mean()) == pytest.approx(0.5, abs=0.01)
    assert torch.allclose(weight[kept], adapter[1][kept])
    assert json.loads((out / "run.json").read_text())["adapter"] == adapter[0].name
    assert f"adapter: {adapter[0]}" in (out / "run.yaml").read_text()
    again = tmp_path / "again"
    assert cli("run", "--config", out / "run.yaml", "--out", again)[0] == 0
    assert torch.equal(load(again / "safetensors").tensor(NAME), weight)


def test_of_two_models_the_first_has_it(model, adapter, cli, text, tmp_path):
    words = ["--to", "huggingface", "--out", tmp_path / "made", "--adapter", adapter[0]]
    assert cli("export", model, *words)[0] == 0
    with quiet():
        made = AutoModelForCausalLM.from_pretrained(tmp_path / "made" / "huggingface")
    assert torch.allclose(made.get_parameter(NAME), adapter[1])
    words = ["--base", model, "--experts", f"{model},{model}", "--adapter", adapter[0]]
    words += ["--rank", "2", "--others", "mean", "--out", tmp_path / "fused"]
    assert cli("fuse", *words)[0] == 0


@pytest.mark.parametrize(("option", "value"), [("--adapter", "ADAPTER"), ("--revision", "v1")])
def test_what_we_have_written_takes_neither(option, value, adapter, out, text, cli):
    given = adapter[0] if value == "ADAPTER" else value
    place = out / "safetensors"
    said = (
        f"error: '{place}' holds what we have written, and {option} is for Hugging Face models; "
        "give it where the model is first opened\n"
    )
    assert cli("show", out, option, given) == (1, "", said)
    assert cli("eval", out, "--data", text, option, given) == (1, "", said)
    words = ["bench", out, "--against", "embedded", "--tokens", "1", option, given]
    assert cli(*words) == (1, "", said)


def test_a_revision_of_a_folder(model, cli):
    said = f"error: '{model}' lies on this disk; --revision is for hub ids\n"
    assert cli("show", model, "--revision", "v1") == (1, "", said)
