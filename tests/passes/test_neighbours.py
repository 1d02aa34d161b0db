"""insert-neighbours and choose-neighbours in programs: R1, R2, R5 and R7 of the reference, and refusals."""

import pytest
import torch
from torch import nn

from sparsify.data.sequences import TensorData, TextData
from sparsify.engine.contract import Context
from sparsify.engine.export import export
from sparsify.engine.pipeline import parse
from sparsify.engine.report import Report
from sparsify.errors import DataError, ExportError, OptionError, PipelineError
from sparsify.ir.decode.caches import empty_past
from sparsify.ir.decode.variant import decoder
from sparsify.ir.facts.multiply_adds import multiply_adds
from sparsify.ir.features.neighbours import fill, head_of, neighbours
from sparsify.ir.storage.folder import load, save
from sparsify.ir.trace.trace import trace
from sparsify.ir.views.targets import targeted
from sparsify.measure.quality import perplexity
from sparsify.recipes import recipe
from sparsify.runtime.session import onnxruntime_session
from sparsify.train.losses import TaskLoss
from tests.ir.decode.test_variant import stepped

STORE = "insert-neighbours{size=64 k=4}"
FILLED = f"{STORE} | choose-neighbours{{share=0.4 temperature=0.1}}"


def run(program, pipeline, data=None, report=None, **more):
    return parse(pipeline).run(program, Context(data=data, **more), report=report)


