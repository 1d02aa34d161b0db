"""Pruning layer by layer: against a slow oracle, killed and resumed, for every family."""

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.fx import Interpreter

import sparsify.stream.prune as module
from sparsify.data.sequences import TensorData, TextData, batches, sample
from sparsify.errors import DataError, OptionError, PipelineError
from sparsify.ir.run.stages import run_stage, stages
from sparsify.ir.text import to_text
from sparsify.ir.trace.trace import trace
from sparsify.ir.trace.weightless import trace_weightless
from sparsify.ir.views.linear import linears, out_in
from sparsify.ir.views.targets import targeted
from sparsify.pretrained.headers import INDEX
from sparsify.pretrained.load import load_model
from sparsify.pretrained.quiet import quiet
from sparsify.select.one_shot import OneShot
from sparsify.select.statistics import Statistics
from sparsify.select.weights import Target
from sparsify.stream.checkpoint import Checkpoint
from sparsify.stream.job import WORK, Job
from sparsify.stream.places import Places, spread
from sparsify.stream.prune import prune
from sparsify.tensors.masks import check_nm
from sparsify.tensors.moments import add_upper_gram, mirrored
from sparsify.tensors.pattern import Pattern

HALF = Target.of(None, "2:4")


@pytest.fixture(scope="module")
def folder(build, tmp_path_factory):
    """The folder of a family's model, written once."""
    made = {}

    def write(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            with quiet():
                build(family).save_pretrained(made[family])
        return made[family]

    return write


def words(padded=False):
    """Sequences of 16 tokens, some padded on the right."""
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(3, 300, (12, 16), generator=draw)
    mask = torch.ones_like(ids)
    if padded:
        mask[::2, 11:] = 0
    return TensorData({"input_ids": ids, "attention_mask": mask})


def job(source, out, how, **others):
    given = {"samples": 10, "batch": 4, "dtype": "float32", **others}
    return Job(str(source), how, out, **given)


class Watch(Interpreter):
    """Runs a whole program and keeps one value."""

    def __init__(self, program, node):
        super().__init__(program.module)
        self.wanted, self.seen = node, None

    def run_node(self, n):
        value = super().run_node(n)
        if n is self.wanted:
            self.seen = value
        return value


def slowly(source, how, data, task):
    """The same by running the whole model anew before every group of linears that read one input."""
    program = trace(load_model(str(source))[0])
    chosen = list(batches(data, sample(data, task.samples, task.seed), task.batch))
    by_input, by_layer = {}, {}
    for view in targeted(program, ("*",), ()):
        by_input.setdefault(view.x, []).append(view)
        by_layer.setdefault(view.weight.split(".")[2], []).append(view)
    for views in (by_input if task.order == "linear" else by_layer).values():
        seen = {view.weight: observed(program, view.x, chosen) for view in views}
        for view in views:
            new, _ = how(out_in(view, program.tensor(view.weight)), seen[view.weight])
            program.tensor(view.weight).data = out_in(view, new)
    return program


def observed(program, x, chosen):
    """The statistics of an activation over some batches."""
    rows = []
    for batch in chosen:
        inputs = program.complete(batch)
        watch = Watch(program, x)
        watch.run(*inputs.values())
        kept = inputs["attention_mask"].reshape(-1).bool()
        rows.append(watch.seen.reshape(-1, watch.seen.shape[-1])[kept])
    x = torch.cat(rows)
    return Statistics(len(x), x.mean(0), (x - x.mean(0)).square().sum(0), None, x.T @ x)


@pytest.mark.parametrize(
    ("family", "method", "order"),
    [
        ("llama", "sparsegpt", "linear"),
        ("gpt2", "wanda", "linear"),
        ("llama", "sparsegpt", "layer"),
    ],
)
def test_every_linear_is_pruned_for_what_the_pruned_ones_before_it_give(
    family, method, order, folder, tmp_path
):
    how, data = OneShot(method, HALF), words(padded=True)
    task = job(folder(family), tmp_path / "out", how, order=order)
    prune(task, data)
    oracle = slowly(folder(family), how, data, task)
    written = trace(load_model(str(tmp_path / "out"))[0])
    for view in targeted(oracle, ("*",), ()):
        here, there = (out_in(view, p.tensor(view.weight)) for p in (written, oracle))
        check_nm(here != 0, Pattern(2, 4))
        assert torch.equal(here != 0, there != 0), view.weight
        assert torch.allclose(here, there, rtol=1e-3, atol=1e-4), view.weight


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "bert"])
def test_the_folder_loads_with_transformers_and_holds_every_other_weight_as_it_was(
    family, folder, tmp_path
):
    source = folder(family)
    prune(job(source, tmp_path / "out", OneShot("wanda", Target(0.5))), words())
    with quiet():
        kind = type(load_model(str(source))[0])
        before, after = (kind.from_pretrained(place) for place in (source, tmp_path / "out"))
    told = json.loads((tmp_path / "out" / "sparsify.json").read_text())
    pruned = {row["weight"] for row in told["linears"]}
    whole, shell = trace(before), trace_weightless(str(source), "float32")
    assert (to_text(shell), shell.aliases) == (to_text(whole), whole.aliases)
    assert pruned == {v.weight for v in targeted(whole, ("*",), ())}
    for path, value in before.named_parameters():
        new = after.get_parameter(path)
        if path in pruned:
            assert abs(float((new == 0).float().mean()) - 0.5) < 0.02, path
        else:
            assert torch.equal(new, value), path
    assert not (tmp_path / "out" / WORK).exists()


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "bert"])
def test_stages_run_what_the_whole_program_runs(family, traced, text):
    program = traced(family)
    found = stages(program, targeted(program, ("*",), ()))
    values = inputs = program.complete(words(padded=True).batch([0, 1, 2]))
    for stage in found:
        values = run_stage(program, stage, values, torch.device("cpu"))
        watch = Watch(program, stage.x)
        watch.run(*inputs.values())
        assert torch.equal(values[stage.x.name], watch.seen)
    assert {v.weight for s in found for v in s.linears} <= {v.weight for v in linears(program)}
    assert len({stage.layer for stage in found} - {None}) == 2


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_a_stage_runs_whole_on_the_device_it_is_told(family, traced):
    """The meta device computes nothing, but refuses operands that lie elsewhere as a GPU does."""
    program, meta = traced(family), torch.device("meta")
    values = program.complete(words(padded=True).batch([0, 1, 2]))
    for stage in stages(program, targeted(program, ("*",), ())):
        here = run_stage(program, stage, values, torch.device("cpu"))
        there = run_stage(program, stage, values, meta)
        tensors = {name: v for name, v in here.items() if isinstance(v, torch.Tensor)}
        assert {there[name].device for name in tensors} == {meta}
        assert [there[name].shape for name in tensors] == [v.shape for v in tensors.values()]
        values = here


