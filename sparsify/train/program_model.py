"""A program as the module it came from: takes what the Hugging Face model takes, returns what it returns."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig
from transformers.utils.generic import ModelOutput

from sparsify.errors import DataError, SparsifyError, nearest
from sparsify.ir.device import following
from sparsify.ir.inputs import has_default
from sparsify.ir.mode import set_training
from sparsify.ir.program import Program
from sparsify.ir.run.segments import run_segments
from sparsify.ir.storage.into_folder import save_into
from sparsify.ir.storage.pickled import with_tensors
from sparsify.ir.views.embedding import tables
from sparsify.pretrained.load import class_named, config_of
from sparsify.train.likeness import (
    LABELS,
    SPANS,
    arguments,
    loss_type_of,
    subclass,
    takes_loss_kwargs,
)
from sparsify.train.losses import TaskLoss
from sparsify.train.sharded import whole

_INSIDE = "graph_module."
_INSTEAD = {
    "config": "the module it was traced from had none",
    "generation_config": "the model it was traced from writes no text",
    "generate": "export it to onnx-decode and use sparsify.load_onnx",
    "push_to_hub": "save it and upload the folder",
}


class ProgramModel(nn.Module):
    """An ordinary module over a program, for Trainer, accelerate or a hand-written loop.

    Parameters are the program's own tensors under their own names. `forward(input_ids=..., labels=...)`
    fills missing masks and positions, adds `loss` when labels are given, and returns the output class
    of the model that was traced. Its class is named after that model's and its `forward` names the
    program's inputs and the labels, since Trainer goes by both. `to` and its kin move the whole program.
    """

    _plain: ClassVar[type["ProgramModel"]]
    # Asked for by Trainer when a checkpoint lacks tensors.
    _keys_to_ignore_on_save: None = None

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.graph_module = program.module
        self._task_loss: TaskLoss | None = None
        self._config: PreTrainedConfig | None = None
        self._generation_config: GenerationConfig | None = None
        self._recomputing: dict[str, Any] | None = None
        if type(self).forward is ProgramModel.forward:
            name = self.program.source.model_class
            named: Any = subclass(type(self), name, self._arguments())  # type: ignore[arg-type]
            self.__class__ = named

    def forward(self, *values: Any, **batch: Any) -> Any:
        """Outputs on a batch of tensors `[batch, length]`, in the order of the inputs or by name.

        The loss, if labelled, is the mean over the labels that are not -100, or their sum over
        `num_items_in_batch`; padding counts unless its labels say otherwise, as in the Hugging Face
        model. Raises SparsifyError for what the program cannot return and for arguments it does not take.
        """
        given = self._named(values, batch)
        as_dict, items = given.pop("return_dict", True), given.pop("num_items_in_batch", None)
        asked = sorted(key for key, value in given.items() if value is True)
        if asked:
            raise SparsifyError(
                f"the program returns {', '.join(self.program.source.outputs)} and cannot be asked for "
                f"'{asked[0]}'; trace a model that returns it"
            )
        self._refuse_strangers(given)
        labels = {k: given.pop(k) for k in (*LABELS, *SPANS) if k in given}
        outputs = self._outputs(self.program.complete(given))
        fields = dict(zip(self.program.source.outputs, outputs, strict=True))
        if labels:
            labels = {key: value.to(outputs[0].device) for key, value in labels.items()}
            fields = {"loss": self._loss_of()(outputs, labels, items), **fields}
        result = self._output_class()(**fields)
        return result if as_dict else tuple(result.values())

    def train(self, mode: bool = True) -> "ProgramModel":
        """Switch dropout in the graph, as `nn.Module.train` does for modules."""
        super().train(mode)
        set_training(self.program.module, mode)
        return self

    @property
    def config(self) -> PreTrainedConfig:
        """The config of the model that was traced; AttributeError for a plain module."""
        if self._config is None:
            cls = class_named(self.program.source.model_class)
            if cls is None:
                raise AttributeError
            self._config = config_of(cls, self.program.source.config)
        return self._config

    @property
    def generation_config(self) -> GenerationConfig:
        """The model's defaults for generation; AttributeError for one that writes no text."""
        if self._generation_config is None:
            cls = class_named(self.program.source.model_class)
            if cls is None or not cls.can_generate():
                raise AttributeError
            self._generation_config = GenerationConfig(**self.program.source.generation)
        return self._generation_config

    @property
    def main_input_name(self) -> str:
        """The input whose size Trainer counts by."""
        return next(iter(self.program.sample))

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether Trainer should say how many labels a whole step has, as the traced class has it."""
        return takes_loss_kwargs(self.program.source.model_class)

    @property
    def loss_type(self) -> str | None:
        """The kind of loss in the model library's words, by which Trainer counts labels."""
        name = self.program.source.model_class
        if class_named(name) is None:
            return "ForCausalLM" if self._loss_of().shifted else None
        return loss_type_of(name)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._first_tensor().device

    @property
    def dtype(self) -> torch.dtype:
        """The floating-point type of the weights."""
        return self._first_tensor().dtype

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """How many parameters there are, tables that are looked up by token left out if asked."""
        left_out = {_INSIDE + table.weight for table in tables(self.program)}
        return sum(
            value.numel()
            for path, value in self.named_parameters()
            if (value.requires_grad or not only_trainable)
            and not (exclude_embeddings and path in left_out)
        )

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Keep only what crosses from block to block in training; compute the rest again going back.

        `activation_checkpointing_kwargs` go to `torch.utils.checkpoint.checkpoint`. Raises
        SparsifyError for reentrant checkpoints and for offloading.
        """
        options = dict(activation_checkpointing_kwargs or {})
        if options.pop("use_reentrant", False):
            raise SparsifyError("a program is recomputed without reentry; give use_reentrant=False")
        if offload:
            raise SparsifyError(
                "the activations of a program cannot be offloaded; leave offload out"
            )
        self._recomputing = {"every": every_n_layers, **options}

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: Mapping[str, Any] | None = None, **options: Any
    ) -> None:
        """The same under its older name."""
        self.activation_checkpointing_enable(gradient_checkpointing_kwargs, **options)

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        self._recomputing = None

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are computed again in the backward pass."""
        return self._recomputing is not None

    def save_pretrained(
        self,
        save_directory: str | Path,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        **others: Any,
    ) -> None:
        """Write a folder that `sparsify.load` reads, with the weights of `state_dict` if it is given.

        Files of the same names are replaced, others stay; weights are safetensors, whatever the
        keywords of the model library say. With sharded weights every process has to call. Raises DataError
        when the state dict is not the program's, SparsifyError when asked to upload.
        """
        if others.get("push_to_hub"):
            raise SparsifyError(
                "a program is not uploaded by itself; save it and upload the folder"
            )
        own = {path: whole(value) for path, value in self.program.tensors()}
        if state_dict is not None:
            given = {key.removeprefix(_INSIDE): value for key, value in state_dict.items()}
            if given.keys() != own.keys():
                (path, *_) = sorted(given.keys() ^ own.keys())
                raise DataError(f"the state dict is not the program's: they differ in '{path}'")
            own = given
        if is_main_process:
            save_into(with_tensors(self.program, own), Path(save_directory))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            why = _INSTEAD.get(name, "its graph and tensors are in 'program'")
            raise AttributeError(f"a wrapped program has no '{name}': {why}") from None

    def __reduce__(self) -> Any:
        kind = getattr(type(self), "_plain", type(self))
        state = {k: v for k, v in self.__dict__.items() if k != "program"}
        state["_modules"] = {k: v for k, v in self._modules.items() if k != "graph_module"}
        return _wrapped, (kind, self.program), state

    def __setstate__(self, state: dict[str, Any]) -> None:
        modules = {"graph_module": self.program.module, **state["_modules"]}
        super().__setstate__({**state, "_modules": modules})  # type: ignore[no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "ProgramModel":
        with following(self.program, fn):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _outputs(self, inputs: Mapping[str, Tensor]) -> Any:
        if self._recomputing is None or not (self.training and torch.is_grad_enabled()):
            return self.graph_module(**inputs)
        return run_segments(self.graph_module, inputs, **self._recomputing)

    def _named(self, values: tuple[Any, ...], batch: Mapping[str, Any]) -> dict[str, Any]:
        """What was given, by name; what was given as None left out."""
        names = self._arguments()
        if len(values) > len(names):
            raise SparsifyError(f"the program takes {', '.join(names)}; {len(values)} were given")
        twice = [name for name in names[: len(values)] if name in batch]
        if twice:
            raise SparsifyError(f"'{twice[0]}' was given twice, by its place and by its name")
        named = {**dict(zip(names, values, strict=False)), **batch}
        return {key: value for key, value in named.items() if value is not None}

    def _refuse_strangers(self, given: Mapping[str, Any]) -> None:
        """Refuse what would change nothing, as misspelt labels or a cache; masks and switches may stay."""
        names = (*self._arguments(), *self.program.source.known)
        for key, value in given.items():
            off = not isinstance(value, Tensor) and value in (False, 0)
            if not off and key not in names and not has_default(key):
                raise SparsifyError(f"the program takes no '{key}'{nearest(key, names)}")

    def _arguments(self) -> tuple[str, ...]:
        return arguments(self.program.source, tuple(self.program.sample))

    def _loss_of(self) -> TaskLoss:
        if self._task_loss is None:
            training = self.training
            self._task_loss = TaskLoss(self.program)
            self.train(training)
        return self._task_loss

    def _first_tensor(self) -> Tensor:
        values = [value for _, value in self.program.tensors()]
        return next((value for value in values if value.is_floating_point()), values[0])

    def _output_class(self) -> type:
        found = getattr(transformers.modeling_outputs, self.program.source.output_class, None)
        return ModelOutput if found is None else found


def _wrapped(kind: type[ProgramModel], program: Program) -> ProgramModel:
    model = kind.__new__(kind)
    ProgramModel.__init__(model, program)
    return model
