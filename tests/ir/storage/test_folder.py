import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from sparsify.engine.pipeline import parse
from sparsify.errors import DataError
from sparsify.ir.mode import set_training
from sparsify.ir.storage import folder as store
from sparsify.ir.storage.folder import is_program, load, save
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace


def assert_same(found, wanted):
    assert to_text(found) == to_text(wanted)
    one, two = dict(found.tensors()), dict(wanted.tensors())
    assert list(one) == list(two) or set(one) == set(two)
    for path, value in two.items():
        assert one[path].dtype == value.dtype, path
        assert torch.equal(one[path], value), path
        assert isinstance(one[path], nn.Parameter) == isinstance(value, nn.Parameter), path
        assert one[path].requires_grad == value.requires_grad, path
    for name in ("features", "plan", "log", "aliases", "dynamic", "source"):
        assert getattr(found, name) == getattr(wanted, name), name
    assert list(found.sample) == list(wanted.sample)
    assert all(torch.equal(found.sample[k], v) for k, v in wanted.sample.items())
    for a, b in zip(found.run(), wanted.run(), strict=True):
        assert torch.equal(a, b)


def edit(folder, change):
    path = folder / "program.json"
    about = json.loads(path.read_text())
    change(about)
    path.write_text(json.dumps(about))


def sentence(folder):
    with pytest.raises(DataError) as caught:
        load(folder)
    return str(caught.value)


@pytest.fixture
def saved(traced, tmp_path):
    return save(parse("insert-masks").run(traced("mlp")), tmp_path / "p")


def test_round_trip_of_every_family(family, traced, tmp_path):
    program = traced(family)
    assert_same(load(save(program, tmp_path / "p")), program)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_round_trip_of_dtypes(dtype, tiny_module, tmp_path):
    program = trace(tiny_module("mlp").to(dtype), {"x": torch.ones(2, 3, 8, dtype=dtype)})
    assert_same(load(save(program, tmp_path / "p")), program)


def test_round_trip_of_features_masks_plan_and_log(traced, text, tmp_path):
    program = parse(
        "insert-probes{gram=true} | insert-masks{of=weights,channels,heads} | insert-lora{rank=2} | "
        "choose-masks{sparsity=0.4} | choose-masks{of=heads sparsity=0.5}"
    ).run(traced("llama"))
    again = load(save(program, tmp_path / "p"))
    assert_same(again, program)
    assert len(again.log) == 5
    assert not bool(again.tensor("model.layers.0.self_attn.o_proj.weight_heads_mask").all())


def test_round_trip_of_a_pruned_program_and_its_plan(traced, tmp_path):
    program = parse(
        "insert-masks{of=heads,channels} | choose-masks{of=heads sparsity=0.5} | "
        "choose-masks{of=channels sparsity=0.3} | prune-heads | prune-channels"
    ).run(traced("qwen3"))
    assert len(program.plan["axes"]) == 2
    assert_same(load(save(program, tmp_path / "p")), program)


def test_frozen_parameters_stay_frozen(traced, tmp_path):
    program = traced("mlp")
    program.tensor("up.bias").requires_grad_(False)
    assert_same(load(save(program, tmp_path / "p")), program)


def test_masks_take_one_bit_on_disk(saved):
    stored = load_file(saved / "tensors.safetensors")
    assert stored["bits:up.weight_mask"].dtype == torch.uint8
    assert stored["bits:up.weight_mask"].numel() == 12 * 8 // 8