class Head(nn.Module):
    """The hand example as a program: q `[batch, 2]` -> logits log(.3), log(.7) whatever q is."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)
        with torch.no_grad():
            self.head.weight.zero_()
            self.head.bias.copy_(torch.tensor([0.3, 0.7]).log())

    def forward(self, q):
        return self.head(q)


@pytest.mark.parametrize("form", ["ids", "dense"])
def test_the_hand_example_as_a_program(form):
    """R1: p = .45599, .54401."""
    program = trace(Head(), {"q": torch.tensor([[1.0, 0.0], [0.3, 0.2]])}, {"q": {0: "batch"}})
    run(program, f"insert-neighbours{{size=4 k=2 similarity=dot values={form}}}")
    (found,) = neighbours(program)
    values = torch.tensor([0, 1, 1, 0])
    values = values if form == "ids" else nn.functional.one_hot(values, 2).float()
    keys = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    fill(program, found, keys, values, 0.4, 0.5)
    p = program.run()[0][0].softmax(-1)
    assert p.tolist() == pytest.approx([0.45599, 0.54401], abs=5e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "block"])
def test_an_empty_share_is_the_model_bit_for_bit(family, traced, text, tokens):
    """R2, also once the store is full: c = 0 is a switch."""
    program = traced(family)
    wanted = program.run()[0]
    by = "by=dense " if family == "bert" else ""
    data = tokens if family == "block" else text
    size = 30 if family == "bert" else 64
    store = f"insert-neighbours{{size={size} k=4}} | choose-neighbours{{{by}temperature=0.1 share="
    run(program, store + "0.0}", data)
    assert torch.equal(program.run()[0], wanted)
    (found,) = neighbours(program)
    program.tensor(found.share).fill_(0.2)
    assert not torch.allclose(program.run()[0].softmax(-1), wanted.softmax(-1), atol=1e-4)


def test_all_of_the_share_gives_the_row_of_a_stored_key(traced, text):
    """R2: c = 1, k = 1: what the data says after each stored state, and nothing else."""
    program = run(
        traced("llama"),
        "insert-neighbours{size=22 k=1} | choose-neighbours{share=1 temperature=1}",
        text,
    )
    (found,) = neighbours(program)
    values = program.tensor(found.values)
    first = [int(i) for i in torch.randperm(60, generator=torch.Generator().manual_seed(0))[:2]]
    batch = text.batch(first)
    assert torch.equal(values, batch["labels"][:, 1:].flatten())
    said = program.run(batch)[0].softmax(-1)[:, :-1].flatten(0, 1)
    assert torch.equal(said.argmax(-1), values)
    assert torch.equal(said.max(-1).values, torch.ones(22))


def test_the_head_is_still_the_head(traced):
    program = run(traced("llama"), STORE)
    assert "lm_head.weight" not in {view.weight for view in targeted(program, ("*",), ())}
    work = multiply_adds(program, 1, 10) - multiply_adds(traced("llama"), 1, 10)
    assert work == 10 * 64 * 64


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_share_and_temperature_lower_the_loss_on_rows_apart(similarity, traced, text):
    """A model that knows nothing, and text that repeats itself: the store knows it."""
    report = Report()
    store = f"insert-neighbours{{size=256 k=4 similarity={similarity}}} | choose-neighbours"
    program = run(traced("llama"), store, text, report)
    (found,) = neighbours(program)
    assert 0.5 < float(program.tensor(found.share)) <= 1
    # 256 keys of 64 floats and an id.
    assert report.rows[0].note == "a store of 256 rows takes 0.07 MB"
    words = report.rows[1].note.split()
    alone, with_store = float(words[0]), float(words[words.index("with") - 1])
    assert with_store < 0.5 * alone
    before = quality(traced("llama"), text)
    assert quality(program, text) < 0.5 * before
    shuffled(program, found)
    assert quality(program, text) > before


def test_a_store_that_does_not_help_gets_no_share(traced, text):
    """The control of the choice: on rows apart the share of noise is nothing."""
    other = TextData(torch.randint(3, 290, (720,), generator=torch.Generator().manual_seed(5)), 12)
    program = run(traced("llama"), "train{steps=60 batch=16 lr=0.01}", text)
    ids = torch.stack([text.batch([i])["input_ids"][0] for i in range(60)])
    labels = ids.clone()
    labels[6:] = torch.stack([other.batch([i])["input_ids"][0] for i in range(54)])
    turn = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    mixed = TensorData({"input_ids": ids[turn.argsort()], "labels": labels[turn.argsort()]})
    report = Report()
    program = run(program, "insert-neighbours{size=256} | choose-neighbours", mixed, report)
    (found,) = neighbours(program)
    assert float(program.tensor(found.share)) < 0.02


def quality(program, data):
    return perplexity(lambda batch: program.run(batch)[0], data, 8, 20).value


def shuffled(program, found):
    """Random values: those of the store in another order."""
    values = program.tensor(found.values)
    turn = torch.randperm(len(values), generator=torch.Generator().manual_seed(5))
    values.copy_(values[turn].clone())


class Points(nn.Module):
    """Points `[batch, 2]` -> logits of four classes; wide or narrow."""

    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(2, width)
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        return self.head(torch.tanh(self.up(x)))


def clusters(count, seed):
    """Points of nine clusters on a grid, of four classes that no few lines tell apart."""
    g = torch.Generator().manual_seed(seed)
    where = torch.randint(0, 9, (count,), generator=g)
    middles = torch.tensor([[i // 3 - 1.0, i % 3 - 1.0] for i in range(9)])
    classes = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 0])
    return middles[where] + 0.12 * torch.randn(count, 2, generator=g), classes[where]


@pytest.fixture(scope="module")
def points():
    """A large model that learnt the clusters, a small one, points without labels, and others to judge by."""
    x, y = clusters(1000, 0)
    made = []
    for width in (64, 2):
        torch.manual_seed(0)
        program = trace(Points(width), {"x": x[:4]}, {"x": {0: "batch"}})
        how = "train{steps=400 batch=100 lr=0.02}"
        made.append(run(program, how, TensorData({"x": x, "labels": y})))
    return (*made, TensorData({"x": clusters(800, 1)[0]}), clusters(800, 2))


def accuracy(program, measured):
    x, y = measured
    return float((program.run({"x": x})[0].argmax(-1) == y).float().mean())


@pytest.mark.parametrize("form", ["ids", "dense"])
def test_a_store_that_a_larger_model_wrote(form, points):
    """R7: a weak student with labels of a teacher beats the student alone; shuffled values do not."""
    teacher, student, unlabelled, measured = points
    alone = accuracy(student, measured)
    text = f"insert-neighbours{{size=600 values={form}}} | choose-neighbours{{by=dense}}"
    program = run(student.clone(), text, unlabelled, dense=teacher)
    (found,) = neighbours(program)
    with_store = accuracy(program, measured)
    assert accuracy(teacher, measured) > 0.97
    assert alone < 0.8
    assert with_store > alone + 0.1
    shuffled(program, found)
    assert accuracy(program, measured) <= alone + 0.01


def test_it_is_saved_exported_and_read_back(traced, text, tmp_path):
    """R5: within 1e-5 of eager, in both formats; step by step behind a cache too."""
    program = run(traced("llama"), FILLED, text)
    save(program, tmp_path / "program")
    assert torch.equal(load(tmp_path / "program").run()[0], program.run()[0])
    paths = export(program, tmp_path / "exports", ["onnx", "onnx-decode"])
    batch = program.complete(text.batch(range(3)))
    wanted = program.run(batch)[0]
    session = onnxruntime_session(paths["onnx"] / "model.onnx")
    (found,) = session.run(["logits"], {name: value.numpy() for name, value in batch.items()})
    assert (torch.from_numpy(found) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    ids = batch["input_ids"]
    steps, _ = stepped(decoder(program), ids, (3, 1, 8))
    assert (steps - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    head = traced("llama").run(batch)[0]
    assert (head - wanted).abs().max() > 1e-2 * wanted.abs().max()


def test_probabilities_of_every_class_are_exported(traced, text, tmp_path):
    """R5 with dense values, for a classifier of sequences."""
    steps = "insert-neighbours{size=30 k=4 values=dense similarity=dot} | "
    program = run(
        traced("bert"), steps + "choose-neighbours{by=dense share=0.7 temperature=20}", text
    )
    (found,) = neighbours(program)
    assert program.tensor(found.values).sum(-1).tolist() == pytest.approx([1.0] * 30, abs=1e-5)
    export(program, tmp_path, ["onnx"])
    with pytest.raises(
        ExportError, match="huggingface cannot hold neighbours; export to safetensors"
    ):
        export(program, tmp_path, ["huggingface"])


def test_it_learns_and_folds_with_other_passes(traced, text):
    """The loss sees the mixture, and the head may be packed behind it."""
    program = run(traced("llama"), FILLED, text)
    (found,) = neighbours(program)
    keys = program.tensor(found.keys).clone()
    run(program, "insert-lora{rank=2} | train{steps=2 batch=4 update=lora} | fold-lora", text)
    assert torch.equal(program.tensor(found.keys), keys)
    assert TaskLoss(program).shifted
    run(program, "insert-quantizers{values=int8 group=32 ends=true} | choose-scales | pack-dense")
    assert program.features == {"neighbours", "packed"}
    wanted = program.run()[0]
    made = decoder(program)
    again = made.run({**program.sample, **empty_past(made, len(wanted))})[0]
    real = program.sample["attention_mask"].bool()
    assert (again - wanted)[real].abs().max() <= 1e-4 * wanted.abs().max()


def test_the_recipe(traced, text):
    steps = recipe("neighbours").text.replace("insert-neighbours", "insert-neighbours{size=64}")
    assert run(traced("gpt2"), steps, text).features == {"neighbours"}


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [
        ("insert-neighbours{k=0}", "k=0 is not from 1 to size=4096"),
        ("insert-neighbours{size=4 k=5}", "k=5 is not from 1 to size=4"),
        (
            "insert-neighbours{size=1000000}",
            "a store of 1000000 rows would take 264.0 MB, more than limit=256; "
            "take a smaller size, values=ids, or a higher limit",
        ),
        (
            "insert-neighbours{size=1000 values=dense limit=1}",
            "a store of 1000 rows would take 1.5 MB, more than limit=1; "
            "take a smaller size, values=ids, or a higher limit",
        ),
        (
            f"{STORE} | choose-neighbours{{share=1.5}}",
            "share=1.5 is a part of the probability, from 0 to 1",
        ),
        (f"{STORE} | choose-neighbours{{temperature=0}}", "temperature=0.0 must be positive"),
        (f"{STORE} | choose-neighbours{{batch=0}}", "batch=0 must be at least 1"),
    ],
)
def test_what_cannot_be_meant(steps, sentence, traced, text):
    with pytest.raises(OptionError) as caught:
        run(traced("llama"), steps, text)
    assert str(caught.value).endswith(f", {sentence}")


def test_where_there_is_no_store_to_be_had(traced, text):
    with pytest.raises(
        OptionError, match="'last_hidden_state' does not come from a linear as it is"
    ):
        head_of(traced("bert-base"))
    with pytest.raises(
        DataError, match=r"has 594 rows for a store of 700; bring more, or take .*size=594"
    ):
        run(traced("llama"), "insert-neighbours{size=700} | choose-neighbours", text)
    with pytest.raises(
        DataError, match="has no class for each of the program's logits; bring labels"
    ):
        run(
            traced("bert"),
            f"{STORE} | choose-neighbours",
            TensorData({"input_ids": torch.ones(9, 5).long()}),
        )
    with pytest.raises(OptionError, match="both must say the same classes of the same tokens"):
        run(traced("llama"), f"{STORE} | choose-neighbours{{by=dense}}", text, dense=traced("bert"))
    with pytest.raises(PipelineError, match="cannot run while the program has"):
        run(traced("llama"), f"insert-masks{{of=hidden}} | {STORE}")
