"""All features, each from its file: one line here lets passes add it. Others register their own."""

from sparsify.errors import SparsifyError
from sparsify.ir import tensor_names
from sparsify.ir.features import (
    adapters,
    bias,
    block_mask,
    convolution_mask,
    expert_mask,
    experts,
    factors,
    group_mask,
    lora,
    merged_experts,
    neighbours,
    omission,
    packed,
    prefix,
    probe,
    quantizers,
    row_scales,
    slorb,
    weight_mask,
    width_mask,
)
from sparsify.ir.features.feature import Feature

# What is carried over into a decode variant is carried in this order: factors and branches before packing.
ALL: tuple[Feature, ...] = (
    *weight_mask.FEATURES,
    *convolution_mask.FEATURES,
    *group_mask.FEATURES,
    *block_mask.FEATURES,
    *expert_mask.FEATURES,
    *merged_experts.FEATURES,
    *width_mask.FEATURES,
    *factors.FEATURES,
    *lora.FEATURES,
    *row_scales.FEATURES,
    *bias.FEATURES,
    *adapters.FEATURES,
    *experts.FEATURES,
    *slorb.FEATURES,
    *neighbours.FEATURES,
    *prefix.FEATURES,
    *probe.FEATURES,
    *quantizers.FEATURES,
    *omission.FEATURES,
    *packed.FEATURES,
    # The shares that `allocate-sparsity` has written into the plan.
    Feature("shares", in_values=True),
    # The values that `allocate-values` has written into the plan.
    Feature("values", in_values=True),
    # The experts that `choose-clusters` has made the same, by the plan.
    Feature("clusters", in_values=True),
)
_HELD: dict[str, Feature] = {}


def register(feature: Feature) -> Feature:
    """Let passes add a feature; SparsifyError for a name or a suffix that another one has."""
    if _HELD.get(feature.name, feature) is not feature:
        raise SparsifyError(f"two features are called '{feature.name}'; rename one")
    tensor_names.register(feature.name, feature.suffixes, in_values=feature.in_values)
    _HELD[feature.name] = feature
    return feature


def features() -> tuple[Feature, ...]:
    """Every registered feature."""
    return tuple(_HELD.values())


def carried() -> frozenset[str]:
    """The features that the decode variant takes over, and ONNX can therefore hold."""
    return frozenset(feature.name for feature in features() if feature.carry is not None)


for _feature in ALL:
    register(_feature)
