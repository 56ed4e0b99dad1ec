"""Normalisations and softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from graphprune.backends.torch_ops.registry import Result, lower, traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call


@traceable
def batch_norm(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, var: torch.Tensor,
    training: bool, momentum: float, epsilon: float,
) -> torch.Tensor:  # fmt: skip
    """Normalise channels; while training by the batch, whose statistics move ``mean`` and ``var``."""
    if x.dtype != scale.dtype or scale.dtype != mean.dtype:
        wide = torch.promote_types(torch.promote_types(x.dtype, scale.dtype), mean.dtype)
        y = F.batch_norm(
            x.to(wide), mean if mean.dtype == wide else mean.to(wide), var if var.dtype == wide else var.to(wide),
            scale.to(wide), bias.to(wide), training, momentum, epsilon,
        )  # fmt: skip
        return y.to(x.dtype)
    return F.batch_norm(x, mean, var, scale, bias, training, momentum, epsilon)


class BatchNorm(nn.Module):
    """Batch normalisation whose weights are given; only the mode is its own.

    Parameters
    ----------
    momentum
        Weight of the new batch in the running statistics: one less ONNX's.
    frozen
        Whether mean and variance are computed in the graph, so that there is nothing to keep running statistics in.
    """

    def __init__(self, momentum: float, epsilon: float, frozen: bool) -> None:
        super().__init__()
        self.momentum, self.epsilon, self.frozen = momentum, epsilon, frozen

    def forward(
        self, x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, var: torch.Tensor
    ) -> torch.Tensor:
        """Normalise ``x [n, c, ...]``; the others are ``[c]``."""
        if self.frozen:
            shape = (-1, *[1] * (x.ndim - 2))
            factor = scale * torch.rsqrt(var + self.epsilon)
            y = x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)
            return y.to(x.dtype)
        training = self.training
        return batch_norm(x, scale, bias, mean, var, training, self.momentum, self.epsilon)

    def extra_repr(self) -> str:
        """Show the numbers."""
        return f"momentum={self.momentum:g}, epsilon={self.epsilon:g}"


@traceable
def batch_norm_training(
    x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, mean: torch.Tensor, var: torch.Tensor,
    momentum: float, epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # fmt: skip
    """Normalise by the batch; also return the running statistics as ONNX defines them, which are not kept."""
    axes = [0, *range(2, x.ndim)]
    batch_mean = x.mean(axes)
    batch_var = x.var(axes, correction=0)
    y = F.batch_norm(x, None, None, scale, bias, True, 0.0, epsilon)
    return y, mean * momentum + batch_mean * (1 - momentum), var * momentum + batch_var * (1 - momentum)


@lower("BatchNormalization")
def _batch_norm(call: Call) -> Result:
    args = [call.tensor(i) for i in range(5)]
    momentum, epsilon = call.attr("momentum", 0.9), call.attr("epsilon", 1e-5)
    if call.version >= 14 and call.flag("training_mode"):
        return call.unpack(call.emit(batch_norm_training, *args, momentum, epsilon))
    # In place of running statistics that are computed, or shared with a parameter, nothing can be updated.
    stored = all(getattr(a, "op", "") == "get_attr" and call.builder.outer is None for a in args[3:])
    stored = stored and all(call.builder.val(call.value(i)).array is not None for i in (3, 4))
    return call.module(BatchNorm(1 - momentum, epsilon, not stored), "batch_norm", *args)


@lower("InstanceNormalization")
def _instance_norm(call: Call) -> Result:
    x, scale, bias = (call.tensor(i) for i in range(3))
    return call.emit(F.instance_norm, x, None, None, scale, bias, True, 0.0, call.attr("epsilon", 1e-5))


@traceable
def layer_norm(
    x: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None, axis: int, epsilon: float
) -> torch.Tensor:
    """Normalise over all axes from ``axis`` on; scale and bias broadcast to ``x``."""
    sizes = x.shape[axis:]
    if (scale is None or scale.shape == sizes) and (bias is None or bias.shape == sizes):
        return F.layer_norm(x, sizes, scale, bias, epsilon)
    y = F.layer_norm(x, sizes, None, None, epsilon)
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


@traceable
def layer_norm_stats(
    x: torch.Tensor, axis: int, epsilon: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and inverse deviation over all axes from ``axis`` on, which stay as ones."""
    axes = list(range(axis % x.ndim, x.ndim))
    wide = x.to(dtype)
    mean = wide.mean(axes, keepdim=True)
    return mean, torch.rsqrt(wide.var(axes, correction=0, keepdim=True) + epsilon)


def normalised(call: Call, x: Any, scale: Any, bias: Any) -> Any:
    """Emit a layer normalisation by the attributes of the node."""
    axis, epsilon = int(call.attr("axis", -1)), call.attr("epsilon", 1e-5)
    dims = call.dims(1) if call.has(1) else None
    if axis == -1 and dims is not None and len(dims) == 1 and dims[0] not in (None, 1):
        return call.emit(F.layer_norm, x, dims, scale, bias, epsilon)
    return call.emit(layer_norm, x, scale, bias, axis, epsilon)


