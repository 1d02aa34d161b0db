"""The functions that may stand in a graph, by the names they are stored under: one list for all readers.

A name is looked up here before it is looked up in torch, and one that is not here is refused after every
pass, on saving and on loading alike. ATen's are those that return new tensors computed from their
arguments and from nothing else: none writes into an argument, reads a file or draws random numbers
(dropout and its like are the exception, and a switch). They are what models of transformers are made of,
and others of the same kinds.
"""

import importlib
import math
import operator
from typing import Any

import torch

from sparsify.errors import DataError
from sparsify.ir.ops.grouped import GROUPED
from sparsify.ir.ops.registry import op_named as own_op
from sparsify.ir.ops.registry import op_of, own_ops

_ELEMENTWISE = """
__and__.Tensor __or__.Tensor __xor__.Tensor abs.default absolute.default acos.default acosh.default
add.Scalar add.Tensor addcdiv.default addcmul.default alpha_dropout.default angle.default
asin.default asinh.default atan.default atan2.default atanh.default bitwise_and.Scalar
bitwise_and.Tensor bitwise_left_shift.Tensor bitwise_left_shift.Tensor_Scalar bitwise_not.default
bitwise_or.Scalar bitwise_or.Tensor bitwise_right_shift.Tensor bitwise_right_shift.Tensor_Scalar
bitwise_xor.Scalar bitwise_xor.Tensor ceil.default celu.default clamp.Tensor clamp.default
clamp_max.Tensor clamp_max.default clamp_min.Tensor clamp_min.default clip.default complex.default
conj.default copysign.Scalar copysign.Tensor cos.default cosh.default div.Scalar div.Scalar_mode
div.Tensor div.Tensor_mode divide.Tensor dropout.default elu.default eq.Scalar eq.Tensor erf.default
erfc.default exp.default exp2.default expm1.default feature_alpha_dropout.default
feature_dropout.default fill.Scalar fill.Tensor float_power.Tensor_Scalar floor.default
floor_divide.Scalar floor_divide.default fmax.default fmin.default fmod.Scalar fmod.Tensor
frac.default ge.Scalar ge.Tensor gelu.default glu.default greater.Scalar greater.Tensor
greater_equal.Scalar greater_equal.Tensor gt.Scalar gt.Tensor hardshrink.default hardsigmoid.default
hardswish.default hardtanh.default heaviside.default hypot.default imag.default isclose.default
isfinite.default isin.Scalar_Tensor isin.Tensor_Scalar isin.Tensor_Tensor isinf.default
isnan.default isneginf.default isposinf.default le.Scalar le.Tensor leaky_relu.default lerp.Scalar
lerp.Tensor less.Scalar less.Tensor less_equal.Scalar less_equal.Tensor log.default log10.default
log1p.default log2.default log_sigmoid.default logaddexp.default logaddexp2.default
logical_and.default logical_not.default logical_or.default logical_xor.default logit.default
lt.Scalar lt.Tensor masked_fill.Scalar masked_fill.Tensor max.other maximum.default min.other
minimum.default mish.default mul.Scalar mul.Tensor multiply.Tensor nan_to_num.default ne.Scalar
ne.Tensor neg.default negative.default not_equal.Scalar not_equal.Tensor polar.default
positive.default pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor prelu.default real.default
reciprocal.default relu.default relu6.default remainder.Scalar remainder.Scalar_Tensor
remainder.Tensor round.decimals round.default rrelu.default rsqrt.default rsub.Scalar rsub.Tensor
selu.default sgn.default sigmoid.default sign.default signbit.default silu.default sin.default
sinc.default sinh.default softplus.default softshrink.default special_erf.default
special_expit.default sqrt.default square.default sub.Scalar sub.Tensor subtract.Tensor tan.default
tanh.default threshold.default true_divide.Scalar true_divide.Tensor trunc.default where.Scalar
where.ScalarOther where.ScalarSelf where.self xlogy.Tensor
"""
_REDUCTIONS = """
all.default all.dim all.dims amax.default amin.default aminmax.default any.default any.dim any.dims
argmax.default argmin.default argsort.default argsort.stable count_nonzero.default
count_nonzero.dim_IntList cummax.default cummin.default cumprod.default cumsum.default diff.default
histc.default kthvalue.default linalg_norm.default linalg_vector_norm.default log_softmax.int
logcumsumexp.default logsumexp.default max.default max.dim mean.default mean.dim median.default
median.dim min.default min.dim msort.default nansum.default norm.Scalar norm.ScalarOpt_dim
norm.ScalarOpt_dim_dtype norm.ScalarOpt_dtype prod.default prod.dim_int softmax.int sort.default
sort.stable std.correction std.default std.dim std_mean.correction sum.default sum.dim_IntList
topk.default var.correction var.default var.dim var_mean.correction _softmax.default
_log_softmax.default _safe_softmax.default
"""
_PRODUCTS = """
_grouped_mm.default addbmm.default addmm.default addmv.default baddbmm.default bilinear.default bmm.default
conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv3d.padding
conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input convolution.default
cosine_similarity.default cross.default dot.default einsum.default fft_fft.default fft_fft2.default
fft_fftn.default fft_ifft.default fft_ifft2.default fft_ifftn.default fft_irfft.default
fft_irfft2.default fft_irfftn.default fft_rfft.default fft_rfft2.default fft_rfftn.default
gru.input inner.default kron.default linalg_cross.default linear.default matmul.default mm.default mv.default
outer.default lstm.input rnn_relu.input rnn_tanh.input scaled_dot_product_attention.default tensordot.default
"""
_NORMS_AND_POOLS = """
adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_avg_pool3d.default
adaptive_max_pool2d.default avg_pool1d.default avg_pool2d.default avg_pool3d.default batch_norm.default
_native_batch_norm_legit_no_training.default _adaptive_avg_pool2d.default _weight_norm.default
group_norm.default grid_sampler.default grid_sampler_2d.default instance_norm.default layer_norm.default
max_pool1d.default max_pool2d.default max_pool2d_with_indices.default max_pool3d.default
native_group_norm.default native_layer_norm.default rms_norm.default upsample_bicubic2d.default
upsample_bicubic2d.vec upsample_bilinear2d.default upsample_bilinear2d.vec upsample_linear1d.default
_upsample_bicubic2d_aa.vec _upsample_bilinear2d_aa.vec
upsample_linear1d.vec upsample_nearest1d.default upsample_nearest1d.vec upsample_nearest2d.default
upsample_nearest2d.vec upsample_nearest3d.default upsample_nearest3d.vec upsample_trilinear3d.vec
"""
_FORMS = """
_to_copy.default _unsafe_view.default adjoint.default alias.default atleast_1d.default
atleast_2d.default atleast_3d.default broadcast_tensors.default broadcast_to.default cat.default
channel_shuffle.default chunk.default clone.default col2im.default concat.default
constant_pad_nd.default contiguous.default copy.default detach.default diag.default
diag_embed.default diagonal.default diagonal_scatter.default dstack.default expand.default
expand_as.default flatten.using_ints flip.default fliplr.default flipud.default hstack.default
im2col.default lift.default lift_fresh.default lift_fresh_copy.default mH.default mT.default
meshgrid.default meshgrid.indexing moveaxis.int moveaxis.intlist movedim.int movedim.intlist
narrow.default numpy_T.default pad.default permute.default pixel_shuffle.default
pixel_unshuffle.default ravel.default reflection_pad1d.default reflection_pad2d.default
repeat.default repeat_interleave.self_Tensor repeat_interleave.self_int replication_pad1d.default
replication_pad2d.default reshape.default reshape_as.default roll.default rot90.default
select.int select_scatter.default slice.Tensor slice_scatter.default split.Tensor split.sizes
split_with_sizes.default squeeze.default squeeze.dim squeeze.dims stack.default swapaxes.default
swapdims.default t.default tensor_split.indices tensor_split.sections tile.default to.device
to.dtype to.dtype_layout to.other transpose.int tril.default triu.default type_as.default
unbind.int unflatten.int unfold.default unsqueeze.default view.default view.dtype
view_as.default view_as_complex.default view_as_real.default vstack.default
"""
_PICKS = """
bincount.default bucketize.Scalar bucketize.Tensor embedding.default gather.default index.Tensor
index_add.default index_copy.default index_fill.int_Scalar index_fill.int_Tensor index_put.default
index_select.default masked_scatter.default masked_select.default nonzero.default one_hot.default
scatter.reduce scatter.src scatter.value scatter.value_reduce scatter_add.default
scatter_reduce.two searchsorted.Scalar searchsorted.Tensor take.default take_along_dim.default
"""
_MADE = """
arange.default arange.start arange.start_step empty.memory_format empty_like.default
empty_permuted.default empty_strided.default eye.default eye.m full.default full_like.default
hamming_window.default hann_window.default linspace.default logspace.default new_empty.default
new_empty_strided.default new_full.default new_ones.default new_zeros.default ones.default
ones_like.default scalar_tensor.default tril_indices.default triu_indices.default vander.default
zeros.default zeros_like.default
"""
_RARE = """
addr.default affine_grid_generator.default block_diag.default cartesian_prod.default cdist.default
digamma.default embedding_bag.default erfinv.default fake_quantize_per_channel_affine.default
fake_quantize_per_tensor_affine.default fft_fftshift.default fft_ifftshift.default
i0.default igamma.default igammac.default index_reduce.default ldexp.Tensor lgamma.default
linalg_cholesky.default linalg_det.default linalg_inv.default linalg_matmul.default
linalg_matrix_norm.default linalg_multi_dot.default linalg_solve.default mode.default
 mvlgamma.default nanmean.default nanmedian.default pairwise_distance.default
pdist.default pinverse.default put.default quantile.default quantile.scalar renorm.default
special_digamma.default special_erfc.default special_erfcx.default special_erfinv.default
special_exp2.default special_expm1.default special_gammaln.default special_i0.default special_i0e.default
special_i1.default special_i1e.default special_log1p.default special_log_softmax.default
special_logit.default special_ndtr.default special_round.default special_sinc.default
special_softmax.default special_xlogy.default stft.default trapezoid.dx trapezoid.x
tensor_split.tensor_indices_or_sections
"""
_SIZES_OF = "item.default sym_numel.default sym_size.int"
_GROUPS = (
    _ELEMENTWISE,
    _REDUCTIONS,
    _PRODUCTS,
    _NORMS_AND_POOLS,
    _FORMS,
    _PICKS,
    _MADE,
    _RARE,
    _SIZES_OF,
)
_MOE = GROUPED[0]

