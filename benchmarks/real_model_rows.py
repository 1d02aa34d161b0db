"""The rows of `real_model.py`: what is done to the pretrained model, as pipelines."""

from dataclasses import dataclass

from sparsify.recipes import recipe

STEPS = 60  # of 8 x 512 tokens, about once through the text, wherever all weights are trained
_CALIBRATED = "calibrated"
_OBSERVED = "insert-probes{gram=true} | calibrate{samples=128}"


@dataclass(frozen=True)
class Row:
    """One row: a pipeline over the dense model, or over the program of the row `base`."""

    name: str
    family: str
    text: str
    base: str | None = None


def _unstructured(score: str, target: str) -> str:
    seen = "" if score == "magnitude" else f"{_OBSERVED} | "
    gone = "" if score == "magnitude" else "remove-probes | "
    return f"{seen}insert-masks | choose-masks{{score={score} {target}}} | {gone}fold-masks"


def _one_shot() -> list[Row]:
    """All from the same statistics, which the row `calibrated` holds; its figures are the dense ones."""
    targets = {"50 %": "sparsity=0.5", "70 %": "sparsity=0.7", "2:4": "pattern=2:4"}
    rows = [Row(_CALIBRATED, "one-shot", _OBSERVED)]
    for what, target in targets.items():
        for score in ("magnitude", "wanda", "sparsegpt", "alps"):
            text = _unstructured(score, target).removeprefix(f"{_OBSERVED} | ")
            base = None if score == "magnitude" else _CALIBRATED
            rows.append(Row(f"{score} {what}", "one-shot", text, base))
    return rows


def _rounded(values: str, more: str = "", by: str = "mse") -> str:
    return f"insert-quantizers{{values={values}{more}}} | choose-scales{{by={by}}}"


def _jointly(group: int, more: str = "") -> str:
    """2:4 and int4 in one sweep, packed only when it is exported: the figures are the same."""
    return (
        f"insert-masks | insert-quantizers{{values=int4 group={group}{more}}} | "
        "choose-masks{score=sparsegpt pattern=2:4 scales=mse} | remove-probes | fold-masks"
    )


def _mixed() -> str:
    """int4 for the linears that it costs least, by the table of docs/results.md; int8 for the others."""
    four, eight = "targets=*gate_proj*,*up_proj*", "targets=*self_attn*,*down_proj*"
    return (
        f"insert-quantizers{{values=int8 group=64 {eight}}} | choose-scales | "
        f"pack-nm{{values=int8 {eight}}} | insert-quantizers{{values=int4 group=32 {four}}} | "
        f"choose-scales | pack-nm{{values=int4 {four}}}"
    )


def _allocated(size: str) -> str:
    """int8 for the weights that int4 costs most by what it does to the loss, as many as the bytes allow."""
    return (
        f"allocate-values{{bytes={size}}} | insert-quantizers{{values=allocated}} | choose-scales"
    )


def _retrained(size: str) -> str:
    """All weights of a 2:4 model learn on under the mask and the rounding, from text and the dense model."""
    how = "steps=150 batch=4 accumulate=2 warmup=0.1 precision=bf16 lr=0.0003"
    return (
        f"allocate-values{{bytes={size}}} | insert-masks | choose-masks{{pattern=2:4}} | "
        "insert-quantizers{values=allocated} | choose-scales | "
        f"train{{{how} distill=kl{{weight=0.67 temperature=2.0}} task=0.33}} | fold-masks"
    )


def _int4() -> list[Row]:
    float_24 = "sparsegpt 2:4"
    after = {
        "int8": _rounded("int8"),
        "int4 group 64 absmax": _rounded("int4", " group=64", "absmax"),
        "int4 group 64": _rounded("int4", " group=64"),
        "int4 group 32": _rounded("int4", " group=32"),
        "int4 group 64, inputs as they are": _rounded("int4", " group=64 activations=false"),
    }
    rows = [Row(f"2:4 then {what}", "int4", text, float_24) for what, text in after.items()]
    rows += [
        Row(f"dense {what}", "int4", text)
        for what, text in after.items()
        if "absmax" not in what and "inputs" not in what
    ]
    rows.append(Row("2:4 then int8, gate and up int4", "int4", _mixed(), float_24))
    rows += [
        Row(f"2:4 then {size} bytes a weight", "int4", _allocated(size), float_24)
        for size in ("0.47", "0.5", "0.547")
    ]
    rows.append(Row("2:4 at 0.55 bytes a weight, retrained", "int4", _retrained("0.55"), float_24))
    rows += [
        Row(f"2:4 and int4 group {group} in one sweep", "int4", _jointly(group), _CALIBRATED)
        for group in (64, 32)
    ]
    return rows


