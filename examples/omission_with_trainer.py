"""Omission (SAT) with the Hugging Face Trainer: heads and channels left out of each step, dense at the end.

    python examples/omission_with_trainer.py --out out [--steps 20]

Half of the neurons are left out until the ladder brings them back; evaluation, checkpoints and the model
that comes out are dense. Two micro-batches share the choice of their step.
"""

import argparse
from pathlib import Path

from datasets import Dataset
from transformers import Trainer, TrainingArguments

from sparsify import Context, ProgramModel, export, load_model, parse, trace
from sparsify.commands.demo import sequences
from sparsify.train.callback import OmissionCallback
from sparsify.train.omitting import Omitting
from sparsify.train.options import Lors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()

    model, tokenizer = load_model("embedded")
    data = sequences()
    program = parse("insert-omission").run(trace(model, tokenizer=tokenizer), Context())
    ladder = Lors(rate=0.5, hold=0.8, rungs=5)
    callback = OmissionCallback(Omitting(program, seed=0), ladder.omission)

    rows = Dataset.from_dict(data.batch(range(len(data))))
    arguments = TrainingArguments(
        output_dir=str(options.out / "trainer"),
        max_steps=options.steps,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=3e-4,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    Trainer(
        model=ProgramModel(program),  # type: ignore[arg-type]
        args=arguments,
        train_dataset=rows,
        callbacks=[callback],
    ).train()
    for row in callback.rows:
        print(f"step {row['step']}: {row['omission']:.0%} left out, coverage {row['coverage']:.0%}")

    program = parse("remove-omission").run(program)
    for name, path in export(program, options.out, ["huggingface"]).items():
        print(f"{name}: {path}")


if __name__ == "__main__":
    main()
