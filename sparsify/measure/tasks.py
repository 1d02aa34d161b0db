"""Scores on tasks of EleutherAI's harness (`lm_eval`, the extra `tasks`), for whatever gives logits."""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from sparsify.errors import DataError, OptionError, SparsifyError, nearest, reason_of
from sparsify.ir.facts.admission import Admission, admission_of_program
from sparsify.ir.program import Program
from sparsify.measure.silence import silent
from sparsify.measure.suite import Suite

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

# Batches done and batches in all.
Watch = Callable[[int, int], None]
# Those of the harness's own command line: the examples before an item are then the same ones.
_SEED = 1234
# Draws where a standard error has no closed form; means have one.
_RESAMPLES = 1000


class Subject(Protocol):
    """A model that is asked.

    `run` gives logits `[b, T, V]` first for `input_ids` and `attention_mask`, each `[b, T]`, padded on the
    right; `admission` says which sequences it takes.
    """

    @property
    def name(self) -> str:
        """What errors call it."""

    @property
    def run(self) -> Callable[[dict[str, Tensor]], tuple[Tensor, ...]]:
        """From inputs by name to outputs."""

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer; None when it has none."""

    @property
    def admission(self) -> Admission:
        """The sequences it takes."""


@dataclass(frozen=True)
class Asked:
    """A subject that is made of its parts."""

    name: str
    run: Callable[[dict[str, Tensor]], tuple[Tensor, ...]]
    tokenizer: Any
    admission: Admission


def asked(program: Program, name: str = "the program") -> Asked:
    """A program in memory as a subject."""
    return Asked(name, program.run, program.tokenizer, admission_of_program(program))


@dataclass(frozen=True)
class Loaded:
    """Tasks with their items, ready for any number of models."""

    suite: Suite
    tasks: Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """A metric over all items of a task, with its standard error; None where there is none."""

    value: float
    stderr: float | None


@dataclass(frozen=True)
class Score:
    """What a model reached on a task or a group of tasks.

    `metrics` go by the harness's names (`acc`, `acc_norm`), those of a filter as `name,filter`.
    """

    task: str
    items: int
    shots: int
    metrics: dict[str, Metric]


def load_tasks(suite: Suite) -> Loaded:
    """Find tasks by name and read their items.

    Raises OptionError for a name that no task has, DataError without the package lm_eval, for folders that
    are not there, and for a task that cannot be read.
    """
    if find_spec("lm_eval") is None:
        raise DataError(
            "tasks are measured by the package lm_eval; pip install 'sparsify-fx[tasks]'"
        )
    if not suite.names:
        raise OptionError("no task to measure on is named")
    for folder, what in ((suite.path, "task files"), (suite.data, "data for tasks")):
        if folder is not None and not folder.is_dir():
            raise DataError(f"there is no folder '{folder}' with {what}")
    tasks: dict[str, dict[str, Any]] = {"tasks": {}, "groups": {}, "group_map": {}}
    with silent():
        manager = _manager(suite)
        for name in suite.names:
            found = _read(manager, name)
            for kind, known in tasks.items():
                known.update(found.get(kind, {}))
    for task in tasks["tasks"].values():
        # A task that says 0 itself is asked without examples, as the harness has it.
        if suite.shots is not None and task.get_config("num_fewshot") != 0:
            task.set_config("num_fewshot", suite.shots)
    return Loaded(suite, tasks)


def _read(manager: "TaskManager", name: str) -> dict[str, Any]:
    if name not in manager.all_tasks:
        raise OptionError(f"no task is called '{name}'{nearest(name, manager.all_tasks)}")
    try:
        found: dict[str, Any] = manager.load([name])
    except Exception as error:  # of whatever a task file names or calls
        raise DataError(f"the task '{name}' cannot be read: {reason_of(error)}") from error
    return found


def _manager(suite: Suite) -> "TaskManager":
    """An index of the tasks; reading that of the harness's thousands takes seconds, so only where needed."""
    from lm_eval.tasks import TaskManager

    about: dict[str, Any] = {
        "include_path": None if suite.path is None else str(suite.path.resolve()),
        # Handed to whatever reads the data of a task.
        "metadata": {} if suite.data is None else {"task_data": str(suite.data.resolve())},
    }
    local = TaskManager(include_defaults=False, **about)
    # A group may name tasks of the harness.
    alone = {*local.all_subtasks, *local.all_tags}
    return local if alone.issuperset(suite.names) else TaskManager(**about)


def score(subject: Subject, loaded: Loaded, watch: Watch | None = None) -> list[Score]:
    """Ask a model all items and let the harness score what it says; tasks, then groups that add up.

    `watch` hears of every batch. Raises DataError for a model without tokenizer or without logits over its
    vocabulary, and for a task that cannot be scored; SparsifyError when log-likelihoods are not finite.
    """
    if subject.tokenizer is None:
        raise DataError(
            f"tasks need a tokenizer, and '{subject.name}' has none; save one into the model folder"
        )
    for task in loaded.tasks["tasks"].values():
        task.set_fewshot_seed(_SEED)
    with silent() as aloud:
        from lm_eval.evaluator import evaluate

        from sparsify.measure.harness import Adapter

        adapter = Adapter(subject, loaded.suite.batch, watch, aloud)
        try:
            found = evaluate(
                lm=adapter,
                task_dict=loaded.tasks,
                limit=loaded.suite.limit,
                bootstrap_iters=_RESAMPLES,
                log_samples=False,
            )
        except (SparsifyError, MemoryError):
            raise
        except Exception as error:  # of whatever a task computes from what was said
            raise DataError(f"the tasks cannot be scored: {reason_of(error)}") from error
    shots = found["n-shot"]
    rows = [
        Score(name, int(row["sample_len"]), int(shots.get(name) or 0), _metrics(row))
        for name, row in found["results"].items()
    ]
    return [row for row in rows if row.metrics]


def _metrics(row: Mapping[str, Any]) -> dict[str, Metric]:
    """The figures of a row of the harness, whose keys are `metric,filter` and `metric_stderr,filter`."""
    found = {}
    for key, value in row.items():
        name, comma, kept = key.partition(",")
        if not comma or name.endswith("_stderr"):
            continue
        with contextlib.suppress(TypeError, ValueError):
            error = row.get(f"{name}_stderr,{kept}")
            # Of one item there is none, and the harness says so in words.
            stderr = float(error) if isinstance(error, int | float) else math.nan
            found[name if kept == "none" else key] = Metric(
                float(value), stderr if math.isfinite(stderr) else None
            )
    return found


def metric_words(figure: Mapping[str, Any]) -> str:
    """A metric as it stands in tables, its value and standard error, from `asdict(Metric)`."""
    error = figure.get("stderr")
    return f"{figure['value']:.3f}" + ("" if error is None else f" \N{PLUS-MINUS SIGN} {error:.3f}")


def metric_names(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of all metrics of rows made of scores by `asdict`, in order of appearance."""
    return list(dict.fromkeys(name for row in rows for name in row["metrics"]))
