"""What a user may get wrong on the command line: one sentence, exit code 1, nothing half written."""

import json
import shutil

import pytest

MAGNITUDE = "insert-masks | choose-masks{sparsity=0.5} | fold-masks"
# Options of `run` that differ from a good call, and a piece of the sentence they give.
CASES = [
    (
        {"--pipeline": "insert-mask"},
        "no pass is called 'insert-mask'; did you mean 'insert-masks'?",
    ),
    ({"--pipeline": "train{step=3}"}, "'train' has no option 'step'; did you mean 'steps'?"),
    ({"--pipeline": "train"}, "'train' needs the option 'steps'"),
    ({"--pipeline": "insert-masks | |"}, "column 16: expected a name"),
    ({"--pipeline": "fold-masks"}, "needs ['mask.weights'], but at that point the program has []"),
    ({"--pipeline": "insert-masks | insert-masks"}, "would add ['mask.weights']"),
    ({"--pipeline": "insert-probes | calibrate", "--data": None}, "needs data; give --data"),
    ({"--pipeline": "insert-lora{rank=64}"}, "rank=64 does not fit @"),
    ({"--pipeline": None, "--recipe": "strctured"}, "did you mean 'structured'?"),
    ({"--pipeline": None}, "give either --recipe or --pipeline"),
    ({"--model": "no/such-model-here"}, "no model could be loaded from 'no/such-model-here'"),
    ({"--data": "nowhere.txt"}, "nowhere.txt"),
    ({"--length": "100000"}, "fewer than one sequence of 100000"),
    ({"--dtype": "float31"}, "no dtype is called 'float31'; did you mean 'float32'?"),
    ({"--to": "onx"}, "no exporter is called 'onx'; did you mean 'onnx'?"),
    ({"--to": "onnx{opset=3}"}, "opset 3"),
    ({"--to": "onnx", "--pipeline": "insert-masks"}, "fold-masks"),
]


def words(changes, **good):
    options = {f"--{key}": value for key, value in good.items()} | changes
    return [w for key, value in options.items() if value is not None for w in (key, value)]


@pytest.mark.parametrize(("changes", "sentence"), CASES)
def test_run_says_what_is_wrong(changes, sentence, model, text, tmp_path, cli):
    out = tmp_path / "out"
    good = {"model": model, "data": text, "pipeline": MAGNITUDE, "out": out, "length": 32}
    code, _, error = cli("run", *words(changes, **good))
    assert code == 1
    assert error.startswith("error: ")
    assert sentence in error
    assert "Traceback" not in error
    assert not [p for p in tmp_path.rglob("*") if p.is_file()], "something was left behind"


def test_a_full_folder_is_left_alone(model, tmp_path, cli):
    (tmp_path / "mine.txt").write_text("precious")
    code, _, error = cli("run", "--model", model, "--pipeline", MAGNITUDE, "--out", tmp_path)
    assert (code, "is not empty" in error) == (1, True)
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_a_model_with_nan_is_refused(model, tmp_path, cli):
    from safetensors.torch import load_file, save_file

    bad = tmp_path / "bad"
    shutil.copytree(model, bad)
    tensors = load_file(bad / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, bad / "model.safetensors", metadata={"format": "pt"})
    code, _, error = cli("run", "--model", bad, "--pipeline", MAGNITUDE, "--out", tmp_path / "o")
    assert code == 1
    assert "not finite in 'model.norm.weight'" in error


def test_text_needs_a_tokenizer(model, text, tmp_path, cli):
    bare = tmp_path / "bare"
    shutil.copytree(model, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    words = ["--model", bare, "--data", text, "--pipeline", MAGNITUDE, "--out", tmp_path / "o"]
    code, _, error = cli("run", *words)
    assert code == 1
    assert "tokenizer" in error


@pytest.mark.parametrize("name", ["eval", "export", "show", "bench", "report"])
def test_an_empty_folder_is_no_model(name, text, tmp_path, cli):
    more = {"eval": ["--data", text], "export": ["--to", "onnx"], "bench": ["--against", tmp_path]}
    code, _, error = cli(name, tmp_path, *more.get(name, []))
    assert code == 1
    assert error.startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_usage_errors_exit_with_2(cli):
    assert cli("run")[0] == 2
    assert cli("fly")[0] == 2


def test_resume_takes_up_only_the_same_job(model, tmp_path, cli):
    out = tmp_path / "out"
    state = out / ".resume"
    state.mkdir(parents=True)
    (state / "job.json").write_text(json.dumps({"seed": 7}))
    words = ["--model", model, "--pipeline", MAGNITUDE, "--out", out, "--resume"]
    code, _, error = cli("run", *words)
    assert code == 1
    assert "interrupted run" in error
