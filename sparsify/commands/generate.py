"""`sparsify-fx generate`: a prompt continued by an exported model, printed as it comes."""

from pathlib import Path

from rich.console import Console
from torch import Tensor

from sparsify.commands.loudness import answer
from sparsify.disk.files import write_json
from sparsify.errors import OptionError
from sparsify.pretrained.loading import STRICT, Loading
from sparsify.runtime.generate import Generated, Generator, load_onnx


def generate(
    folder: Path,
    prompt: str,
    tokens: int,
    temperature: float,
    seed: int,
    threads: int,
    json: Path | None,
    console: Console,
    loading: Loading = STRICT,
) -> Generated:
    """Print the prompt, each piece of text as soon as it is known, then the speed."""
    model = _opened(folder, threads, console, loading)
    # An encoder's prompt is answered, not continued.
    before = prompt if model.encoder is None else ""
    answer.print(before, end="", markup=False, highlight=False, soft_wrap=True)
    seen: list[int] = []
    shown = ""

    def watch(chosen: Tensor) -> None:
        nonlocal shown
        seen.append(int(chosen[0]))
        text = model.tokenizer.decode(seen, skip_special_tokens=True)
        # A character of several tokens is printed when it is whole.
        if not text.endswith("\ufffd"):
            answer.print(text[len(shown) :], end="", markup=False, highlight=False, soft_wrap=True)
            shown = text

    made = model.generate(prompt, tokens=tokens, temperature=temperature, seed=seed, watch=watch)
    answer.print()
    figures = {
        "prompt tokens": len(model.tokenizer(prompt)["input_ids"]),
        "new tokens": len(seen),
        "time to first token, s": made.prompt_seconds,
        "tokens per second": made.tokens_per_second,
    }
    console.print(
        f"{figures['prompt tokens']} tokens read in {made.prompt_seconds * 1e3:.0f} ms, "
        f"{len(seen)} written, {made.tokens_per_second:.1f} tokens/s",
        style="dim",
    )
    if json is not None:
        write_json(json, {**figures, "text": before + shown})
    return made


def _opened(folder: Path, threads: int, console: Console, loading: Loading) -> Generator:
    """The model of a folder, if it reads text; prints what it says of itself."""
    model = load_onnx(
        folder,
        threads=threads,
        trust_remote_code=loading.trust_remote_code,
        verify=loading.verify,
    )
    if model.tokenizer is None:
        raise OptionError(f"'{folder}' has no tokenizer, so that a text means nothing to it")
    for note in model.notes:
        console.print(note, style="dim", markup=False, soft_wrap=True)
    return model
