"""What an installation must be able to do, away from the sources; prints one line of JSON.

    python smoke.py FOLDER

A Llama of two layers is traced, given 2:4 weights that are packed, saved, written to ONNX with a cache, and
continues a prompt; every export is read back and compared on the way.
"""

import json
import os
import sys
import time
from importlib import metadata, resources
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

PIPELINE = "insert-masks | choose-masks{pattern=2:4} | fold-masks | pack-nm"
PACKAGES = ("sparsify-fx", "torch", "transformers", "onnxruntime", "onnx", "numpy")


def main(folder: Path) -> dict[str, object]:
    """Do all of it below a folder; the figures."""
    started = time.perf_counter()
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import sparsify
    from sparsify.native import isa, library
    from sparsify.pretrained.load import load_tokenizer

    tokenizer = load_tokenizer(str(resources.files("sparsify") / "embedded"))
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, **heads, vocab_size=len(tokenizer), max_position_embeddings=128)
    program = sparsify.trace(LlamaForCausalLM(config).eval(), tokenizer=tokenizer)
    program = sparsify.parse(PIPELINE).run(program)
    assert sparsify.load(sparsify.save(program, folder / "saved")).log == program.log
    formats = ["safetensors", "onnx", "onnx-decode"]
    made = sparsify.export(program, folder / "out", formats)
    assert sorted(made) == sorted(formats)
    found = sparsify.load_onnx(made["onnx-decode"], threads=1).generate("The function", tokens=4)
    assert len(found.ids[0]) >= 4
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "kernels": isa() if library() else None,
        "versions": {name: metadata.version(name) for name in PACKAGES},
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
