"""What to put into a pipeline when a feature is in the way."""

from collections.abc import Iterable
from functools import cache

from sparsify.engine.registry import passes
from sparsify.ir.tensor_names import graph_features
from sparsify.select.weights import EITHER
from sparsify.text.options import one_option, required

# Where several passes take a feature out, the one to name.
_PREFERRED = {"quantizers": "pack-nm"}
# Features that only one pass takes out, for that pass.
_OWN = {
    "quantizers": "put it before insert-quantizers; pack-nm takes rounding in with values=rounded",
    "merged-experts": "experts are merged once: choose fewer clusters the first time",
    "neighbours": "a store is made of the states as they will be: put insert-neighbours behind",
    "prefix": "the program has a prompt already, folded into keys and values",
    "factors": "put it before split-linears",
    "quantized": "the rounding was switched on by choose-scales, and outputs would move without it",
}

# Features whose lack has another cure than the pass that sets them.
_LACKING = {
    "shares": f"; {EITHER}, or put allocate-sparsity before it",
    "values": "; choose values=int8 or values=int4, or put allocate-values before it",
    "clusters": "; put choose-clusters before it",
    "prompted": "; put choose-prompt before it, which switches the prompt on",
}


def lacking(missing: Iterable[str]) -> str:
    """What to do about features that a pass misses, where there is more to say than their names."""
    return "".join(_LACKING.get(name, "") for name in missing)


@cache
def _takers() -> dict[str, str]:
    """Feature of the graph -> the pass that takes it out: by default, or with one option set."""
    found = dict(_PREFERRED)
    every = [kind for kind in passes().values() if not required(kind)]
    plain = [kind() for kind in every]
    varied = [kind(**{name: value}) for kind in every for name, value in one_option(kind)]
    for item in (*plain, *varied):
        for feature in item.effect().drops & graph_features():
            found.setdefault(feature, str(item))
    return found


def remedies(features: Iterable[str]) -> list[str]:
    """The passes that take features out of a program, each once, in the order of the features."""
    takers = _takers()
    return list(dict.fromkeys(takers[f] for f in sorted(features) if f in takers))


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
