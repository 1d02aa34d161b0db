"""FOLDERS: how far outputs stand off expected.npz of each, what was not loaded, and ids of a text."""

import json
import sys
from pathlib import Path

import numpy
import torch
import transformers

TEXT = "The function returns a table."
said = {}
for folder in map(Path, sys.argv[1:]):
    config = json.loads((folder / "config.json").read_text())
    cls = getattr(transformers, config["architectures"][0])
    # Fused attention leaves out the soft caps of scores in some releases.
    how = {"attn_implementation": "eager", "output_loading_info": True}
    model, loading = cls.from_pretrained(folder, **how)
    wanted = dict(numpy.load(folder / "expected.npz"))
    output = wanted.pop("output")
    with torch.no_grad():
        result = model.eval()(**{k: torch.from_numpy(v) for k, v in wanted.items()})
    off = numpy.abs(result[0].numpy() - output).max() / numpy.abs(output).max()
    row = {"off": float(off), "unfit": [str(v) for v in loading.values() if v]}
    if (folder / "tokenizer.json").is_file():
        row["ids"] = dict(transformers.AutoTokenizer.from_pretrained(folder)(TEXT))
    said[folder.parent.name] = row
print(json.dumps(said))
