"""The masked original: the source model with the removed slices zeroed, against which a cut is proved.

Zeroed are the slices of weights of linear ops, of their biases, of normalisation scales and biases, and of
constants that are added or multiplied on the way. A node that looks across a cut axis in a way that zeros
would show (a softmax over channels, a LayerNorm) works on the kept indices alone: they are gathered before
it and spread out again, with zeros between, behind it. Everything else is the source as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.coupler import Operand, subgraphs
from graphprune.cut import Rewriter, set_weight
from graphprune.frontends.mapped import release_all
from graphprune.ops.masking import zero_point
from graphprune.ops.movement import transposition

#: Axes with the indices that stay.
Kept = list[tuple[int, NDArray[np.int64]]]
#: Roles whose removed slices are zeroed.
MASKED_ROLES = frozenset({"weight", "bias", "scale", "shift", "gain", "table"})


def masked_original(rewriter: Rewriter) -> ir.Model:
    """Build the masked original of a rewrite that has been run.

    Parameters
    ----------
    rewriter
        Holds the source, the decision, and the cut model whose nodes' attributes are needed where a node
        looks across a cut axis.

    Returns
    -------
    ir.Model
        A new model with the same inputs and outputs as the source.
    """
    return _Masker(rewriter).model


def zeroed(array: NDArray[Any], kept: Kept) -> NDArray[Any]:
    """A copy with zeros at all but the kept indices.

    Works on the bits, with an AND of all ones or none: the same for every element type, infinities and NaNs included,
    and at the speed of a copy.
    """
    if array.itemsize > 8:
        return filled(array, kept, np.zeros(1, array.dtype))
    bits = np.dtype(f"u{array.itemsize}")
    out = np.empty(array.shape, array.dtype)
    rows = len(array) if array.ndim else 1
    source, target = (np.ascontiguousarray(a).view(bits).reshape(rows, -1) for a in (array, out))
    columns = np.full(array.shape[1:], ~bits.type(0))
    dead = np.zeros(rows, np.bool_)
    for axis, indices in kept:
        gone = np.ones(array.shape[axis], np.bool_)
        gone[indices] = False
        if axis:
            columns[(slice(None),) * (axis - 1) + (gone,)] = 0
        else:
            dead = gone
    np.bitwise_and(source, columns.reshape(1, -1), out=target)
    target[dead] = 0
    return out


def filled(array: NDArray[Any], kept: Kept, fill: NDArray[Any]) -> NDArray[Any]:
    """A copy with ``fill``, which broadcasts against it, at all but the kept indices."""
    out = np.array(array)
    for axis, indices in kept:
        gone = np.ones(array.shape[axis], np.bool_)
        gone[indices] = False
        where: tuple[Any, ...] = (slice(None),) * axis + (gone,)
        out[where] = np.broadcast_to(fill, out.shape)[where]
    return out


class _Masker:
    def __init__(self, rewriter: Rewriter) -> None:
        self.rewriter = rewriter
        self.model = rewriter.source.clone()
        self.nodes: dict[ir.Node, ir.Node] = {}
        self.cut_nodes: dict[ir.Node, ir.Node] = {}
        self._count = 0
        _pair_nodes(rewriter.source.graph, self.model.graph, self.nodes)
        self.cut_nodes = dict(rewriter.new_nodes.items())
        across = {item.node for item in rewriter.coupling.coupler.across}
        for operand in {(o.node, o.index): o for o in rewriter.coupling.coupler.operands}.values():
            if operand.role in MASKED_ROLES and operand.node in self.nodes and rewriter.is_cut(operand.value):
                self._mask(operand)
        for node in across:
            if node in self.nodes and self._cut_input(node):
                self._wrap(node)

    def _cut_input(self, node: ir.Node) -> bool:
        return any(value is not None and self.rewriter.is_cut(value) for value in node.inputs)

    def _kept(self, value: ir.Value) -> Kept:
        axes = self.rewriter.coupling.coupler.axes.get(value) or ()
        found = ((axis, self.rewriter.kept(value, axis)) for axis in range(len(axes)))
        return [(axis, kept) for axis, kept in found if kept is not None]

    def _mask(self, operand: Operand) -> None:
        """Zero the removed slices of one operand: in its contents, or behind the nodes that compute it."""
        node = self.nodes[operand.node]
        value = operand.value
        shape = self.rewriter.old_facts.shape(value) or ()
        kept = self._kept(value)
        if value.const_value is not None:
            tensor, fill = value.const_value, zero_point(operand, self.rewriter.old_facts)

            def masked() -> ir.TensorProtocol:
                array = zeroed(tensor.numpy(), kept) if fill is None else filled(tensor.numpy(), kept, fill)
                release_all()
                return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)

            lazy = ir.LazyTensor(masked, dtype=tensor.dtype, shape=ir.Shape(shape), name=value.name)
            node.replace_input_with(operand.index, self._constant(node, lazy))
            return
        if self._mask_turned(node, operand.index, value, kept):
            return
        dtype = self.rewriter.old_facts.dtype(value)
        current = node.inputs[operand.index]
        for axis, indices in kept:
            mask = np.zeros(shape[axis], np.float32)
            mask[indices] = 1
            mask = mask.reshape([-1 if a == axis else 1 for a in range(len(shape))])
            array = mask.astype((dtype or ir.DataType.FLOAT).numpy())
            current = self._before(node, "Mul", [current, self._constant(node, ir.Tensor(array))])
        assert current is not None
        node.replace_input_with(operand.index, current)

    def _mask_turned(self, node: ir.Node, index: int, value: ir.Value, kept: Kept) -> bool:
        """Mask a turned weight where it lies, before it is turned: one pass over it instead of one an axis."""
        turn = value.producer()
        order = None if turn is None else transposition(turn)
        if turn is None or order is None or (weight := turn.inputs[0]) is None or weight.const_value is None:
            return False
        tensor = weight.const_value
        order = order or tuple(range(len(tensor.shape)))[::-1]
        before = [(order[axis], indices) for axis, indices in kept]

        def masked() -> ir.TensorProtocol:
            array = zeroed(tensor.numpy(), before)
            release_all()
            return ir.Tensor(array, dtype=tensor.dtype, name=tensor.name)

        lazy = ir.LazyTensor(masked, dtype=tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=weight.name)
        turned = self._before(node, "Transpose", [self._constant(node, lazy)], {"perm": list(order)})
        node.replace_input_with(index, turned)
        return True

    def _wrap(self, old: ir.Node) -> None:
        """Let a node that looks across a cut axis see the kept indices only."""
        node, cut = self.nodes[old], self.cut_nodes[old]
        for i, value in enumerate(old.inputs):
            current = node.inputs[i]
            for axis, indices in [] if value is None else self._kept(value):
                where = self._constant(node, ir.Tensor(indices))
                current = self._before(node, "Gather", [current, where], {"axis": axis})
            if current is not node.inputs[i]:
                node.replace_input_with(i, current)
        node.attributes.clear()
        for attribute in cut.attributes.values():
            node.attributes.add(attribute)
        for j, value in enumerate(old.outputs):
            kept = self._kept(value)
            if kept:
                self._spread(node, j, value, kept)

    def _spread(self, node: ir.Node, j: int, value: ir.Value, kept: Kept) -> None:
        """Put zeros back where indices were removed from output ``j``."""
        shape = self.rewriter.old_facts.shape(value) or ()
        dtype = (self.rewriter.old_facts.dtype(value) or ir.DataType.FLOAT).numpy()
        out = node.outputs[j]
        uses = list(out.uses())
        name, current, last = out.name, out, node
        out.name = self._name(f"{name}_kept")
        for axis, indices in kept:
            where = np.zeros(shape[axis], np.int64)
            where[indices] = np.arange(len(indices))
            mask = np.zeros(shape[axis], np.bool_)
            mask[indices] = True
            mask = mask.reshape([-1 if a == axis else 1 for a in range(len(shape))])
            steps: list[tuple[str, list[np.ndarray], dict[str, Any]]] = [("Gather", [where], {"axis": axis})]
            if dtype.itemsize == 1:
                # Bytes have no product. Where they are quantised, their rule says that these are not its zero.
                steps.append(("Where", [~mask, np.zeros((), dtype)], {}))
            else:
                steps.append(("Mul", [mask.astype(dtype)], {}))
            for op_type, constants, attributes in steps:
                values = [self._constant(node, ir.Tensor(constant)) for constant in constants]
                new = ir.node(op_type, [*values, current] if op_type == "Where" else [current, *values], attributes)
                new.outputs[0].name = self._name(f"{name}_spread")
                last.append(new)
                last, current = new, new.outputs[0]
        out.shape = None
        current.name = name
        for user, index in uses:
            user.replace_input_with(index, current)
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        for position, result in enumerate(graph.outputs):
            if result is out:
                current.type, current.shape = out.type, None
                graph.outputs[position] = current

    def _before(self, node: ir.Node, op_type: str, inputs: list[ir.Value | None], attributes: dict[str, Any] | None = None
                ) -> ir.Value:  # fmt: skip
        new = ir.node(op_type, inputs, attributes=attributes or {})
        new.outputs[0].name = self._name(f"{node.outputs[0].name}_{op_type}")
        node.prepend(new)
        return new.outputs[0]

    def _constant(self, node: ir.Node, tensor: ir.TensorProtocol) -> ir.Value:
        value = ir.Value(name=self._name("masked"))
        set_weight(value, tensor)
        graph = node.graph
        assert isinstance(graph, ir.Graph)
        graph.register_initializer(value)
        return value

    def _name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}__mask{self._count}"


def _pair_nodes(old: ir.Graph, new: ir.Graph, pairs: dict[ir.Node, ir.Node]) -> None:
    for a, b in zip(old, new, strict=True):
        pairs[a] = b
        for p, q in zip(subgraphs(a), subgraphs(b), strict=True):
            _pair_nodes(p, q, pairs)
