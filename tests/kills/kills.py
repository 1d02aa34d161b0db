"""Kills `run`, `stream` and `export` at random moments and file operations, goes on, and compares the bytes.

    python tests/kills/kills.py --kills 200 [--seed 0]

Every command is a process of its own, forked from one that has imported everything. Half of the kills come at
a random second, half at a random operation on a file of the output folder; two of three are SIGKILL. After
each, `eval` of a copy must work or say in one sentence that there is nothing yet. In the end the folder must
hold what an undisturbed run writes, byte for byte but for seconds and the machine, and nothing else.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

import torch
import torch._dynamo
from transformers import LlamaConfig, LlamaForCausalLM

import exporters
import sparsify
import sparsify.commands.run
from sparsify.cli import main
from sparsify.pretrained.load import load_tokenizer
from sparsify.pretrained.quiet import quiet

PIPELINE = (
    "insert-masks | choose-masks{sparsity=0.5} | insert-lora{rank=2} | "
    "train{steps=8 batch=2 save_every=2} | fold-lora | fold-masks"
)
FORMATS = "onnx,safetensors,huggingface"
# Audited operations that change what lies on disk.
CHANGES = {"os.rename", "os.mkdir", "os.rmdir", "os.remove", "os.link", "os.chmod", "shutil.rmtree"}
# Fields that tell seconds or where a run was made.
TIMED = {"seconds", "checking", "tokens_per_s", "machine"}


@dataclass
class Case:
    """A verb with its words; `again` are the words after a kill, `earlier` fills the folder before."""

    name: str
    words: list[str]
    again: list[str]
    earlier: list[str] = field(default_factory=list)
    seconds: float = 0.0
    changes: int = 0
    wanted: dict[str, bytes] = field(default_factory=dict)


def child(words: list[str], log: Path, ready: Callable[[], None] = lambda: None) -> int:
    """The command line in a forked process; its number."""
    sys.stdout.flush()
    number = os.fork()
    if number:
        return number
    code = 70
    try:
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        written = os.open(log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(written, 1)
        os.dup2(written, 2)
        sys.argv = ["sparsify-fx", *words]
        ready()
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def finish(number: int) -> int:
    """The exit code of a child, negative after a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def count_changes(out: Path, act: Callable[[int], object]) -> None:
    """Call `act` with the number of every operation on a file of the folder that is being written."""
    seen = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        writes = (
            event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR)
        )
        if not (writes or event in CHANGES):
            return
        path = args[0]
        if isinstance(path, (str, os.PathLike)) and f"{out.name}" in os.fspath(path):
            seen += 1
            act(seen)

    sys.addaudithook(hook)


def cleaned(value: Any) -> Any:
    """A JSON value without what differs from run to run."""
    if isinstance(value, dict):
        return {k: cleaned(v) for k, v in value.items() if k not in TIMED}
    return [cleaned(v) for v in value] if isinstance(value, list) else value


