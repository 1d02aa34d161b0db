"""A file in place of options: read, gone over by the command line, written by every run, and back."""

import json

import jsonschema
import pytest
import yaml
from typer.testing import CliRunner

from sparsify.cli import app
from sparsify.errors import SparsifyError

RUN = "model: embedded\npipeline:\n- insert-masks\n- choose-masks: {pattern: 2:4}\n- fold-masks\nseed: 3\n"


def invoke(*words):
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def test_a_run_writes_the_file_that_gives_it_again(tmp_path):
    (tmp_path / "a.yaml").write_text(RUN)
    invoke("run", "--config", tmp_path / "a.yaml", "--out", tmp_path / "first")
    written = tmp_path / "first" / "run.yaml"
    assert yaml.safe_load(written.read_text()) == {
        "model": "embedded",
        "pipeline": ["insert-masks", {"choose-masks": {"pattern": "2:4"}}, "fold-masks"],
        "length": 128,
        "kind": "text",
        "seed": 3,
        "device": "cpu",
        "dtype": "float32",
        "to": ["safetensors"],
    }
    invoke("run", "--config", written, "--out", tmp_path / "second")
    assert written.read_bytes() == (tmp_path / "second" / "run.yaml").read_bytes()
    tensors = [
        (tmp_path / name / "safetensors" / "tensors.safetensors").read_bytes()
        for name in ("first", "second")
    ]
    assert tensors[0] == tensors[1]
    schema = json.loads(invoke("schema").stdout)
    jsonschema.validate(yaml.safe_load(written.read_text()), schema)


def test_the_command_line_goes_over_the_file(tmp_path):
    (tmp_path / "a.yaml").write_text(RUN)
    recipe = ("--recipe", "magnitude", "--seed", "5", "--dtype", "bfloat16", "--threads", "1")
    invoke("run", "--config", tmp_path / "a.yaml", "--out", tmp_path / "out", *recipe)
    found = yaml.safe_load((tmp_path / "out" / "run.yaml").read_text())
    assert found["pipeline"][1] == {"choose-masks": {"sparsity": 0.5}}
    assert (found["seed"], found["dtype"], found["threads"]) == (5, "bfloat16", 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modl: embedded", "'modl', which is no option; did you mean 'model'"),
        ("- model", "holds no options"),
        ("just words", "holds no options"),
        ("a: [b", "could not be read as YAML"),
        ("seed: [1, 2]", "gives 'seed' 2 values"),
        ("pipeline: [{a: 1, b: 2}]", "a pass is a name"),
        ("config: other.yaml", "'config', which is no option"),
        (
            "model: embedded\nrecipe: magnitude\npipeline: fold-masks",
            "either --recipe or --pipeline",
        ),
    ],
)
def test_a_wrong_file_is_refused(tmp_path, text, said):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(SparsifyError, match=said):
        invoke("run", "--config", tmp_path / "a.yaml", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_wrong_value_is_wrong_usage(tmp_path):
    (tmp_path / "a.yaml").write_text(RUN + "length: long\n")
    done = invoke("run", "--config", tmp_path / "a.yaml", "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert "--length" in done.output
