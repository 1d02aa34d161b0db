"""Moving masks under Trainer, and on two ranks."""

import os
import subprocess
import sys
import textwrap

import torch
from transformers import Trainer, TrainingArguments

from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.engine.training import ArsSte
from sparsify.ir.text import to_text
from sparsify.ir.views import linears
from sparsify.tensors.masks import check_nm
from sparsify.tensors.pattern import Pattern
from sparsify.train.adaptive import AdaptiveMasks, Refresh
from sparsify.train.callback import AdaptiveMasksCallback
from sparsify.train.optimizer import SparseAdamW
from sparsify.train.wrapped import ProgramModel


def test_trainer_moves_masks_and_leaves_the_graph_as_it_was(traced, text, tmp_path):
    program = parse("insert-masks | choose-masks{pattern=2:4}").run(traced("llama"), Context())
    before, first = (
        to_text(program),
        {v.mask: program.tensor(v.mask).clone() for v in _masked(program)},
    )
    masks = AdaptiveMasks(program, Refresh(3, Pattern(2, 4)), dense_forward=False)
    optimizer = SparseAdamW(program.module.parameters(), ArsSte(), lr=0.003)
    callback = AdaptiveMasksCallback(masks, optimizer)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
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
    assert to_text(program) == before
    assert [row["step"] for row in callback.rows] == [3, 6, 9]
    assert any(row["flips"] > 0 for row in callback.rows)
    assert optimizer.progress == 11 / 12
    for view in _masked(program):
        mask = program.tensor(view.mask)
        check_nm(mask, Pattern(2, 4))
    assert any(not torch.equal(program.tensor(path), mask) for path, mask in first.items())


def _masked(program):
    return [view for view in linears(program) if view.mask]


RANKS = """
import sys
import torch
from torch import nn
from accelerate import PartialState
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.ir.trace import trace
from sparsify.train.data import TextData

torch.set_num_threads(1)

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.up, self.down, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 11)

    def forward(self, input_ids):
        x = self.embed(input_ids)
        return self.head(x + self.down(self.up(self.norm(x)).relu()))

def go():
    torch.manual_seed(0)
    ids = torch.arange(12).reshape(2, 6) % 11
    program = trace(Net(), {"input_ids": ids}, {"input_ids": {0: "batch", 1: "length"}})
    data = TextData(torch.randint(0, 11, (240,), generator=torch.Generator().manual_seed(1)), 6)
    text = (
        "insert-masks | choose-masks{pattern=2:4} | "
        "train{steps=8 batch=4 lr=0.01 masks=every{steps=2} decay=ars-ste{peak=0.01}}"
    )
    return parse(text).run(program, Context(data=data, seed=5))

if __name__ == "__main__":
    program = go()
    torch.save(dict(program.tensors()), f"{sys.argv[1]}/{PartialState().process_index}.pt")
"""


def test_two_ranks_agree_with_each_other_and_with_one(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(RANKS))
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--master-port=0",
    ]
    environment = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    _run(
        [*launch, "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0", str(script), str(tmp_path)],
        environment,
    )
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    alone = tmp_path / "alone"
    alone.mkdir()
    _run([sys.executable, str(script), str(alone)], environment)
    one = torch.load(alone / "0.pt")
    for path, value in one.items():
        assert torch.equal(ranks[0][path], ranks[1][path]), path
        if value.dtype == torch.bool:
            assert torch.equal(value, ranks[0][path]), path
        else:
            assert torch.allclose(value, ranks[0][path], atol=1e-4), path


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