def _in_bf16(text: str) -> str:
    """A recipe whose training multiplies in bfloat16, as all training of these rows does."""
    return text.replace("train{", "train{precision=bf16 ")


def _trained() -> list[Row]:
    """2:4 by retraining all weights, the same tokens each; and training itself, dense and with omission."""
    part = "distill=kl{weight=0.67 temperature=2.0} task=0.33"
    how = f"steps={STEPS} batch=4 accumulate=2 warmup=0.1 precision=bf16"
    masked, moving = "insert-masks | choose-masks{pattern=2:4}", f"{part} lr=0.0003 masks=every"

    def retrained(before: str, options: str, after: str = "fold-masks") -> str:
        return f"{before} | train{{{how} {options}}} | {after}"

    fixed = (
        "insert-probes | calibrate{samples=128} | insert-masks | "
        "choose-masks{score=wanda pattern=2:4} | remove-probes"
    )
    cast = f"{part} lr=0.0005 masks=every decay=adams{{peak=0.001 reach=0.2}}"
    texts = {
        "fixed mask": retrained(fixed, f"{part} lr=0.0003"),
        "naive": retrained(masked, f"{moving} decay=ars-ste{{peak=0.0}}"),
        "ast static": retrained(masked, f"{moving} decay=ars-ste{{peak=0.0003 ramp=0.0}}"),
        "ast": retrained(masked, f"{moving} decay=ars-ste{{peak=0.0003}}"),
        "ast-boosted": retrained(
            f"{masked} | insert-slorb{{k=16}} | choose-slorb",
            f"{moving} decay=ars-ste{{peak=0.0003}}",
        ),
        "cast": retrained("insert-masks | insert-scales", cast, "fold-scales | fold-masks"),
    }
    return [
        *(Row(f"{name} 2:4", "trained", text) for name, text in texts.items()),
        Row("dense, training goes on", "trained", f"train{{{how} lr=0.0003}}"),
        Row(
            "sat, training goes on",
            "trained",
            "insert-omission{of=heads,channels metric=wanda select=topk} | "
            f"train{{{how} lr=0.0003 schedule=lors{{rate=0.5 hold=0.8 rungs=5}}}} | remove-omission",
        ),
        Row("losa 70 %", "trained", _in_bf16(recipe("losa").text)),
        Row("losa 2:8", "trained", _in_bf16(recipe("losa-n8").text)),
    ]


def _structured() -> list[Row]:
    groups = "insert-masks{of=heads,channels}"
    smaller = "prune-heads | prune-channels"
    healed = (
        "insert-lora{rank=32 alpha=32.0} | train{steps=200 batch=4 lr=0.001 update=lora precision=bf16 "
        "task=0.33 distill=kl{weight=0.67 temperature=2.0}} | fold-lora"
    )
    criteria = {
        "taylor": f"{groups} | choose-masks{{of=heads,channels score=taylor sparsity=0.25}}",
        "wanda-sp": f"{groups} | choose-masks{{of=heads,channels score=wanda sparsity=0.25}} | "
        "remove-probes",
        "flap": f"{groups} | choose-masks{{of=heads,channels score=fluctuation sparsity=0.25 "
        "scope=global} | insert-bias | choose-bias | remove-probes | fold-bias",
        "llm-pruner": f"{groups} | choose-masks{{of=heads,channels score=mixed sparsity=0.25 samples=10}}",
    }
    rows = [
        Row(
            f"{name} 25 %",
            "structured",
            f"{text} | {smaller}",
            _CALIBRATED if "remove-probes" in text else None,
        )
        for name, text in criteria.items()
    ]
    rows += [
        Row(f"{name} 25 % recovered", "structured", healed, f"{name} 25 %") for name in criteria
    ]
    return [*rows, Row("shortgpt 25 %", "structured", recipe("shortgpt").text)]


ROWS = (
    Row("dense", "dense", ""),
    *_one_shot(),
    *_int4(),
    *_structured(),
    *_trained(),
)
