"""Scenes in which this process is one of several ranks: `python ranks.py FOLDER RANK COUNT < scenes.json`.

A scene is a command line, with what is to go wrong on the way, or what several pipelines leave on each rank.
Every scene is played by a fork, so that libraries are imported once; FOLDER gets what each rank said.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import traceback
from collections import Counter
from pathlib import Path

import torch
from accelerate.utils import patch_environment

from sparsify import ranks
from sparsify.cli import main

# Not from the fork on, which would import it every time.
from sparsify.commands import run as run_command
from sparsify.data.load import load_data
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import DataError, PipelineError
from sparsify.ir.trace.trace import trace
from sparsify.pretrained.load import load_model, load_tokenizer
from sparsify.stream.prune import _Run as _Stream
from sparsify.train.loop import _Run
from sparsify.train.shards import Shards

SEEN = "insert-probes{gram=true} | calibrate{samples=7 batch=2}"
# Seven samples in batches of two: a rank has two batches, the other the last, which is not full.
PIPELINES = {
    "calibrate": SEEN,
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
    "sharded": "insert-masks | choose-masks{pattern=2:4} | train{steps=4 batch=4 accumulate=2 "
    "distill=kl masks=every{steps=2} decay=ars-ste{peak=0.01}} | fold-masks",
    "balance": "insert-experts{experts=2 top=1 rank=2} | train{steps=4 batch=5 update=experts balance=0.1}",
}
# More ranks than batches: nobody waits for one that has nothing.
FEW = "insert-masks{of=channels} | choose-masks{of=channels score=taylor sparsity=0.5 samples=1}"


@contextlib.contextmanager
def sharded():
    """Tensors are cut over the ranks, as accelerate's launcher says where its config file does.

    Those in training, their masks among them, and the dense twin's: parameters of as many bytes.
    """
    cut = []

    def gathered(self, original=Shards.gather):
        self._model.reshard()
        assert len(self._model.units.each) > 1
        values = [self._program.tensor(path) for path in self._before]
        assert all(2 * value.to_local().numel() == value.numel() for value in values)
        cut.append(Counter(value.dtype for value in values))
        return original(self)

    with patch_environment(ACCELERATE_USE_FSDP="true", FSDP_VERSION="2"):
        before, Shards.gather = Shards.gather, gathered
        yield
        Shards.gather = before
    if ranks.count() == 1:
        assert not cut
        return
    twin, trained = cut
    assert trained[torch.bool] >= 7
    assert twin == Counter({torch.float32: trained[torch.float32]})


def pipelines(folder, model, text):
    if os.environ["WORLD_SIZE"] != "1":
        torch.distributed.init_process_group("gloo")
    data, whole = load_data(text, load_tokenizer(model), 16, "text"), trace(load_model(model)[0])
    for name, pipeline in {**PIPELINES, "few": FEW}.items():
        with sharded() if name == "sharded" else contextlib.nullcontext():
            program = parse(pipeline).run(whole.clone(), Context(data=data, seed=3))
        torch.save(dict(program.tensors()), f"{folder}/{name} {ranks.rank()}.pt")
    program = whole.clone()
    with torch.no_grad():
        next(program.module.parameters())[0, 0] += ranks.rank()
    said = ""
    try:
        parse("insert-masks").run(program)
    except PipelineError as error:
        said = str(error)
    torch.save(said, f"{folder}/said {ranks.rank()}.pt")


def killed():
    """Rank 1 is gone before the sixth step of training."""

    def stepped(self, index, original=_Run.step):
        if index == 5 and ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, index)

    _Run.step = stepped


def cut():
    """Rank 1 is gone in the second layer, when the cut before it is kept."""

    def collected(self, numbers, *, stored, original=_Stream._collect):
        if numbers[0] == 5 and ranks.rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, numbers, stored=stored)

    _Stream._collect = collected


def blind():
    """Rank 1 alone does not find the data."""

    def opened(job, tokenizer, original=run_command.open_data):
        if ranks.rank() == 1:
            raise DataError("rank 1 sees no data")
        return original(job, tokenizer)

    run_command.open_data = opened


def play(scene):
    """A scene on this rank, to its end."""
    os.environ["MASTER_PORT"] = str(scene["port"])
    if scene.get("sharded"):
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    if scene["fault"] == "pipelines":
        pipelines(*scene["words"])
        return
    if scene["fault"]:
        globals()[scene["fault"]]()
    sys.argv[1:] = scene["words"]
    main()


def forked(scene, place):
    """The exit code of a scene, which prints into files of this name."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for number, kind in ((1, "out"), (2, "errors")):
        os.dup2(os.open(f"{place}.{kind}", os.O_WRONLY | os.O_CREAT), number)
    code = 0
    try:
        play(scene)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 99
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, mine, count = sys.argv[1:]
    os.environ |= {
        "RANK": mine,
        "LOCAL_RANK": mine,
        "WORLD_SIZE": count,
        "MASTER_ADDR": "127.0.0.1",
    }
    for scene in json.load(sys.stdin):
        if scene.get("alone"):
            if mine != "0":
                continue
            os.environ["WORLD_SIZE"] = "1"
        place = f"{folder}/{scene['name']}-{mine}"
        code = forked(scene, place)
        Path(f"{place}.code").write_text(str(code))
        if "keep" in scene and mine == "0":
            shutil.copytree(*scene["keep"])
