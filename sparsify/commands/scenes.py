"""What the demo shows: variants of a model as pipelines, and how they are compared."""

from dataclasses import dataclass

from sparsify.measure.inputs import Shape
from sparsify.pretrained.load import EMBEDDED
from sparsify.recipes.catalogue import recipe

# The same masks as `structured` chooses at once, folded in place: zeros that nobody removes.
_ZEROS = (
    "insert-masks{of=heads,channels} | choose-masks{of=heads score=taylor sparsity=0.5} | "
    "choose-masks{of=channels score=taylor sparsity=0.5 multiple=8} | fold-masks{of=heads,channels}"
)
_INT8 = "insert-quantizers{values=int8} | choose-scales | pack-nm{values=int8}"


@dataclass(frozen=True)
class Variant:
    """A pipeline over the model, or over the variant `start`; `also` are formats beside the timed one."""

    name: str
    text: str
    start: str | None = None
    also: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scene:
    """Variants of a model beside the dense one, each exported to `format` and timed at `shape`.

    Perplexity is of `evaluated` sequences. With a `prompt` every variant goes on from it.
    """

    title: str
    variants: tuple[Variant, ...]
    format: str
    shape: Shape
    evaluated: int
    prompt: str = ""


def scene_of(model: str) -> Scene:
    """What is shown of a model: of the embedded one retraining, of any other what is done at once."""
    if model == EMBEDDED:
        return _SMALL
    return _LARGE


_SMALL = Scene(
    "the embedded model",
    (
        Variant("zeros", _ZEROS),
        Variant("structured", recipe("structured").text, also=("safetensors", "huggingface")),
        Variant("semi-structured", recipe("semi-structured").text),
        # The 2:4 model again, its zeros left out of the file and of the work.
        Variant("packed", "pack-nm", "semi-structured"),
        Variant("packed int8", _INT8, "semi-structured"),
    ),
    "onnx",
    Shape(tokens=128),
    evaluated=96,
)

_LARGE = Scene(
    "a pretrained model",
    (
        Variant("fewer layers", recipe("shortgpt").text),
        Variant("semi-structured", recipe("wanda").text),
        Variant("packed", "pack-nm", "semi-structured"),
        Variant("packed int8", _INT8, "semi-structured"),
    ),
    "onnx-decode",
    Shape(tokens=1, past=128),
    evaluated=48,
    prompt="The function returns a list of",
)
