"""Made-up values of what a forward asks for by name beside texts, pictures and sounds."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from sparsify.ir.trace.made_up import BATCH, LENGTH, Dims, Inputs, ids_of, stated

_BOXES = 6
_ROW = {0: "batch", 1: "length"}
Made = tuple[Tensor, Dims]
_Maker = Callable[[PreTrainedConfig, Inputs, torch.Generator], Made | None]


def beside(
    name: str, config: PreTrainedConfig, given: Inputs, generator: torch.Generator
) -> Made | None:
    """A value for the argument of that name, and what of it varies, beside those given; None if unheard of.

    Ids, segments of an image, boxes `[batch, length, 4]`, embeddings `[batch, length, hidden]`, masks shaped
    like what they are for, series `[batch, time, channels]`, states and actions of an agent.
    """
    if name.endswith("input_ids"):
        length = f"{name.removesuffix('input_ids')}length"
        return ids_of(config, generator), {0: "batch", 1: length}
    if name.endswith(("embeds", "hidden_states")):
        return _features("hidden_size", "d_model")(config, given, generator)
    if "pixel_values" in name or name == "prompt_masks":
        return _like("pixel_values", 5)(config, given, generator)
    maker = _MAKERS.get(name)
    return None if maker is None else maker(config, given, generator)


def _features(*names: str, length: int = LENGTH, varies: bool = True) -> _Maker:
    """Numbers for each place, as many as a config states under one of some names."""

    def make(config: PreTrainedConfig, given: Inputs, generator: torch.Generator) -> Made | None:
        size = next((found for n in names if (found := stated(config, n))), None)
        if size is None:
            return None
        made = torch.randn(BATCH, length, size, generator=generator)
        return made, dict(_ROW) if varies else {0: "batch"}

    return make


def _like(name: str, count: int, value: int | None = None) -> _Maker:
    """As another input in its first dimensions, all of one value or random."""

    def make(config: PreTrainedConfig, given: Inputs, generator: torch.Generator) -> Made | None:
        found = next(((v, d) for n, (v, d) in given.items() if n.startswith(name)), None)
        if found is None:
            return None
        shape, dims = found[0].shape[:count], {d: n for d, n in found[1].items() if d < count}
        if value is None:
            return torch.randn(shape, generator=generator), dims
        return torch.full(shape, value, dtype=torch.long), dims

    return make


def _frames(config: PreTrainedConfig, given: Inputs, generator: torch.Generator) -> Made | None:
    """A mask over the frames of a sound, whole."""
    for value, dims in given.values():
        for dim, what in dims.items():
            if what in ("frames", "samples"):
                mask = torch.ones(BATCH, value.shape[dim], dtype=torch.bool)
                return mask, {0: "batch", 1: what}
    return None


def _pixels(config: PreTrainedConfig, given: Inputs, generator: torch.Generator) -> Made | None:
    """A mask over the pixels of a picture, whole."""
    pictures = [v for n, (v, _) in given.items() if n == "pixel_values"]
    if not pictures:
        return None
    return torch.ones(BATCH, *pictures[0].shape[-2:], dtype=torch.long), {0: "batch"}


def _boxes(config: PreTrainedConfig, given: Inputs, generator: torch.Generator) -> Made:
    """Corners of boxes `[batch, length, 4]`, the second right of and below the first."""
    corner = torch.randint(0, 8, (BATCH, LENGTH, 2), generator=generator)
    size = torch.randint(1, 8, (BATCH, LENGTH, 2), generator=generator)
    return torch.cat([corner, corner + size], -1), dict(_ROW)


def _steps(config: PreTrainedConfig, given: Inputs, generator: torch.Generator) -> Made:
    return torch.arange(LENGTH).expand(BATCH, LENGTH).contiguous(), dict(_ROW)


def _rewards(config: PreTrainedConfig, given: Inputs, generator: torch.Generator) -> Made:
    return torch.randn(BATCH, LENGTH, 1, generator=generator), dict(_ROW)


def _series(config: PreTrainedConfig, given: Inputs, generator: torch.Generator) -> Made | None:
    """A series `[batch, time, channels]`, of the length that the config states."""
    time, channels = stated(config, "context_length"), stated(config, "num_input_channels")
    if time is None:
        return None
    shape = (BATCH, time, channels) if channels else (BATCH, time)
    return torch.randn(shape, generator=generator), {0: "batch"}


def _flattened(config: PreTrainedConfig, given: Inputs, generator: torch.Generator) -> Made | None:
    """Patches `[batch, patches, 2 + pixels]`, each behind its row and its column."""
    size = stated(config, "patch_embed_hidden_size")
    if size is None:
        return None
    pixels = torch.randn(BATCH, 8, size, generator=generator)
    places = torch.tensor([[1.0 + place // 4, 1.0 + place % 4] for place in range(8)])
    return torch.cat([places.expand(BATCH, 8, 2), pixels], -1), {0: "batch"}


_MAKERS: dict[str, _Maker] = {
    "actions": _features("act_dim"),
    "audio_mel_mask": _frames,
    "bbox": _boxes,
    "feature_attention_mask": _frames,
    "flattened_patches": _flattened,
    "input_features_mask": _frames,
    "past_values": _series,
    "past_values_padding": _like("past_values", 2, 0),
    "pixel_attention_mask": _like("pixel_values", 2, 1),
    "pixel_mask": _pixels,
    "returns_to_go": _rewards,
    "rewards": _rewards,
    "states": _features("state_dim"),
    "timesteps": _steps,
    "visual_feats": _features("visual_feat_dim", length=_BOXES, varies=False),
    "visual_pos": _features("visual_pos_dim", length=_BOXES, varies=False),
}
