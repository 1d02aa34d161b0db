"""Recurrences along a sequence become one op while a model is exported.

Models of transformers loop over time, or over chunks of it, in functions that stand in for a kernel and say
which: `torch.export` would follow the loop of one length. Such a function is found by the kernel it names,
whatever model it stands in, and our op computes what the kernel does.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu, softplus

from sparsify.ir.ops.decayed_mean import decayed_mean
from sparsify.ir.ops.state_scan import state_scan

Arguments = Mapping[str, Any]
_KERNEL = (
    "func_name"  # what transformers' own wrapper calls the kernel that a function stands in for
)


@contextlib.contextmanager
def scans_as_ops(
    model: nn.Module, earlier: Callable[[], Tensor | None] = lambda: None
) -> Iterator[None]:
    """Let the recurrences of a model's code be our op, for the time of an export.

    `earlier` gives the state before the first token to kernels that are not told of it; None is zeros.
    """
    places = [
        (namespace, name, value, form)
        for namespace in _namespaces(model)
        for name, value in namespace.items()
        if (form := _FORMS.get(_kernel(value))) is not None
    ]
    for namespace, name, value, form in places:
        namespace[name] = _in_place_of(value, form, earlier)
    try:
        yield
    finally:
        for namespace, name, value, _ in places:
            namespace[name] = value


def _namespaces(model: nn.Module) -> list[dict[str, Any]]:
    """The files in which the code of a model stands."""
    classes = dict.fromkeys(cls for part in model.modules() for cls in type(part).__mro__)
    files = dict.fromkeys(cls.__module__ for cls in classes)
    return [vars(sys.modules[name]) for name in files if name in sys.modules]


def _kernel(value: Any) -> str:
    """The kernel that a function stands in for; where it says none, its own name."""
    if not inspect.isfunction(value):
        return ""
    if value.__closure__ is None:
        return value.__name__
    held = dict(zip(value.__code__.co_freevars, value.__closure__, strict=True))
    return str(held[_KERNEL].cell_contents) if _KERNEL in held else ""


def _in_place_of(
    function: Callable[..., Any],
    form: Callable[[Arguments], Any],
    earlier: Callable[[], Tensor | None],
) -> Callable[..., Any]:
    """A function of the same arguments, that are given to a form by their names."""
    signature = inspect.signature(function)

    def called(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return form({"earlier": earlier, **bound.arguments})

    return called


def _selective(given: Arguments) -> Any:
    """`selective_scan_fn`: x, dt `[batch, rows, length]`, A `[rows, columns]`.

    B, C `[batch, columns, length]`.
    """
    x, bias, begun = given["hidden_states"], given["delta_bias"], given["earlier"]()
    dt = given["dt"] if bias is None else given["dt"] + bias.to(given["dt"].dtype)[:, None]
    dt = softplus(dt) if given["delta_softplus"] else dt
    rows, time = x.float().transpose(1, 2), dt.float().transpose(1, 2)
    found, last = state_scan(
        torch.exp(time[:, :, None, :, None] * given["A"].float()),
        (time * rows)[:, :, None],
        given["B"].float().transpose(1, 2)[:, :, None],
        given["C"].float().transpose(1, 2)[:, :, None],
        None,
        None if begun is None else begun.float()[:, None],
    )
    found = found[:, :, 0]
    if given["D"] is not None:
        found = found + rows * given["D"]
    found = found.transpose(1, 2).to(x.dtype)
    if given["z"] is not None:
        found = found * silu(given["z"])
    return (found, last[:, 0]) if given["return_last_state"] else found


def _by_heads(given: Arguments) -> Any:
    """`mamba_chunk_scan_combined`: x `[batch, length, heads, rows]`, dt `[batch, length, heads]`.

    A `[heads]`, B, C `[batch, length, groups, columns]`; each group serves as many heads as another.
    """
    x, dt, bias = given["hidden_states"].float(), given["dt"], given["dt_bias"]
    dt = dt if bias is None else dt + bias.to(dt.dtype)
    dt = softplus(dt) if given["dt_softplus"] else dt
    time = torch.clamp(dt, *given["dt_limit"]).float()
    served = x.shape[2] // given["B"].shape[2]
    keys, queries = (given[name].float().repeat_interleave(served, 2) for name in ("B", "C"))
    decay = torch.exp(given["A"].float() * time)[..., None, None]
    begun = given["initial_states"]
    begun = None if begun is None else begun.float()
    found, last = state_scan(decay, x * time[..., None], keys, queries, None, begun)
    if given["D"] is not None:
        found = found + x * given["D"][..., None]
    return (found, last) if given["return_final_states"] else found


def _delta_rule(given: Arguments) -> Any:
    """`chunk_gated_delta_rule`: keys, queries `[batch, length, groups, columns]`.

    Values `[batch, length, heads, rows]`, beta and g, a logarithm, `[batch, length, heads]`, states
    `[batch, heads, columns, rows]`; for `chunk_kda` g `[batch, length, heads, columns]`.
    """
    queries, keys, values = (given[name].float() for name in ("query", "key", "value"))
    served = values.shape[2] // keys.shape[2]
    if served > 1:
        queries, keys = (x.repeat_interleave(served, 2) for x in (queries, keys))
    if given["use_qk_l2norm_in_kernel"]:
        queries, keys = (
            x * torch.rsqrt((x * x).sum(-1, keepdim=True) + 1e-6) for x in (queries, keys)
        )
    queries = queries * queries.shape[-1] ** -0.5
    decay = torch.exp(given["g"].float())
    decay = decay[..., None, None] if decay.dim() == 3 else decay[..., None, :]
    begun = given["initial_state"]
    begun = None if begun is None else begun.float().transpose(2, 3)
    found, last = state_scan(decay, values, keys, queries, given["beta"].float(), begun)
    kept = last.transpose(2, 3) if given["output_final_state"] else None
    return found.to(given["query"].dtype), kept


def _decayed(given: Arguments) -> Any:
    """`rwkv_linear_attention`: keys, values `[batch, length, channels]`, decay, bonus `[channels]`.

    The state is three tensors `[batch, channels]`; the rate of the decay is the exponential of what is given.
    """
    state = given["state"]
    found, last = decayed_mean(
        torch.exp(given["time_decay"].float()),
        given["time_first"].float(),
        given["key"].float(),
        given["value"].float(),
        None if state is None else torch.stack([part.float() for part in state], 1),
    )
    kept = given["return_state"] or state is not None
    return found.to(given["key"].dtype), list(last.unbind(1)) if kept else None


_FORMS: dict[str, Callable[[Arguments], Any]] = {
    "selective_scan_fn": _selective,
    "mamba_chunk_scan_combined": _by_heads,
    "chunk_gated_delta_rule": _delta_rule,
    "chunk_kda": _delta_rule,
    "rwkv_linear_attention": _decayed,
}
