"""Torch modules as sources: names, ties, inputs and outputs of every kind, each cut proved against plain torch code."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime as ort
import pytest

import graphprune as gp
from graphprune.backends.onnx import to_bytes

torch = pytest.importorskip("torch")  # the core is installed without it as well
nn = torch.nn

from torch.nn.utils import parametrize  # noqa: E402

from tests.torch_nets import NETS  # noqa: E402


def plain(module):
    """The module with weights of its own where they were computed from others, and the weights' former names."""
    former = {}
    for path, one in list(module.named_modules()):
        path = f"{path}." if path else ""
        if hasattr(one, "weight_v"):
            nn.utils.remove_weight_norm(one)
            former[f"{path}weight_v"] = f"{path}weight"
        if parametrize.is_parametrized(one):
            last = "original1" if hasattr(one.parametrizations.weight, "original1") else "original"
            parametrize.remove_parametrizations(one, "weight", leave_parametrized=True)
            former[f"{path}parametrizations.weight.{last}"] = f"{path}weight"
    return former


def masked(name, plan):
    """The module whose removed slices are zero, by the plan's names; what scales a whole row leaves with the row."""
    module = build(name)[0].eval()
    former = plain(module)
    held = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    with torch.no_grad():
        for key, entry in plan.tensors.items():
            if key.endswith(("weight_g", "original0")):
                continue
            tensor = held[former.get(key, key)]
            assert list(tensor.shape) == entry["shape"]
            for axis, kept in entry["kept"].items():
                gone = np.setdiff1d(np.arange(tensor.shape[int(axis)]), kept)
                tensor.index_fill_(int(axis), torch.from_numpy(gone), 0)
    return module


def build(name):
    torch.manual_seed(3)
    return NETS[name]()


def tensors_of(value):
    """Tensors that a module gave, in order, those in plain objects left out."""
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    return [inner for item in value for inner in tensors_of(item)] if isinstance(value, (list, tuple)) else []


def worst(module, source, model):
    """Largest difference of the outputs of a module and of a graph, relative to each output's maximum."""
    session = ort.InferenceSession(to_bytes(model), providers=["CPUExecutionProvider"])
    found = session.run(None, dict(source.feed))
    with torch.no_grad():
        expected = tensors_of(module(*source.args, **source.kwargs))
    assert len(found) == len(expected)
    errors = [0.0]
    for a, b in zip(expected, found, strict=True):
        assert tuple(a.shape) == b.shape
        errors.append(float(np.abs(a.numpy() - b).max() / max(np.abs(a.numpy()).max(), 1e-12)))
    return max(errors)


#: Modules that torch cannot copy: the given one is cut.
NO_COPY = {"weight_norm_old"}


@pytest.mark.parametrize("name", sorted(NETS))
def test_cut_equals_masked_module(name):
    module, example = build(name)
    module.train()
    reference = {key: value.clone() for key, value in module.state_dict().items()}
    result = gp.prune(module, example, rate=0.4, scope="group", exact=True, inplace=name in NO_COPY)
    source = result.state.loaded.torch
    assert result.plan.tensors and result.plan.verify["passed"]
    known = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    assert set(result.plan.tensors) <= set(known)
    for names in source.aliases.values():
        entries = [result.plan.tensors.get(one) for one in names]
        assert all(entry == entries[0] for entry in entries)
    assert worst(masked(name, result.plan), source, result.ir) < 1e-5
    assert name in NO_COPY or all(torch.equal(value, reference[key]) for key, value in module.state_dict().items())
