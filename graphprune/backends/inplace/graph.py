"""The cut graph as a torch module that is called as the user's own was: where that could not be cut in place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from graphprune.backends.torch import to_module
from graphprune.backends.torch_state import is_trained
from graphprune.frontends.onnx import plan_name
from graphprune.frontends.torch_inputs import Flat, Slot, Tree, flatten, outputs_of, take_tree
from graphprune.plan import DERIVED

_DEPTH = 8


class CutGraph(nn.Module):
    """A graph with the arguments, the results and the parameter names of the module that it was made from.

    Attributes
    ----------
    graph_module : torch.fx.GraphModule
        What computes. Its parameters are this module's own.
    reason
        Why the module's own code could not be kept.
    """

    def __init__(
        self, graph: torch.fx.GraphModule, signature: inspect.Signature | None, flat: Flat, results: Any, reason: str
    ) -> None:
        super().__init__()
        self.reason = reason
        self._signature, self._names, self._results = signature, flat.names, results
        self.__dict__["_held"] = (graph,)
        # The same dicts: parameters keep their names, and what is moved or replaced here is so in the graph.
        self._parameters, self._buffers, self._modules = graph._parameters, graph._buffers, graph._modules
        self._non_persistent_buffers_set = graph._non_persistent_buffers_set

    @property
    def graph_module(self) -> torch.fx.GraphModule:
        graph: torch.fx.GraphModule = self.__dict__["_held"][0]
        return graph

    def train(self, mode: bool = True) -> CutGraph:
        """Set training mode, here and in the graph."""
        super().train(mode)
        self.graph_module.train(mode)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the source's ``forward``."""
        given = flatten(_Signed(self._signature), args, kwargs)
        tensors = dict(zip(given.names, given.tensors, strict=True))
        missing, more = set(self._names) - set(tensors), set(tensors) - set(self._names)
        if missing or more:
            raise TypeError(
                "this graph was made for a call with the tensors "
                f"{', '.join(self._names)}; {'missing: ' + ', '.join(sorted(missing)) if missing else ''}"
                f"{' not known: ' + ', '.join(sorted(more)) if more else ''}"
            )
        found = self.graph_module(*(tensors[name] for name in self._names))
        found = tuple(found) if isinstance(found, (tuple, list)) else (found,)
        return fill(self._results, found)

    def extra_repr(self) -> str:
        return f"graph in place of the module's own code: {self.reason}"


class _Signed:
    """Something with the signature of the source's ``forward``."""

    def __init__(self, signature: inspect.Signature | None) -> None:
        def forward() -> None: ...

        if signature is not None:
            forward.__signature__ = signature  # type: ignore[attr-defined]
        self.forward = forward


def graph_module(
    cut: ir.Model, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, reason: str
) -> CutGraph:
    """Make a cut graph callable as a module.

    Parameters
    ----------
    module
        The source, whose ``forward`` says how it is called; it is not kept.
    result
        What the source gives for its example call: its structure becomes the graph's.
    """
    flat = flatten(module, args, kwargs)
    given = outputs_of(result).tensors
    count = len(cut.graph.outputs)
    results = template(result, given[:count])
    signature = inspect.signature(module.forward)
    graph = to_module(cut, trainable=trained_in(cut, module))
    made = dict(graph.named_parameters(remove_duplicate=False))
    for name, source in module.named_parameters(remove_duplicate=False):
        parameter = made.get(graph.meta["names"].get(name, ""))
        if parameter is not None:
            parameter.requires_grad_(source.requires_grad)
    out = CutGraph(graph, signature, flat, results, reason)
    out.train(module.training)
    return out


def trained_in(cut: ir.Model, module: nn.Module) -> set[str]:
    """Names of initializers that become parameters: what is none in the module becomes none, saved with it or not."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    buffers = {name for name, _ in module.named_buffers(remove_duplicate=False)}
    named = {plan_name(value): value for value in cut.graph.initializers.values()}
    buffers.update(name for name, value in named.items() if DERIVED in value.meta)  # such as norms that weights are divided by
    return {n for n, value in named.items() if n in parameters or (n not in buffers and is_trained(value))}


def template(value: Any, tensors: Sequence[torch.Tensor], depth: int = 0) -> Any:
    """A result with a `Slot` for each tensor that the graph gives; tensors that it does not give become None."""
    if isinstance(value, torch.Tensor):
        return next((Slot(i) for i, tensor in enumerate(tensors) if tensor is value), None)
    tree = take_tree(value) if depth < _DEPTH else None
    if tree is None:
        return value
    items = [template(item, tensors, depth + 1) for item in tree.items]
    if all(a is b for a, b in zip(items, tree.items, strict=True)):
        return value
    if not any(isinstance(item, (Slot, Tree)) for item in items) and not _is_plain(value):
        return None
    return Tree(tree.make, tree.keys, tuple(items))


def _is_plain(value: Any) -> bool:
    return isinstance(value, (tuple, list, Mapping))


def fill(results: Any, tensors: Sequence[torch.Tensor]) -> Any:
    """A result with the graph's tensors in it."""
    if isinstance(results, Slot):
        return tensors[results.index]
    if isinstance(results, Tree):
        make: Callable[[list[Any]], Any] = results.make
        return make([fill(item, tensors) for item in results.items])
    return results
