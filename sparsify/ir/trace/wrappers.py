"""What stands around a model while it is trained or served: taken off, or refused where weights lie in it."""

from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor

from sparsify.errors import TraceError


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DataParallel, DistributedDataParallel and what `torch.compile` returns.

    Raises TraceError for adapters of peft, which are no part of the weights, and for weights that are
    spread over processes.
    """
    _refuse_shards(model)
    inner: nn.Module = extract_model_from_parallel(model, recursive=False, keep_torch_compile=False)
    _refuse_shards(inner)
    _refuse_adapters(inner)
    return inner


def _refuse_shards(model: nn.Module) -> None:
    flat = any(isinstance(part, FullyShardedDataParallel) for part in model.modules())
    if flat or any(isinstance(p, DTensor) for p in model.parameters()):
        raise TraceError(
            f"the weights of {type(model).__name__} are spread over processes; save the whole model "
            "(get_model_state_dict with full_state_dict=True) and load that"
        )


def _refuse_adapters(model: nn.Module) -> None:
    """A model of peft, or one that adapters were loaded into: both carry the settings of each by its name."""
    adapters = getattr(model, "peft_config", None)
    if not adapters:
        return
    way = (
        "trace model.merge_and_unload()"
        if hasattr(model, "merge_and_unload")
        else "save it and give merge_adapter=True to sparsify.load_model"
    )
    raise TraceError(
        f"{type(model).__name__} carries adapters ({', '.join(adapters)}), which are no part of the weights; "
        f"merge them: {way}"
    )
