"""Moving masks under Trainer, and on two ranks."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Trainer, TrainingArguments

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.ir.text import to_text
from sparsify.ir.views.linear import linears
from sparsify.tensors.masks import check_nm, keep_nm
from sparsify.tensors.pattern import Pattern
from sparsify.train.callback import AdaptiveMasksCallback
from sparsify.train.moving_masks import AdaptiveMasks, Refresh
from sparsify.train.optimizer import SparseAdamW
from sparsify.train.options import ArsSte
from sparsify.train.program_model import ProgramModel

WAYS = ["ddp", "ragged", "micro", "domains", "fsdp"]
METRICS = ["maxip", "wanda", "uniform"]


def test_trainer_moves_masks_and_leaves_the_graph_as_it_was(traced, text, tmp_path):
    program = parse("insert-masks | choose-masks{pattern=2:4}").run(traced("llama"), Context())
    before, first = (
        to_text(program),
        {v.mask: program.tensor(v.mask).clone() for v in _masked(program)},
    )
    masks = AdaptiveMasks(program, Refresh(3, Pattern(2, 4)), dense_forward=False)
    optimizer = SparseAdamW(program.module.parameters(), ArsSte(), lr=0.003)
    callback = AdaptiveMasksCallback(masks, optimizer)
    _train(program, callback, optimizer, text, tmp_path)
    assert to_text(program) == before
    assert [row["step"] for row in callback.rows] == [3, 6, 9]
    assert any(row["flips"] > 0 for row in callback.rows)
    assert optimizer.progress == 11 / 12
    for view in _masked(program):
        mask = program.tensor(view.mask)
        check_nm(mask, Pattern(2, 4))
    assert any(not torch.equal(program.tensor(path), mask) for path, mask in first.items())


def test_trainer_follows_a_rising_sparsity_with_an_optimiser_of_its_own(traced, text, tmp_path):
    program = parse("insert-masks").run(traced("llama"), Context())
    refresh = Refresh(3, sparsity=0.6, cubic=True, end=6)
    callback = AdaptiveMasksCallback(AdaptiveMasks(program, refresh))
    optimizer = torch.optim.SGD(program.module.parameters(), lr=0.05, momentum=0.9)
    _train(program, callback, optimizer, text, tmp_path)
    assert [row["sparsity"] for row in callback.rows] == pytest.approx(
        [0.6 - 0.6 * 0.5**3, 0.6, 0.6], abs=1e-4
    )
    masks = [program.tensor(view.mask) for view in _masked(program)]
    zeros, size = (
        sum(f(mask) for mask in masks) for f in (lambda m: int((~m).sum()), Tensor.numel)
    )
    assert zeros == math.floor(0.6 * size + 1e-9)


def _train(program, callback, optimizer, text, folder):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=12,
        per_device_train_batch_size=8,
        save_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
    )
    rows = [{k: v[0] for k, v in text.batch([i]).items()} for i in range(len(text))]
    Trainer(
        model=ProgramModel(program),
        args=arguments,
        train_dataset=rows,
        optimizers=(optimizer, None),
        callbacks=[callback],
    ).train()


def _masked(program):
    return [view for view in linears(program) if view.mask]


@pytest.mark.parametrize("how", WAYS)
def test_two_ranks_agree_with_each_other_and_with_one(how, two_and_one):
    ranks, one = two_and_one(how)
    for path, value in one.items():
        assert torch.equal(ranks[0][path], ranks[1][path]), path
        if value.dtype == torch.bool:
            assert torch.equal(value, ranks[0][path]), path
        else:
            assert torch.allclose(value, ranks[0][path], atol=1e-4), path
    assert _agreement(ranks[0]) > 0.9


@pytest.mark.parametrize("metric", METRICS)
def test_two_ranks_keep_the_same_neurons_as_one_process_with_all_the_data(metric, two_and_one):
    ranks, one = two_and_one(metric)
    kept = [path for path in one if path.startswith("kept")]
    assert len({tuple(one[path].tolist()) for path in kept}) > 1
    for path, value in one.items():
        assert torch.equal(ranks[0][path], ranks[1][path]), path
        if path in kept:
            assert torch.equal(value, ranks[0][path]), path
        else:
            assert torch.allclose(value, ranks[0][path], atol=1e-4), path


@pytest.fixture(scope="module")
def two_and_one(tmp_path_factory):
    """What `two_ranks.py` saves on each of two ranks, and on one process, by the way of training."""
    together, alone = tmp_path_factory.mktemp("together"), tmp_path_factory.mktemp("alone")
    script = str(Path(__file__).with_name("two_ranks.py"))
    launch = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0"),
        *("--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"),
    ]
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    _run([*launch, script, str(together), *WAYS, *METRICS], environment)
    _run([sys.executable, script, str(alone), *WAYS, *METRICS], environment)

    def read(how):
        ranks = [torch.load(together / f"{how} {rank}.pt") for rank in (0, 1)]
        return ranks, torch.load(alone / f"{how} 0.pt")

    return read


def _agreement(tensors):
    """The share of mask entries that are chosen again from the weights as they were saved.

    Chance gives 5/9; a mask that lies beside other weights than its own shows here.
    """
    same = size = 0
    for path, mask in tensors.items():
        if mask.dtype == torch.bool:
            weight = tensors[path.removesuffix("_mask")]
            along = weight.t() if path.startswith("down") else weight
            chosen = keep_nm(along.abs(), Pattern(2, 4))
            same += int((chosen == (mask.t() if along is not weight else mask)).sum())
            size += mask.numel()
    return same / size


def _run(command, environment):
    path = os.pathsep.join(p for p in sys.path if p)
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
