"""One side of pruning_speed.py: prunes a folder 2:4, ours or by llm-compressor, and tells what it cost.

    python pruning_worker.py ours-linear|ours-layer|peer1|peer8 FOLDER TOKENS SCORE OUT THREADS

TOKENS is a safetensors file with `ids [samples, length]`. Prints a JSON line: seconds and processor
seconds from reading the folder to having written the other, imports left out, and peak memory.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peak import peak_bytes
from safetensors.torch import load_file
from torch import Tensor


def ours(folder: str, ids: Tensor, score: str, out: Path, order: Any) -> Callable[[], Any]:
    """Prunes with `sparsify.stream`, 8 sequences at a time."""
    from sparsify.data.sequences import TextData
    from sparsify.select.one_shot import OneShot
    from sparsify.select.weights import Target
    from sparsify.stream.job import Job
    from sparsify.stream.prune import prune

    data = TextData(ids.flatten(), ids.shape[1])
    how = OneShot(score, Target.of(None, "2:4"))  # type: ignore[arg-type]
    job = Job(
        folder, how, out, samples=len(ids), order=order, dtype="float32", ignore=("lm_head*",)
    )
    return lambda: prune(job, data)


def peer(folder: str, ids: Tensor, score: str, out: Path, batch: int) -> Callable[[], Any]:
    """Prunes with llm-compressor's sequential pipeline."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import SparseGPTModifier, WandaPruningModifier
    from transformers import AutoModelForCausalLM

    rows = ids.tolist()
    data = Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * len(r) for r in rows]})
    kind = SparseGPTModifier if score == "sparsegpt" else WandaPruningModifier
    recipe = kind(sparsity=0.5, mask_structure="2:4", targets=["Linear"], ignore=["re:.*lm_head"])

    def run() -> None:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        oneshot(
            model=model,
            dataset=data,
            recipe=recipe,
            num_calibration_samples=len(rows),
            max_seq_length=ids.shape[1],
            batch_size=batch,
            shuffle_calibration_samples=False,
        )
        model.save_pretrained(out)

    return run


def main() -> None:
    side, folder, tokens, score, out, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # both report progress
    torch.set_num_threads(int(threads))
    ids = load_file(tokens)["ids"]
    if side.startswith("ours"):
        run = ours(folder, ids, score, Path(out), side.removeprefix("ours-"))
    else:
        run = peer(folder, ids, score, Path(out), int(side.removeprefix("peer")))
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    answer = {
        "seconds": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
        "peak": peak_bytes(),
    }
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
