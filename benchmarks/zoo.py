"""Every family of the installed transformers, small and random: what of the compiler works on it.

Each is traced and held against its model; every kind of axis is masked by half (a quarter of the hidden size)
and removed, and what is left is held against what was masked; weights are pruned 2:4 and packed; the program
is exported to ONNX and read back, to ONNX with a cache whose greedy tokens are held against the model's own,
and to a folder that transformers loads. What is answered is `yes`, `-` where a family has no such thing,
`refused` with the compiler's sentence, `fault` where an error was no sentence of ours, `wrong`, or `slow`.

    python benchmarks/zoo.py [--json FILE] [--only GLOB,...] [--steps GLOB,...] [--shard 0/4] [--seconds 240]

Each family runs in a process of its own; a step that has its answer is not done again.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
import warnings
from collections.abc import Callable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
import transformers
from resumable import Row, Rows
from zoo_models import families, small_model

from sparsify import Context, export, parse, trace
from sparsify.errors import OptionError, SparsifyError
from sparsify.runtime.generate import load_onnx
from sparsify.tensors.precision import relative_difference

KINDS = ("heads", "channels", "experts", "hidden", "layers")
STEPS = ("trace", *KINDS, "2:4", "onnx", "decode", "folder")
CLOSE = 1e-4
TOKENS = 12
FORK = multiprocessing.get_context("fork")


class Wrong(Exception):
    """What came out is not what must come out."""


class Nothing(Exception):
    """The family has no such thing."""


def outputs(program: Any, seed: int = 0) -> list[torch.Tensor]:
    """What a program answers on its sample, with other values at other places."""
    batch = {name: value.clone() for name, value in program.sample.items()}
    for name, value in batch.items():
        if value.is_floating_point():
            noise = torch.Generator().manual_seed(seed)
            batch[name] = torch.randn(value.shape, generator=noise)
    return [value for value in program.run(batch) if value is not None]


def same(found: Any, wanted: Any, what: str) -> None:
    if len(found) != len(wanted):
        raise Wrong(f"{what}: {len(found)} outputs, not {len(wanted)}")
    for one, other in zip(found, wanted, strict=True):
        far = float(relative_difference(other, one))
        if not far <= CLOSE:
            raise Wrong(f"{what}: differs by {far:.1e}")


def without(program: Any, kind: str) -> None:
    """Half of a kind masked, then removed."""
    part = 0.25 if kind == "hidden" else 0.5
    try:
        parse(f"insert-masks{{of={kind}}}").check(program, Context())
    except OptionError as error:
        raise Nothing(str(error)) from error
    masks = f"insert-masks{{of={kind}}} | choose-masks{{of={kind} sparsity={part}}}"
    masked = parse(masks).run(program.clone(), Context())
    wanted = outputs(masked)
    before = sum(value.numel() for value in masked.module.parameters())
    pruned = parse(f"prune-{kind}").run(masked, Context())
    if sum(value.numel() for value in pruned.module.parameters()) >= before:
        raise Wrong("nothing became smaller")
    same(outputs(pruned), wanted, "removed against masked")


def packed(program: Any) -> None:
    text = "insert-masks | choose-masks{pattern=2:4} | fold-masks"
    pruned = parse(text).run(program.clone(), Context())
    wanted = outputs(pruned)
    same(outputs(parse("pack-nm").run(pruned, Context())), wanted, "packed against pruned")


def step_of(name: str, program: Any) -> Callable[[], None]:
    """A step that writes no file: a kind of axis removed, or `2:4`."""
    return lambda: packed(program) if name == "2:4" else without(program, name)


def exported(program: Any, scratch: Path) -> None:
    export(program, scratch / "onnx", ["onnx"])


def decoded(program: Any, model: Any, scratch: Path) -> None:
    """The tokens of a file with a cache against the model's own."""
    if not getattr(model, "can_generate", lambda: False)():
        raise Nothing("does not generate")
    folder = export(program, scratch / "decode", ["onnx-decode"])["onnx-decode"]
    given, begin = prompt_of(program, model)
    try:
        opened = load_onnx(folder, threads=1)
        # One more, since the last may be one that the model's defaults force.
        made = opened.generate(given, tokens=TOKENS + 1, stop=[], begin=begin).ids[:, :-1]
    except SparsifyError as error:
        raise Wrong(f"written, and then: {error}") from error
    wanted = continued(model, given, begin)
    if not torch.equal(made, wanted):
        raise Wrong(f"tokens {made[0].tolist()}, not {wanted[0].tolist()}")


