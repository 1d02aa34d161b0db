"""One measurement of generation.py: opens a model, generates twice, and tells how the second time went.

    python generation_worker.py transformers|onnx|genai FOLDER IDS TOKENS THREADS
    python generation_worker.py logits FOLDER IDS OUT HEADS SIZE

IDS is a numpy file `[1, length]`. Prints a JSON line: seconds to the first token, seconds of each token after
it, the tokens, and the peak memory of the process in bytes. `logits` writes those of the prompt
`[1, length, vocabulary]`, by ONNX Runtime; HEADS and SIZE are of a cache whose file does not say.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from peak import peak_bytes

Run = tuple[float, list[float], list[int]]


def transformers(folder: Path, ids: Any, tokens: int, threads: int) -> Callable[[], Run]:
    """The model in eager torch, with its own cache."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def run() -> Run:
        step, past, seconds, chosen = torch.from_numpy(ids), None, [], []
        for _ in range(tokens):
            started = time.perf_counter()
            out = model(input_ids=step, past_key_values=past, use_cache=True, logits_to_keep=1)
            seconds.append(time.perf_counter() - started)
            step, past = out.logits[:, -1:].argmax(-1), out.past_key_values
            chosen.append(int(step))
        return seconds[0], seconds[1:], chosen

    return run


def onnx(folder: Path, ids: Any, tokens: int, threads: int) -> Callable[[], Run]:
    """A decode graph on ONNX Runtime, by `sparsify.load_onnx`."""
    import sparsify

    model = sparsify.load_onnx(folder, threads=threads)

    def run() -> Run:
        made = model.generate(ids, tokens=tokens, stop=-1)
        chosen = made.ids[0, ids.shape[1] :].tolist()
        return made.prompt_seconds, list(made.token_seconds), chosen

    return run


def genai(folder: Path, ids: Any, tokens: int, threads: int) -> Callable[[], Run]:
    """A folder of the model builder, by onnxruntime-genai."""
    import onnxruntime_genai as og

    config = og.Config(str(folder))
    options = {"session_options": {"intra_op_num_threads": threads}}
    config.overlay(json.dumps({"model": {"decoder": options}}))
    model = og.Model(config)
    length = ids.shape[1] + tokens

    def run() -> Run:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator, seconds = og.Generator(model, params), []
        started = time.perf_counter()
        generator.append_tokens(ids.astype(np.int32))
        while not generator.is_done():
            generator.generate_next_token()
            seconds.append(time.perf_counter() - started)
            started = time.perf_counter()
        chosen = [int(token) for token in generator.get_sequence(0)[ids.shape[1] :]]
        return seconds[0], seconds[1:], chosen

    return run


def empty_pasts(session: Any, length: int, heads: int, size: int) -> dict[str, Any]:
    """Zeros for the caches of one sequence; heads and size are of those whose file does not say."""
    found = {}
    for entry in session.get_inputs():
        if entry.name.startswith("past_key_values."):
            known = [part if isinstance(part, int) else None for part in entry.shape]
            shape = (1, known[1] or heads, length, known[3] or size)
            found[entry.name] = np.zeros(shape, np.float32)
    return found


def write_logits(folder: Path, ids: Any, out: Path, heads: int, size: int) -> None:
    """The logits of a prompt, from an empty cache."""
    from sparsify.runtime.session import onnxruntime_session

    session = onnxruntime_session(folder / "model.onnx", threads=os.cpu_count() or 1)
    places = np.arange(ids.shape[1])[None]
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": places}
    feeds |= empty_pasts(session, 0, heads, size)
    names = {entry.name for entry in session.get_inputs()}
    given = {name: value for name, value in feeds.items() if name in names}
    np.save(out, session.run(["logits"], given)[0])


def main() -> None:
    kind, folder, place, *rest = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries report progress
    ids = np.load(place)
    if kind == "logits":
        write_logits(Path(folder), ids, Path(rest[0]), int(rest[1]), int(rest[2]))
        return
    tokens, threads = map(int, rest)
    run = {"transformers": transformers, "onnx": onnx, "genai": genai}[kind](
        Path(folder), ids, tokens, threads
    )
    run()
    first, others, chosen = run()
    answer = {
        "first": first,
        "others": others,
        "tokens": chosen,
        "peak": peak_bytes(),
    }
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
