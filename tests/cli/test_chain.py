"""The verbs one after the other on a small model: run, eval, bench, export, report, show."""

import json
import shutil

import pytest

PIPELINE = (
    "insert-probes | calibrate{samples=8} | insert-masks{of=heads,channels} | "
    "choose-masks{of=heads score=activation sparsity=0.5} | "
    "choose-masks{of=channels score=wanda sparsity=0.5} | remove-probes | prune-heads | "
    "prune-channels | insert-lora{rank=2} | "
    "train{steps=4 batch=2 update=lora distill=kl save_every=2} | fold-lora"
)


@pytest.fixture(scope="module")
def out(tmp_path_factory, model, text, cli):
    """One finished run; every test below reads it."""
    folder = tmp_path_factory.mktemp("chain") / "out"
    words = ["run", "--model", model, "--data", text, "--pipeline", PIPELINE, "--out", folder]
    words += ["--length", 32, "--to", "safetensors,onnx,huggingface"]
    assert cli(*words, "--dump", folder.parent / "dump")[0] == 0
    return folder


@pytest.fixture(scope="module")
def evaluated(out, text, cli):
    """The run, with its perplexities beside it."""
    words = ["eval", out, "--data", text, "--length", 32]
    assert cli(*words, "--json", out / "e.json")[0] == 0
    return out


@pytest.fixture(scope="module")
def timed(evaluated, model, cli):
    """The run, with its perplexities and its timings beside it; and what the latter printed."""
    words = ["bench", evaluated, "--against", model, "--tokens", "1,16", "--rounds", 3]
    code, printed, _ = cli(*words, "--json", evaluated / "b.json")
    assert code == 0
    return evaluated, printed


def test_a_run_leaves_formats_and_reports_and_no_state(out):
    names = {path.name for path in out.iterdir()}
    assert {"safetensors", "onnx", "huggingface", "report.json", "run.json", "train.json"} <= names
    assert ".resume" not in names
    rows = json.loads((out / "report.json").read_text())
    assert [row["name"] for row in rows][-2:] == ["train", "fold-lora"]
    assert len(json.loads((out / "train.json").read_text())) == 4
    config = json.loads((out / "huggingface" / "config.json").read_text())
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (2, 1)
    assert config["intermediate_size"] == 48


def test_a_dump_has_a_text_and_a_difference_for_every_pass(out):
    names = sorted(path.name for path in (out.parent / "dump").iterdir())
    assert names[0] == "00-trace.txt"
    assert "07-prune-heads.diff" in names
    assert len(names) == 1 + 2 * len(PIPELINE.split("|"))


def test_every_format_has_the_same_perplexity(evaluated):
    rows = json.loads((evaluated / "e.json").read_text())
    assert {row["kind"] for row in rows} == {"program", "onnx", "huggingface"}
    values = [row["perplexity"] for row in rows]
    assert max(values) / min(values) - 1 < 1e-4
    assert {row["context"] for row in rows} == {32}


def test_bench_times_it_against_the_dense_model(timed):
    out, printed = timed
    result = json.loads((out / "b.json").read_text())
    assert [(row["name"], row["tokens"]) for row in result["timings"]] == [
        ("dense", 1),
        ("sparse", 1),
        ("dense", 16),
        ("sparse", 16),
    ]
    assert result["bytes"]["sparse"] < result["bytes"]["dense"]
    assert result["counts"]["sparse"]["multiply_adds"] < result["counts"]["dense"]["multiply_adds"]
    assert "onnxruntime" in printed


def test_cards_are_brought_up_to_date(timed):
    out, _ = timed
    assert "- perplexity " in (out / "huggingface" / "README.md").read_text()
    text = (out / "onnx" / "README.md").read_text()
    assert "- perplexity " in text
    assert text.count(" times as fast as the dense model (") == 2


def test_report_is_one_page_of_a_run_or_of_a_format(out, cli):
    for folder in (out, out / "onnx", out / "huggingface", out / "safetensors"):
        assert cli("report", folder)[0] == 0
        page = (folder / "report.html").read_text()
        assert "prune-channels" in page
        assert page.count('class="cell') == (2 + 1) * (7 + 1)
        assert "\u221250 %" in page
        assert ('class="plot"' in page) == (folder == out)


def test_report_opens_a_model_that_has_no_figures(model, cli, tmp_path):
    copy = shutil.copytree(model, tmp_path / "copy")
    assert cli("report", copy)[0] == 0
    page = (copy / "report.html").read_text()
    assert page.count('class="cell') == (2 + 1) * (7 + 1)
    assert "No pass has changed this model" in page
    (tmp_path / "empty").mkdir()
    code, _, error = cli("report", tmp_path / "empty")
    assert (code, error) == (1, f"error: '{tmp_path / 'empty'}' holds no run and no model\n")


def test_export_again_needs_overwrite(out, cli):
    code, _, error = cli("export", out, "--to", "onnx")
    assert code == 1
    assert "give --overwrite" in error
    assert cli("export", out, "--to", "onnx", "--overwrite")[0] == 0


def test_show_prints_the_program_and_its_axes(out, model, cli):
    code, printed, _ = cli("show", model, "--pipeline", "insert-masks")
    assert code == 0
    assert printed.startswith("program LlamaForCausalLM features {mask.weights}")
    code, printed, _ = cli("show", out, "--axes")
    assert code == 0
    heads = next(line for line in printed.splitlines() if line.split()[:1] == ["heads"])
    assert heads.split()[-1] == "prune-heads"
    assert "model.layers.0" in heads
    words = next(line for line in printed.splitlines() if line.split()[:1] == ["vocabulary"])
    assert "no: entries are" in words


def test_show_prints_what_a_token_costs(model, cli):
    text = "insert-masks{of=channels} | choose-masks{of=channels sparsity=0.5} | prune-channels"
    figures = []
    for words in ((), ("--pipeline", text)):
        code, printed, _ = cli("show", model, "--cost", *words)
        assert code == 0
        lines = printed.splitlines()
        assert max(map(len, lines)) <= 80
        rows = (line.strip().rpartition("  ") for line in lines)
        found = {name.strip(): value for name, _, value in rows}
        assert found["parameters"] == found["active parameters"]
        assert [line.split()[:2] for line in lines if line.startswith(" 2,048")] == [["2,048", "-"]]
        figures.append(int(found["parameters"].replace(",", "")))
    assert figures[0] - figures[1] == 2 * 3 * 64 * 48
    code, _, error = cli("show", model, "--cost", "--axes")
    assert code == 1
    assert error == (
        "error: --axes and --cost each print something of their own; give one of them\n"
    )


def test_catalogues(cli):
    assert "insert-lora" in cli("passes")[1]
    assert "W + c B A" in cli("passes", "insert-lora")[1]
    assert "structured" in cli("recipes")[1]
    assert cli("recipes", "wanda")[1].startswith("insert-probes |\ncalibrate{samples=128} |\n")
