"""Example inputs for tracing a Hugging Face model: which inputs it takes, and made-up values."""

import inspect

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sparsify.ir.mode import evaluating
from sparsify.tensors.precision import relative_difference

# Sizes of the sample: distinct, small, and not 0 or 1, which torch.export would treat as constants.
BATCH, LENGTH = 2, 13
_PIXELS = 64
# Outputs that agree this far come from the same positions; other positions move them by far more.
_SAME = 1e-4


def example_inputs(model: PreTrainedModel) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    """Sample inputs and their symbolic dimensions.

    Token ids `[batch, length]` with the attention mask, and what else the forward takes: `position_ids`
    for generating models whose default is 0..length-1, `token_type_ids` where segments are embedded,
    `pixel_values [batch, channels, height, width]` for vision models.
    """
    accepted = inspect.signature(model.forward).parameters
    generator = torch.Generator().manual_seed(0)
    if model.main_input_name == "pixel_values":
        return _pixels(model, generator)
    vocabulary = int(model.config.get_text_config().vocab_size)
    low = min(3, vocabulary - 1)
    ids = torch.randint(low, vocabulary, (BATCH, LENGTH), generator=generator)
    sample = {"input_ids": ids}
    if "attention_mask" in accepted:
        mask = torch.ones(BATCH, LENGTH, dtype=torch.long)
        mask[1, -3:] = 0  # padding on the right, so that masking is part of every comparison
        sample["attention_mask"] = mask
    if "token_type_ids" in accepted and getattr(model.config, "type_vocab_size", 0) > 1:
        sample["token_type_ids"] = torch.zeros(BATCH, LENGTH, dtype=torch.long)
    if "position_ids" in accepted and model.can_generate() and _counts_positions(model):
        sample["position_ids"] = torch.arange(LENGTH).expand(BATCH, LENGTH).contiguous()
    dims = {key: {0: "batch", 1: "length"} for key in sample}
    if model.config.is_encoder_decoder:
        sample["decoder_input_ids"] = ids[:, : LENGTH - 4].contiguous()
        dims["decoder_input_ids"] = {0: "batch", 1: "target_length"}
    return sample, dims


def _pixels(
    model: PreTrainedModel, generator: torch.Generator
) -> tuple[dict[str, Tensor], dict[str, dict[int, str]]]:
    # A network of convolutions alone takes pictures of any size, and its config says none.
    size = getattr(model.config, "image_size", _PIXELS)
    height, width = (size, size) if isinstance(size, int) else size
    shape = (BATCH, model.config.num_channels, height, width)
    return {"pixel_values": torch.randn(shape, generator=generator)}, {"pixel_values": {0: "batch"}}


def _counts_positions(model: PreTrainedModel) -> bool:
    """Whether the model's own default positions are 0..length-1 whatever the padding.

    Some models derive positions from the attention mask; handing them 0..length-1 would change what
    they compute on left-padded input. Asked of the model itself, on four tokens.
    """
    if model.config.is_encoder_decoder or any(p.is_meta for p in model.parameters()):
        return not model.config.is_encoder_decoder
    device = next(model.parameters()).device
    ids = torch.tensor([[3, 4, 5, 6]], device=device) % int(
        model.config.get_text_config().vocab_size
    )
    mask = torch.tensor([[0, 1, 1, 1]], device=device)
    positions = torch.arange(4, device=device)[None]
    with evaluating(model), torch.no_grad():
        default = model(input_ids=ids, attention_mask=mask, use_cache=False)
        counted = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return relative_difference(default[0][:, 1:], counted[0][:, 1:]) <= _SAME
