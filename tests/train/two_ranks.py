"""Training on as many processes as there are, in several ways: `python two_ranks.py FOLDER WAY...`."""

import sys

import torch
from accelerate import PartialState
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, init_device_mesh

from sparsify.data.domains import DomainData
from sparsify.data.sequences import TensorData, TextData
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.ir.trace.trace import trace
from sparsify.tensors.pattern import Pattern
from sparsify.train.moving_masks import AdaptiveMasks, Refresh
from sparsify.train.omitting import Omitting
from sparsify.train.optimizer import SparseAdamW
from sparsify.train.options import ArsSte
from sparsify.train.program_model import ProgramModel
from sparsify.train.sharded import whole

STEPS = 8


class Net(nn.Module):
    """A small language model; `down` is kept `[in, out]`, so that rows of its shards cut groups."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.up, self.head = nn.Linear(8, 12), nn.Linear(8, 11)
        self.down, self.bias = nn.Parameter(torch.randn(12, 8) * 0.3), nn.Parameter(torch.zeros(8))

    def forward(self, input_ids):
        x = self.embed(input_ids)
        inner = self.up(self.norm(x)).relu()
        down = torch.addmm(self.bias, inner.flatten(0, 1), self.down).view_as(x)
        return self.head(x + down)


def traced():
    torch.manual_seed(0)
    ids = torch.arange(12).reshape(2, 6) % 11
    return trace(Net(), {"input_ids": ids}, {"input_ids": {0: "batch", 1: "length"}})


def data():
    draw = torch.Generator().manual_seed(1)
    return TextData(torch.randint(0, 11, (240,), generator=draw), 6)


def ragged():
    """Data whose sequences have between one and five labels."""
    ids = data().batch(list(range(40)))["input_ids"]
    lengths = 2 + torch.randint(0, 5, (40, 1), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(6) < lengths).long()
    labels = ids.masked_fill(mask == 0, -100)
    return TensorData({"input_ids": ids, "attention_mask": mask, "labels": labels})


def domains():
    """Two domains, one of them ragged, with held-out sequences of unlike numbers of labels."""
    return DomainData({"even": data(), "ragged": ragged()}, {"even": 0.4, "ragged": 0.6}, 0.3)


def by_the_pass(data, more=""):
    """`train` as a pipeline runs it."""
    text = (
        "insert-masks | choose-masks{pattern=2:4} | "
        f"train{{steps={STEPS} batch=4 lr=0.01 masks=every{{steps=2}} decay=ars-ste{{peak=0.01}}{more}}}"
    )
    context = Context(data=data, seed=5)
    tensors = dict(parse(text).run(traced(), context).tensors())
    rows = context.figures["train"]
    measured = {key: [row[key] for row in rows if key in row] for key in rows[-1] if "." in key}
    return {**tensors, **{key: torch.tensor(values) for key, values in measured.items()}}


def sharded():
    """A loop of its own, parameters, gradients and moments sharded where there are several processes."""
    state = PartialState(cpu=True)
    program = parse("insert-masks | choose-masks{pattern=2:4}").run(traced(), Context())
    model = ProgramModel(program)
    if state.num_processes > 1:
        fully_shard(model, mesh=init_device_mesh("cpu", (state.num_processes,)))
        assert all(isinstance(p, DTensor) for p in model.parameters())
    masks = AdaptiveMasks(program, Refresh(2, Pattern(2, 4)), dense_forward=False)
    optimizer = SparseAdamW(model.parameters(), ArsSte(peak=0.01), lr=0.01)
    optimizer.masks = masks.of_parameters()
    with masks.training():
        for step in range(STEPS):
            if masks.due(step):
                figures = masks.refresh(step)
                assert figures["drift"] > 0
            optimizer.progress = step / STEPS
            rows = range(4 * step, 4 * step + 4)
            batch = data().batch(list(rows)[state.process_index :: state.num_processes])
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
    masks.finish()
    return {path: whole(value.detach()) for path, value in program.tensors()}


def omitting(metric):
    """A loop of its own over DDP: the weights at the end and what every step kept."""
    state = PartialState(cpu=True)
    text = f"insert-omission{{metric={metric} select=sampling multiple=1}}"
    program = parse(text).run(traced(), Context())
    model = ProgramModel(program)
    if state.num_processes > 1:
        model = nn.parallel.DistributedDataParallel(model)
    model.train()
    optimizer = torch.optim.SGD(program.module.parameters(), lr=0.05)
    run, kept = Omitting(program, seed=3), {}
    with run.training():
        for step in range(STEPS):
            run.begin(step, 0.5)
            rows = list(range(4 * step, 4 * step + 4))
            batch = data().batch(rows[state.process_index :: state.num_processes])
            model(**batch)["loss"].backward()
            optimizer.step()
            optimizer.zero_grad()
            kept |= {f"kept {step} {path}": index for path, index in run.kept().items()}
    return {**{path: value.detach() for path, value in program.tensors()}, **kept}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, *chosen = sys.argv[1:]
    ways = {
        "ddp": lambda: by_the_pass(data()),
        "ragged": lambda: by_the_pass(ragged(), " distill=kl"),
        "micro": lambda: by_the_pass(ragged(), " distill=kl accumulate=2 recompute=layers"),
        "domains": lambda: by_the_pass(
            domains(), " domains=dynamic{every=3 reference=even:1,dense}"
        ),
        "fsdp": sharded,
    }
    for how in chosen:
        tensors = ways[how]() if how in ways else omitting(how)
        torch.save(tensors, f"{folder}/{how} {PartialState().process_index}.pt")
    PartialState().destroy_process_group()