def prompt_of(program: Any, model: Any) -> tuple[Any, list[int] | None]:
    """What is to be continued: ids, or the inputs of an encoder and the ids that its decoder begins with."""
    if not model.config.is_encoder_decoder:
        return program.sample["input_ids"][:1, :6], None
    others = {
        name: value for name, value in program.sample.items() if not name.startswith("decoder")
    }
    return others, [3, 4]  # behind a lone first one the model's defaults may force another


def continued(model: Any, given: Any, begin: list[int] | None) -> torch.Tensor:
    """The tokens that the model itself goes on with, the likeliest each time, without a cache."""
    ids = given if begin is None else torch.tensor([begin] * len(next(iter(given.values()))))
    for _ in range(TOKENS):
        with torch.no_grad():
            if begin is None:
                found = model(input_ids=ids, use_cache=False)
            else:
                found = model(**given, decoder_input_ids=ids, use_cache=False)
        ids = torch.cat([ids, found.logits[:, -1:].argmax(-1)], 1)
    return ids


def foldered(program: Any, scratch: Path) -> None:
    export(program, scratch / "folder", ["huggingface"])


def answer(step: Callable[[], None]) -> str:
    """What a step comes to, in words."""
    try:
        step()
    except Nothing as error:
        return f"- {error}"
    except Wrong as error:
        return f"wrong: {error}"
    except SparsifyError as error:
        return f"refused: {error}"
    except Exception as error:
        return f"fault: {type(error).__name__}: {error}"
    return "yes"


def work(family: str, task: str, path: Path, steps: list[str]) -> None:
    """Some steps of one family in this process; what is known so far is in the file after each."""
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    found: Row = {}

    def note(name: str, step: Callable[[], None]) -> None:
        started = time.perf_counter()
        said = " ".join(answer(step).split())
        found[name] = said if len(said) < 400 else f"{said[:397]}..."
        found["seconds"] = {
            **found.get("seconds", {}),
            name: round(time.perf_counter() - started, 1),
        }
        path.write_text(json.dumps(found))

    held: list[Any] = []
    note("built", lambda: held.append(small_model(family, task)))
    if found["built"] != "yes":
        return
    note("trace", lambda: held.append(trace(held[0], copy=True)))
    if found["trace"] != "yes":
        return
    model, program = held
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        written = {
            "onnx": lambda: exported(program, place),
            "decode": lambda: decoded(program, model, place),
            "folder": lambda: foldered(program, place),
        }
        for name in STEPS[1:]:
            if name in steps:
                note(name, written.get(name) or step_of(name, program))


def ran(family: str, task: str, steps: list[str], seconds: int) -> Row:
    """What steps of a family give in a process of their own, which may take so many seconds.

    It begins as a copy of this one, which has read the libraries.
    """
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "row.json"
        process = FORK.Process(target=work, args=(family, task, path, steps))
        process.start()
        process.join(seconds)
        end = f"fault: ended with {process.exitcode}"
        if process.exitcode is None:
            process.kill()
            process.join()
            end = f"slow: more than {seconds} s"
        row: Row = json.loads(path.read_text()) if path.is_file() else {}
    missing = [name for name in dict.fromkeys(("built", "trace", *steps)) if name not in row]
    broken = next((row[name] for name in ("built", "trace") if row.get(name, "yes") != "yes"), "")
    if missing and not broken:
        row[missing[0]] = end
    return {"task": task, **row}


def main() -> None:
    options = arguments()
    torch.set_num_threads(1)  # a process with threads of its own cannot be copied
    trace(small_model("llama", "AutoModelForCausalLM"))  # reads what tracing needs, once for all
    rows = Rows(options.json)
    number, count = map(int, options.shard.split("/"))
    for place, (family, task) in enumerate(families()):
        if place % count != number or not meant(family, options.only):
            continue
        before = rows.get(family)
        steps = [name for name in STEPS if meant(name, options.steps) and name not in before]
        if steps and before.get("trace", "yes") == "yes":
            found = ran(family, task, steps, options.seconds)
            found["seconds"] = {**before.get("seconds", {}), **found.get("seconds", {})}
            rows.put(family, **found)
            print(family, summary(rows.get(family)), flush=True)


def meant(name: str, globs: str) -> bool:
    """Whether one of the globs, parted by commas, matches."""
    return any(fnmatchcase(name, glob) for glob in globs.split(","))


def summary(row: Row) -> str:
    """A row in one line."""
    return "  ".join(f"{name} {row[name][:60]}" for name in ("built", *STEPS) if name in row)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, default=Path("zoo.json"))
    parser.add_argument("--only", default="*")
    parser.add_argument("--steps", default="*", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--shard", default="0/1", help="this part of so many")
    parser.add_argument("--seconds", type=int, default=240, help="a family may take")
    return parser.parse_args()


if __name__ == "__main__":
    main()
