"""Build a ``torch.fx`` graph from an ONNX graph, node by node.

A `Builder` holds what is known of every value: its node in the fx graph, the constant it is, or the integers it is
(`graphprune.backends.torch_ops.host`). A `Call` is what a lowering in `graphprune.backends.torch_ops` sees of one node.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import fx, nn

from graphprune.backends.torch_call import Call, label, output_rank, output_type, unknown
from graphprune.backends.torch_ops import host as hosts
from graphprune.backends.torch_ops.dtypes import TORCH, from_numpy, readable
from graphprune.backends.torch_ops.registry import LOWERINGS
from graphprune.backends.torch_state import State, place
from graphprune.errors import GraphPruneError, ModelError
from graphprune.frontends.torch_source import TRACE
from graphprune.ops.evaluate import evaluate
from graphprune.ops.traits import grows, reads_sizes

Array = npt.NDArray[Any]

_FOLD_INPUT, _FOLD_OUTPUT = 1 << 20, 1 << 22
_HOST_LENGTH = 4096
_HOST_TYPES = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.bool_))
_STACK = "pkg.torch.onnx.stack_trace"
# Constants stay what the file holds where they are weights in disguise, or differ from run to run.
_NEVER_FOLDED = frozenset({"DequantizeLinear", "QuantizeLinear", "DynamicQuantizeLinear", "If", "Loop", "Scan"})


@dataclass
class Val:
    """What is known of one ONNX value: at least one of ``node``, ``host`` and ``array``."""

    node: Any = None
    host: fx.Node | None = None
    array: Array | None = None
    source: ir.Value | None = None
    rank: int = 0
    length: int | None = None
    dtype: torch.dtype = torch.int64
    kind: torch.dtype | None = None
    axes: int | None = None
    name: str = ""


@dataclass
class Shared:
    """What the builders of a graph and of its bodies have in common."""

    state: State
    opsets: Mapping[str, int]


@dataclass
class Builder:
    """One graph under construction.

    Attributes
    ----------
    shared
        State and opsets, one for the whole model.
    root
        The module that owns submodules of this graph: control flow, normalisation in train mode.
    graph
        The fx graph.
    """

    shared: Shared
    root: nn.Module
    graph: fx.Graph = field(default_factory=fx.Graph)
    outer: Builder | None = None
    values: dict[ir.Value, Val] = field(default_factory=dict)
    captured: list[ir.Value] = field(default_factory=list)
    placeholders: dict[str, fx.Node] = field(default_factory=dict)
    anchor: fx.Node | None = None
    modules: int = 0
    current: ir.Node | None = None

    # -- values

    def val(self, value: ir.Value) -> Val:
        """Return what is known of a value; initializers are looked up when they are first needed."""
        found = self.values.get(value)
        if found is None:
            if self.outer is not None:
                found = self._capture(value)
            elif value.const_value is None:
                raise ModelError(f"the value '{value.name}' is used before it is computed: sort the nodes of the model")
            elif self.shared.state.trained(value):
                found = Val(self.get_attr(self.shared.state.attribute(value)), name=value.name or "")
            else:
                array = readable(value)
                found = Val(array=array, rank=array.ndim, source=value, name=value.name or "")
            self.values[value] = found
        return found

    def _capture(self, value: ir.Value) -> Val:
        """Take a value of the graph around a body as a further input; constants are taken over as they are."""
        assert self.outer is not None
        outside = self.outer.val(value)
        if outside.array is not None:
            return Val(array=outside.array, rank=outside.rank, source=None, name=outside.name)
        self.captured.append(value)
        node = self.placeholder(outside.name or "outer")
        if outside.host is not None and outside.node is None:
            return Val(host=node, rank=outside.rank, length=outside.length, dtype=outside.dtype, name=outside.name)
        node.meta["tensor"] = True
        return Val(node, name=outside.name)

    def placeholder(self, name: str) -> fx.Node:
        """Add an input after those that are there."""
        clean = re.sub(r"\W", "_", name) or "x"
        if not clean.isidentifier() or keyword.iskeyword(clean) or clean in ("self", "forward"):
            clean = f"x_{clean}"
        base, count = clean, 1
        while clean in self.placeholders:
            clean, count = f"{base}_{count}", count + 1
        after = [node for node in self.graph.nodes if node.op == "placeholder"]
        first = next(iter(self.graph.nodes), None)
        if after:
            with self.graph.inserting_after(after[-1]):
                node = self.graph.placeholder(clean)
        elif first is not None:
            with self.graph.inserting_before(first):
                node = self.graph.placeholder(clean)
        else:
            node = self.graph.placeholder(clean)
        self.placeholders[clean] = node
        return node

    def get_attr(self, target: str) -> fx.Node:
        """Return the node that reads a parameter or buffer of the module."""
        return self.graph.create_node("get_attr", target)

    def tensor(self, value: ir.Value) -> Any:
        """Return the fx node of a value as a tensor."""
        found = self.val(value)
        if found.node is None:
            if found.host is not None:
                found.node = self.emit(hosts.to_tensor, found.host, found.dtype, self.device())
            elif found.source is not None and self.outer is None:
                found.node = self.get_attr(self.shared.state.attribute(found.source))
            else:
                assert found.array is not None
                state = self.shared.state if self.outer is None else State(self.root, copy=True, trainable=())
                path = state.free(found.name or "constant")
                place(self.root, path, from_numpy(found.array, copy=True))
                found.node = self.get_attr(path)
        return found.node

    def device(self) -> fx.Node | None:
        """Return a tensor node that tells the device to make new tensors on."""
        if self.anchor is None:
            for node in self.graph.nodes:
                if node.op == "get_attr" or (node.op == "placeholder" and node.meta.get("tensor")):
                    self.anchor = node
                    break
        return self.anchor

    def hostable(self, value: ir.Value | None) -> bool:
        """Whether a value is integers on the host, or a constant that can be."""
        if value is None:
            return True
        found = self.val(value)
        return found.host is not None or _is_host(found.array)

    # -- nodes

    def emit(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """Append a call of a function."""
        node = self.graph.call_function(function, args, kwargs)
        self.describe(node)
        return node

    def emit_module(self, module: nn.Module, name: str, *args: Any) -> fx.Node:
        """Append a call of a submodule, which is added under a name of its own."""
        path = f"{name}_{self.modules}"
        while hasattr(self.root, path):
            path += "_"
        self.modules += 1
        self.root.add_module(path, module)
        node = self.graph.call_module(path, args)
        self.describe(node)
        return node

    def describe(self, node: fx.Node) -> None:
        """Note on an fx node which ONNX node, and which line of the user's code, it comes from."""
        if self.current is not None:
            node.meta["onnx"] = self.current.name or self.current.op_type
            trace = self.current.meta.get(TRACE) or self.current.metadata_props.get(_STACK)
            if trace:
                node.stack_trace = str(trace)

    def prune(self) -> None:
        """Drop what nobody uses."""
        for node in reversed(self.graph.nodes):
            if not node.users and node.op not in ("placeholder", "output"):
                self.graph.erase_node(node)

    # -- ONNX nodes

    def run(self, graph: ir.Graph) -> None:
        """Lower all nodes of a graph."""
        for node in graph:
            self.current = node
            self.lower(node)
        self.current = None

    def lower(self, node: ir.Node) -> None:
        """Lower one node."""
        if self.fold(node):
            return
        call = Call(self, node)
        if self.on_host(call):
            return
        lowering = LOWERINGS.get(call.op)
        if lowering is None:
            raise unknown(node)
        try:
            result = lowering(call)
        except GraphPruneError:
            raise
        except (IndexError, KeyError, TypeError, ValueError, AssertionError, NotImplementedError) as error:
            raise ModelError(f"{label(node)} cannot become torch: {error or type(error).__name__}") from error
        outputs = [result] if not isinstance(result, (list, tuple)) else list(result)
        for index, (value, made) in enumerate(zip(node.outputs, outputs, strict=False)):
            if isinstance(made, Val):
                self.values[value] = made
            elif made is not None:
                self.values[value] = Val(
                    made, name=value.name or "", kind=output_type(call, index), axes=output_rank(call, index)
                )
                if isinstance(made, fx.Node) and value.shape is not None:
                    made.meta.setdefault("rank", len(value.shape))

    def fold(self, node: ir.Node) -> bool:
        """Compute a node of constants now; whether that was possible."""
        if node.op_type in _NEVER_FOLDED or (not node.inputs and node.op_type != "Constant"):
            return False
        arrays: list[Array | None] = []
        for value in node.inputs:
            array = None if value is None else self.val(value).array
            if value is not None and array is None:
                return False
            arrays.append(array)
        if sum(a.size for a in arrays if a is not None) > _FOLD_INPUT:
            return False
        growing, index = grows(node)
        target = None if index is None else arrays[index]
        if target is not None and float(np.prod(target.astype(np.float64))) > _FOLD_OUTPUT:
            return False
        if growing and target is None and not _small(arrays):
            return False
        return self._set(node, evaluate(node, arrays, self.shared.opsets))

    def _set(self, node: ir.Node, results: Sequence[Array | None] | None) -> bool:
        if results is None or any(not isinstance(r, np.ndarray) or r.size > _FOLD_OUTPUT for r in results):
            return False
        for value, array in zip(node.outputs, results, strict=False):
            assert array is not None
            if array.dtype.kind in "OUST":
                return False
            if value.dtype is not None and value.dtype in TORCH:
                array = array.astype(value.dtype.numpy(), copy=False)
            self.values[value] = Val(array=array, rank=array.ndim, name=value.name or "")
        return True

    def on_host(self, call: Call) -> bool:
        """Lower a node to arithmetic on Python integers; whether that was possible."""
        node = call.node
        sized = reads_sizes(node)
        if node.domain or not (sized or all(self.hostable(v) for v in node.inputs)):
            return False
        if sized:
            answer = self._sizes(call)
        else:
            if node.op_type == "Split":
                return self._split_host(call)
            rule = hosts.HOST.get(node.op_type)
            if rule is None or not any(v is not None and self.val(v).host is not None for v in node.inputs):
                return False
            answer = rule(call)
        if answer is None:
            return False
        function, args, rank = answer[:3]
        length = answer[3] if len(answer) > 3 else None
        dtype = call.host_dtype()
        made = self.emit(function, *args)
        self.values[node.outputs[0]] = Val(
            host=made, rank=rank, length=length, dtype=dtype, name=node.outputs[0].name or ""
        )
        return True

    def _sizes(self, call: Call) -> tuple[Any, ...] | None:
        source = call.node.inputs[0]
        assert source is not None
        start, end = call.attr("start", 0), call.attr("end", None)
        found = self.val(source)
        if found.host is not None and call.node.op_type == "Size":
            return hosts.size_of_host, (found.host,), 0
        if found.host is not None:
            return hosts.shape_of_host, (found.host, int(start), end), 1, len(range(found.rank)[start:end])
        x = self.tensor(source)
        if call.node.op_type == "Size":
            return hosts.size, (x,), 0
        rank = None if source.shape is None else len(source.shape)
        length = None if rank is None else len(range(rank)[start:end])
        return hosts.shape, (x, int(start), None if end is None else int(end)), 1, length

    def _split_host(self, call: Call) -> bool:
        first = call.node.inputs[0]
        sizes = call.const_ints(1, "split")
        if first is None or sizes is None or self.val(first).host is None or self.val(first).rank != 1:
            return False
        pieces = self.emit(hosts.split, self.val(first).host, sizes)
        for index, (value, length) in enumerate(zip(call.node.outputs, sizes, strict=True)):
            piece = self.emit(_getitem, pieces, index)
            self.values[value] = Val(
                host=piece, rank=1, length=length, dtype=self.val(first).dtype, name=value.name or ""
            )
        return True


