"""Random but lifelike parameters: nothing is exactly 0 or 1, activations keep their scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

_EMBEDDING_STD = 0.5


def _norm_like(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


def _fan_in(weight: torch.Tensor, module: nn.Module) -> int:
    if isinstance(module, nn.modules.conv._ConvTransposeNd):
        stride = math.prod(module.stride)
        return max(1, weight.shape[0] * math.prod(weight.shape[2:]) // (module.groups * stride))
    if type(module).__name__ == "Conv1D":  # transformers' transposed linear layer: weight [in, out]
        return int(weight.shape[0])
    return math.prod(weight.shape[1:])


@torch.no_grad()
def randomise(module: nn.Module) -> None:
    """Re-draw every parameter of `module` in place.

    Weights of linear ops get the fan-in scaling that keeps activations of order one through depth; scales
    of norms lie in [0.6, 1.4]; what is left (biases, tokens, layer scales) gets noise on top of the value it
    had: some (state-space decay rates, temperatures) have a meaning that a plain normal draw would break.
    """
    seen: set[int] = set()
    for child in module.modules():
        for name, param in child.named_parameters(recurse=False):
            if id(param) in seen or not param.is_floating_point():
                continue
            seen.add(id(param))
            if isinstance(child, nn.Embedding):
                param.normal_(0.0, _EMBEDDING_STD)
            elif isinstance(child, (nn.RNNBase, nn.RNNCellBase)) or param.ndim < 2:
                _jitter(param, scale=_norm_like(child) and name == "weight")
            elif name == "weight" or name.endswith("_weight"):
                gain = 2.0 if isinstance(child, nn.modules.conv._ConvNd) else 1.0
                param.normal_(0.0, math.sqrt(gain / _fan_in(param, child)))
            else:
                _jitter(param, scale=False)
    for child in module.modules():
        stored = child.state_dict(keep_vars=True)
        for name, buffer in child.named_buffers(recurse=False):
            flat = name in stored and buffer.is_floating_point() and buffer.numel() > 1
            if flat and not _is_batch_norm(child) and bool((buffer == buffer.flatten()[0]).all()):
                _jitter(buffer, scale=False)  # statistics that training would have filled in


def _jitter(param: torch.Tensor, scale: bool) -> None:
    if scale and float(param.abs().max()) > 0:
        param.mul_(torch.empty_like(param).uniform_(0.6, 1.4)).add_(torch.randn_like(param) * 0.01)
    else:
        param.mul_(torch.empty_like(param).uniform_(0.9, 1.1)).add_(torch.randn_like(param) * 0.05)


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_mean", None), torch.Tensor)


def settle_statistics(module: nn.Module, inputs: Sequence[torch.Tensor]) -> None:
    """Set running statistics of every batch norm from one pass over `inputs`, off by some jitter.

    A deep network with made-up statistics overflows or dies out; with exact ones each channel is too regular.
    Uses forward pre-hooks in evaluation mode, so that maps of one pixel are no problem.
    """
    settled: set[int] = set()

    def hook(norm: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        if id(norm) in settled:
            return
        settled.add(id(norm))
        x = args[0].detach().float()
        rows = x.transpose(0, 1).reshape(x.shape[1], -1)
        if rows.shape[1] >= 8:
            mean, var = rows.mean(1), rows.var(1)
        else:  # too few samples a channel: the layer's own scale instead
            mean, var = rows.mean().expand(rows.shape[0]), rows.var().expand(rows.shape[0])
        var = var.clamp_min(float(var.mean()) * 0.05 + 1e-6)
        norm.running_mean.copy_(mean + 0.2 * var.sqrt() * torch.randn_like(var))  # type: ignore[union-attr, operator]
        norm.running_var.copy_(var * torch.empty_like(var).uniform_(0.7, 1.5))  # type: ignore[union-attr, operator]
        weight = norm.weight
        if isinstance(weight, torch.Tensor) and not isinstance(weight, nn.Parameter):  # frozen batch norms
            weight.uniform_(0.6, 1.4)
            norm.bias.normal_(0.0, 0.1)  # type: ignore[union-attr, operator]

    norms = [m for m in module.modules() if _is_batch_norm(m)]
    handles = [m.register_forward_pre_hook(hook) for m in norms]
    with torch.no_grad():
        module(*inputs)
    for handle in handles:
        handle.remove()
