"""The command line as one of several ranks, with what a test wants to go wrong: `python ranks.py FAULT WORDS...`.

With `pipelines FOLDER MODEL TEXT` in place of words, what several pipelines leave on this rank.
"""

import os
import signal
import sys

import torch

from sparsify import ranks
from sparsify.cli import main
from sparsify.data.load import load_data
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import DataError, PipelineError
from sparsify.ir.trace.trace import trace
from sparsify.pretrained.load import load_model, load_tokenizer

SEEN = "insert-probes{gram=true} | calibrate{samples=7 batch=2}"
# Seven samples in batches of two: a rank has two batches, the other the last, which is not full.
PIPELINES = {
    "calibrate": SEEN,
    "sparsegpt": f"{SEEN} | insert-masks | choose-masks{{score=sparsegpt pattern=2:4}}",
    "taylor": "insert-masks{of=heads,channels} | "
    "choose-masks{of=heads,channels score=taylor sparsity=0.5 samples=7 batch=2}",
    "second-order": "insert-masks{of=channels} | "
    "choose-masks{of=channels score=second-order sparsity=0.5 samples=3}",
    "influence": "insert-masks{of=layers} | "
    "choose-masks{of=layers score=influence sparsity=0.5 samples=3 batch=2}",
    "ranks": "insert-lora{rank=4 alpha=8.0} | insert-masks | choose-masks{sparsity=0.5} | "
    "allocate-ranks{mean=4 largest=8 samples=5 batch=2}",
    "learned": "insert-masks{of=layers,heads,channels,hidden} | train{steps=4 batch=4 "
    "masks=learned{layers=1 heads=2 channels=48 hidden=32 lr=0.5 ramp=0.4}}",
    "balance": "insert-experts{experts=2 top=1 rank=2} | train{steps=4 batch=5 update=experts balance=0.1}",
}
# More ranks than batches: nobody waits for one that has nothing.
FEW = "insert-masks{of=channels} | choose-masks{of=channels score=taylor sparsity=0.5 samples=1}"


def pipelines(folder, model, text):
    if "WORLD_SIZE" in os.environ:
        torch.distributed.init_process_group("gloo")
    data = load_data(text, load_tokenizer(model), 16, "text")
    for name, pipeline in {**PIPELINES, "few": FEW}.items():
        program = parse(pipeline).run(trace(load_model(model)[0]), Context(data=data, seed=3))
        torch.save(dict(program.tensors()), f"{folder}/{name} {ranks.rank()}.pt")
    program = trace(load_model(model)[0])
    with torch.no_grad():
        next(program.module.parameters())[0, 0] += ranks.rank()
    said = ""
    try:
        parse("insert-masks").run(program)
    except PipelineError as error:
        said = str(error)
    torch.save(said, f"{folder}/said {ranks.rank()}.pt")


def killed(step):
    """Rank 1 is gone before a step of training."""
    from sparsify.train.loop import _Run

    def stepped(self, index, original=_Run.step):
        if index == step and ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, index)

    _Run.step = stepped


def blind():
    """Rank 1 alone does not find the data."""
    from sparsify.commands import run

    def opened(job, tokenizer, original=run.open_data):
        if ranks.rank() == 1:
            raise DataError("rank 1 sees no data")
        return original(job, tokenizer)

    run.open_data = opened


if __name__ == "__main__":
    torch.set_num_threads(1)
    fault, *words = sys.argv[1:]
    if fault == "pipelines":
        pipelines(*words)
    else:
        if fault == "killed":
            killed(5)
        if fault == "blind":
            blind()
        sys.argv[1:] = words
        main()
