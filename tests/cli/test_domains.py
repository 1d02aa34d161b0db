"""Two named texts from the command line: trained on by changing weights, resumed, measured, streamed."""

import json

import pytest
import torch
import yaml

from sparsify import load
from sparsify.train import loop

PIPELINE = (
    "insert-probes | calibrate{samples=8} | insert-masks | "
    "choose-masks{score=wanda sparsity=0.5} | remove-probes | "
    "train{steps=6 batch=4 save_every=2 lr=0.003 domains=dynamic{every=2 reference=web:5.0,dense}} | "
    "fold-masks"
)


@pytest.fixture(scope="module")
def texts(text, tmp_path_factory):
    """A file of prose and one of something else, and the two in one line with weights."""
    folder = tmp_path_factory.mktemp("texts")
    (folder / "a.txt").write_text(text.read_text(encoding="utf-8")[:6000], encoding="utf-8")
    (folder / "b.txt").write_text("for i in range(10):\n    print(i)\n" * 120, encoding="utf-8")
    return folder, f"web={folder}/a.txt:0.7,code={folder}/b.txt:0.3"


@pytest.fixture(scope="module")
def command(model, texts):
    """The words of a run, but for where it writes."""
    words = ["run", "--model", model, "--data", texts[1], "--length", 16, "--holdout", 0.1]
    return [*words, "--pipeline", PIPELINE]


@pytest.fixture(scope="module")
def out(command, cli, tmp_path_factory):
    """One finished run; tests below read it."""
    folder = tmp_path_factory.mktemp("run") / "out"
    code, printed, error = cli(*command, "--out", folder)
    assert (code, error) == (0, "")
    assert "train: domains, by the paper's rule: web weight 0.7 to 0." in printed
    return folder


def test_a_run_records_its_domains_and_their_figures(out, texts, cli):
    job = json.loads((out / "run.json").read_text())
    assert (job["data"], job["holdout"]) == ("web=a.txt:0.7,code=b.txt:0.3", 0.1)
    web, code = job["domains"]["web"], job["domains"]["code"]
    assert (web["weight"], code["weight"]) == (0.7, 0.3)
    assert web["held_out"] == round(0.1 * (web["sequences"] + web["held_out"]))
    assert "domains=dynamic{every=2 reference=web:5.0,dense}" in job["pipeline"]
    rows = json.loads((out / "train.json").read_text())
    for name in ("web", "code"):
        assert [r["step"] for r in rows if f"weight.{name}" in r] == [1, 3, 5, 6]
        assert [r["step"] for r in rows if f"validation.{name}" in r] == [1, 3, 5, 6]
    assert rows[0]["reference.web"] == 5.0
    for row in rows:
        if "weight.web" in row:
            assert row["weight.web"] + row["weight.code"] == pytest.approx(1, abs=1e-12)
    found = yaml.safe_load((out / "run.yaml").read_text())
    assert (found["data"], found["holdout"]) == (texts[1], 0.1)
    assert cli("report", out)[0] == 0
    page = (out / "report.html").read_text()
    assert "held-out loss of domains, nats a token" in page
    assert "weights of domains" in page
    assert f"web 0.7 ({web['sequences']} sequences, {web['held_out']} held out), code 0.3" in page


class Killed(Exception):
    """A kill."""


