"""FOLDER PROMPTS TOKENS: the sequence of each prompt by onnxruntime-genai, and ids of a text."""

import json
import sys
from pathlib import Path

import numpy
import onnxruntime_genai as genai

folder, prompts, tokens = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
model = genai.Model(folder)
found = []
for prompt in prompts:
    params = genai.GeneratorParams(model)
    params.set_search_options(max_length=len(prompt) + tokens)
    generator = genai.Generator(model, params)
    generator.append_tokens(numpy.array(prompt, numpy.int32))
    while not generator.is_done():
        generator.generate_next_token()
    found.append([int(token) for token in generator.get_sequence(0)])
said = {"sequences": found}
if (Path(folder) / "tokenizer.json").is_file():
    tokenizer = genai.Tokenizer(model)
    said["ids"] = tokenizer.encode("The function returns a table.").tolist()
    said["text"] = tokenizer.decode(said["ids"])
print(json.dumps(said))
