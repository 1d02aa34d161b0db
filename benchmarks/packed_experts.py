"""A mixture with packed matrices of experts on ONNX Runtime: bytes on disk, speed, error of the logits.

Mixtral's architecture with random weights, 8 experts of which a token meets 2. 2:4 in three kinds of values
stands beside dense weights in the same: float32, and the blocks of ONNX Runtime's `MatMulNBits`. Matrices of
experts hold nine tenths of the weights, and each expert is a node of its own. All is timed in one process, in
turns; the error is that of the rounding, against the same weights in float32.

    python benchmarks/packed_experts.py [--threads 1,2] [--rounds 20] [--hidden 1024] [--layers 4]
        [--experts 8] [--keep DIR] [--json FILE]
"""

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from packed_model import VOCABULARY, Model, measured, tell
from transformers import MixtralConfig, MixtralForCausalLM

from sparsify import Program, export, parse, trace

GROUP = 64
SPARSE = "insert-masks | choose-masks{pattern=2:4} | fold-masks"


def program(options: argparse.Namespace) -> Program:
    torch.manual_seed(0)
    config = MixtralConfig(
        hidden_size=options.hidden,
        intermediate_size=options.hidden * 11 // 8,
        num_hidden_layers=options.layers,
        num_attention_heads=options.hidden // 64,
        num_key_value_heads=options.hidden // 128,
        vocab_size=VOCABULARY,
        num_local_experts=options.experts,
        num_experts_per_tok=2,
        tie_word_embeddings=True,
    )
    return trace(MixtralForCausalLM(config).eval())


def models(folder: Path, options: argparse.Namespace) -> Iterator[tuple[str, Model]]:
    """Write and check every file."""
    for zeros, packing in (("dense", "pack-dense"), ("2:4", "pack-nm{values=%s}")):
        exact = program(options)
        if zeros != "dense":
            parse(SPARSE).run(exact)
        for values in ("float32", "int8", "int4"):
            made = exact.clone()
            if values != "float32":
                rounding = f"insert-quantizers{{values={values} group={GROUP}}} | choose-scales"
                parse(f"{rounding} | {packing.replace('%s', values)}").run(made)
            elif zeros != "dense":
                parse("pack-nm").run(made)
            place = folder / f"{values}-{zeros.replace(':', '-')}"
            yield (
                f"{values} {zeros}",
                measured(export(made, place, ["onnx"])["onnx"] / "model.onnx", exact),
            )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        tell(dict(models(options.keep or Path(scratch), options)), options)


if __name__ == "__main__":
    main()
