"""FSDP2 as accelerate's config file asks for it: parameters, gradients and moments cut over the ranks.

The flat graph is cut where one activation crosses it, between blocks (`sparsify.ir.run.segments`). The
weights of a piece are gathered while it runs, forward and backward; what several pieces read, as a tied
table, and what stands behind the last cut is gathered for the whole step.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn

from sparsify import ranks
from sparsify.errors import OptionError
from sparsify.ir.program import Program
from sparsify.train.forward import Teacher, Trained
from sparsify.train.sharded import whole
from sparsify.train.units import LayerUnits

ASKED = "ACCELERATE_USE_FSDP"
# What accelerate can do beside, and this cannot: its name in a config file.
_OTHERS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "FSDP_OFFLOAD_PARAMS": "fsdp_offload_params",
}


def sharding() -> bool:
    """Whether parameters are to be cut over several ranks.

    Raises OptionError for a way of accelerate's to spread a model that there is not here.
    """
    if ranks.count() == 1:
        return False
    for name, said in _OTHERS.items():
        if parse_flag_from_env(name):
            raise OptionError(f"{said} is not there for runs; take it out of accelerate's config")
    if not parse_flag_from_env(ASKED):
        return False
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise OptionError("of FSDP there is version 2; say fsdp_version: 2 in accelerate's config")
    return True


@contextlib.contextmanager
def spread(twin: Teacher | None, device: torch.device) -> Iterator[None]:
    """The dense twin cut over the ranks as parameters in training are, inside the block.

    Afterwards a copy that the training has made of it is in parts still.
    """
    if twin is None or not sharding():
        yield
        return
    shards = Shards(twin.program, twin.model, device)
    yield
    if not twin.copied:
        shards.gather()


class Shards:
    """The parameters and masks of a program, cut over the ranks from here to `gather`.

    `model` holds the program's module, and is what is called.
    """

    def __init__(self, program: Program, model: Trained, device: torch.device) -> None:
        # Not above: importing them takes a second.
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self._program, self._model = program, model
        mesh = init_device_mesh(device.type, (ranks.count(),))
        model.units = units = LayerUnits(program)
        paths = dict(program.module.named_parameters(remove_duplicate=False)).keys()
        self._before = {
            path: program.tensor(path) for path in dict.fromkeys((*paths, *units.paths))
        }
        for unit in units.each:
            fully_shard(unit, mesh=mesh)
        for path in units.paths:
            self._put(path, units.now(path))
        # Losses read weights of the head behind the forward pass.
        apart = set(units.parameters())
        fully_shard(model, mesh=mesh, reshard_after_forward=False, ignored_params=apart)
        for value in self._before.values():
            value.data = value.new_empty(0)  # who knows the whole tensor keeps it, not its numbers

    @torch.no_grad()
    def gather(self) -> None:
        """Put whole tensors back, the same ones as before, on every rank."""
        self._model.reshard()  # an evaluation leaves them gathered
        filled = set[int]()
        for path, value in self._before.items():
            if id(value) not in filled:
                value.data = whole(self._program.tensor(path).detach())
                filled.add(id(value))
            self._put(path, value)

    def _put(self, path: str, value: Tensor) -> None:
        owner, _, name = path.rpartition(".")
        module = self._program.module.get_submodule(owner)
        if name in dict(module.named_buffers(recurse=False)) and isinstance(value, nn.Parameter):
            value = value.detach()  # else it would not stay among the buffers
        setattr(module, name, value)
