"""Losses, and the few operators of classical machine learning that are arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from graphprune.backends.torch_ops.registry import Result, lower, traceable

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call


@traceable
def negative_log_likelihood(
    x: Tensor, target: Tensor, weight: Tensor | None, reduction: str, ignore: int | None
) -> Tensor:
    """Loss of log-probabilities ``[n, c, ...]`` against class numbers ``[n, ...]``."""
    skip = -100 if ignore is None else ignore
    lines = x.flatten(2) if x.ndim > 2 else x
    goal = target.to(torch.int64).flatten(1) if x.ndim > 2 else target.to(torch.int64)
    y = F.nll_loss(lines, goal, weight, reduction=reduction, ignore_index=skip)
    return y.reshape(target.shape) if reduction == "none" else y


def _ignored(call: Call) -> int | None:
    value = call.attr("ignore_index")
    return None if value is None else int(value)


@lower("NegativeLogLikelihoodLoss")
def _nll(call: Call) -> Result:
    return call.emit(
        negative_log_likelihood, call.tensor(0), call.tensor(1), call.optional(2), call.attr("reduction", "mean"),
        _ignored(call),
    )  # fmt: skip


@lower("SoftmaxCrossEntropyLoss")
def _cross_entropy(call: Call) -> Result:
    log = call.emit(torch.log_softmax, call.tensor(0), 1)
    loss = call.emit(
        negative_log_likelihood, log, call.tensor(1), call.optional(2), call.attr("reduction", "mean"), _ignored(call)
    )
    return [loss, log][: call.outputs]


@traceable
def scaled(x: Tensor, offset: tuple[float, ...], scale: tuple[float, ...]) -> Tensor:
    """Shift, then scale features; one number stands for all."""
    shift, factor = (torch.tensor(v, dtype=torch.float32, device=x.device) for v in (offset, scale))
    return (x.to(torch.float32) - shift) * factor


@lower("ai.onnx.ml::Scaler")
def _scaler(call: Call) -> Result:
    return call.emit(scaled, call.tensor(0), call.attr("offset", (0.0,)), call.attr("scale", (1.0,)))


@traceable
def binarized(x: Tensor, threshold: float) -> Tensor:
    """One above a threshold, else zero."""
    return (x > threshold).to(x.dtype)


@lower("ai.onnx.ml::Binarizer")
def _binarizer(call: Call) -> Result:
    return call.emit(binarized, call.tensor(0), call.attr("threshold", 0.0))


@traceable
def features(x: Tensor, index: Tensor) -> Tensor:
    """Take features of the last axis."""
    taken = x.index_select(-1, index.reshape(-1).to(torch.int64))
    return taken.reshape(1, -1) if x.ndim == 1 else taken


@lower("ai.onnx.ml::ArrayFeatureExtractor")
def _feature_extractor(call: Call) -> Result:
    return call.emit(features, call.tensor(0), call.tensor(1))


def mel_matrix(bins: int, size: int, rate: int, low: float, high: float) -> np.ndarray[Any, Any]:
    """Weights from linear frequency bins to mel bands, ``float64[size // 2 + 1, bins]``."""
    mel = 2595 * np.log10(1 + np.array([low, high], np.float64) / 700)
    # ONNX divides the range by the number of edges, not of the steps between them.
    edges = 700 * (10 ** ((mel[0] + np.arange(bins + 2) * (mel[1] - mel[0]) / (bins + 2)) / 2595) - 1)
    places = np.floor((size + 1) * edges / rate).astype(np.int64)
    matrix = np.zeros((size // 2 + 1, bins))
    for band in range(bins):
        start, centre, end = places[band : band + 3]
        if centre == start:
            matrix[centre, band] = 1
        else:
            matrix[start : centre + 1, band] = (np.arange(start, centre + 1) - start) / (centre - start)
        if end > centre:
            matrix[centre:end, band] = (end - np.arange(centre, end)) / (end - centre)
    return matrix


@traceable
def mel_weights(bins: int, size: int, rate: int, low: Any, high: Any, dtype: torch.dtype, like: Any) -> Tensor:
    """Weights from linear frequency bins to mel bands."""
    low, high = (float(v) for v in (low, high))
    matrix = torch.from_numpy(mel_matrix(bins, size, rate, low, high))
    return matrix.to(dtype=dtype, device=None if like is None else like.device)


@lower("MelWeightMatrix")
def _mel_weights(call: Call) -> Result:
    import onnx_ir as ir

    from graphprune.backends.torch_call import label
    from graphprune.backends.torch_ops.dtypes import torch_dtype

    dtype = torch_dtype(ir.DataType(call.attr("output_datatype", 1)), label(call.node))
    sizes = [call.int_input(i) for i in range(3)]
    return call.emit(mel_weights, *sizes, call.tensor(3), call.tensor(4), dtype, call.builder.device())
