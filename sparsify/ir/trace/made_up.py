"""Made-up pictures, sounds and texts in the sizes that a config states: what a model may take, in turn."""

from collections.abc import Iterator, Mapping
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
_MELS = ("num_mel_bins", "feature_size", "input_feat_per_channel", "num_mel_channels", "feat_dim")
_STATED_CHANNELS = ("num_channels", "in_channels", "in_chans", "num_input_channels")
_FEATURES, _SOUND = ("input_features",), ("input_values",)

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
    for name in accepted:
        if name.startswith("pixel_values"):
            for shape in _picture_shapes(config):
                yield {name: (torch.randn(shape, generator=generator), {0: "batch"})}
        if name in (*_FEATURES, *_SOUND):
            for shape, dims in _sound_shapes(config, name):
                yield {name: (torch.randn(shape, generator=generator), dims)}


def _picture_shapes(config: PreTrainedConfig) -> Iterator[tuple[int, ...]]:
    # A network of convolutions alone takes pictures of any size, and its config says none.
    size = stated(config, "image_size", int, list, tuple) or _PIXELS
    height, width = (size, size) if isinstance(size, int) else size
    channels = next((c for n in _STATED_CHANNELS if (c := stated(config, n))), _CHANNELS)
    yield BATCH, channels, height, width
    frames = stated(config, "num_frames")
    if frames:
        yield BATCH, frames, channels, height, width


def _sound_shapes(config: PreTrainedConfig, name: str) -> Iterator[tuple[tuple[int, ...], Dims]]:
    """Shapes of a sound and what of them varies: raw, or as so many numbers for each of some frames."""
    if name in _SOUND:
        yield (BATCH, _SAMPLES), {0: "batch", 1: "samples"}
    mels = next((m for n in _MELS if (m := stated(config, n))), None)
    if mels is None:
        return
    whole = stated(config, "max_source_positions") or 0
    for frames in (2 * whole, stated(config, "max_length") or 0, _FRAMES):
        if frames:
            yield (BATCH, frames, mels), {0: "batch", 1: "frames"}
            yield (BATCH, mels, frames), {0: "batch", 2: "frames"}


def stated(config: PreTrainedConfig, name: str, *kinds: type) -> Any:
    """What a config or the first of its parts says under a name; None where none does."""
    queue = [config]
    for one in queue:
        value = getattr(one, name, None)
        if isinstance(value, kinds or (int,)) and not isinstance(value, bool):
            return value
        queue += [part for part in vars(one).values() if isinstance(part, PreTrainedConfig)]
    return None