def test_layers_find_their_devices():
    layers = [[f"model.layers.{i}.up", f"model.layers.{i}.norm"] for i in range(5)]
    paths = [path for layer in layers for path in layer]
    assert spread(layers, [0, 1]) == dict(zip(["", *paths], [0] * 7 + [1] * 4, strict=True))
    assert spread(layers, []) == {"": "cpu"}
    places = Places({"model": "cpu", "model.layers.1": "meta"}, layers)
    found = [places.of(p).type for p in ("lm_head", "model.layers.1.mlp", "model.layers.10.mlp")]
    assert found == ["cpu", "meta", "cpu"]
    with pytest.raises(OptionError, match=r"device cuda:77 cannot be used here: ."):
        Places("cuda:77", layers)
    with pytest.raises(OptionError, match=r"device nonsense cannot be used here: ."):
        Places("nonsense", layers)


@pytest.mark.parametrize(("on_disk", "order"), [(False, "linear"), (True, "layer")])
def test_a_broken_run_ends_with_the_same_bytes(on_disk, order, folder, tmp_path, monkeypatch):
    source, how, out = folder("llama"), OneShot("sparsegpt", HALF), tmp_path / "broken"
    task = job(source, out, how, on_disk=on_disk, order=order)
    prune(job(source, tmp_path / "whole", how, on_disk=on_disk, order=order), words())
    collect, prune_stage = module._Run._collect, module._Run._prune_stage

    def break_off(self, stage, seen, started):
        if stage.linears[0].weight.endswith("layers.1.mlp.gate_proj.weight"):
            raise RuntimeError("pulled the plug")
        return prune_stage(self, stage, seen, started)

    with monkeypatch.context() as patch:
        patch.setattr(module._Run, "_prune_stage", break_off)
        with pytest.raises(RuntimeError, match="pulled the plug"):
            prune(task, words())
    assert [p.name for p in out.iterdir()] == [WORK]
    with pytest.raises(DataError, match="interrupted run; resume it"):
        prune(task, words())
    with pytest.raises(DataError, match="with other options"):
        prune(job(source, out, how, seed=1), words(), resume=True)
    with pytest.raises(PipelineError, match="keeps the state of another run: other data; give the"):
        prune(task, words(padded=True), resume=True)

    stages_run = []
    with monkeypatch.context() as patch:
        patch.setattr(
            module._Run,
            "_collect",
            lambda self, numbers, *, stored: (
                stages_run.extend(numbers),
                collect(self, numbers, stored=stored),
            ),
        )
        prune(task, words(), resume=True)
    assert stages_run == [4, 5, 6, 7]  # from the layer it had reached
    with pytest.raises(DataError, match="nothing to resume"):
        prune(task, words(), resume=True)
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert names == sorted(p.name for p in out.iterdir())
    for name in names:
        if name != "sparsify.json":  # which tells seconds
            assert (tmp_path / "whole" / name).read_bytes() == (out / name).read_bytes(), name


