"""Train the small language model that ships inside the package.

The text is what anyone can install: the reStructuredText sources in Debian's
``python3.11-doc`` and the HTML manual in ``postgresql-doc-15``. One CPU core is enough::

    apt-get install python3.11-doc postgresql-doc-15
    python examples/train_embedded.py --minutes 75 --out embedded-run

``OUT/model`` then holds the model in float16, its tokenizer and the held-out text. A run that was
cut short goes on from its last checkpoint when the same command is given again.
"""

import argparse
import html
import json
import math
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

EOS = "<|endoftext|>"
CONTEXT = 256
VOCAB = 4096
HELDOUT_BYTES = 480_000
DEBIAN_SOURCES = ("python3.11/html/_sources", "postgresql-doc-15/html")
Loss = Callable[[LlamaForCausalLM, Tensor], Tensor]


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
    if not texts:
        raise SystemExit(f"no .rst, .rst.txt or .html files below {folder}")
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
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=EOS, eos_token=EOS, pad_token=EOS, model_max_length=512
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> Tensor:
    """Encode documents into one row of tokens, an end-of-text token after each."""
    rows = tokenizer.backend_tokenizer.encode_batch_fast([text + EOS for text in texts])
    return torch.tensor([token for row in rows for token in row.ids])


def new_model() -> LlamaForCausalLM:
    """Build the untrained model."""
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("eager")  # faster than sdpa for windows this short on a CPU
    return model


def loss_of(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Mean next-token loss over rows of ``CONTEXT + 1`` tokens, bfloat16 products."""
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def perplexity(model: LlamaForCausalLM, tokens: Tensor, windows: int | None = None) -> float:
    """Perplexity in float32 over non-overlapping windows of ``CONTEXT`` tokens."""
    rows = tokens[: len(tokens) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:windows]
    total = 0.0
    for chunk in rows.split(8):
        logits = model(input_ids=chunk, use_cache=False).logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), chunk[:, 1:].flatten(), reduction="sum"
        ).item()
    return math.exp(total / (rows.shape[0] * (CONTEXT - 1)))


def batches(tokens: Tensor, rows: int, seed: int, start: int) -> Iterator[Tensor]:
    """Yield batches for ever, from number ``start`` on; each epoch cuts at another offset."""
    per_epoch = (len(tokens) - CONTEXT - 1) // CONTEXT // rows
    epoch, number = divmod(start, per_epoch)
    while True:
        rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        offset = int(torch.randint(CONTEXT, (), generator=rng))
        windows = tokens[offset:].unfold(0, CONTEXT + 1, CONTEXT)
        order = torch.randperm(len(windows), generator=rng)
        for i in range(number, min(per_epoch, len(windows) // rows)):
            yield windows[order[i * rows : (i + 1) * rows]]
        epoch, number = epoch + 1, 0


def lr_scale(step: int, progress: float, warmup: int, decay: float) -> float:
    """Warm-up, flat, then a straight line to zero over the last ``decay`` of the run."""
    return min(1.0, (step + 1) / warmup, max(0.0, (1.0 - progress) / decay))


def save(model: LlamaForCausalLM, folder: Path) -> None:
    """Save the weights in float16."""
    half = LlamaForCausalLM(model.config).half()
    half.load_state_dict(model.state_dict())
    half.save_pretrained(folder)


def train(args: argparse.Namespace, tokens: Tensor, held: Tensor) -> LlamaForCausalLM:
    """Train until the time or the tokens are used up."""
    torch.manual_seed(args.seed)
    model = new_model()
    hidden = [p for p in model.model.layers.parameters() if p.ndim == 2]
    other = [p for p in model.parameters() if all(p is not h for h in hidden)]
    muon = torch.optim.Muon(
        hidden, lr=args.lr, weight_decay=args.decay, adjust_lr_fn="match_rms_adamw"
    )
    adam = torch.optim.AdamW(other, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0)
    rates = ((muon, args.lr), (adam, args.adam_lr))
    step, before = 0, 0.0
    state_path: Path = args.out / "state.pt"
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        muon.load_state_dict(state["muon"])
        adam.load_state_dict(state["adam"])
        step, before = state["step"], state["seconds"]
    loss_fn: Loss = torch.compile(loss_of, dynamic=False) if args.compile else loss_of
    per_step = args.batch * args.accumulate * CONTEXT
    stream = batches(tokens, args.batch * args.accumulate, args.seed, step)
    started = marked = saved = time.monotonic()
    summed, first = 0.0, step
    while True:
        now = time.monotonic()
        seconds = before + now - started
        progress = max(seconds / (60 * args.minutes), step * per_step / args.tokens)
        done = progress >= 1.0
        if done or now - saved > args.save_every:
            state = {"model": model.state_dict(), "muon": muon.state_dict()}
            state |= {"adam": adam.state_dict(), "step": step, "seconds": seconds}
            torch.save(state, state_path.with_suffix(".new"))
            state_path.with_suffix(".new").rename(state_path)
            save(model, args.out / "model")
            ppl = perplexity(model, held, None if done else 48)
            log(args.out, step=step, seconds=round(seconds), heldout_perplexity=ppl, done=done)
            saved = time.monotonic()
        if done:
            return model
        scale = lr_scale(step, progress, args.warmup, args.decay_part)
        for optimizer, lr in rates:
            for group in optimizer.param_groups:
                group["lr"] = lr * scale
        for rows in next(stream).split(args.batch):
            loss = loss_fn(model, rows) / args.accumulate
            loss.backward()
            summed += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in rates:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        if step % args.log_every == 0:
            count, pause = step - first, time.monotonic() - marked
            rate = round(count * per_step / pause)
            figures = {"step": step, "tokens": step * per_step, "loss": summed / count}
            log(args.out, **figures, scale=scale, seconds=round(seconds), tokens_per_s=rate)
            marked, summed, first = time.monotonic(), 0.0, step


def log(out: Path, **figures: float) -> None:
    """Add one line to the run's log."""
    with (out / "log.jsonl").open("a") as file:
        file.write(json.dumps(figures) + "\n")


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, action="append", help="folder of sources (repeatable)")
    parser.add_argument("--out", type=Path, default=Path("embedded-run"))
    parser.add_argument("--minutes", type=float, default=75.0)
    parser.add_argument("--tokens", type=float, default=math.inf)
    parser.add_argument("--lr", type=float, default=5e-3, help="Muon, hidden matrices")
    parser.add_argument("--adam-lr", type=float, default=5e-3, help="AdamW, embeddings and norms")
    parser.add_argument("--decay", type=float, default=0.1, help="weight decay of hidden matrices")
    parser.add_argument("--warmup", type=int, default=60, help="steps")
    parser.add_argument("--decay-part", type=float, default=0.4)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save-every", type=float, default=180.0, help="seconds")
    parser.add_argument("--log-every", type=int, default=20, help="steps")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    folders = args.text or [Path("/usr/share/doc") / name for name in DEBIAN_SOURCES]
    texts, held = split([read_source(folder) for folder in folders], args.seed)
    model_dir: Path = args.out / "model"
    model_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(model_dir)
    (model_dir / "heldout.txt").write_text("\n".join(held), "utf-8")
    tokens = encode(tokenizer, texts)
    held_ids = torch.tensor(tokenizer.encode("\n".join(held)))
    size = sum(len(text.encode()) for text in texts)
    log(args.out, train_bytes=size, train_tokens=len(tokens), heldout_tokens=len(held_ids))
    train(args, tokens, held_ids)
    final = LlamaForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    log(args.out, final_heldout_perplexity=perplexity(final, held_ids))


if __name__ == "__main__":
    main()
