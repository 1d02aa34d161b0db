"""Where each layer of a streamed model runs."""

from collections.abc import Mapping, Sequence

import torch
from accelerate.utils import get_max_memory

from sparsify import ranks
from sparsify.errors import OptionError
from sparsify.ir.device import device_of

DeviceMap = Mapping[str, str | int]


class Places:
    """The device of every module of a model.

    `device` is one device (`cpu`, `cuda:1`), a device map as accelerate writes it (module path -> device; the
    longest path that fits decides, '' fits all), or `auto`: the layers in even runs over the GPUs that
    accelerate finds, the CPU where it finds none. `layers` are the layers in order, each as the paths of
    its tensors.
    Raises OptionError for a device that this machine has not, and for `auto` in several processes with GPUs.
    """

    def __init__(self, device: str | DeviceMap, layers: Sequence[Sequence[str]]) -> None:
        if device == "auto":
            gpus = [key for key in get_max_memory() if isinstance(key, int)]
            if gpus and ranks.count() > 1:
                raise OptionError(
                    "auto spreads a model over all GPUs for one process; give several --device cuda"
                )
            device = spread(layers, gpus)
        named = {"": device} if isinstance(device, str) else device
        self._devices = {
            path: device_of(name, numbers=False) for path, name in {"": "cpu", **named}.items()
        }

    def of(self, path: str) -> torch.device:
        """The device of a module, or of one of its tensors."""
        names = path.split(".")
        ends = range(len(names), 0, -1)
        found = next((p for end in ends if (p := ".".join(names[:end])) in self._devices), "")
        return self._devices[found]


def spread(layers: Sequence[Sequence[str]], gpus: Sequence[int]) -> dict[str, str | int]:
    """The device map with layers in even runs over some GPUs, all else on the first; CPU without any."""
    if not gpus:
        return {"": "cpu"}
    runs = [gpus[i * len(gpus) // len(layers)] for i in range(len(layers))]
    tensors = {path: gpu for layer, gpu in zip(layers, runs, strict=True) for path in layer}
    return {"": gpus[0], **tensors}