def test_a_cut_that_was_left_without_its_progress_is_no_earlier_one(folder, tmp_path, monkeypatch):
    task = job(folder("llama"), tmp_path / "broken", OneShot("magnitude", HALF))
    prune(job(folder("llama"), tmp_path / "whole", OneShot("magnitude", HALF)), words())

    def pulled(*given):
        raise RuntimeError("pulled the plug")

    # As a kill does it: nobody cleans up.
    monkeypatch.setattr(module, "forget", lambda work: None)
    for name in ("write_json", "_Run.publish"):
        with monkeypatch.context() as patch:
            patch.setattr(f"sparsify.stream.prune.{name}", pulled)
            with pytest.raises(RuntimeError, match="pulled the plug"):
                prune(task, words(), resume=name != "write_json")
    prune(task, words(), resume=True)
    for path in (tmp_path / "whole").glob("*.safetensors"):
        assert path.read_bytes() == (tmp_path / "broken" / path.name).read_bytes()


def test_the_upper_triangle_is_enough():
    x = torch.randn(50, 37, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = torch.zeros(37, 37, dtype=torch.float64)
    for part in x.split(20):
        add_upper_gram(gram, part)
    assert torch.allclose(mirrored(gram), x.T @ x, rtol=1e-12)
    assert torch.equal(mirrored(gram), mirrored(gram).T)


def test_a_tensor_is_found_under_its_bodys_name(folder, tmp_path):
    """A folder saved from the body alone has no name in front; the other way round there is one."""
    body = load_file(folder("llama") / "model.safetensors")
    body = {key.removeprefix("model."): value for key, value in body.items()}
    save_file(body, tmp_path / "model.safetensors")
    program = trace_weightless(str(folder("llama")), "float32")
    keys = Checkpoint(tmp_path).names_of(program)
    assert keys["model.layers.0.mlp.up_proj.weight"] == "layers.0.mlp.up_proj.weight"


def test_what_cannot_be_streamed_is_refused_in_a_sentence(folder, tmp_path):
    source, how = folder("llama"), OneShot("wanda", HALF)
    with pytest.raises(DataError, match="is no folder; download the model"):
        prune(job("someone/some-model", tmp_path / "a", how), words())
    with pytest.raises(OptionError, match="score=taylor does not prune a linear by itself"):
        OneShot("taylor", HALF)
    with pytest.raises(OptionError, match="samples and batch must be at least 1"):
        prune(job(source, tmp_path / "b", how, samples=0), words())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is not empty"):
        prune(job(source, tmp_path / "full", how), words())
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine.txt"]


def test_damaged_checkpoints_are_refused_before_anything_is_lost(folder, tmp_path):
    source, how = folder("llama"), OneShot("wanda", HALF)
    weights = load_file(source / "model.safetensors")
    config = (source / "config.json").read_text()
    cases = {
        "nothing": ({}, "holds no safetensors"),
        "missing": (
            {"model.norm.weight": None},
            r"not those of LlamaForCausalLM: 1 missing \(model.norm.weight\); mend",
        ),
        "shape": (
            {"model.norm.weight": torch.ones(3)},
            r"1 of another size \(model.norm.weight is \[3\] in the files and \[64\] in the model\)",
        ),
        "nan": (
            {"model.layers.1.mlp.up_proj.weight": torch.full((96, 64), torch.nan)},
            "holds values that are not finite in 'model.layers.1.mlp.up_proj.weight'",
        ),
    }
    for name, (changes, sentence) in cases.items():
        place = tmp_path / name
        place.mkdir()
        (place / "config.json").write_text(config)
        if changes:
            changed = {k: v for k, v in {**weights, **changes}.items() if v is not None}
            save_file(changed, place / "model.safetensors")
        with pytest.raises(DataError, match=sentence):
            prune(job(place, tmp_path / f"{name}-out", how), words())
    (place / "model.safetensors").write_bytes(b"no safetensors")
    with pytest.raises(DataError, match="is damaged or missing"):
        prune(job(place, tmp_path / "bytes-out", how), words())


def test_shards_and_dtype(folder, tmp_path):
    """A folder of several files comes in, bfloat16 goes out, and the index names every tensor once."""
    source = tmp_path / "several"
    with quiet():
        transformers.AutoModelForCausalLM.from_pretrained(folder("llama")).save_pretrained(
            source, max_shard_size="100KB"
        )
    assert (source / INDEX).is_file()
    text = TextData(torch.arange(300).repeat(3), 30)
    how = OneShot("magnitude", Target(0.25))
    prune(job(source, tmp_path / "out", how, dtype="bfloat16"), text)
    index = json.loads((tmp_path / "out" / INDEX).read_text())["weight_map"]
    assert set(index) == set(Checkpoint(source).files)
    model, _ = load_model(str(tmp_path / "out"), "bfloat16")
    assert model.config.dtype == torch.bfloat16
    assert model.get_parameter("model.embed_tokens.weight").dtype == torch.bfloat16
