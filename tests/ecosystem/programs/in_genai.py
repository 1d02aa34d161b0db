"""FOLDER PROMPTS TOKENS: the sequences of each prompt by onnxruntime-genai, from ids."""

import json
import sys

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
print(json.dumps(found))