class WithBuffer(nn.Module):
    """Keeps a table that its state dict does not."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(4.0), persistent=False)

    def forward(self, x):
        return x * self.table


def test_buffers_outside_the_state_dict_are_kept(tmp_path):
    program = trace(WithBuffer(), {"x": torch.ones(2, 4)})
    again = load(save(program, tmp_path / "p"))
    assert_same(again, program)
    assert torch.equal(again.tensor("table"), torch.arange(4.0))


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_dropout_survives_the_disk(family, traced, tmp_path):
    program = traced(family)
    again = load(save(program, tmp_path / "p"))
    results = []
    for p in (program, again):
        set_training(p.module, True)
        torch.manual_seed(1)
        results.append(p.module(**p.sample)[0])
    assert torch.equal(*results)
    assert not torch.equal(results[0], program.run()[0])


@pytest.mark.parametrize(
    "name", ["os:system", "posix:system", "torch:load", "torch.load", "math:eval"]
)
def test_a_function_that_is_no_op_is_refused(name, saved):
    def change(about):
        node = next(n for n in about["graph"] if n["target"] == "aten.gelu.default")
        node["target"], node["args"] = name, ["touch /tmp/never"]

    edit(saved, change)
    assert sentence(saved).endswith(f": it calls '{name}', which is not an op of a program")


@pytest.mark.parametrize("kind", ["call_method", "call_module"])
def test_other_kinds_of_nodes_are_refused(kind, saved):
    edit(saved, lambda about: about["graph"][-2].update(op=kind, target="cpu"))
    assert sentence(saved).endswith(f": the kind '{kind}' of node is unknown")


def test_an_attribute_that_is_no_tensor_is_refused(saved):
    edit(saved, lambda about: about["graph"][0].update(target="__class__"))
    assert sentence(saved).endswith("the tensor '__class__' has no name that a tensor may have")


def test_damaged_folders(saved, tmp_path):
    assert sentence(tmp_path / "nowhere") == f"'{tmp_path / 'nowhere'}' has no program.json"
    tensors = saved / "tensors.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[: len(whole) // 2])
    assert sentence(saved).startswith(f"'{tensors}' is damaged: ")
    tensors.unlink()
    assert sentence(saved) == f"'{saved}' has no tensors.safetensors"
    (saved / "program.json").write_text("{")
    assert sentence(saved).startswith(f"'{saved / 'program.json'}' is damaged or not ours: ")


def test_foreign_and_newer_files(saved):
    edit(saved, lambda about: about.update(version=99))
    assert sentence(saved) == f"'{saved}' has format version 99; this sparsify reads 1"
    (saved / "program.json").write_text('{"model_type": "x"}')
    assert sentence(saved) == f"'{saved / 'program.json'}' was not written by sparsify"
    (saved / "program.json").write_text("[1]")
    assert sentence(saved) == f"'{saved / 'program.json'}' was not written by sparsify"


@pytest.mark.parametrize(
    "key", ["graph", "features", "plan", "source", "bits", "parameters", "dynamic"]
)
def test_a_missing_entry(key, saved):
    edit(saved, lambda about: about.pop(key))
    assert sentence(saved) == f"'{saved / 'program.json'}' is damaged: it has no '{key}'"


@pytest.mark.parametrize("damage", [
    {"args": None}, {"args": [{"node": 99}]}, {"args": [{"pickle": "x"}]}, {"args": [{"dtype": "load"}]},
])  # fmt: skip
def test_a_damaged_node(damage, saved):
    edit(saved, lambda about: about["graph"][-2].update(damage))
    assert sentence(saved).startswith(f"'{saved / 'program.json'}' is damaged: node ")


def test_a_missing_and_a_superfluous_tensor(saved):
    path = saved / "tensors.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if k != "up.bias"}, path)
    assert sentence(saved) == f"'{path}' lacks the tensor 'up.bias'"
    save_file(tensors | {"extra": torch.ones(2)}, path)
    assert sentence(saved) == f"'{path}' holds the tensor 'extra', which the graph does not read"
    save_file(tensors | {"up.weight": torch.ones(5, 5)}, path)
    assert sentence(saved).startswith(f"'{path}' is damaged: up.weight is not what was written; ")
    with pytest.raises(DataError) as caught:
        load(saved, verify=False)
    assert str(caught.value).startswith(
        f"'{saved}' is damaged: its graph does not fit its tensors: "
    )


def test_an_interrupted_save_leaves_the_old_folder(traced, tmp_path, monkeypatch):
    program = traced("mlp")
    folder = save(program, tmp_path / "p")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "write_json", full)
    with pytest.raises(DataError) as caught:
        save(program, folder, overwrite=True)
    sentence = str(caught.value)
    assert sentence.startswith(f"could not write '{folder}': with 0.")
    assert sentence.endswith(" MB free: No space left on device")
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["p"]


def test_a_full_folder_is_not_overwritten_unasked(traced, saved):
    with pytest.raises(DataError) as caught:
        save(traced("mlp"), saved)
    assert str(caught.value) == (
        f"the folder '{saved}' is not empty; choose another or give --overwrite"
    )
    save(traced("mlp"), saved, overwrite=True)
    assert load(saved).features == frozenset()
    assert is_program(saved)
    assert not is_program(saved.parent)
