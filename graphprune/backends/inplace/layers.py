"""Attributes of torch's own layers, which follow from the shapes of their own parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from graphprune.backends.inplace.attention import CutAttention


def follow(module: nn.Module) -> dict[str, Any]:
    """Attributes of one of torch's layers as the shapes of its parameters are now; empty for other modules.

    The number of groups of a convolution or a norm does not follow from them, and is found otherwise.
    """
    if isinstance(module, nn.RNNBase):
        first = getattr(module, "weight_ih_l0", None)
        hidden = getattr(module, "weight_hh_l0", None)
        if first is None or hidden is None:
            return {}
        gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
        out: dict[str, Any] = {"input_size": first.shape[1], "hidden_size": first.shape[0] // gates}
        if module.proj_size:
            out["proj_size"] = hidden.shape[1]
        return out
    if isinstance(module, nn.RNNCellBase):
        return {"input_size": module.weight_ih.shape[1], "hidden_size": module.weight_hh.shape[1]}
    if isinstance(module, CutAttention):
        return {name: getattr(module, name) for name in ("embed_dim", "kdim", "vdim", "num_heads", "head_dim")}
    shape = _shape(module)
    if shape is None:
        return {}
    if isinstance(module, _ConvTransposeNd):
        return {"in_channels": shape[0], "out_channels": shape[1] * module.groups}
    if isinstance(module, _ConvNd):
        return {"in_channels": shape[1] * module.groups, "out_channels": shape[0]}
    if isinstance(module, nn.Linear):
        return {"in_features": shape[1], "out_features": shape[0]}
    if isinstance(module, nn.Bilinear):
        return {"in1_features": shape[1], "in2_features": shape[2], "out_features": shape[0]}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return {"normalized_shape": tuple(shape)}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": shape[0]}
    if isinstance(module, nn.modules.batchnorm._NormBase):
        return {"num_features": shape[0]}
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return {"num_embeddings": shape[0], "embedding_dim": shape[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shape[0]}
    return {}


def _shape(module: nn.Module) -> tuple[int, ...] | None:
    """Shape of a layer's weight, also where it is computed: by a parametrization, or weight norm of the older kind."""
    for name in ("weight_v", "weight_orig", "running_mean"):
        held = module._parameters.get(name, module._buffers.get(name))
        if held is not None and module._parameters.get("weight") is None:
            return tuple(held.shape)
    try:
        weight = getattr(module, "weight", None)
    except Exception:  # a parametrization that cannot be computed yet
        return None
    return tuple(weight.shape) if isinstance(weight, torch.Tensor) else None
