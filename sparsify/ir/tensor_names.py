"""How the tensors that passes add are called, and which feature each stands for."""

from collections.abc import Container, Iterable

from sparsify.errors import SparsifyError

# Feature of a program that holds packed weights, N:M or dense: those whose names they extend are gone.
PACKED = "packed"
_PACKED = "_packed"
_BLOCKS = ("_blocks", "_block_scales")
# Feature of a program with weights stored as factors: like packed ones they stand for a weight that is gone.
FACTORS = "factors"
# Suffix to a weight's path -> the feature whose presence it proves; filled by `ir.features.catalogue`.
_SUFFIXES: dict[str, str] = {}
_OF_VALUES: set[str] = set()


def register(feature: str, suffixes: Iterable[str], *, in_values: bool = False) -> None:
    """Say which feature tensors of a name belong to; SparsifyError for a suffix that another one has."""
    for suffix in suffixes:
        if _SUFFIXES.setdefault(suffix, feature) != feature:
            raise SparsifyError(
                f"'{suffix}' ends tensors of the feature '{_SUFFIXES[suffix]}'; '{feature}' needs another"
            )
    if in_values:
        _OF_VALUES.add(feature)


def suffixes() -> tuple[str, ...]:
    """What the paths of tensors end on that passes add, after the path of one that is there."""
    return tuple(_SUFFIXES)


def graph_features() -> frozenset[str]:
    """Features that the graph shows."""
    return frozenset({*_SUFFIXES.values(), PACKED, FACTORS})


def value_features() -> frozenset[str]:
    """Features that live in values, not in the graph: what probes know, and that scales are chosen."""
    return frozenset(_OF_VALUES)


def weight_mask(path: str) -> str:
    """The path of a weight's boolean mask, shaped like the weight."""
    return f"{path}_mask"


def convolution_mask(path: str) -> str:
    """The path of the boolean mask of a convolution's weight, shaped like the weight."""
    return f"{path}_convolution_mask"


def group_mask(path: str, kind: str) -> str:
    """The path of a boolean mask `[size]`; `kind` is `channels`, `heads`, `layers` and so on."""
    return f"{path}_{kind}_mask"


def lora(path: str) -> tuple[str, str]:
    """The paths of a weight's low-rank branch: `A [rank, in]`, `B [out, rank]`."""
    return f"{path}_lora_a", f"{path}_lora_b"


def row_scales(path: str) -> str:
    """The path of the scales `[out, blocks]` of blocks of a weight's rows."""
    return f"{path}_row_scales"


def slorb(path: str) -> tuple[str, str]:
    """The paths of the branch beside a weight: `X [in / k, in]`, `S [out, in / k]`."""
    return f"{path}_slorb_x", f"{path}_slorb_s"


def adapter(path: str) -> tuple[str, str]:
    """The paths of the low-rank branch beside a weight: `A [rank, in]`, `B [out, rank]`."""
    return f"{path}_adapter_a", f"{path}_adapter_b"


def expert_branches(path: str) -> tuple[str, str, str, str, str, str]:
    """The paths of the experts beside a weight.

    Router `[experts * gate, in]`, its sums `[experts, experts * gate]`, `A [experts * rank, in]`,
    `B [out, experts * rank]`, biases `[out, experts]`, and what spreads gates over ranks `[experts * rank,
    experts]`.
    """
    words = ("router", "sums", "a", "b", "biases", "spread")
    one, two, three, four, five, six = (f"{path}_experts_{word}" for word in words)
    return one, two, three, four, five, six


def neighbours(path: str) -> tuple[str, str, str, str]:
    """The paths of the store behind the head of a weight: keys, values, share and temperature."""
    keys, values, share, temperature = (
        f"{path}_neighbour_{word}" for word in ("keys", "values", "share", "temperature")
    )
    return keys, values, share, temperature


def prompt(path: str) -> tuple[str, str]:
    """The paths of the prompt `[p, width]` before the rows of a table, and of its switch `[]`."""
    return f"{path}_prompt", f"{path}_prompt_on"


def prefix(path: str) -> tuple[str, str]:
    """The paths of keys and values `[1, heads, p, size]` before those that a weight makes."""
    return f"{path}_prefix_key", f"{path}_prefix_value"


def added_bias(path: str) -> str:
    """The path of a bias `[out]` behind the linear that owns a weight."""
    return f"{path}_added_bias"


def probe(path: str, statistic: str) -> str:
    """The path of one statistic of the input of the linear that owns a weight."""
    return f"{path}_probe_{statistic}"


def route_probe(path: str, statistic: str) -> str:
    """The path of one statistic of the router that owns a weight."""
    return f"{path}_route_probe_{statistic}"


def expert_clusters(path: str) -> str:
    """The path of the clusters `[experts]` of the router that owns a weight."""
    return f"{path}_expert_clusters"


def scales_of(path: str) -> str:
    """The path of the scales `[out, groups]` that a weight is rounded by, zero where it is not."""
    return f"{path}_quantizer_scales"


def switch_of(path: str) -> str:
    """The path of the switch `[]` of the rounding of a linear's input, by the linear's weight."""
    return f"{path}_quantizer_on"


def omission(path: str) -> str:
    """The path of the numbers `[size]` of all neurons of a site, by the first weight that makes them."""
    return f"{path}_omission"


def factors(path: str) -> tuple[str, str, str]:
    """The paths of what a weight was split into, the first read first.

    `[rank, in]`, `[rank, rank]` where the others are shared by several weights, `[out, rank]`.
    """
    first, core, last = (f"{path}_factor_{word}" for word in ("in", "core", "out"))
    return first, core, last


def packed(path: str) -> str:
    """The path of a packed weight, uint8 `[bytes]`, by that of the weight it stands for."""
    return path + _PACKED


def of_expert(path: str, number: int) -> str:
    """How the part of one expert is called where a tensor `[experts, ...]` is taken apart."""
    return f"{path}.{number}"


def blocks(path: str) -> tuple[str, str]:
    """The paths of a dense weight in blocks: codes uint8 `[out, blocks, bytes]`, scales `[out, blocks]`."""
    codes, scales = (path + end for end in _BLOCKS)
    return codes, scales


def feature_of(path: str, known: Container[str]) -> str | None:
    """The feature a tensor's name stands for, given all tensor paths; None for the model's own tensors.

    A model may own a buffer called `causal_mask`: ours always extend the path of another tensor. Either may
    be packed by now.
    """
    plain = path
    for end in (_PACKED, *_BLOCKS):
        plain = plain.removesuffix(end)
    for suffix in sorted(_SUFFIXES, key=len, reverse=True):
        base = plain.removesuffix(suffix)
        if base != plain and any(p in known for p in (base, packed(base), blocks(base)[0])):
            return _SUFFIXES[suffix]
    return None