def tree(folder: Path) -> dict[str, bytes]:
    """Everything in a folder, hidden or not; folders end in a slash."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name + "/"] = b""
        elif path.name in ("report.json", "run.json", "train.json", "sparsify.json"):
            found[name] = json.dumps(cleaned(json.loads(path.read_bytes()))).encode()
        else:
            found[name] = path.read_bytes()
    return found


def phase(out: Path) -> str:
    """How far a run was, by what it left."""
    work = out / ".resume"
    if (work / "placing").is_dir():
        return "placing"
    if (work / "exported").is_dir():
        return "exporting"
    if any(work.glob("pass-*/step-*")) or any(work.glob("cut-*")):
        return "training, layers"
    if work.is_dir():
        return "passes"
    hidden = any(path.name.startswith(".") for path in out.parent.rglob("*"))
    return "files" if hidden else "between"


class Harness:
    """A place to work in, the cases, and what was counted."""

    def __init__(self, place: Path, seed: int) -> None:
        self.place, self.draw = place, random.Random(seed)
        self.log = place / "log.txt"
        self.counts: dict[str, Counter[str]] = {
            name: Counter() for name in ("verb", "phase", "signal", "eval", "end")
        }
        self.problems: list[str] = []
        self.model, self.text = place / "model", place / "text.txt"
        self._inputs()
        self.cases = self._cases()

    def _inputs(self) -> None:
        embedded = Path(sparsify.__file__).parent / "embedded"
        tokenizer = load_tokenizer(str(embedded))
        torch.manual_seed(0)
        config = LlamaConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            vocab_size=len(tokenizer),
            max_position_embeddings=64,
        )
        with quiet():
            LlamaForCausalLM(config).save_pretrained(self.model)
            tokenizer.save_pretrained(self.model)
        self.text.write_text((embedded / "heldout.txt").read_text(encoding="utf-8")[:3000])
        # Tracing writes nothing, and takes half of a run: children get a copy of what is traced here.
        program = sparsify.trace(sparsify.load_model(str(self.model))[0], tokenizer=tokenizer)
        sparsify.save(program, self.place / "program")
        assert exporters.ALL
        sparsify.commands.run.trace = lambda model, tokenizer: program.clone()

    def _cases(self) -> list[Case]:
        base = ["--model", str(self.model), "--data", str(self.text), "--length", "16"]
        run = ["run", *base, "--pipeline", PIPELINE, "--to", FORMATS]
        pruned = ["stream", *base, "--samples", "8", "--batch", "2", "--dtype", "float32"]
        pruned += ["--masks", "choose-masks{score=sparsegpt pattern=2:4}"]
        made = ["export", str(self.place / "program"), "--to", FORMATS]
        return [
            Case("run", run, ["--resume"]),
            Case("stream", pruned, ["--resume"]),
            Case("export", made, ["--overwrite"]),
            Case("run over an earlier one", run, ["--resume"], [*run, "--seed", "1"]),
            Case("stream on disk", [*pruned, "--on-disk", "--order", "layer"], ["--resume"]),
            Case("export over an earlier one", made, ["--overwrite"], made),
        ]

    def command(self, case: Case, out: Path, more: list[str]) -> list[str]:
        """The whole command line of a case."""
        over = ["--overwrite"] if case.earlier and "--overwrite" not in more else []
        return [*case.words, "--out", str(out), *more, *(over if "--resume" not in more else [])]

    def fresh(self, case: Case, name: str) -> Path:
        """A new folder for a case, filled by its earlier run."""
        out = self.place / name / "out"
        shutil.rmtree(out.parent, ignore_errors=True)
        out.parent.mkdir()
        if case.earlier:
            kept = self.place / f"earlier {case.name}"
            if not kept.exists():
                assert finish(child([*case.earlier, "--out", str(kept)], self.log)) == 0
            shutil.copytree(kept, out)
        return out

    def measure(self, case: Case) -> None:
        """The undisturbed run: its bytes, seconds, and number of changes."""
        out = self.fresh(case, "whole")
        tally = self.place / "tally"
        started = time.perf_counter()

        def ready() -> None:
            count_changes(out, lambda seen: tally.write_text(str(seen)))

        code = finish(child(self.command(case, out, []), self.log, ready))
        assert code == 0, self.log.read_text()
        case.seconds = time.perf_counter() - started
        case.changes = int(tally.read_text())
        case.wanted = tree(out.parent)

    def disturbed(self, case: Case, budget: int) -> int:
        """One run, killed up to six times and gone on with; the number of kills."""
        out, kills, more = self.fresh(case, "killed"), 0, list[str]()
        wanted = min(budget, self.draw.randint(1, 6))
        for _ in range(60):
            words = self.command(case, out, more)
            going = kills >= wanted
            code = finish(child(words, self.log)) if going else self._killed(case, out, words)
            said = self.log.read_text().strip().splitlines()
            if code < 0 or code in (130, 143):
                kills += 1
                self._after(case, out, code, said)
                more = case.again
                continue
            finished = code == 1 and "is finished" in said[-1]
            if finished and case.earlier and tree(out.parent) != case.wanted:
                more = []  # killed before anything of it was on disk: the earlier one stands
                continue
            if code != 0 and not finished:
                self.problems.append(f"{case.name}: exit {code}: {said[-1:]}")
            break
        self._compare(case, out)
        return kills

    def _killed(self, case: Case, out: Path, words: list[str]) -> int:
        """Start and kill; the exit code, that of the command when it was faster."""
        number = self.draw.choice((signal.SIGKILL,) * 4 + (signal.SIGTERM, signal.SIGINT))
        if self.draw.random() < 0.5:
            at = self.draw.randint(1, case.changes)

            def ready() -> None:
                count_changes(out, lambda s: os.kill(os.getpid(), number) if s == at else None)

            return finish(child(words, self.log, ready))
        started = child(words, self.log)
        time.sleep(self.draw.uniform(0, 1.05 * case.seconds))
        os.kill(started, number)
        return finish(started)

    def _after(self, case: Case, out: Path, code: int, said: list[str]) -> None:
        """Count a kill, and hold `eval` against what it left."""
        self.counts["verb"][case.name] += 1
        self.counts["phase"][phase(out)] += 1
        self.counts["signal"][signal.Signals(-code if code < 0 else code - 128).name] += 1
        word = {130: "interrupted: ", 143: "terminated: "}.get(code, "")
        if (code > 0 and not (said and said[-1].startswith(word))) or "Traceback" in " ".join(said):
            self.problems.append(f"{case.name}: after a signal it says {said}")
        if not out.exists():
            self.counts["eval"]["no folder"] += 1
            return
        copy = self.place / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(out, copy)
        words = ["eval", str(copy), "--data", str(self.text), "--length", "16", "--limit", "2"]
        code = finish(child(words, self.log))
        told = self.log.read_text().strip().splitlines()
        nothing = code == 1 and len(told) == 1 and "holds no program" in told[0]
        self.counts["eval"]["works" if code == 0 else "nothing yet" if nothing else "fails"] += 1
        if code != 0 and not nothing:
            self.problems.append(f"{case.name}, {phase(out)}: eval exits {code}: {told[-3:]}")

    def _compare(self, case: Case, out: Path) -> None:
        found = tree(out.parent)
        left = sorted(found.keys() - case.wanted.keys())
        lacking = sorted(case.wanted.keys() - found.keys())
        other = sorted(k for k in found.keys() & case.wanted.keys() if found[k] != case.wanted[k])
        self.counts["end"]["resumed"] += 1
        self.counts["end"]["left over"] += len(left)
        self.counts["end"]["lacking"] += len(lacking)
        self.counts["end"]["differing"] += len(other)
        if left or lacking or other:
            self.problems.append(f"{case.name}: {left=} {lacking=} {other=}")


def kill(kills: int, seed: int, only: str | None) -> int:
    """Every case in turn until there were enough kills; 1 when anything was wrong."""
    with tempfile.TemporaryDirectory() as name:
        harness = Harness(Path(name), seed)
        cases = [case for case in harness.cases if only is None or case.name == only]
        done = number = 0
        with contextlib.suppress(KeyboardInterrupt):  # the figures so far
            while done < kills:
                case = cases[number % len(cases)]
                if not case.wanted:
                    harness.measure(case)
                    print(f"{case.name}: {case.seconds:.1f} s, {case.changes} changes", flush=True)
                done += harness.disturbed(case, kills - done)
                number += 1
                print(f"{done} kills, {len(harness.problems)} problems", flush=True)
        for what, found in harness.counts.items():
            print(f"{what}: " + ", ".join(f"{k} {v}" for k, v in sorted(found.items())))
        for problem in harness.problems:
            print(problem)
        return 1 if harness.problems else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one case by its name")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sys.exit(kill(options.kills, options.seed, options.only))
