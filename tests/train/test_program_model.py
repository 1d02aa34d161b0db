"""A wrapped program as a module among others: called, moved, copied, pickled, saved."""

import copy
import inspect
import io
import pickle

import pytest
import torch
import transformers
from accelerate import Accelerator
from accelerate.state import AcceleratorState

import sparsify
from sparsify.engine.contract import Context
from sparsify.engine.pipeline import parse
from sparsify.errors import DataError, SparsifyError
from sparsify.ir.program import Program
from sparsify.ir.text import to_text
from sparsify.ir.verify import verify
from sparsify.pretrained.load import load_tokenizer, source_of
from sparsify.train.program_model import ProgramModel

IDS = torch.randint(3, 300, (3, 11), generator=torch.Generator().manual_seed(1))
MASK = (torch.arange(11) < torch.tensor([[11], [7], [9]])).long()


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerate keeps one state a process, its mixed precision too: none is taken over or left behind."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_the_signature_names_the_inputs_and_the_labels(traced):
    model = ProgramModel(traced("llama"))
    names = ["input_ids", "attention_mask", "position_ids", "labels"]
    assert list(inspect.signature(model.forward).parameters) == names
    assert list(inspect.signature(type(model).forward).parameters) == ["self", *names]
    assert type(model).__name__ == "LlamaForCausalLM"
    by_name = model(input_ids=IDS, attention_mask=MASK, position_ids=None).logits
    assert torch.equal(model(IDS, MASK).logits, by_name)
    (alone,) = model(IDS, MASK, return_dict=False)
    assert torch.equal(alone, by_name)
    loss, again = model(IDS, MASK, None, IDS, return_dict=False)
    assert loss.dim() == 0
    assert torch.equal(again, by_name)


class Counted(ProgramModel):
    """A user's own."""

    def forward(self, **batch):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(**batch)


def test_a_class_of_the_users_stays_itself(traced):
    model = Counted(traced("block"))
    model(input_ids=IDS % 11)
    again = pickle.loads(pickle.dumps(model))
    assert type(again) is Counted
    assert again.calls == 1


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (
            lambda model: model(IDS, output_attentions=True),
            "the program returns logits and cannot be asked for 'output_attentions'; trace a model that "
            "returns it",
        ),
        (
            lambda model: model(IDS, MASK, None, IDS, IDS),
            "the program takes input_ids, attention_mask, position_ids, labels; 5 were given",
        ),
        (
            lambda model: model(IDS, lables=IDS),
            "the program takes no 'lables'; did you mean 'labels'?",
        ),
        (
            lambda model: model(IDS, logits_to_keep=1),
            "the program takes no 'logits_to_keep'; there are: attention_mask, input_ids, labels, "
            "position_ids",
        ),
        (
            lambda model: model(IDS, input_ids=IDS),
            "'input_ids' was given twice, by its place and by its name",
        ),
        (
            lambda model: model.gradient_checkpointing_enable({"use_reentrant": True}),
            "a program is recomputed without reentry; give use_reentrant=False",
        ),
        (
            lambda model: model.activation_checkpointing_enable(offload=True),
            "the activations of a program cannot be offloaded; leave offload out",
        ),
        (
            lambda model: model.save_pretrained("nowhere", push_to_hub=True),
            "a program is not uploaded by itself; save it and upload the folder",
        ),
    ],
)
def test_what_cannot_be_asked_for_is_said(call, sentence, traced):
    with pytest.raises(SparsifyError) as caught:
        call(ProgramModel(traced("llama")))
    assert str(caught.value) == sentence


def test_what_is_missing_is_said(traced):
    for name, program, sentence in (
        ("generation_config", "bert", "the model it was traced from writes no text"),
        ("config", "mlp", "the module it was traced from had none"),
        ("generate", "llama", "export it to onnx-decode and use sparsify.load_onnx"),
        ("get_input_embeddings", "llama", "its graph and tensors are in 'program'"),
    ):
        model = ProgramModel(traced(program))
        assert not hasattr(model, name)
        with pytest.raises(AttributeError) as caught:
            getattr(model, name)
        assert str(caught.value) == f"a wrapped program has no '{name}': {sentence}"


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert"])
def test_config_and_counts_are_the_models(family, traced, build):
    model, wrapped = build(family), ProgramModel(traced(family))
    assert wrapped.config.to_dict() == model.config.to_dict()
    assert wrapped.main_input_name == model.main_input_name
    assert wrapped.loss_type == model.loss_type
    assert (wrapped.device, wrapped.dtype) == (model.device, model.dtype)
    for left_out in (False, True):
        counts = [m.num_parameters(exclude_embeddings=left_out) for m in (model, wrapped)]
        assert counts[0] == counts[1]
    theirs, ours = (getattr(m, "generation_config", None) for m in (model, wrapped))
    assert (ours and ours.to_diff_dict()) == (theirs and theirs.to_diff_dict())


def _several(labels, classes):
    return transformers.BertConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=300,
        num_labels=classes,
        **labels,
    )


