"""An ONNX graph as a trainable ``torch.fx.GraphModule``, and its weights back into the ONNX graph.

Needs torch (``pip install "graphprune[torch]"``), which is imported with this module; nothing else of graphprune
imports it until it is asked to.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx_ir as ir
from torch import fx, nn

from graphprune.backends import torch_ops
from graphprune.backends.torch_build import Builder, Shared, Val
from graphprune.backends.torch_fuse import fuse
from graphprune.backends.torch_ops.dtypes import TORCH, to_numpy
from graphprune.backends.torch_state import State
from graphprune.errors import ModelError, UsageError
from graphprune.frontends.onnx import load, plan_name

__all__ = ["to_module", "update_model"]


def to_module(model: ir.Model, *, copy: bool = True, trainable: Collection[str] | None = None) -> fx.GraphModule:
    """Build a torch module that computes what an ONNX model computes.

    Parameters
    ----------
    model : onnx_ir.Model
        As loaded by graphprune: constants are initializers. It is not changed.
    copy : bool
        Whether weights are copied. Without, they share memory with the model, and training writes into it; what is
        mapped from a file cannot be written, and its parameters require no gradient.
    trainable : names, optional
        Initializers that become parameters, all others being buffers. Left out, a model that came from torch says
        itself what its parameters are, and elsewhere floating-point weights are (see `torch_state.is_trained`).

    Returns
    -------
    torch.fx.GraphModule
        In eval mode. ``forward`` takes the graph's inputs, in order or by name, and returns the outputs: a tensor
        for one, else a tuple. ``meta["names"]`` maps source names of initializers to attribute paths,
        ``meta["inputs"]`` and ``meta["outputs"]`` list the source names of inputs and outputs.

    Raises
    ------
    ModelError
        For an operator, an attribute or an element type that has no meaning in torch; nothing is built.
    """
    if len(model.functions):
        model = load(model).model
    assert torch_ops is not None
    root = nn.Module()
    state = State(root, copy=copy, trainable=trainable)
    builder = Builder(Shared(state, dict(model.graph.opset_imports)), root)
    inputs: dict[str, str] = {}
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        node = builder.placeholder(value.name or "x")
        node.meta["tensor"] = value.dtype in TORCH
        builder.values[value] = Val(node, name=value.name or "")
        inputs[value.name or ""] = str(node.target)
    builder.run(model.graph)
    outputs = tuple(builder.tensor(value) for value in model.graph.outputs)
    builder.graph.output(outputs[0] if len(outputs) == 1 else outputs)
    fuse(builder.graph)
    builder.prune()
    module = fx.GraphModule(root, builder.graph)
    kept = {*dict(module.named_parameters()), *dict(module.named_buffers())}
    module.meta["names"] = {name: path for name, path in state.names.items() if path in kept}
    module.meta["inputs"] = inputs
    module.meta["outputs"] = [value.name or "" for value in model.graph.outputs]
    return module.eval()


def update_model(model: ir.Model, module: nn.Module) -> None:
    """Write the weights of a module made by `to_module` back into the model's initializers.

    Parameters
    ----------
    model : onnx_ir.Model
        The model the module was made from, or one with the same initializers; changed in place, its tensors are
        replaced and never written into.
    module : torch.nn.Module
        The module, trained or not, also behind ``torch.compile`` or a data-parallel wrapper.

    Raises
    ------
    UsageError
        When the module does not come from `to_module`.
    ModelError
        When an initializer is missing in the model, or has another shape.
    """
    while not isinstance(module.__dict__.get("meta"), dict) or "names" not in module.__dict__["meta"]:
        inner = module._modules.get("_orig_mod") or module._modules.get("module")
        if inner is None:
            raise UsageError("update_model takes a module that graphprune.backends.torch.to_module made")
        module = inner
    names: dict[str, str] = module.__dict__["meta"]["names"]
    tensors: dict[str, Any] = {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }
    values = {plan_name(value): value for graph in model.graphs() for value in graph.initializers.values()}
    for name, path in names.items():
        value = values.get(name)
        if value is None or value.const_value is None:
            raise ModelError(f"the model has no initializer '{name}': give the model the module was made from")
        array, const = to_numpy(tensors[path]), value.const_value
        if tuple(array.shape) != const.shape.numpy():
            raise ModelError(
                f"the initializer '{name}' has the shape {list(const.shape.numpy())} in the model and "
                f"{list(array.shape)} in the module: give the model the module was made from"
            )
        if const.dtype not in TORCH:
            continue  # a packed type: never trained
        array = array.astype(const.dtype.numpy(), copy=False)
        value.const_value = ir.Tensor(array.copy(), dtype=const.dtype, name=const.name)
