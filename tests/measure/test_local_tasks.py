"""The task files of `benchmarks/tasks` ask what their data's README says."""

import json
from pathlib import Path

import pytest

from sparsify.errors import DataError
from sparsify.measure.silence import silent
from sparsify.measure.suite import Suite
from sparsify.measure.tasks import load_tasks

PATH = Path(__file__).parents[2] / "benchmarks" / "tasks"
CHOICE = {"question": "Why is it so?", "choices": ["Because", "By chance"], "gold": 1}
ROWS = {
    "hellaswag": {"context": "He sits. He", "choices": ["stands.", "flies."], "gold": 0},
    "winogrande": {
        "sentence": "Ann told Sue that _ was right.", "option1": "Ann", "option2": "Sue", "gold": 1,
    },
}  # fmt: skip
ASKED = {
    "arc_easy": ("Question: Why is it so?\nAnswer:", [" Because", " By chance"]),
    "arc_challenge": ("Question: Why is it so?\nAnswer:", [" Because", " By chance"]),
    "piqa": ("Question: Why is it so?\nAnswer:", [" Because", " By chance"]),
    "openbookqa": ("Why is it so?", [" Because", " By chance"]),
    "social_iqa": ("Q: Why is it so?\nA:", [" Because", " By chance"]),
    "hellaswag": ("He sits. He", [" stands.", " flies."]),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name in (*ASKED, "winogrande"):
        row = json.dumps(ROWS.get(name, CHOICE))
        (folder / f"{name}.jsonl").write_text(f"{row}\n{row}\n", encoding="utf-8")
    return load_tasks(Suite(("local_zero_shot",), PATH, folder)).tasks["tasks"]


def test_all_seven_go_by_one_name_and_hide_none_of_the_harness(loaded):
    assert sorted(loaded) == sorted(f"local_{name}" for name in (*ASKED, "winogrande"))


def prompts(task):
    with silent():
        task.build_all_requests(limit=1)
    return [item.args for item in task.instances]


@pytest.mark.parametrize("name", ASKED)
def test_choices_stand_behind_the_prompt(name, loaded):
    task = loaded[f"local_{name}"]
    prompt, choices = ASKED[name]
    assert prompts(task) == [(prompt, choice) for choice in choices]
    right = [(0.0, False), (0.0, False)]
    right[ROWS.get(name, CHOICE)["gold"]] = (1.0, False)
    metrics = {"acc": 1.0} if name == "social_iqa" else {"acc": 1.0, "acc_norm": 1.0}
    assert task.process_results(task.eval_docs[0], right) == metrics


def test_options_stand_in_the_gap_and_what_follows_is_scored(loaded):
    task = loaded["local_winogrande"]
    contexts = ("Ann told Sue that Ann", "Ann told Sue that Sue")
    assert prompts(task) == [(context, " was right.") for context in contexts]
    assert task.process_results(task.eval_docs[0], [(0.0, False), (1.0, False)]) == {"acc": 1.0}


def test_without_a_folder_of_data_they_say_so():
    with pytest.raises(DataError) as told:
        load_tasks(Suite(("local_piqa",), PATH))
    assert str(told.value) == (
        "the task 'local_piqa' cannot be read: it reads piqa.jsonl from a folder; name that by --task-data"
    )
