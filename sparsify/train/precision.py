"""accelerate in the precision of one run, whatever else in the process uses accelerate."""

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import patch_environment

from sparsify.errors import OptionError
from sparsify.train.settings import Precision
from sparsify.train.shards import ASKED, sharding


@contextlib.contextmanager
def accelerating(device: str, precision: Precision) -> Iterator[Accelerator]:
    """An accelerator of this precision inside the block.

    accelerate keeps one precision a process: that of others is put aside and stands again afterwards. bf16 is
    autocast over float32 weights. Raises OptionError for a GPU that does not multiply bfloat16.
    """
    on_cpu, on_cuda = device == "cpu", device.startswith("cuda")
    if precision == "bf16" and on_cuda and not torch.cuda.is_bf16_supported():
        raise OptionError(f"{device} does not multiply bfloat16; leave precision=bf16 out")
    shared = (AcceleratorState._shared_state, GradientState._shared_state)
    before = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        # Sharding is done to the flat graph, in which accelerate finds no layers to wrap.
        with patch_environment(**({ASKED: "false"} if sharding() else {})):
            accelerator = Accelerator(
                cpu=on_cpu, mixed_precision="bf16" if precision == "bf16" else "no"
            )
        yield accelerator
    finally:
        for state, said in zip(shared, before, strict=True):
            state.clear()
            state.update(said)
