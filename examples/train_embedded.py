r"""Train the small language model that ships inside the package.

The text is what anyone can install: the reStructuredText sources in Debian's
``python3.11-doc`` and the HTML manual in ``postgresql-doc-15``. One CPU core is enough::

    apt-get install python3.11-doc postgresql-doc-15
    python examples/train_embedded.py --minutes 76 --out embedded-run

``OUT/model`` then holds the float16 model, its tokenizer and the held-out text. The same command
given again goes on from the last checkpoint of a run that was cut short.

Models of other shapes learn the same text with the same tokenizer. The wide one, whose feed-forward size
is eight times the hidden size and which ``docs/measuring.md`` trains on with omission, is::

    python examples/train_embedded.py --layers 4 --intermediate 2048 --kv-heads 8 --context 128 \
        --minutes 25 --out wide-run
"""

import argparse
import copy
import html
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EOS = "<|endoftext|>"
VOCAB = 4096
HELDOUT_BYTES = 480_000
PASS_TOKENS, ACCUMULATE = 2048, 2  # tokens per pass, passes per step
MUON_LR, ADAM_LR = 7e-3, 5e-3  # hidden matrices; embeddings and norms
WARMUP_STEPS = 60
DECAY_PART = 0.4  # of the run, at its end
SAVE_SECONDS, LOG_STEPS = 180.0, 20
DEBIAN_SOURCES = ("python3.11/html/_sources", "postgresql-doc-15/html")


def tidy(text: str) -> str:
    """Drop trailing blanks and runs of empty lines."""
    text = re.sub(r"[ \t]+$", "", text.replace("\xa0", " "), flags=re.M)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def clean_rst(raw: str) -> str:
    """Turn reStructuredText into plainer text: roles become their content, labels go."""
    raw = re.sub(r":(?:[\w+-]+:)+`[~!]?([^`<]*?)(?:\s*<[^`>]*>)?`", r"\1", raw)
    return tidy(re.sub(r"^\.\. (?:_[^\n]*:|index::[^\n]*)\n", "", raw, flags=re.M))


def clean_html(raw: str) -> str:
    """Take the tags off an HTML page; white space counts only inside ``<pre>``."""
    raw = re.sub(r"<(head|script|style)\b.*?</\1>", "", raw, flags=re.S)
    raw = re.sub(r'<div class="nav(?:header|footer)">.*?</div>', "", raw, flags=re.S)
    parts = re.split(r"(<pre\b.*?</pre>)", raw, flags=re.S)
    for i in range(0, len(parts), 2):
        part = re.sub(r"\s+", " ", parts[i])
        part = re.sub(r"</(?:p|h[1-6]|div|table|ul|ol|dl|dt)>|<hr ?/?>", "\n\n", part)
        part = re.sub(r"</(?:li|tr|dd)>|<br ?/?>", "\n", part)
        part = re.sub(r"<li\b", "* <li", part)
        parts[i] = re.sub(r"</t[dh]>\s*<t[dh]\b", " | <td", part)
    text = html.unescape(re.sub(r"<[^>]+>", "", "\n".join(parts)))
    return tidy(re.sub(r"^ (?=\S)", "", text, flags=re.M))


def read_source(folder: Path) -> list[str]:
    """Read and clean every document below one folder, in a fixed order."""
    texts = []
    for path in sorted(folder.rglob("*")):
        if path.name.endswith((".rst", ".rst.txt")):
            texts.append(clean_rst(path.read_text("utf-8")))
        elif path.suffix == ".html" and path.name != "bookindex.html":
            texts.append(clean_html(path.read_text("utf-8")))
    return texts


def split(sources: list[list[str]], seed: int) -> tuple[list[str], list[str]]:
    """Hold out whole documents, the same number of bytes from every source."""
    rng = random.Random(seed)
    train: list[str] = []
    held: list[tuple[float, str]] = []
    for texts in sources:
        room = HELDOUT_BYTES // len(sources)
        for text in rng.sample(texts, len(texts)):
            size = len(text.encode()) + 1
            if 2_000 <= size <= min(room, 40_000):
                room -= size
                held.append((rng.random(), text))
            else:
                train.append(text)
    rng.shuffle(train)
    return train, [text for _, text in sorted(held)]


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    first = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=[EOS], initial_alphabet=first)
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=EOS, eos_token=EOS, pad_token=EOS, model_max_length=512
    )