def test_an_interrupted_run_goes_on_to_the_same_bits(command, out, cli, tmp_path, monkeypatch):
    step = loop._Run.step

    def stepped(self, index):
        if index == 5:
            raise Killed
        return step(self, index)

    words = [*command, "--out", tmp_path / "out"]
    with monkeypatch.context() as patch:
        patch.setattr(loop._Run, "step", stepped)
        with pytest.raises(Killed):
            cli(*words)
    other = [str(word).replace("web=", "prose=").replace("web:", "prose:") for word in words]
    assert "holds an interrupted run with pipeline=" in cli(*other, "--resume")[2]
    assert cli(*words, "--resume")[0] == 0
    one, two = (dict(load(each / "safetensors").tensors()) for each in (out, tmp_path / "out"))
    assert all(torch.equal(value, two[path]) for path, value in one.items())
    rows = [json.loads((each / "train.json").read_text()) for each in (out, tmp_path / "out")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert rows[0][-1]["weight.web"] == rows[1][-1]["weight.web"]


def test_each_domain_has_its_perplexity(out, texts, cli):
    words = ["eval", out, "--data", texts[1], "--length", 16]
    code, printed, _ = cli(*words, "--json", out / "e.json")
    assert code == 0
    (row,) = json.loads((out / "e.json").read_text())
    found = row["domains"]
    assert row["loss"] == pytest.approx(0.7 * found["web"]["loss"] + 0.3 * found["code"]["loss"])
    assert row["tokens"] == found["web"]["tokens"] + found["code"]["tokens"]
    for value in (row, *found.values()):
        assert f"{value['perplexity']:.3f}" in printed
    alone = ["eval", out, "--data", texts[0] / "b.txt", "--length", 16, "--json", out / "f.json"]
    assert cli(*alone)[0] == 0
    (row,) = json.loads((out / "f.json").read_text())
    assert row["perplexity"] == pytest.approx(found["code"]["perplexity"], rel=1e-6)
    assert "domains" not in row
    assert cli(*words, "--limit", 2, "--json", out / "e.json")[0] == 0
    (row,) = json.loads((out / "e.json").read_text())
    assert [each["tokens"] for each in row["domains"].values()] == [30, 30]
    assert cli("report", out)[0] == 0
    assert "web=a.txt:0.7,code=b.txt:0.3" in (out / "report.html").read_text()


def test_a_model_is_streamed_on_domains(texts, model, cli, tmp_path):
    words = ["stream", "--model", model, "--masks", "choose-masks{score=wanda pattern=2:4}"]
    words += ["--data", texts[1], "--length", 16, "--samples", 10, "--dtype", "float32"]
    assert cli(*words, "--out", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "config.json").is_file()


REFUSED = [
    (["--data", "A", "--holdout", 0.1],
     "--holdout 0.1 is for domains; name them, as in --data web=a.txt,code=b.txt"),
    (["--holdout", 0.1],
     "--holdout 0.1 is for domains; name them, as in --data web=a.txt,code=b.txt"),
    (["--data", "web=A,code=B", "--holdout", 1],
     "a held-out share of 1 must be at least 0 and less than 1"),
    (["--data", "web=A,code=nowhere/b.txt"], "domain 'code': the data 'nowhere/b.txt' does not exist; give "
     "a file, a folder or a dataset name"),
    (["--data", "web=A:0.7,code=B:0.7"], "the weights of the domains sum to 1.4, and should to 1"),
    (["--data", "A"], "pass 1 of 1, 'train{steps=9 domains=dynamic{every=2}}', domains=dynamic{every=2} "
     "needs data with domains; name them, as in --data web=a.txt,code=b.txt"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "sentence"), REFUSED)
def test_what_cannot_be_meant_is_refused(given, sentence, texts, model, cli, tmp_path):
    folder, out = texts[0], tmp_path / "out"
    given = [
        str(word).replace("A", f"{folder}/a.txt").replace("B", f"{folder}/b.txt") for word in given
    ]
    words = ["run", "--model", model, "--length", 16, "--out", out]
    code, _, error = cli(*words, "--pipeline", "train{steps=9 domains=dynamic{every=2}}", *given)
    assert (code, error) == (1, f"error: {sentence}\n")
    assert not out.exists() or not list(out.iterdir())


def test_domains_may_be_a_mapping_in_a_file(texts, model, cli, tmp_path):
    folder, config = texts[0], tmp_path / "run.yaml"
    data = f"data: {{web: '{folder}/a.txt:0.7', code: '{folder}/b.txt:0.7'}}"
    config.write_text(f"model: {model}\npipeline: insert-probes | calibrate\n{data}\n")
    code, _, error = cli("run", "--config", config, "--out", tmp_path / "out")
    assert (code, error) == (1, "error: the weights of the domains sum to 1.4, and should to 1\n")
