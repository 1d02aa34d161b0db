"""Fine-tune a masked program with the Hugging Face Trainer, then fold its masks and export.

    python examples/finetune_with_trainer.py --out out [--steps 20]

The program keeps 2 of every 4 weights (Wanda). It is an ordinary module for Trainer: masked weights get no
gradient, so the pattern holds through training and folding is exact.
"""

import argparse
from pathlib import Path

from datasets import Dataset
from transformers import Trainer, TrainingArguments

from sparsify import Context, ProgramModel, export, load_model, parse, trace
from sparsify.commands.demo import sequences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()

    model, tokenizer = load_model("embedded")
    data = sequences()
    program = parse(
        "insert-probes | calibrate{samples=32} | insert-masks | "
        "choose-masks{score=wanda pattern=2:4} | remove-probes"
    ).run(trace(model, tokenizer=tokenizer), Context(data=data))

    rows = Dataset.from_dict(data.batch(range(len(data))))
    arguments = TrainingArguments(
        output_dir=str(options.out / "trainer"),
        max_steps=options.steps,
        per_device_train_batch_size=4,
        learning_rate=3e-4,
        logging_steps=5,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    Trainer(model=ProgramModel(program), args=arguments, train_dataset=rows).train()  # type: ignore[arg-type]

    program = parse("fold-masks").run(program)
    for name, path in export(program, options.out, ["onnx", "huggingface"]).items():
        print(f"{name}: {path}")


if __name__ == "__main__":
    main()
