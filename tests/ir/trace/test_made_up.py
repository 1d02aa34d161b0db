"""Made-up inputs: what a forward cannot do without, and what its errors ask for by name."""

import pytest
import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from sparsify.errors import TraceError
from sparsify.ir.trace.example_inputs import example_inputs
from sparsify.ir.trace.trace import trace


class Sizes(PreTrainedConfig):
    model_type = "sizes"

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.vocab_size, self.hidden_size, self.num_mel_bins = 32, 8, 6


class Whole(PreTrainedModel):
    config_class = Sizes

    def __init__(self, config=None):
        super().__init__(config or Sizes())
        self.embed = nn.Embedding(32, 8)
        self.place = nn.Linear(4, 8)
        self.sound = nn.Linear(6, 8)
        self.post_init()


class Boxed(Whole):
    def forward(self, input_ids=None, bbox=None, inputs_embeds=None, return_dict=None):
        if bbox is None:
            raise ValueError("Bbox has to be given, with input_ids or inputs_embeds")
        return self.embed(input_ids) + self.place(bbox.float())


class Listening(Whole):
    main_input_name = "input_features"

    def forward(self, input_features, input_features_mask=None, return_dict=None):
        lengths = input_features_mask.sum(-1)
        return self.sound(input_features) / lengths[:, None, None]


class Strange(Whole):
    def forward(self, riddle):
        return self.place(riddle)


class Uneasy(Whole):
    def forward(self, input_ids=None):
        raise RuntimeError("not today")


def test_what_an_error_asks_for_by_name_is_given():
    sample, dims = example_inputs(Boxed())
    assert {name: tuple(value.shape) for name, value in sample.items()} == {
        "input_ids": (2, 13),
        "bbox": (2, 13, 4),
    }
    boxes = sample["bbox"]
    assert (boxes[..., 2:] > boxes[..., :2]).all()
    assert dims["bbox"] == {0: "batch", 1: "length"}
    trace(Boxed().eval())


def test_where_nothing_is_asked_for_all_that_is_known_is_tried():
    sample, dims = example_inputs(Listening())
    assert sample["input_features"].shape == (2, 96, 6)
    assert sample["input_features_mask"].shape == (2, 96)
    assert dims["input_features_mask"] == {0: "batch", 1: "frames"}
    program = trace(Listening().eval())
    features = torch.randn(3, 50, 6)
    mask = torch.ones(3, 50, dtype=torch.bool)
    batch = {"input_features": features, "input_features_mask": mask}
    assert program.run(batch)[0].shape == (3, 50, 8)


@pytest.mark.parametrize(
    ("kind", "words"),
    [(Strange, "missing 1 required positional argument: 'riddle'"), (Uneasy, "not today")],
)
def test_what_cannot_be_made_up_is_said_in_the_models_words(kind, words):
    with pytest.raises(TraceError, match=f"fails on inputs that were made up for it: .*{words}"):
        trace(kind().eval())