# Overloads of other libraries that may be called.
_OVERLOADS = frozenset(
    {
        *(f"aten.{name}" for group in _GROUPS for name in group.split()),
        _MOE,
    }
)
# Picking from a tuple, and arithmetic on sizes. No powers, no shifts: few of them make numbers without end.
ARITHMETIC = {
    f"operator:{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "truediv", "neg", "abs",
                 "eq", "ne", "lt", "le", "gt", "ge")
} | {
    **{f"math:{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt")},
    **{f"torch:{name}": getattr(torch, name) for name in
       ("sym_float", "sym_int", "sym_ite", "sym_max", "sym_min", "sym_not")},
}  # fmt: skip
_GETITEM = "operator:getitem"
_NAMED = {**ARITHMETIC, _GETITEM: operator.getitem}
_NAMES = {function: name for name, function in _NAMED.items()}


def names() -> frozenset[str]:
    """The stored names of all ops that may be called now, arithmetic on sizes aside."""
    return _OVERLOADS | own_ops().keys()


def allowed(target: Any) -> bool:
    """Whether a function may stand in a program."""
    if op_of(target) is not None:
        return True
    if isinstance(target, torch._ops.OpOverload):
        return str(target) in _OVERLOADS
    return target in _NAMES


def name_of(target: Any) -> str:
    """The stored name of a function that is allowed."""
    own = op_of(target)
    return own.name if own is not None else _NAMES.get(target) or str(target)


def op_named(name: str) -> Any:
    """The function of a stored name; DataError for one that no program may hold."""
    if name in _NAMED:
        return _NAMED[name]
    own = own_op(name)
    if own is not None:
        return own.function
    if name not in _OVERLOADS:
        raise DataError(f"it calls {name!r:.60}, which is not an op of a program")
    if name == _MOE:
        importlib.import_module("transformers.integrations.moe")
    namespace, packet, overload = name.split(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    except (AttributeError, RuntimeError) as error:
        raise DataError(f"it calls {name!r:.60}, which this torch lacks") from error
