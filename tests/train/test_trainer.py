"""The Hugging Face Trainer on a program, feature by feature: the model's own numbers."""

import copy

import datasets
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState
from transformers import Trainer, TrainerCallback, TrainingArguments

from sparsify.ir.trace.trace import trace
from sparsify.train.program_model import ProgramModel

KINDS = ("decoder", "encoder", "classifier")
ENCODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 300,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerate keeps one state a process, its mixed precision too: none is taken over or left behind."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


@pytest.fixture(scope="module")
def pair(build):
    """A model and the program of its twin, by kind; the same weights every time."""
    known = {}

    def make(kind):
        if kind not in known:
            known[kind] = (model := _model(build, kind)), trace(copy.deepcopy(model))
        model, program = known[kind]
        return copy.deepcopy(model), ProgramModel(program.clone())

    return make


def _model(build, kind):
    if kind == "decoder":
        return build("llama")
    torch.manual_seed(0)
    config = transformers.BertConfig(num_labels=3, **ENCODER)
    if kind == "encoder":
        return transformers.BertForMaskedLM(config)
    return transformers.BertForSequenceClassification(config)


def rows(kind, count=8):
    """Sequences padded on the right to 12 tokens, with a column that no model takes."""
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(3, 300, (count, 12), generator=draw)
    lengths = torch.tensor([12, 5, 9, 3, 12, 4, 7, 10] * (count // 8))
    mask = (torch.arange(12) < lengths[:, None]).long()
    ids = ids * mask
    if kind == "classifier":
        labels = ids[:, 0] % 3
    else:
        labels = ids.masked_fill(mask == 0, -100)
        if kind == "encoder":
            labels[:, ::2] = -100
    columns = {
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "row": torch.arange(count),
    }
    return datasets.Dataset.from_dict({key: value.tolist() for key, value in columns.items()})


class Steps(TrainerCallback):
    """What Trainer logs each step."""

    def __init__(self):
        self.found = []

    def on_log(self, args, state, control, logs=None, **others):
        wanted = ("loss", "grad_norm", "eval_loss", "eval_first")
        self.found += [(key, logs[key]) for key in wanted if key in logs]


def trainer(model, kind, folder, *, metrics=None, **options):
    arguments = TrainingArguments(
        output_dir=str(folder),
        **{
            "max_steps": 2,
            "per_device_train_batch_size": 8,
            "learning_rate": 0.05,
            "optim": "sgd",
            "lr_scheduler_type": "constant",
            "weight_decay": 0.1,
            "max_grad_norm": 2.0,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
            **options,
        },
    )
    steps = Steps()
    made = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows(kind, 16),
        eval_dataset=rows(kind),
        compute_metrics=metrics,
        callbacks=[steps],
    )
    return made, steps


def weights(model):
    """Parameters by the model's own names."""
    named = model.named_parameters(remove_duplicate=False)
    return {k.removeprefix("graph_module."): v.detach() for k, v in named}


def close(ours, theirs, atol=2e-5):
    assert [key for key, _ in ours] == [key for key, _ in theirs]
    for (key, one), (_, two) in zip(ours, theirs, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=atol), key


def same_weights(ours, theirs, atol=2e-5):
    found = weights(theirs)
    for path, value in weights(ours).items():
        assert torch.allclose(value.float(), found[path].float(), atol=atol), path


def trained(pair, kind, folder, **options):
    """The program and the model after the same training, and what was logged of each."""
    results = []
    for name, model in zip(("theirs", "ours"), pair(kind), strict=True):
        made, steps = trainer(model, kind, folder / name, **options)
        made.train()
        results.append((made, steps.found))
    (theirs, wanted), (ours, found) = results
    return ours, theirs, found, wanted


FEATURES = {
    "default arguments": {},
    "label smoothing": {"label_smoothing_factor": 0.1},
    "recomputed activations": {"activation_checkpointing": True},
    "bfloat16 where it is allowed": {"bf16": True},
}


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_the_models_own(kind, feature, pair, tmp_path):
    ours, theirs, found, wanted = trained(pair, kind, tmp_path, **FEATURES[feature])
    atol = 2e-2 if "bf16" in FEATURES[feature] else 2e-5
    assert len(found) == 4
    close(found, wanted, atol)
    same_weights(ours.model, theirs.model, atol)


@pytest.mark.parametrize("kind", KINDS)
def test_small_batches_add_up_to_one_step_of_a_large_one(kind, pair, tmp_path):
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    ours, theirs, found, wanted = trained(pair, kind, tmp_path / "small", **small)
    whole, _, at_once, model_at_once = trained(pair, kind, tmp_path / "whole")
    close(found, at_once)
    close(found, model_at_once)
    same_weights(ours.model, whole.model)
    if kind == "decoder":
        close(found, wanted)
        same_weights(ours.model, theirs.model)
    else:
        # BERT takes the count of labels and does not divide by it: the model's own is not right here.
        assert wanted[0][1] > 2 * found[0][1]


def _first(prediction):
    logits = prediction.predictions
    assert logits.shape[:-1] == prediction.label_ids.shape
    return {"first": float(logits.reshape(-1)[0])}


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_prediction_the_best_checkpoint_and_resuming(kind, pair, tmp_path):
    options = {
        "max_steps": 3,
        "learning_rate": 0.3,
        "per_device_eval_batch_size": 3,
        "eval_strategy": "steps",
        "save_strategy": "steps",
        "eval_steps": 1,
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "first",
        "optim": "adamw_torch",
    }
    made = {}
    for name, model in zip(("theirs", "ours"), pair(kind), strict=True):
        made[name], steps = trainer(model, kind, tmp_path / name, metrics=_first, **options)
        made[name].train()
        made[name].found = steps.found
    ours, theirs = made["ours"], made["theirs"]
    close(ours.found, theirs.found, 1e-3)
    assert sum(key == "eval_loss" for key, _ in ours.found) == 3
    best = ours.state.best_global_step
    assert best == theirs.state.best_global_step
    assert ours.state.total_flos == theirs.state.total_flos
    same_weights(ours.model, theirs.model, 1e-3)
    one, two = (t.predict(rows(kind)) for t in (ours, theirs))
    assert one.predictions == pytest.approx(two.predictions, abs=2e-2)
    assert (one.label_ids == two.label_ids).all()
    assert one.metrics["test_first"] == max(
        value for key, value in ours.found if key == "eval_first"
    )

    _, fresh = pair(kind)
    resumed, steps = trainer(fresh, kind, tmp_path / "ours", metrics=_first, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "ours" / "checkpoint-2"))
    assert steps.found == ours.found[-len(steps.found) :]
    same_weights(resumed.model, ours.model, 0)
