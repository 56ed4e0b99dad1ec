"""Bags of embeddings without a loop.

torch's ONNX exporter writes ``nn.EmbeddingBag`` as a Loop over sequences, which the optimiser of ONNX Runtime 1.32 dies of
(a segmentation fault) and which no weight can be followed through. A sum over a bag is a product with the matrix of who
belongs to which bag.
"""

from __future__ import annotations

from typing import Any

import torch

_SUM, _MEAN = 0, 1


def without_loops(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The program with its bags of embeddings written out; itself where it has none."""
    aten = torch.ops.aten
    bags = {
        getattr(packet, overload)
        for packet in (aten.embedding_bag, aten._embedding_bag, aten._embedding_bag_forward_only)
        for overload in packet.overloads()
        if overload in ("default", "padding_idx")
    }
    if not any(node.target in bags for node in program.graph.nodes):
        return program
    return program.run_decompositions(dict.fromkeys(bags, _bags))


def _bags(
    weight: torch.Tensor,
    indices: torch.Tensor,
    offsets: torch.Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    per_sample_weights: torch.Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Any, ...]:
    """What ``aten::embedding_bag`` gives; of its other three outputs, which only gradients use, stand-ins.

    Parameters
    ----------
    weight : float[rows, width]
    indices : int[n]
    offsets : int[bags], or int[bags + 1] with ``include_last_offset``: where each bag begins.
    """
    starts = offsets[:-1] if include_last_offset else offsets
    places = torch.arange(indices.shape[0], device=indices.device)
    bag = (places.unsqueeze(0) >= starts.unsqueeze(1)).sum(0) - 1
    numbers = torch.arange(starts.shape[0], device=indices.device)
    member = bag.unsqueeze(0) == numbers.unsqueeze(1)
    if padding_idx is not None and padding_idx >= 0:
        member = member & (indices != padding_idx).unsqueeze(0)
    rows = torch.nn.functional.embedding(indices, weight)
    share = member.to(weight.dtype)
    if mode in (_SUM, _MEAN):
        found = (share if per_sample_weights is None else share * per_sample_weights.unsqueeze(0)) @ rows
        if mode == _MEAN:
            found = found / share.sum(1, keepdim=True).clamp(min=1)
    else:
        low = torch.finfo(weight.dtype).min
        found = torch.where(member.unsqueeze(-1), rows.unsqueeze(0), low).amax(1) * (member.any(1, keepdim=True))
    return found, bag, member.sum(1), starts
