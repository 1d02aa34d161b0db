"""Generation behind an encoder on ONNX Runtime against the model's own, token for token."""

import shutil

import numpy as np
import pytest
import torch

from exporters.onnx_decode import FILE, OnnxDecode
from sparsify.commands.generate import generate
from sparsify.disk.files import read_json, write_json
from sparsify.engine.contract import Context
from sparsify.engine.export import write_checked
from sparsify.engine.pipeline import parse
from sparsify.errors import DataError, ExportError, OptionError
from sparsify.ir.trace.trace import trace
from sparsify.measure.inputs import Shape
from sparsify.measure.latency import compare
from sparsify.runtime.encoder import ENCODER
from sparsify.runtime.generate import load_onnx
from tests.ir.decode.encoders import MODELS, greedy, model, theirs, traced
from tests.runtime.words import word_tokenizer

TOKENS = 14
IDS = torch.tensor([[9, 8, 33, 7, 55, 6, 21], [14, 11, 20, 41, 1, 1, 1]])
MASK = torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
SMALLER = (
    "insert-masks{of=heads,channels} | choose-masks{of=heads,channels sparsity=0.5} | "
    "prune-heads | prune-channels | insert-masks | choose-masks{pattern=2:4} | fold-masks | pack-nm"
)
ROUNDED = "insert-quantizers{values=int8} | choose-scales | pack-dense"


