"""A stored program is data: whatever it says, nothing of it is run, and one sentence says what is wrong."""

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from sparsify.engine.pipeline import parse
from sparsify.errors import DataError
from sparsify.ir.storage.folder import load, save


@pytest.fixture(scope="module")
def original(traced, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stored") / "p"
    return save(parse("insert-masks").run(traced("mlp")), folder)


@pytest.fixture
def saved(original, tmp_path):
    return shutil.copytree(original, tmp_path / "p")


@pytest.fixture
def sentinel(tmp_path):
    """A file that hostile names would write; it must never be there."""
    path = tmp_path / "sentinel"
    yield path
    assert not path.exists()


def refused(folder, change=None):
    """The sentence that refuses a folder whose document was changed, without the name of the file."""
    path = folder / "program.json"
    if change is not None:
        about = json.loads(path.read_text())
        about.pop("hashes", None)
        change(about)
        path.write_text(json.dumps(about))
    with pytest.raises(DataError) as caught:
        load(folder)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 500
    return text.removeprefix(f"'{path}' is damaged: ")


def node(about, op, target=None):
    found = (n for n in about["graph"] if n["op"] == op and target in (None, n["target"]))
    return next(found)


def rename(about, old, new):
    """Another path for a tensor, everywhere in the document."""
    node(about, "get_attr", old)["target"] = new
    for key in ("parameters", "bits"):
        if old in about[key]:
            about[key][new] = about[key].pop(old)


VECTORS = [
    'x=__import__("os").system("touch {}")',
    'training"), getattr(__import__("os"),"system")("touch {}") #',
    "x: __import__('os').system('touch {}')",
    "*args, y=__import__('os').system('touch {}')",
    "x\n    __import__('os').system('touch {}')\n    y",
    "x.__class__.__init__.__globals__['os'].system('touch {}')",
]


@pytest.mark.parametrize("vector", VECTORS)
def test_code_in_the_name_of_an_input(vector, saved, sentinel):
    name = vector.format(sentinel)

    def change(about):
        node(about, "placeholder")["target"] = name
        about["dynamic"] = {name: about["dynamic"]["x"]}

    assert "'dynamic' is " in refused(saved, change)
    sample = saved / "sample.safetensors"
    save_file({name: load_file(sample)["x"]}, sample)
    assert " has no name that an input may have" in refused(
        saved, lambda about: about.update(dynamic={})
    )


@pytest.mark.parametrize("vector", VECTORS)
def test_code_in_the_name_of_a_tensor(vector, saved, sentinel):
    name, path = vector.format(sentinel), saved / "tensors.safetensors"
    tensors = load_file(path)
    save_file({name: tensors.pop("up.bias"), **tensors}, path)
    assert refused(saved, lambda about: rename(about, "up.bias", name)).startswith(
        "'parameters' is "
    )

    assert " has no name that a tensor may have" in refused(
        saved, lambda about: about["parameters"].pop(name)
    )


@pytest.mark.parametrize("vector", VECTORS)
@pytest.mark.parametrize("key", ["name", "kwargs", "target"])
def test_code_elsewhere_in_a_node(key, vector, saved, sentinel):
    text = vector.format(sentinel)
    value = {text: 1} if key == "kwargs" else text

    def change(about):
        node(about, "call_function")[key] = value

    assert refused(saved, change).startswith("node ")


@pytest.mark.parametrize("name", [
    "self", "torch", "getattr", "class", "None", "x-y", "\uff58", "", "0x", "x" * 600, None, 7, ["x"],
])  # fmt: skip
def test_what_no_input_may_be_called(name, saved):
    def change(about):
        node(about, "placeholder")["target"] = name
        about["dynamic"] = {}

    assert " has no name that an input may have" in refused(saved, change)


@pytest.mark.parametrize("path", [
    "forward", "_parameters.x", "training", "__class__", "graph", "up.forward", "a..b", "", ".", "a.b ",
    "class.x", "a'b", 'a"b', None,
])  # fmt: skip
def test_what_no_tensor_may_be_called(path, saved):
    assert " has no name that a tensor may have" in refused(
        saved,
        lambda about: (
            node(about, "get_attr", "up.bias").update(target=path) or about["parameters"].clear()
        ),
    )


@pytest.mark.parametrize("name", ["getattr", "input"])
def test_a_name_of_a_node_that_means_something(name, saved):
    found = refused(saved, lambda about: node(about, "call_function").update(name=name))
    assert found.endswith(f"the name '{name}' of a node means something in code")


@pytest.mark.parametrize("target", [
    "math:factorial", "math:comb", "operator:pow", "operator:call", "operator:setitem", "operator:lshift",
    "operator:attrgetter", "operator:methodcaller", "operator:iadd", "torch:load", "torch:compile",
    "aten.from_file.default", "aten.add_.Tensor", "aten.resize_.default", "aten.rand.default",
    "aten.set_.source_Tensor", "prims.iota.default", "os:system",
])  # fmt: skip
def test_functions_that_no_program_calls(target, saved):
    def change(about):
        node(about, "call_function").update(target=target, args=[7, 10**8], kwargs={})

    assert refused(saved, change).endswith(
        f": it calls '{target}', which is not an op of a program"
    )


@pytest.mark.parametrize(("target", "args", "why"), [
    ("operator:mul", ["ab", 10**9], "arithmetic on what is no number"),
    ("operator:mul", [[1], 10**9], "arithmetic on what is no number"),
    ("operator:mul", [{"node": 0}, 10**9], "arithmetic on node 0, which is not a size"),
    ("operator:add", [2**70, 1], f"the argument {2**70} is none of a graph"),
    ("operator:getitem", [{"node": 0}, {"node": 0}], "an item is picked from a node by a number"),
    ("operator:getitem", [[1], 0], "an item is picked from a node by a number"),
    ("aten.gelu.default", [{"node": 10**6}], "the argument {'node': 1000000} is none of a graph"),
    ("aten.gelu.default", [{"node": True}], "the argument {'node': True} is none of a graph"),
    ("aten.gelu.default", [{"dtype": "load"}], "the argument {'dtype': 'load'} is none of a graph"),
    ("aten.gelu.default", [{"pickle": "x"}], "the argument {'pickle': 'x'} is none of a graph"),
    ("aten.gelu.default", [float("nan")], "the argument nan is none of a graph"),
    ("aten.gelu.default", [[[[[[[[1]]]]]]]], "the argument [1] is none of a graph"),
    ("aten.gelu.default", [1] * 9, "too many arguments"),
    ("aten.softmax.int", [{"node": 0}, 2, -1], "'aten.softmax.int' takes no -1 for its dtype"),
])  # fmt: skip
def test_arguments_that_no_graph_holds(target, args, why, saved):
    def change(about):
        node(about, "call_function").update(target=target, args=args, kwargs={})

    assert refused(saved, change).endswith(f": {why}")


@pytest.mark.parametrize(("target", "args"), [
    ("aten.zeros.default", [[10**12]]),
    ("aten.arange.default", [10**15]),
    ("aten.new_ones.default", [{"node": 0}, [2**62, 2**62]]),
    ("aten.split.Tensor", [{"node": 0}, 0]),
])  # fmt: skip
def test_tensors_without_end_are_never_made(target, args, saved):
    def change(about):
        call = {"op": "call_function", "kwargs": {}, "module": ""}
        about["graph"].insert(1, {**call, "name": "huge", "target": target, "args": args})
        for entry in about["graph"][2:]:
            entry["args"] = moved(entry["args"], 0)

    text = refused(saved, change)
    assert text.startswith(f"'{saved}' is damaged: its graph does not fit its tensors: ")


def moved(value, after, by=1):
    """Every node after the one at `after`, `by` further on."""
    if isinstance(value, list):
        return [moved(item, after, by) for item in value]
    if isinstance(value, dict):
        return {
            k: v + by * (v > after) if k == "node" else moved(v, after, by)
            for k, v in value.items()
        }
    return value


def test_sizes_multiplied_without_end(saved):
    def change(about):
        first = about["graph"].index(node(about, "placeholder"))
        made = [("aten.sym_size.int", [{"node": first}, 0])]
        made += [("operator:mul", [{"node": first + i}] * 2) for i in range(1, 60)]
        call = {"op": "call_function", "kwargs": {}}
        about["graph"][first + 1 : first + 1] = [
            {**call, "name": f"n_{i}", "target": target, "args": args}
            for i, (target, args) in enumerate(made)
        ]
        for entry in about["graph"][first + 61 :]:
            entry["args"] = moved(entry["args"], first, 60)

    assert refused(saved, change).endswith("a size is a number without end")


@pytest.mark.parametrize(("key", "value"), [
    ("dynamic", []), ("dynamic", {"x": []}), ("dynamic", {"x": {"9" * 40: "a"}}), 
    ("dynamic", {"x": {"0": "a b`"}}),
    ("plan", []), ("plan", {"axes": 3}), ("plan", {"shares": []}), ("aliases", []), ("bits", {"other": [1]}),
    ("bits", {"up.weight_mask": [-1, 8]}), ("bits", {"up.weight_mask": [2**40, 2**40]}),
    ("parameters", {"up.weight": 1}), ("parameters", {"else": True}), ("features", "x"), ("features", [1]),
    ("pipeline", ["a\nb"]), ("pipeline", [None]), ("source", []), ("graph", []), ("graph", {}),
    ("dynamic", {"y": {"0": "batch"}}), ("hashes", []), ("version", [1]),
])  # fmt: skip
def test_entries_of_another_kind(key, value, saved):
    text = refused(saved, lambda about: about.update({key: value}))
    assert key in text or "graph" in text


@pytest.mark.parametrize(("key", "value"), [
    ("config", []), ("model_class", "os.system"), ("output_class", "a b"), ("outputs", "logits"),
    ("outputs", ["a\nb"]), ("shapes", {"x": [-1]}), ("generation", []), ("files", []),
])  # fmt: skip
def test_sources_of_another_kind(key, value, saved):
    assert f"source.{key}" in refused(saved, lambda about: about["source"].update({key: value}))


@pytest.mark.parametrize("name", [
    "config.json", "model.safetensors", "modeling_x.py", "tokenizer.json", "../x/config.json",
    "/etc/passwd", "a/config.json", ".git/config.json",
])  # fmt: skip
def test_only_files_of_other_tools_are_carried(name, saved):
    assert refused(saved, lambda about: about["source"].update(files={name: "{}"})) == (
        f"'source.files' names '{name}', which is no file of another tool"
    )


def test_the_files_of_sentence_transformers_are_carried(saved):
    files = {
        "modules.json": '[{"path": ""}, {"path": "1_Pooling"}]',
        "1_Pooling/config.json": "{}",
        "sentence_bert_config.json": "{}",
    }
    path = saved / "program.json"
    about = json.loads(path.read_text())
    about["source"]["files"] = files
    path.write_text(json.dumps(about))
    assert load(saved, verify=False).source.files == files


def test_duplicates(saved):
    def twice(about):
        about["graph"].insert(0, {**node(about, "placeholder"), "name": "again"})
        for entry in about["graph"]:
            entry["args"] = moved(entry["args"], -1)

    assert refused(saved, twice) == "two inputs of its graph have the same name"


def test_a_pipe_a_folder_and_brackets(saved):
    path = saved / "program.json"
    path.write_text("[" * 200_000)
    assert refused(saved) == f"'{path}' is damaged or not ours: it nests too deeply"
    path.write_text('{"format": "sparsify-program", "version": ' + "9" * 5000 + "}")
    assert refused(saved).startswith(f"'{path}' is damaged or not ours: ")
    path.unlink()
    os.mkfifo(path)
    assert refused(saved) == f"'{path}' is no plain file"
    path.unlink()
    path.mkdir()
    assert refused(saved) == f"'{path}' is no plain file"


@pytest.mark.parametrize("name", ["tensors.safetensors", "sample.safetensors"])
def test_a_pipe_in_place_of_tensors(name, saved):
    (saved / name).unlink()
    os.mkfifo(saved / name)
    assert refused(saved) == f"'{saved / name}' is no plain file"


@pytest.mark.parametrize("sample", [
    {}, {"y": torch.ones(2, 3, 8)}, {"x": torch.ones(2, 3, 8), "y": torch.ones(1)}, {"x": torch.ones(8)},
    {"x": torch.ones(0, 3, 8)}, {"x": torch.ones(2, 3, 8, dtype=torch.long)}, {"x": torch.ones(2, 3, 9)},
])  # fmt: skip
def test_another_sample(sample, saved):
    save_file(sample, saved / "sample.safetensors")
    text = refused(saved, lambda about: None)
    assert text.startswith((f"'{saved / 'sample.safetensors'}' holds ", f"'{saved}' is damaged: "))


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"model": {"type": "BPE"}}', "\x00", "[" * 100_000]
)
def test_a_broken_tokenizer(text, saved):
    (saved / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    (saved / "tokenizer.json").write_text(text)
    assert refused(saved).startswith(f"the tokenizer of '{saved}' could not be loaded: ")
