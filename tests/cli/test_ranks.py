"""One run in several processes: the same result, one writer, one voice, and one end for all."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

SCRIPT = str(Path(__file__).with_name("ranks.py"))
PIPELINE = (
    "insert-probes | calibrate{samples=6 batch=2} | insert-masks | choose-masks{score=wanda pattern=2:4} | "
    "remove-probes | train{steps=8 batch=4 masks=every{steps=3} save_every=2} | fold-masks"
)
# Weights that stay keep their values: what a rank makes of sums of another order are the same bytes.
STREAM = [
    *("stream", "--masks", "choose-masks{score=wanda pattern=2:4}", "--samples", 5, "--batch", 2),
    *("--length", 16, "--dtype", "float32"),
]
PATHS = os.pathsep.join(p for p in sys.path if p)
ONE_THREAD = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def played(folder, scenes, count=2, sharded=()):
    """What each of some ranks said in each scene, by its name: exit codes, output, errors."""
    for scene in scenes:
        scene["sharded"] = scene["name"] in sharded
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            scene |= {"port": free.getsockname()[1], "words": [str(w) for w in scene["words"]]}
    started = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(folder), str(rank), str(count)],
            env=ONE_THREAD,
            stdin=subprocess.PIPE,
        )
        for rank in range(count)
    ]
    for process in started:
        process.stdin.write(json.dumps(scenes).encode())
        process.stdin.close()
    for process in started:
        assert process.wait(timeout=600) == 0

    def read(name, rank):
        place = f"{folder}/{name}-{rank}"
        code, out, errors = (Path(f"{place}.{kind}") for kind in ("code", "out", "errors"))
        return int(code.read_text()), out.read_text(), errors.read_text()

    each = {scene["name"]: 1 if scene.get("alone") else count for scene in scenes}
    return {name: [read(name, r) for r in range(number)] for name, number in each.items()}


def weights(out):
    return load_file(out / "safetensors" / "tensors.safetensors")


def assert_close(mine, other):
    assert mine.keys() == other.keys()
    for path, value in other.items():
        assert torch.equal(mine[path] == 0, value == 0), path
        assert torch.allclose(mine[path].double(), value.double(), atol=1e-4), path


@pytest.fixture(scope="module")
def words(model, text, tmp_path_factory):
    """A run of one thread, and the folder for what comes out."""
    mine = tmp_path_factory.mktemp("data") / "text.txt"
    mine.write_text(text.read_text()[:3000])
    common = ["--model", model, "--data", mine, "--pipeline", PIPELINE, "--length", 16]
    return ["run", *common, "--threads", 1]


@pytest.fixture(scope="module")
def alone(words, cli, tmp_path_factory):
    """What one process makes."""
    out = tmp_path_factory.mktemp("alone") / "out"
    code, _, errors = cli(*words, "--out", out)
    assert code == 0, errors
    return out


@pytest.fixture(scope="module")
def launched(words, tmp_path_factory):
    """What two processes make that torchrun starts, and what was printed meanwhile."""
    out = tmp_path_factory.mktemp("launched") / "out"
    launch = ["-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-backend=c10d"]
    ours = ["-m", "sparsify", *map(str, words), "--out", str(out), "--track", "jsonl"]
    done = subprocess.run(
        [sys.executable, *launch, "--rdzv-endpoint=localhost:0", *ours],
        env=ONE_THREAD,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return out, done.stdout


def test_two_processes_make_what_one_makes_and_one_of_them_writes_and_speaks(launched, alone):
    out, printed = launched
    assert_close(weights(out), weights(alone))
    assert {path.name for path in out.iterdir()} == {
        *(path.name for path in alone.iterdir()),
        "track",
    }
    assert printed.count("fold-masks") == 1
    rows = json.loads((out / "train.json").read_text())
    for row, other in zip(rows, json.loads((alone / "train.json").read_text()), strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-4)
    report = [json.loads((each / "report.json").read_text()) for each in (out, alone)]
    for key in ("name", "places", "nodes", "parameters", "zeros"):
        assert [row[key] for row in report[0]] == [row[key] for row in report[1]]


def test_trackers_get_the_figures_of_the_report(launched):
    out, _ = launched
    told, *lines = map(json.loads, (out / "track" / "figures.jsonl").read_text().splitlines())
    assert told["pipeline"] == PIPELINE
    steps = [line for line in lines if "train/loss" in line]
    rows = json.loads((out / "train.json").read_text())
    assert [{f"train/{k}": v for k, v in row.items() if k != "step"} for row in rows] == [
        {k: v for k, v in line.items() if k != "step"} for line in steps
    ]
    assert [line["step"] for line in steps] == [row["step"] for row in rows]
    report = json.loads((out / "report.json").read_text())
    zeros = [v for line in lines for k, v in line.items() if k.endswith("/zeros")]
    assert zeros == [row["zeros"] for row in report]


@pytest.fixture(scope="module")
def scenes(words, model, text, tmp_path_factory):
    """What two ranks said in all scenes, and the folder that these wrote into."""
    folder = tmp_path_factory.mktemp("scenes")
    for name in ("both", "single process"):
        (folder / name).mkdir()
    inputs, apart = [model, words[4]], folder / "single process"
    killed = [*words, "--out", folder / "out"]
    single = [str(folder / "out"), str(folder / "single")]
    parts = [*words, "--out", folder / "parts"]
    one = [str(folder / "parts"), str(folder / "parts by one")]
    streamed = [*STREAM, *words[1:5], "--out", folder / "stream"]
    cut = [str(folder / "stream"), str(folder / "cut")]
    fsdp = ("whole", "killed in parts", "resumed in parts")
    found = played(
        folder,
        [
            {"name": "killed", "fault": "killed", "words": killed, "keep": single},
            {"name": "resumed", "fault": "", "words": [*killed, "--resume"]},
            {"name": "whole", "fault": "", "words": [*words, "--out", folder / "fsdp"]},
            {"name": "killed in parts", "fault": "killed", "words": parts, "keep": one},
            {"name": "resumed in parts", "fault": "", "words": [*parts, "--resume"]},
            {"name": "cut", "fault": "cut", "words": streamed, "keep": cut},
            {"name": "streamed", "fault": "", "words": [*streamed, "--resume"]},
            {"name": "blind", "fault": "blind", "words": [*words, "--out", folder / "blind"]},
            {"name": "usage", "fault": "", "words": ["run", "--nonsense"]},
            {"name": "verb", "fault": "", "words": ["eval", "embedded"]},
            {"name": "both", "fault": "pipelines", "words": [folder / "both", *inputs]},
            {"name": "one", "fault": "pipelines", "words": [apart, *inputs], "alone": True},
        ],
        sharded=fsdp,
    )
    return found, folder


def test_a_rank_that_is_killed_ends_all_and_any_number_of_ranks_goes_on(
    words, scenes, launched, alone, cli
):
    said, folder = scenes
    gone = (
        "error: another process of this run is gone: it was killed, or its machine was lost; the same "
        "command with --resume goes on\n"
    )
    assert said["killed"] == [(1, "", gone), (-9, "", "")]
    single = folder / "single"
    kept = single / ".resume"
    assert [path.name for path in kept.glob("pass-06/*")] == ["step-00000004"]
    assert [code for code, *_ in said["resumed"]] == [0, 0]
    assert said["resumed"][1][1:] == ("", "")
    path = Path("safetensors") / "tensors.safetensors"
    assert (folder / "out" / path).read_bytes() == (launched[0] / path).read_bytes()
    # Begun by two and ended by one.
    code, _, errors = cli(*words, "--out", single, "--resume")
    assert (code, errors) == (0, "")
    assert_close(weights(single), weights(alone))
    assert (single / path).read_bytes() != (folder / "out" / path).read_bytes()


def test_ranks_that_hold_parts_write_them_and_any_number_of_ranks_goes_on(
    words, scenes, alone, cli
):
    said, folder = scenes
    assert [code for code, *_ in said["killed in parts"]] == [1, -9]
    assert [code for code, *_ in said["whole"] + said["resumed in parts"]] == [0] * 4
    kept = folder / "parts by one"
    (checkpoint,) = (kept / ".resume").glob("pass-06/step-*")
    sizes = [path.stat().st_size for path in sorted(checkpoint.glob("parts/*.distcp"))]
    assert len(sizes) == 2
    assert 0.5 < sizes[0] / sizes[1] < 2
    path = Path("safetensors") / "tensors.safetensors"
    assert (folder / "parts" / path).read_bytes() == (folder / "fsdp" / path).read_bytes()
    assert_close(weights(folder / "fsdp"), weights(alone))
    # Begun by two with a part each, and ended by one that holds all.
    code, _, errors = cli(*words, "--out", kept, "--resume")
    assert (code, errors) == (0, "")
    assert_close(weights(kept), weights(alone))


def test_layers_are_pruned_from_the_sums_of_all_ranks(words, scenes, cli):
    said, folder = scenes
    assert [code for code, *_ in said["cut"]] == [1, -9]
    assert [code for code, *_ in said["streamed"]] == [0, 0], said["streamed"]
    assert said["streamed"][1][1:] == ("", "")
    assert (folder / "cut" / ".resume" / "progress.json").is_file()
    source = words[1:5]
    assert cli(*STREAM, *source, "--out", folder / "one")[0] == 0
    assert cli(*STREAM, *source, "--out", folder / "cut", "--resume")[0] == 0
    one = {path.name: path.read_bytes() for path in (folder / "one").glob("*.safetensors")}
    assert len(one) > 2
    for each in ("stream", "cut"):
        assert {p.name: p.read_bytes() for p in (folder / each).glob("*.safetensors")} == one


def test_what_one_rank_alone_does_not_find_ends_all_with_its_sentence(scenes):
    said, folder = scenes
    assert said["blind"] == [(1, "", ""), (1, "", "error: rank 1 sees no data\n")]
    assert not (folder / "blind").exists()


def test_wrong_usage_and_verbs_of_one_process_are_told_once(scenes):
    (code, _, errors), other = scenes[0]["usage"]
    assert code == 2
    assert "No such option" in errors
    assert other == (2, "", "")
    assert [code for code, *_ in scenes[0]["verb"]] == [1, 1]
    assert sorted(errors for *_, errors in scenes[0]["verb"]) == [
        "",
        "error: 'eval' is done by one process; start it without a launcher of several\n",
    ]


@pytest.fixture(scope="module")
def pipelines(scenes):
    """What pipelines leave on each of two ranks, and in one process."""
    said, folder = scenes
    assert said["both"] == [(0, "", "")] * 2
    assert said["one"] == [(0, "", "")]

    def read(name):
        both = [torch.load(folder / "both" / f"{name} {r}.pt") for r in (0, 1)]
        return both, torch.load(folder / "single process" / f"{name} 0.pt")

    return read


NAMES = (
    *("calibrate", "taylor", "second-order", "influence", "ranks", "learned", "balance", "sharded"),
    "few",
)


@pytest.mark.parametrize("name", NAMES)
def test_ranks_agree_with_each_other_and_with_one_process(name, pipelines):
    (first, second), one = pipelines(name)
    assert first.keys() == one.keys()
    for path, value in one.items():
        assert torch.equal(first[path], second[path]), path
        if not value.is_floating_point():
            assert torch.equal(first[path], value), path
        else:
            assert torch.allclose(first[path], value, rtol=1e-4, atol=1e-4), path


def test_statistics_are_those_of_all_tokens(pipelines):
    (first, _), _ = pipelines("calibrate")
    counts = {int(value) for path, value in first.items() if path.endswith("count")}
    assert counts == {7 * 16}


def test_ranks_that_hold_other_programs_are_told(pipelines):
    both, alone = pipelines("said")
    assert alone == ""
    assert both[0] == both[1]
    assert both[0].startswith(
        "after pass 1 of 1, 'insert-masks' rank 1 has another program than rank 0; all must see"
    )
