"""Made-up pictures, sounds and texts in the sizes that a config states: what a model may take, in turn."""

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

# Sizes of the sample: distinct, small, and not 0 or 1, which torch.export would treat as constants.
BATCH, LENGTH = 2, 13
_PIXELS, _CHANNELS = 64, 3
_FRAMES, _SAMPLES = 96, 4000
SIGNALS = ("samples", "frames")  # dimensions of a sound along its time
_BYTES = 256  # ids of models whose vocabulary is not stated
_MELS = (
    "num_mel_bins",
    "feature_size",
    "input_feat_per_channel",
    "num_mel_channels",
    "feat_dim",
    "feature_projection_input_dim",
    "input_feat_size",
    "input_dim",
)
_STATED_CHANNELS = ("num_channels", "in_channels", "in_chans", "num_input_channels")
_STATED_SIZES, _STATED_FRAMES = ("image_size", "crop_size"), ("num_frames", "frames_per_clip")
_FEATURES, _SOUND = ("input_features", "audio_mel"), ("input_values",)

Dims = dict[int, str]
# Inputs by name, each with its varying dimensions.
Inputs = dict[str, tuple[Tensor, Dims]]


def vocabulary_of(config: PreTrainedConfig) -> int:
    """How many ids there are."""
    found = getattr(config.get_text_config(), "vocab_size", None) or stated(config, "vocab_size")
    return int(found or _BYTES)


def ids_of(config: PreTrainedConfig, generator: torch.Generator) -> Tensor:
    """Token ids `[batch, length]`, none of the first three, which mean padding and the like."""
    vocabulary = vocabulary_of(config)
    low = min(3, vocabulary - 1)
    return torch.randint(low, vocabulary, (BATCH, LENGTH), generator=generator)


def signals(
    config: PreTrainedConfig, accepted: Mapping[str, Any], generator: torch.Generator
) -> Iterator[Inputs]:
    """What is no text, in every form that the arguments of a forward may mean.

    `pixel_values [batch, channels, height, width]`, or with frames before the channels; `input_features`
    `[batch, mels, frames]` or `[batch, frames, mels]`; `input_values [batch, samples]` or as features.
    """
    yield from _patches(config, accepted, generator)
    for name in accepted:
        if name.startswith("pixel_values"):
            for shape in _picture_shapes(config):
                yield {name: (torch.randn(shape, generator=generator), {0: "batch"})}
        if name in (*_FEATURES, *_SOUND):
            for shape, dims in _sound_shapes(config, name):
                yield {name: (torch.randn(shape, generator=generator), dims)}


def _picture_shapes(config: PreTrainedConfig) -> Iterator[tuple[int, ...]]:
    # A network of convolutions alone takes pictures of any size, and its config says none.
    size = _first(config, _STATED_SIZES, int, list, tuple) or _PIXELS
    height, width = (size, size) if isinstance(size, int) else size
    channels = _first(config, _STATED_CHANNELS) or _CHANNELS
    yield BATCH, channels, height, width
    for frames in (_first(config, _STATED_FRAMES), 1, 2):
        if frames:
            yield BATCH, frames, channels, height, width


def _patches(
    config: PreTrainedConfig, accepted: Mapping[str, Any], generator: torch.Generator
) -> Iterator[Inputs]:
    """Pictures of any size, cut into patches, beside the sizes in patches that each has.

    `[patches, numbers]` of two pictures behind each other and their `grid_thw [pictures, 3]`, or
    `[batch, patches, numbers]` and `spatial_shapes [batch, 2]`, the second picture padded.
    """
    side = _first(config, ("patch_size",)) or 1
    times = dict.fromkeys((stated(config, "temporal_patch_size") or 1, 1, 2))
    channels = _first(config, _STATED_CHANNELS) or _CHANNELS
    merged = stated(config, "spatial_merge_size") or 2
    pictures = [name for name in ("pixel_values", "hidden_states") if name in accepted]
    for name, said in ((n, s) for n in accepted for s in pictures):
        if name.endswith("grid_thw") and accepted[name].default is accepted[name].empty:
            grid = torch.tensor([[1, 2 * merged, 2 * merged], [1, 2 * merged, 4 * merged]])
            sizes = {name: (grid, Dims())}
            if "merge_sizes" in accepted:
                sizes["merge_sizes"] = torch.tensor([merged, merged]), Dims()
            shapes = [(channels * time * side * side,) for time in times]
            for shape in (*shapes, (channels, side, side)):
                made = torch.randn(12 * merged * merged, *shape, generator=generator)
                yield {said: (made, Dims()), **sizes}
        if name == "spatial_shapes":
            made = torch.randn(BATCH, 8, channels * side * side, generator=generator)
            mask = torch.tensor([[1] * 8, [1] * 6 + [0] * 2])
            yield {
                said: (made, Dims()),
                "pixel_attention_mask": (mask, Dims()),
                name: (torch.tensor([[2, 4], [2, 3]]), Dims()),
            }


def _sound_shapes(config: PreTrainedConfig, name: str) -> Iterator[tuple[tuple[int, ...], Dims]]:
    """Shapes of a sound and what of them varies: raw, or as so many numbers for each of some frames."""
    if name in _SOUND:
        yield (BATCH, _SAMPLES), {0: "batch", 1: "samples"}
        yield (BATCH, 1, _SAMPLES), {0: "batch", 2: "samples"}
    whole = stated(config, "max_source_positions") or 0
    counts = [count for count in (2 * whole, stated(config, "max_length"), _FRAMES) if count]
    sizes = dict.fromkeys(size for name in _MELS if (size := stated(config, name)))
    for mels, frames in itertools.product(sizes, counts):
        yield (BATCH, frames, mels), {0: "batch", 1: "frames"}
        yield (BATCH, mels, frames), {0: "batch", 2: "frames"}


def _first(config: PreTrainedConfig, names: Iterable[str], *kinds: type) -> Any:
    """What is stated under the first of some names under which anything is."""
    return next((found for name in names if (found := stated(config, name, *kinds))), None)


def stated(config: PreTrainedConfig, name: str, *kinds: type) -> Any:
    """What a config or the first of its parts says under a name; None where none does."""
    queue = [config]
    for one in queue:
        value = getattr(one, name, None)
        if isinstance(value, kinds or (int,)) and not isinstance(value, bool):
            return value
        queue += [part for part in vars(one).values() if isinstance(part, PreTrainedConfig)]
    return None
