"""A decode graph whose layers have caches of different shapes, and the folder around it."""

import torch

from exporters.onnx_decode import OnnxDecode
from sparsify import load_onnx
from sparsify.disk.files import notes, read_json
from sparsify.engine.export import write_checked
from tests.decoding import MASK, PROMPTS, greedy, unevenly

TOKENS = 24


def test_uneven_layers_write_what_their_program_writes(traced, tmp_path):
    program = unevenly(traced("qwen3"))
    folder = write_checked(OnnxDecode(), program, tmp_path)
    found = load_onnx(folder, threads=1)
    wanted = greedy(program, PROMPTS, MASK, TOKENS)
    assert torch.equal(found.generate(PROMPTS, mask=MASK, tokens=TOKENS).ids, wanted)
    # A row alone, without its padding, goes on in the same way.
    alone = found.generate(PROMPTS[1:2, 3:], tokens=TOKENS).ids
    assert torch.equal(alone[0, 3:], wanted[1, 6:])
    keys = [entry for entry in found.session.get_inputs() if entry.name.endswith(".key")]
    assert [entry.shape[1] for entry in keys] == [2, 1]
    decoder = read_json(folder / "genai_config.json")["model"]["decoder"]
    assert (decoder["num_hidden_layers"], decoder["num_key_value_heads"]) == (2, 2)
    assert notes(folder) == [
        "Optimum does not run this model, since its layers have caches of different shapes"
    ]
