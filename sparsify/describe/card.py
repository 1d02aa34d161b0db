"""The model card of an export: `README.md` with what the hub reads at its head, and figures beside it."""

from collections.abc import Iterable, Mapping
from typing import Any

from huggingface_hub import ModelCardData

from sparsify.describe.facts import Facts, Share, Weight, kind
from sparsify.pretrained.origin import BASE, LICENCE, REVISION, TAG

# What stands between is brought up to date when figures are measured; see `sparsify.report.record`.
MEASURED = ("<!-- measured -->", "<!-- /measured -->")


def card(
    facts: Facts,
    form: str,
    library: str,
    usage: str,
    size: int,
    origin: Mapping[str, Any],
) -> str:
    """The text of a model card.

    Args:
        facts: of the program that was exported.
        form: the format's name.
        library: that loads the folder, as the hub spells it.
        usage: Python that loads and runs it; empty for none.
        size: bytes of the format's files.
        origin: what the source says of itself, as of `sparsify.pretrained.origin`.
    """
    whole = Share.of(facts.weights)
    name = _words(origin.get(BASE)) or facts.model
    parts = [
        f"---\n{_head(facts, form, library, origin)}\n---",
        f"# {name}, {'made sparse' if whole.gone else 'exported'}",
        f"A {facts.model}, compiled and checked by sparsify-fx: read back from this folder, it gives "
        f"the outputs of the program that was exported. Format: {form}.",
        "## How it was made\n\n" + _made(facts, origin),
        f"## Size\n\n{_sizes(facts, whole, size)}\n\n{_kinds(facts.weights)}",
        f"## Measured\n\n{MEASURED[0]}\nNothing yet: `sparsify-fx eval` and `bench` on this folder "
        f"write here what they find.\n{MEASURED[1]}",
    ]
    if usage:
        parts.append(f"## Use\n\nIn this folder:\n\n```python\n{usage}\n```")
    parts.append("## Licence\n\n" + _licence(origin))
    return "\n\n".join(parts) + "\n"


def _head(facts: Facts, form: str, library: str, origin: Mapping[str, Any]) -> str:
    """The entries that the hub reads, as YAML."""
    whole = Share.of(facts.weights)
    patterns = sorted({weight.pattern for weight in facts.weights if weight.pattern})
    rounded = sorted({weight.values for weight in facts.weights if weight.values.startswith("int")})
    tags = [TAG, form.partition("-")[0], *(["sparse"] if whole.zeros else [])]
    tags += [*(["pruned"] if whole.removed or whole.zeros else []), *patterns, *rounded]
    carried = {key: origin[key] for key in (*LICENCE, BASE) if key in origin}
    entries = {**carried, "library_name": library, "pipeline_tag": facts.task or None, "tags": tags}
    return str(ModelCardData(**entries).to_yaml())


def _made(facts: Facts, origin: Mapping[str, Any]) -> str:
    commit = f"The source is at commit `{origin[REVISION]}`. " if REVISION in origin else ""
    if not facts.pipeline:
        return f"{commit}Written as the source is: no pass has changed it."
    text = "\n| ".join(facts.pipeline)
    return f"{commit}This pipeline, in the order of its passes:\n\n```\n{text}\n```"


def _sizes(facts: Facts, whole: Share, size: int) -> str:
    """Before and after, as a table; what is not known stays empty."""
    at = f" on {facts.length} tokens" if facts.length else " on one input"
    rows = [
        ("parameters", f"{facts.were:,}" if facts.were else "", f"{facts.parameters:,}"),
        ("not zero", "", f"{facts.parameters - facts.zeros:,}"),
        ("zeros among the weights of linear maps", "", _percent(whole.zero)),
        (f"multiply-adds{at}", "", f"{facts.multiply_adds:,}"),
        ("bytes of the files", "", f"{size:,}"),
    ]
    packed = [weight for weight in facts.weights if weight.packed]
    if packed:
        stored, dense = sum(w.bytes for w in packed), 4 * Share.of(packed).left
        rows.append((f"bytes of the {len(packed)} packed weights", f"{dense:,}", f"{stored:,}"))
    return _table(("", "before", "now"), rows)


def _kinds(weights: Iterable[Weight]) -> str:
    """A row for what is called alike in every layer."""
    groups: dict[str, list[Weight]] = {}
    for weight in weights:
        groups.setdefault(kind(weight.path), []).append(weight)
    rows = []
    for name, group in groups.items():
        share = Share.of(group)
        patterns = sorted({weight.pattern for weight in group if weight.pattern})
        values = sorted({weight.values for weight in group if weight.shape})
        packed = "packed " if any(weight.packed for weight in group) else ""
        row = (f"`{name.removesuffix('.weight')}`", str(len(group)), _percent(share.zero))
        rows.append(
            (*row, _percent(share.removed), ", ".join(patterns), packed + ", ".join(values))
        )
    return _table(("weights", "matrices", "zeros", "removed", "pattern", "stored as"), rows)


def _licence(origin: Mapping[str, Any]) -> str:
    if "license" in origin:
        name = _words(origin.get("license_name") or origin["license"])
        return f"That of the source, as its card states it: {name}."
    return "That of the source, whose card was not at hand or states none; look it up there."


def _words(said: Any) -> str:
    """A text, or the texts of a list, of a card's head."""
    return ", ".join(said) if isinstance(said, list) else str(said or "")


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