@lower("LayerNormalization")
def _layer_norm(call: Call) -> Result:
    x = call.tensor(0)
    y = normalised(call, x, call.optional(1), call.optional(2))
    if not (call.wants(1) or call.wants(2)):
        return y
    stats = call.emit(layer_norm_stats, x, int(call.attr("axis", -1)), call.attr("epsilon", 1e-5), torch.float32)
    import operator

    return [y, call.emit(operator.getitem, stats, 0), call.emit(operator.getitem, stats, 1)]


@traceable
def rms_norm(x: torch.Tensor, scale: torch.Tensor | None, axis: int, epsilon: float, wide: bool = True) -> torch.Tensor:
    """Divide by the root mean square over all axes from ``axis`` on, in float32 or wider."""
    dtype = x.dtype
    if wide and dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    axes = list(range(axis % x.ndim, x.ndim))
    y = x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon)
    y = y.to(dtype)
    return y if scale is None else y * scale


@lower("RMSNormalization", "SimplifiedLayerNormalization")
def _rms_norm(call: Call) -> Result:
    return call.emit(rms_norm, call.tensor(0), call.optional(1), int(call.attr("axis", -1)), call.attr("epsilon", 1e-5))


@traceable
def group_norm(x: torch.Tensor, groups: int, scale: torch.Tensor, bias: torch.Tensor, epsilon: float) -> torch.Tensor:
    """Group normalisation with one scale and bias a group, as before opset 21."""
    repeat = x.shape[1] // groups
    return F.group_norm(x, groups, scale.repeat_interleave(repeat), bias.repeat_interleave(repeat), epsilon)


@lower("GroupNormalization")
def _group_norm(call: Call) -> Result:
    args = call.tensor(0), int(call.attr("num_groups")), call.tensor(1), call.tensor(2), call.attr("epsilon", 1e-5)
    return call.emit(F.group_norm if call.version >= 21 else group_norm, *args)


@traceable
def flat_softmax(x: torch.Tensor, axis: int, log: bool) -> torch.Tensor:
    """Softmax over all axes from ``axis`` on, as before opset 13."""
    axis = axis % x.ndim if x.ndim else 0
    rows = x.reshape(*x.shape[:axis], -1)
    return (F.log_softmax(rows, -1) if log else F.softmax(rows, -1)).reshape(x.shape)


@lower("Softmax", "LogSoftmax")
def _softmax(call: Call) -> Result:
    log = call.op == "LogSoftmax"
    function: Any = torch.log_softmax if log else torch.softmax
    if call.version >= 13:
        return call.emit(function, call.tensor(0), int(call.attr("axis", -1)))
    axis, rank = int(call.attr("axis", 1)), call.const_rank(0)
    if axis == -1 or (rank is not None and axis == rank - 1):
        return call.emit(function, call.tensor(0), -1)
    return call.emit(flat_softmax, call.tensor(0), axis, log)


@traceable
def hardmax(x: torch.Tensor, axis: int, flat: bool) -> torch.Tensor:
    """One at the first largest element along an axis (or all axes from it on), else zero."""
    rows = x.reshape(*x.shape[: axis % x.ndim], -1) if flat else x
    along = -1 if flat else axis
    best = rows.argmax(along, keepdim=True)
    return torch.zeros_like(rows).scatter(along, best, 1).reshape(x.shape)


@lower("Hardmax")
def _hardmax(call: Call) -> Result:
    flat = call.version < 13
    return call.emit(hardmax, call.tensor(0), int(call.attr("axis", 1 if flat else -1)), flat)


@traceable
def lp_normalize(x: torch.Tensor, p: int, axis: int) -> torch.Tensor:
    """Divide by the L1 or L2 norm along an axis; what is all zeros stays so."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / torch.where(norm == 0, torch.ones_like(norm), norm)


@lower("LpNormalization")
def _lp_normalization(call: Call) -> Result:
    return call.emit(lp_normalize, call.tensor(0), int(call.attr("p", 2)), int(call.attr("axis", -1)))


@traceable
def local_response_norm(x: torch.Tensor, size: int, alpha: float, beta: float, bias: float) -> torch.Tensor:
    """Divide by a power of the energy of neighbouring channels."""
    squares = F.pad(x.square().movedim(1, -1), ((size - 1) // 2, size - 1 - (size - 1) // 2))
    energy = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1)
    return x / torch.pow(bias + alpha / size * energy, beta)


@lower("LRN")
def _lrn(call: Call) -> Result:
    return call.emit(
        local_response_norm, call.tensor(0), int(call.attr("size")), call.attr("alpha", 1e-4), call.attr("beta", 0.75),
        call.attr("bias", 1.0),
    )  # fmt: skip


@traceable
def mean_variance_norm(x: torch.Tensor, axes: tuple[int, ...]) -> torch.Tensor:
    """Take the mean away and divide by the deviation."""
    centred = x - x.mean(axes, keepdim=True)
    return centred / (torch.sqrt(centred.square().mean(axes, keepdim=True)) + 1e-9)


@lower("MeanVarianceNormalization")
def _mean_variance(call: Call) -> Result:
    return call.emit(mean_variance_norm, call.tensor(0), call.attr("axes", (0, 2, 3)))
