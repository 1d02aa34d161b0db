"""Adaptive 2:4 training (AST) with the Hugging Face Trainer, then fold the masks and export.

    python examples/adaptive_with_trainer.py --out out [--steps 20]

Masks move with the weights: every weight learns, masked ones are pulled to zero, and every ten steps the
two largest of each four are kept.
"""

import argparse
from pathlib import Path

from datasets import Dataset
from transformers import Trainer, TrainingArguments

from sparsify import Context, ProgramModel, export, load_model, parse, trace
from sparsify.commands.demo import sequences
from sparsify.tensors.pattern import Pattern
from sparsify.train.callback import AdaptiveMasksCallback
from sparsify.train.moving_masks import AdaptiveMasks, Refresh
from sparsify.train.optimizer import SparseAdamW
from sparsify.train.options import ArsSte


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()

    model, tokenizer = load_model("embedded")
    data = sequences()
    program = parse("insert-masks | choose-masks{pattern=2:4}").run(
        trace(model, tokenizer=tokenizer), Context(data=data)
    )
    masks = AdaptiveMasks(program, Refresh(10, Pattern(2, 4)), dense_forward=False)
    optimizer = SparseAdamW(program.module.parameters(), ArsSte(peak=3e-4), lr=3e-4)
    callback = AdaptiveMasksCallback(masks, optimizer)

    rows = Dataset.from_dict(data.batch(range(len(data))))
    arguments = TrainingArguments(
        output_dir=str(options.out / "trainer"),
        max_steps=options.steps,
        per_device_train_batch_size=4,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    Trainer(
        model=ProgramModel(program),  # type: ignore[arg-type]
        args=arguments,
        train_dataset=rows,
        optimizers=(optimizer, None),
        callbacks=[callback],
    ).train()
    for row in callback.rows:
        print(f"step {row['step']}: {row['flips']:.2%} of the masks changed")

    program = parse("fold-masks").run(program)
    for name, path in export(program, options.out, ["onnx", "huggingface"]).items():
        print(f"{name}: {path}")


if __name__ == "__main__":
    main()
