"""The model card of an export: `README.md` with what the hub reads at its head, and figures beside it."""

import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData, metadata_load

from sparsify.describe.facts import Facts, Share, Weight, kind

CARD, TAG = "README.md", "sparsify-fx"


# What stands between is brought up to date when figures are measured; see `sparsify.report.record`.
MEASURED = ("<!-- measured -->", "<!-- /measured -->")


_LICENCE = ("license", "license_name", "license_link")


def card(
    facts: Facts,
    form: str,
    library: str,
    usage: str,
    size: int,
    carried: Mapping[str, Any],
) -> str:
    """The text of a model card.

    Args:
        facts: of the program that was exported.
        form: the format's name.
        library: that loads the folder, as the hub spells it.
        usage: Python that loads and runs it; empty for none.
        size: bytes of the format's files.
        carried: entries of the head that come from the source, as of `carry_over`.
    """
    whole = Share.of(facts.weights)
    name = str(carried.get("base_model") or facts.model)
    parts = [
        f"---\n{_head(facts, form, library, carried)}\n---",
        f"# {name}, {'made sparse' if whole.gone else 'exported'}",
        f"A {facts.model}, compiled and checked by sparsify-fx: read back from this folder, it gives "
        f"the outputs of the program that was exported. Format: {form}.",
        "## How it was made\n\n" + _made(facts),
        f"## Size\n\n{_sizes(facts, whole, size)}\n\n{_kinds(facts.weights)}",
        f"## Measured\n\n{MEASURED[0]}\nNothing yet: `sparsify-fx eval` and `bench` on this folder "
        f"write here what they find.\n{MEASURED[1]}",
    ]
    if usage:
        parts.append(f"## Use\n\nIn this folder:\n\n```python\n{usage}\n```")
    parts.append("## Licence\n\n" + _licence(carried))
    return "\n\n".join(parts) + "\n"


def carry_over(source: str, folder: Path) -> dict[str, Any]:
    """What an export's card takes over from its source, a folder or a hub id: the licence, the base model.

    A licence that lies as a file beside the source's card is copied to `folder`. Nothing is made up: a
    source without a card, or with an unreadable one, gives nothing.
    """
    origin = Path(source)
    if not origin.is_dir():
        return {"base_model": source} if source.count("/") == 1 and source[0] not in "./~" else {}
    try:
        about = metadata_load(origin / CARD) if (origin / CARD).is_file() else None
    except Exception:  # whatever is wrong with that card, it is not the export's fault
        about = None
    about = about or {}
    carried = {key: about[key] for key in _LICENCE if key in about}
    link = str(carried.get("license_link", ""))
    if link and "/" not in link and (origin / link).is_file():
        shutil.copyfile(origin / link, folder / link)
    # One of our own cards says what the source was made of; another one, what it is itself.
    if TAG in (about.get("tags") or ()) and "base_model" in about:
        carried["base_model"] = about["base_model"]
    return carried


def _head(facts: Facts, form: str, library: str, carried: Mapping[str, Any]) -> str:
    """The entries that the hub reads, as YAML."""
    whole = Share.of(facts.weights)
    patterns = sorted({weight.pattern for weight in facts.weights if weight.pattern})
    rounded = sorted({weight.values for weight in facts.weights if weight.values.startswith("int")})
    tags = [TAG, form.partition("-")[0], *(["sparse"] if whole.zeros else [])]
    tags += [*(["pruned"] if whole.removed or whole.zeros else []), *patterns, *rounded]
    entries = {**carried, "library_name": library, "pipeline_tag": facts.task or None, "tags": tags}
    return str(ModelCardData(**entries).to_yaml())


def _made(facts: Facts) -> str:
    if not facts.pipeline:
        return "Written as the source is: no pass has changed it."
    return (
        "This pipeline, in the order of its passes:\n\n```\n"
        + "\n| ".join(facts.pipeline)
        + "\n```"
    )


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


def _licence(carried: Mapping[str, Any]) -> str:
    if "license" in carried:
        name = carried.get("license_name") or carried["license"]
        return f"That of the source, as its card states it: {name}."
    return "That of the source, whose card was not at hand or states none; look it up there."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(header), *map(list, rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
