"""FOLDER IDS MASK TOKENS [LIBRARY]: the greedy sequences of a padded batch by Optimum."""

import json
import sys

import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForCausalLM

folder, ids, mask, tokens, *libraries = sys.argv[1:]
options = onnxruntime.SessionOptions()
for library in libraries:
    options.register_custom_ops_library(library)
model = ORTModelForCausalLM.from_pretrained(folder, session_options=options)
made = model.generate(
    torch.tensor(json.loads(ids)),
    attention_mask=torch.tensor(json.loads(mask)),
    max_new_tokens=int(tokens),
    do_sample=False,
    eos_token_id=None,
    pad_token_id=0,
)
print(json.dumps(made.tolist()))
