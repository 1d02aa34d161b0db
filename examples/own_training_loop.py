"""Train the low-rank branches of a program in a hand-written loop, then fold them under the mask.

python examples/own_training_loop.py [--steps 20]
"""

import argparse

import torch

from sparsify import Context, ProgramModel, load_model, parse, trace
from sparsify.commands.demo import sequences
from sparsify.data.sequences import batches, sample
from sparsify.describe.count import count
from sparsify.train.trainable import select_trainable


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()

    model, tokenizer = load_model("embedded")
    data = sequences()
    program = parse(
        "insert-masks | choose-masks{score=magnitude pattern=2:4} | insert-lora{rank=8}"
    ).run(trace(model, tokenizer=tokenizer), Context(data=data))

    wrapped = ProgramModel(program)
    with select_trainable(program, "lora"):
        learning = [p for p in wrapped.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(learning, lr=1e-3)
        wrapped.train()
        for step, batch in enumerate(batches(data, sample(data, 4 * options.steps, seed=0), 4)):
            loss = wrapped(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step % 5 == 0:
                print(f"step {step}: loss {loss.item():.3f}")

    program = parse("fold-lora | fold-masks").run(program)
    print(
        f"zeros among the weights of all linears, the dense head included: {count(program).sparsity:.1%}"
    )


if __name__ == "__main__":
    main()
