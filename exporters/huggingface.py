"""huggingface: a folder that stock `from_pretrained` loads, when a config can say all shapes."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from exporters.beside.config_search import Misfit, Search, class_of, empty_model, holder
from exporters.beside.fewer_layers import without_gaps
from exporters.beside.head_counts import check_head_counts
from exporters.beside.transformers_files import dtype_of, write_about, write_beside, write_config
from sparsify.disk.weights_file import write_tensors
from sparsify.engine.contract import Exporter, Moves, Reader
from sparsify.errors import DataError, ExportError
from sparsify.ir.program import Program
from sparsify.pretrained.completeness import check_loaded
from sparsify.pretrained.load import config_of
from sparsify.pretrained.quiet import quiet
from sparsify.select.target_shape import Heads
from sparsify.tensors.precision import largest_difference

_SHOWN = 3


@dataclass(frozen=True)
class Huggingface(Exporter):
    """Write `config.json`, `model.safetensors` and the tokenizer's files under Hugging Face names.

    Zeros in place are plain dense numbers. Sizes that were pruned evenly go into the config, which
    is found by search (`config_search`) and believed only when the loaded model gives the same
    outputs. Names and entries are those of checkpoints on the hub, which releases of transformers
    before 5 read too.
    """

    name: ClassVar[str] = "huggingface"
    accepts: ClassVar[frozenset[str]] = frozenset()
    tolerance: ClassVar[float] = 1e-5
    library: ClassVar[str] = "transformers"

    def check(self, program: Program) -> None:
        """Refuse a program without a model class of transformers, or without layers that every config has."""
        without_gaps(program, class_of(program))

    def variant(self, program: Program) -> Program:
        """The program with its layers numbered without gaps, as a smaller model has them."""
        return without_gaps(program, class_of(program))

    def check_heads(self, program: Program, heads: Heads) -> None:
        """Refuse numbers of heads that no config of the class can say."""
        check_head_counts(program, class_of(program), heads)

    def usage(self, program: Program) -> str:
        """The model, and its tokenizer where there is one."""
        cls, tokenizer = program.source.model_class, program.tokenizer is not None
        lines = [
            f"from transformers import {'AutoTokenizer, ' if tokenizer else ''}{cls}\n",
            f'model = {cls}.from_pretrained(".")',
        ]
        return "\n".join(
            [*lines, 'tokenizer = AutoTokenizer.from_pretrained(".")'][: 2 + tokenizer]
        )

    def write(self, program: Program, folder: Path) -> None:
        """Write the first config that fits and gives the same outputs, with the weights."""
        cls = class_of(program)
        allowed = Moves(graph=True, tolerance=self.tolerance).allowed(dtype_of(program))
        differences: list[float] = []
        with quiet():
            search = Search(program, cls)
            for values in search.configs():
                _write_weights(program, empty_model(cls, values), folder)
                write_config(config_of(cls, values), program, folder)
                difference = self._difference(program, folder)
                if difference <= allowed:
                    break
                differences.append(difference)
            else:
                raise ExportError(_refusal(program, search, differences))
        write_beside(program, folder)
        write_about(program, folder, self.name)

    def read_back(self, program: Program, folder: Path) -> Reader:
        """The model as stock `from_pretrained` of its class loads it."""
        with quiet():
            cls: Any = class_of(program)
            model, found = cls.from_pretrained(
                str(folder),
                dtype="auto",
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
        check_loaded(cls.__name__, str(folder), found)
        model.eval()
        model.config.use_cache = False
        names = program.source.outputs
        known = {name: torch.tensor(value) for name, value in program.source.known.items()}

        def run(inputs: dict[str, Tensor]) -> tuple[Tensor, ...]:
            with torch.no_grad():
                result = model(**inputs, **known, return_dict=True)
            return tuple(getattr(result, name) for name in names)

        return run

    def _difference(self, program: Program, folder: Path) -> float:
        """How far the outputs on the sample inputs stand off; infinite when there are none."""
        try:
            found = self.read_back(program, folder)(program.sample)
        except (RuntimeError, ValueError, DataError):
            return float("inf")
        return largest_difference(program.run(), found)


def _write_weights(program: Program, model: PreTrainedModel, folder: Path) -> None:
    """Every tensor of the model once, by its name on the hub; zeros for what is never read."""
    kept = set(model.state_dict())
    tensors = {}
    for name, empty in (*model.named_parameters(), *model.named_buffers()):
        if name not in kept:
            continue
        path = holder(program, name)
        if path is None:
            tensors[name] = torch.zeros(empty.shape, dtype=empty.dtype)
        else:
            tensors[name] = program.tensor(path)
    tensors = {
        name: _compact(tensor) for name, tensor in revert_weight_conversion(model, tensors).items()
    }
    metadata = {"format": "pt", "sparsify.pipeline": " | ".join(program.log)}
    write_tensors(folder / "model.safetensors", tensors, metadata)


def _compact(tensor: Tensor) -> Tensor:
    """The tensor on storage of its own size; copied only when it is a part of another."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def _refusal(program: Program, search: Search, differences: list[float]) -> str:
    name, misfits = program.source.model_class, search.nearest
    said = list(search.refused.items())[:_SHOWN]
    refused = "".join(f"; it refuses {it}: {why}" for it, why in said)
    if differences:
        wide = dtype_of(program) == torch.float32
        half = "" if wide else ", or rounding in half precision adds up, as where it moves a token"
        return (
            f"a config of {name} has the program's shapes, but its model gives outputs that "
            f"differ by {min(differences):.2g} of the largest value, since a number of its config, or a "
            f"scale that it computes from a size, is another in the program{half}{refused}; "
            "export to onnx or safetensors"
        )
    shown = "; ".join(_show(misfit) for misfit in misfits[:_SHOWN])
    more = f" and {len(misfits) - _SHOWN} more" if len(misfits) > _SHOWN else ""
    even = "" if _even(program, misfits) else "prune every layer to the same sizes, or "
    return (
        f"no config of {name} has the program's shapes: {shown}{more}{refused}; "
        f"{even}export to onnx or safetensors"
    )


def _even(program: Program, misfits: list[Misfit]) -> bool:
    """Whether what fits nowhere is alike in every layer: then even pruning mends nothing."""
    places = {_place(misfit.name) for misfit in misfits}
    shapes: dict[str, set[tuple[int, ...]]] = {place: set() for place in places}
    for path, tensor in program.tensors():
        if _place(path) in places:
            shapes[_place(path)].add(tuple(tensor.shape))
    return all(len(found) <= 1 for found in shapes.values())


def _place(name: str) -> str:
    return re.sub(r"\.\d+(?=\.)", ".*", name)


def _show(misfit: Misfit) -> str:
    if misfit.there is None:
        return f"{misfit.name} {list(misfit.here)} has no place"
    return f"{misfit.name} is {list(misfit.here)} where the nearest says {list(misfit.there)}"