@pytest.mark.parametrize(
    ("kind", "config", "labels"),
    [
        ("BertForSequenceClassification", _several({}, 1), {"labels": torch.randn(3)}),
        (
            "BertForSequenceClassification",
            _several({}, 4),
            {"labels": (torch.randn(3, 4) > 0) + 0.0},
        ),
        (
            "BertForQuestionAnswering",
            _several({}, 2),
            {
                "start_positions": torch.tensor([1, 20, 3]),
                "end_positions": torch.tensor([2, 4, 20]),
            },
        ),
        (
            "LlamaForTokenClassification",
            transformers.LlamaConfig(
                hidden_size=16,
                intermediate_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                vocab_size=300,
                num_labels=4,
            ),
            {"labels": (IDS % 4).masked_fill(MASK == 0, -100)},
        ),
    ],
)
def test_the_loss_of_other_tasks_is_the_models(kind, config, labels):
    torch.manual_seed(0)
    model = getattr(transformers, kind)(copy.deepcopy(config)).eval()
    wrapped = ProgramModel(sparsify.trace(model)).eval()
    batch = {"input_ids": IDS, "attention_mask": MASK, **labels}
    wanted = model(**batch).loss.detach()
    assert wrapped(**batch).loss.detach() == pytest.approx(float(wanted), rel=1e-5)
    items = 5 * len(IDS)
    counted = next(iter(labels.values()))
    numbers = counted.numel() if counted.is_floating_point() else (counted != -100).sum()
    if kind != "BertForQuestionAnswering":
        scaled = wrapped(**batch, num_items_in_batch=torch.tensor(items)).loss
        assert float(scaled.detach()) == pytest.approx(float(wanted * numbers / items), rel=1e-5)


def test_labels_of_another_shape_are_refused(traced):
    with pytest.raises(DataError) as caught:
        ProgramModel(traced("llama"))(IDS, labels=torch.ones(3, 11))
    assert str(caught.value) == "labels [3, 11] do not fit the program's output [3, 11, 300]"


def _copies(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    yield torch.load(file, weights_only=False)
    yield pickle.loads(pickle.dumps(model))
    yield copy.deepcopy(model)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_copies_and_pickles_are_the_same_program(family, traced):
    text = "insert-masks | choose-masks{pattern=2:4}"
    program = parse(text).run(traced(family), Context())
    program.plan["said"] = {"rank": 3}
    model = ProgramModel(program).eval()
    model.activation_checkpointing_enable()
    wanted = model(IDS, MASK)[0]
    for again in _copies(model):
        assert type(again) is type(model)
        assert not again.training
        assert again.is_gradient_checkpointing
        assert again.program.module is again.graph_module is not program.module
        assert to_text(again.program) == to_text(program)
        for name in ("features", "log", "plan", "aliases", "source", "dynamic"):
            assert getattr(again.program, name) == getattr(program, name), name
        verify(again.program)
        assert torch.equal(again(IDS, MASK)[0], wanted)
        flags = [[p.requires_grad for p in m.parameters()] for m in (model, again)]
        assert flags[0] == flags[1]
        drops = []
        for each in (model, again):
            torch.manual_seed(4)
            drops.append(each.train()(IDS, MASK)[0])
            each.eval()
        assert torch.equal(*drops)
        assert not torch.equal(drops[0], wanted)


def test_a_pickled_program_keeps_its_tensors_and_its_tokenizer(traced):
    program = traced("block")
    program.tokenizer = tokenizer = load_tokenizer(source_of("embedded"))
    optimizer = torch.optim.SGD(program.module.parameters())
    again, optimizer = pickle.loads(pickle.dumps((program, optimizer)))
    assert isinstance(again, Program)
    assert optimizer.param_groups[0]["params"][0] is next(again.module.parameters())
    assert again.tokenizer("some text") == tokenizer("some text")
    assert torch.equal(again.run()[0], program.run()[0])


def test_saved_as_our_folder(traced, tmp_path):
    program = parse("insert-masks | choose-masks{pattern=2:4}").run(traced("llama"), Context())
    model, folder = ProgramModel(program), tmp_path / "out"
    model.save_pretrained(folder, safe_serialization=True)
    assert to_text(sparsify.load(folder)) == to_text(program)
    (folder / "notes.txt").write_text("mine")
    (folder / "checkpoint-1").mkdir()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["graph_module.lm_head.weight"] += 1
    model.save_pretrained(str(folder), state_dict=state, is_main_process=True, max_shard_size="1GB")
    found = sparsify.load(folder).tensor("lm_head.weight")
    assert torch.equal(found, program.tensor("lm_head.weight") + 1)
    assert (folder / "notes.txt").read_text() == "mine"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    model.save_pretrained(tmp_path / "other", is_main_process=False)
    assert not (tmp_path / "other").exists()
    del state["graph_module.lm_head.weight"]
    with pytest.raises(DataError) as caught:
        model.save_pretrained(folder, state_dict=state)
    assert str(caught.value) == (
        "the state dict is not the program's: they differ in 'lm_head.weight'"
    )


def _saved_bytes(call):
    """The outputs, and the bytes that autograd keeps for the backward pass."""
    kept = {}

    def keep(value):
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        return call(), sum(kept.values())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "routed"])
def test_recomputing_keeps_less_and_changes_no_bit(family, traced):
    model = ProgramModel(traced(family)).train()
    ids = torch.randint(3, 300, (4, 64), generator=torch.Generator().manual_seed(2))
    found = []
    for switch in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        switch()
        torch.manual_seed(0)
        loss, size = _saved_bytes(lambda: model(ids)[0].square().mean())
        loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append((loss.detach(), size, gradients))
        model.zero_grad()
    (plain, before, wanted), (loss, after, gradients) = found
    assert torch.equal(plain, loss)
    assert all(torch.equal(a, b) for a, b in zip(wanted, gradients, strict=True))
    weights = sum(4 * p.numel() for p in model.parameters())
    assert after < weights + 0.5 * (before - weights)


def test_accelerate_prepares_it_under_autocast(traced):
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = accelerator.prepare(ProgramModel(traced("llama")))
    loss = model(input_ids=IDS, attention_mask=MASK, labels=IDS).loss
    accelerator.backward(loss)
    assert loss.dtype == torch.float32
    assert type(accelerator.unwrap_model(model)).__name__ == "LlamaForCausalLM"