def new_model(layers: int, intermediate: int, kv_heads: int) -> LlamaForCausalLM:
    """Build the untrained model."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=kv_heads,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=0,  # EOS
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # faster than sdpa for windows this short on a CPU
    return model


def loss_of(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Mean next-token loss over rows of ``context + 1`` tokens, bfloat16 products."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def perplexity(
    model: LlamaForCausalLM, tokens: Tensor, context: int, windows: int | None = None
) -> float:
    """Perplexity in float32 over non-overlapping windows of ``context`` tokens."""
    rows = tokens[: len(tokens) // context * context].view(-1, context)[:windows]
    losses = []
    for chunk in rows.split(8):
        logits = model(input_ids=chunk, use_cache=False).logits[:, :-1].transpose(1, 2)
        losses.append(cross_entropy(logits, chunk[:, 1:], reduction="none"))
    return math.exp(torch.cat(losses).mean())


def batches(tokens: Tensor, rows: int, context: int, seed: int, start: int) -> Iterator[Tensor]:
    """Yield batches for ever, from number ``start`` on; each epoch cuts at another offset."""
    per_epoch = (len(tokens) - context - 1) // context // rows
    epoch, number = divmod(start, per_epoch)
    while True:
        rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        offset = int(torch.randint(context, (), generator=rng))
        windows = tokens[offset:].unfold(0, context + 1, context)
        order = torch.randperm(len(windows), generator=rng)
        yield from (windows[order[i * rows :][:rows]] for i in range(number, per_epoch))
        epoch, number = epoch + 1, 0


def train(args: argparse.Namespace, tokens: Tensor, held: Tensor) -> None:
    """Train until the time or the tokens are used up; go on from a checkpoint if there is one."""
    torch.manual_seed(args.seed)
    model = new_model(args.layers, args.intermediate, args.kv_heads)
    hidden = [p for p in model.model.layers.parameters() if p.ndim == 2]
    other = [p for p in model.parameters() if all(p is not h for h in hidden)]
    muon = torch.optim.Muon(hidden, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adam = torch.optim.AdamW(other, betas=(0.9, 0.95), weight_decay=0.0)
    parts: dict[str, Any] = {"model": model, "muon": muon, "adam": adam}
    step, before = 0, 0.0
    path: Path = args.out / "state.pt"
    if path.exists():
        state = torch.load(path, weights_only=True)
        step, before = state["step"], state["seconds"]
        for name, part in parts.items():
            part.load_state_dict(state[name])
    compiled: Callable[..., Tensor] = torch.compile(loss_of, dynamic=False)
    rows_per_pass = PASS_TOKENS // args.context
    stream = batches(tokens, rows_per_pass * ACCUMULATE, args.context, args.seed, step)
    per_step = rows_per_pass * ACCUMULATE * args.context
    started = marked = saved = time.monotonic()
    summed = progress = 0.0
    while progress < 1.0:
        seconds = before + time.monotonic() - started
        progress = max(seconds / (60 * args.minutes), step * per_step / args.tokens)
        if progress >= 1.0 or (step % LOG_STEPS == 0 and time.monotonic() - saved > SAVE_SECONDS):
            state = {name: part.state_dict() for name, part in parts.items()}
            torch.save(state | {"step": step, "seconds": seconds}, path.with_suffix(".new"))
            path.with_suffix(".new").rename(path)
            copy.deepcopy(model).half().save_pretrained(args.out / "model")
            log(
                args.out,
                step=step,
                early_heldout_perplexity=perplexity(model, held, args.context, 48),
            )
            saved = time.monotonic()
        # Warm-up, flat, then a straight line to zero.
        scale = min(1.0, (step + 1) / WARMUP_STEPS, max(0.0, (1.0 - progress) / DECAY_PART))
        for optimizer, lr in ((muon, MUON_LR), (adam, ADAM_LR)):
            for group in optimizer.param_groups:
                group["lr"] = lr * scale
        for rows in next(stream).split(rows_per_pass):
            loss = compiled(model, rows) / ACCUMULATE
            loss.backward()
            summed += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
        model.zero_grad()
        step += 1
        if step % LOG_STEPS == 0:
            figures = {"loss": summed / LOG_STEPS, "scale": scale, "seconds": round(seconds)}
            figures["tokens_per_s"] = round(LOG_STEPS * per_step / (time.monotonic() - marked))
            log(args.out, step=step, tokens=step * per_step, **figures)
            marked, summed = time.monotonic(), 0.0


def log(out: Path, **figures: float) -> None:
    """Add one line to the run's log."""
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")


def main() -> None:
    """Read the command line, prepare the text and train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, action="append", help="folder of sources (repeatable)")
    parser.add_argument("--out", type=Path, default=Path("embedded-run"))
    parser.add_argument("--minutes", type=float, default=76.0)
    parser.add_argument("--tokens", type=float, default=math.inf)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--intermediate", type=int, default=688)
    parser.add_argument("--kv-heads", type=int, default=4, help="of the 8 heads")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folders = args.text or [Path("/usr/share/doc") / name for name in DEBIAN_SOURCES]
    if missing := [str(folder) for folder in folders if not folder.is_dir()]:
        raise SystemExit(f"no such folder: {', '.join(missing)}; see --help for --text")
    texts, held = split([read_source(folder) for folder in folders], args.seed)
    model_dir: Path = args.out / "model"
    model_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(model_dir)
    (model_dir / "heldout.txt").write_text("\n".join(held), "utf-8")
    tokens, held_ids = (
        torch.tensor(tokenizer.backend_tokenizer.encode(text).ids)
        for text in (EOS.join([*texts, ""]), "\n".join(held))
    )
    log(args.out, train_tokens=len(tokens), heldout_tokens=len(held_ids))
    train(args, tokens, held_ids)
    final = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    log(args.out, final_heldout_perplexity=perplexity(final, held_ids, args.context))


if __name__ == "__main__":
    main()