def given_to(name):
    if name != "whisper":
        return {"input_ids": IDS, "attention_mask": MASK}
    draw = torch.Generator().manual_seed(3)
    return {"input_features": torch.randn(2, 8, 40, generator=draw)}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of a model, written once."""
    found = {}

    def of(name):
        if name not in found:
            program = traced(name)
            program.tokenizer = tokenizer()
            folder = tmp_path_factory.mktemp(name)
            found[name] = write_checked(OnnxDecode(), program, folder)
        return found[name]

    return of


def tokenizer():
    return word_tokenizer({"[PAD]": 1, "[UNK]": 0, **{f"w{i}": i for i in range(2, 60)}})


@pytest.mark.parametrize("name", MODELS)
def test_it_writes_what_the_model_writes(name, exported):
    found = load_onnx(exported(name), threads=1)
    wanted = theirs(name, given_to(name), [5, 3], TOKENS)
    assert len(set(wanted[0].tolist())) >= 6
    made = found.generate(given_to(name), tokens=TOKENS, begin=[5, 3], stop=[])
    assert torch.equal(made.ids, wanted)
    assert len(made.token_seconds) == TOKENS - 1


def test_texts_are_padded_behind_and_answered_as_transformers_does(exported):
    found = load_onnx(exported("bart"), threads=1)
    texts = [" ".join(f"w{i}" for i in row if i != 1) for row in IDS.tolist()]
    dense = model("bart")
    wanted = dense.generate(
        IDS, attention_mask=MASK, max_new_tokens=TOKENS, do_sample=False, num_beams=1
    )
    made = found.generate(texts, tokens=TOKENS, stop=[])
    assert int(made.ids[0, 0]) == dense.config.decoder_start_token_id
    assert torch.equal(made.ids, wanted)
    # Each goes on as it would alone, and ids with a mask as the texts they are.
    alone = found.generate(texts[1], tokens=TOKENS, stop=[]).ids
    assert torch.equal(alone[0], wanted[1])
    assert torch.equal(found.generate(IDS, mask=MASK, tokens=TOKENS, stop=[]).ids, wanted)


@pytest.mark.parametrize(
    ("name", "pipeline"), [("bart", SMALLER), ("whisper", ROUNDED)], ids=["smaller", "rounded"]
)
def test_smaller_models_go_on_as_their_program(name, pipeline, tmp_path):
    program = traced(name)
    parse(pipeline).run(program, Context())
    found = load_onnx(write_checked(OnnxDecode(), program, tmp_path), threads=1)
    made = found.generate(given_to(name), tokens=6, begin=[5, 3], stop=[]).ids

    def logits_of(ids):
        return program.run({**given_to(name), "decoder_input_ids": ids})[0]

    assert torch.equal(made, greedy(logits_of, 2, [5, 3], 6))


def test_a_wrong_scale_in_the_encoder_is_refused(tmp_path, monkeypatch):
    """Files of rounded models are compared product by product, those of both files."""
    program = traced("bart")
    parse(
        "insert-masks | choose-masks{pattern=2:4} | fold-masks | "
        "insert-quantizers{values=int8 group=32} | choose-scales | pack-nm{values=int8}"
    ).run(program, Context())
    write = OnnxDecode.write_model

    def wrong(self, part, path):
        if path.name == ENCODER:
            part = part.clone()
            weight = next(p for p, t in part.tensors() if t.dtype == torch.uint8 and "fc1" in p)
            part.tensor(weight)[..., -48:] ^= 1  # the last bytes are scales
        write(self, part, path)

    monkeypatch.setattr(OnnxDecode, "write_model", wrong)
    with pytest.raises(ExportError, match="another model"):
        write_checked(OnnxDecode(), program, tmp_path)


def test_what_it_is_given_is_checked(exported):
    text, heard = load_onnx(exported("bart"), threads=1), load_onnx(exported("whisper"), threads=1)
    with pytest.raises(OptionError, match="takes input_features, not text"):
        heard.generate("w3 w4")
    with pytest.raises(OptionError, match="is given input_values; it takes input_features"):
        heard.generate({"input_values": torch.zeros(1, 8, 40)})
    with pytest.raises(OptionError, match=r"input_features is \[1, 8, 30\], but the model takes"):
        heard.generate({"input_features": torch.zeros(1, 8, 30)})
    with pytest.raises(OptionError, match=r"input_ids is \[0, 3\]"):
        text.generate({"input_ids": torch.zeros(0, 3)})
    # Numbers of another precision are those of the model.
    wide = {name: value.double() for name, value in given_to("whisper").items()}
    same = [heard.generate(given, tokens=3, stop=[]).ids for given in (wide, given_to("whisper"))]
    assert torch.equal(*same)
    with pytest.raises(DataError, match="hold the id 60"):
        text.generate([[3, 60]])
    with pytest.raises(DataError, match="a prompt of 65 tokens"):
        text.generate([[3] * 65])
    with pytest.raises(DataError, match="a prompt and its continuation of 33 tokens"):
        heard.generate(given_to("whisper"), tokens=33)


def test_a_folder_without_an_encoder_takes_no_inputs_of_one(build, tmp_path):
    found = load_onnx(write_checked(OnnxDecode(), trace(build("llama")), tmp_path), threads=1)
    for options in ({"begin": [1]}, {}):
        prompt = [[3, 4]] if options else {"input_ids": torch.tensor([[3, 4]])}
        with pytest.raises(OptionError, match="has no encoder"):
            found.generate(prompt, **options)


def test_a_config_must_say_how_it_begins(exported, tmp_path):
    folder = shutil.copytree(exported("bart"), tmp_path / "silent")
    (folder / "generation_config.json").unlink()
    said = {k: v for k, v in read_json(folder / "config.json").items() if "token_id" not in k}
    write_json(folder / "config.json", said)
    found = load_onnx(folder, threads=1, verify=False)
    with pytest.raises(OptionError, match="no config says which id the decoder begins with"):
        found.generate(IDS)
    assert found.generate(IDS, begin=[2], tokens=2).ids.shape == (2, 3)


def test_notes_say_who_else_runs_it(exported):
    folder = exported("bart")
    assert {ENCODER, FILE} <= {path.name for path in folder.iterdir()}
    assert not (folder / "genai_config.json").exists()
    assert "whose encoder gives" in " ".join(read_json(folder / "sparsify.json")["notes"])
    assert "begin" not in (folder / "README.md").read_text()


def test_the_card_of_what_is_heard_runs(exported, tmp_path, monkeypatch):
    folder = exported("whisper")
    text = (folder / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(folder)
    scope = {}
    exec(compile(code, "card", "exec"), scope)
    assert isinstance(scope["ids"], torch.Tensor)
    assert scope["ids"].shape == (1, 17)


def test_the_command_prints_the_answer_alone(exported, capsys, tmp_path):
    from rich.console import Console

    made = generate(
        exported("bart"), "w9 w8 w33", 5, 0.0, 0, 1, tmp_path / "figures.json", Console()
    )
    figures = read_json(tmp_path / "figures.json")
    assert figures["prompt tokens"] == 3
    assert figures["new tokens"] == made.ids.shape[1] - 1
    assert figures["text"] == tokenizer().decode(made.ids[0, 1:], skip_special_tokens=True)
    assert "w9 w8 w33" not in capsys.readouterr().out


def test_a_step_is_timed_behind_what_was_encoded(exported):
    """`bench` makes keys of an encoder as long as the mask."""
    files = {"one": exported("bart") / FILE}
    rows = compare(files, "one", [Shape(1, 1, 6)], vocabulary=60, threads=1, rounds=2)
    assert np.isfinite(rows[0].median_ms)
