"""What to put into a pipeline when a feature is in the way."""

from collections.abc import Iterable

from sparsify.select.weights import EITHER

# Feature -> the pass that takes it out of a program.
REMEDIES = {
    "probe": "remove-probes",
    "mask.weights": "fold-masks",
    "mask.channels": "prune-channels",
    "mask.heads": "prune-heads",
    "mask.experts": "prune-experts",
    "mask.layers": "prune-layers",
    "mask.blocks": "prune-layers{of=blocks}",
    "mask.hidden": "prune-hidden",
    "lora": "fold-lora",
    "row-scales": "fold-scales",
    "bias": "fold-bias",
    "quantizers": "pack-nm",
    "omission": "remove-omission",
}
# Features that only one pass takes out, for that pass.
_OWN = {
    "quantizers": "give values=int8 or values=int4, as insert-quantizers has them",
    "quantized": "the rounding was switched on by choose-scales, and outputs would move without it",
}


# Features whose lack has another cure than the pass that sets them.
_LACKING = {
    "shares": f"; {EITHER}, or put allocate-sparsity before it",
}


def lacking(missing: Iterable[str]) -> str:
    """What to do about features that a pass misses, where there is more to say than their names."""
    return "".join(_LACKING.get(name, "") for name in missing)


def remedies(features: Iterable[str]) -> list[str]:
    """The passes that take features out of a program, each once, in the order of the features."""
    return list(dict.fromkeys(REMEDIES[f] for f in sorted(features) if f in REMEDIES))


def remedy(barred: Iterable[str]) -> str:
    """What to do about features that a pass cannot meet."""
    names = set(barred)
    found = remedies(names - _OWN.keys())
    return "; ".join(
        [
            *([f"put {' | '.join(found)} before it"] if found else []),
            *(text for name, text in _OWN.items() if name in names),
        ]
    )