def _small(arrays: Sequence[Array | None]) -> bool:
    bound = 1.0
    for array in arrays[:3]:
        if array is not None and array.size:
            numbers = np.abs(array.astype(np.float64))
            bound *= max(float(np.prod(np.maximum(numbers, 1))), 1.0) if array.size <= 16 else array.size
    return bound <= _FOLD_OUTPUT


def _is_host(array: Array | None) -> bool:
    return array is not None and array.dtype in _HOST_TYPES and array.ndim <= 1 and array.size <= _HOST_LENGTH


def _getitem(sequence: Any, index: int) -> Any:
    return sequence[index]


def build_body(outer: Builder, graph: ir.Graph) -> tuple[fx.GraphModule, list[Any]]:
    """Build the body of a control-flow node; return its module and the outer nodes that it takes as further inputs."""
    body = Builder(outer.shared, nn.Module(), outer=outer)
    for value in graph.inputs:
        node = body.placeholder(value.name or "x")
        node.meta["tensor"] = True
        body.values[value] = Val(node, name=value.name or "")
    body.run(graph)
    body.graph.output(tuple(body.tensor(value) for value in graph.outputs))
    body.prune()
    extra = []
    for value in body.captured:
        found = outer.val(value)
        extra.append(found.host if found.node is None and found.host is not None else outer.tensor(value))
    return fx.GraphModule(body.root, body.graph), extra
