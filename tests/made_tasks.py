"""A folder of made-up tasks of every kind that the harness asks, and the data they read from another one."""

import json
from pathlib import Path

_READ = """
import json, pathlib, datasets

def read(file, task_data=None, **others):
    lines = (pathlib.Path(task_data) / file).read_text().splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}
"""
_COMMON = """
custom_dataset: !function reading.read
dataset_kwargs: {file: rows.jsonl}
test_split: test
fewshot_split: test
metadata: {version: 1.0}
"""
_TASKS = {
    "made_choice": """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
""",
    "made_text": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: question
metric_list:
  - {metric: word_perplexity, aggregation: weighted_perplexity, higher_is_better: false}
""",
    "made_answer": """
output_type: generate_until
doc_to_text: "{{question}} is"
doc_to_target: "{{choices[gold]}}"
generation_kwargs: {until: ["\\n", "."], max_gen_toks: 6}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
    "made_draw": """
output_type: generate_until
doc_to_text: question
doc_to_target: question
generation_kwargs: {until: ["."], do_sample: true, temperature: 0.7}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
""",
}
ROWS = [
    {"question": "What does a table hold", "choices": ["a", "rows", "b"], "gold": 1},
    {"question": "The index", "choices": ["of a list starts at zero", "is of rock"], "gold": 0},
    {"question": "A function is called with", "choices": ["arguments", "no name at all", "1"],
     "gold": 0},
    {"question": "Return", "choices": ["the value of the expression", "None"], "gold": 1},
    {"question": "Which statement in the manual of the server ends a transaction and keeps it",
     "choices": ["COMMIT", "SELECT", "ROLLBACK"], "gold": 0},
    {"question": "", "choices": ["import", "the"], "gold": 0},
]  # fmt: skip


def make_tasks(folder: Path) -> tuple[Path, Path]:
    """Write task files and their data; the folder of each."""
    path, data = folder / "files", folder / "rows"
    path.mkdir()
    data.mkdir()
    (path / "reading.py").write_text(_READ)
    for name, text in _TASKS.items():
        (path / f"{name}.yaml").write_text(f"task: {name}\n{_COMMON}{text}")
    rows = "\n".join(json.dumps(row) for row in ROWS)
    (data / "rows.jsonl").write_text(rows, encoding="utf-8")
    return path, data
