"""Carrying a decision through a graph: weights sliced, and what ops store as numbers mended.

:class:`Rewriter` walks source and copy side by side. It knows the shape that every value must have after the
cut, runs the shrink rule of each node that a cut axis touches, and infers the node's shapes anew: whatever
does not come out as expected is an error that names the node, before anything has run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphprune import shapes
from graphprune.coupler import subgraphs
from graphprune.coupling import Coupling, node_name
from graphprune.errors import RewriteError
from graphprune.facts import Facts
from graphprune.frontends.mapped import release_all
from graphprune.ops.traits import broadcasts_ones, joins, weight_input
from graphprune.rules import OpView, Place, attribute, rule_for

Indices = NDArray[np.int64]
#: Bytes of a source's weights up to which the cut ones stay in memory between the proof and the file.
CACHED = 256 << 20


class Rewriter:
    """One rewrite: source model, analysis and decision in, smaller model out.

    Parameters
    ----------
    source
        The canonical model that was analysed; left as it is.
    coupling, facts
        Its analysis, and the shapes that was made on.
    dead
        bool[n_units], the units to remove.
    """

    def __init__(self, source: ir.Model, coupling: Coupling, facts: Facts, dead: NDArray[np.bool_]) -> None:
        self.source = source
        self.coupling = coupling
        self.old_facts = facts
        self.dead = np.append(dead, False)
        self.model = source.clone()
        self.model.meta.update(source.meta)  # which files are the source; clone() leaves it out
        self.opsets = self.model.graph.opset_imports
        self.new_of: dict[ir.Value, ir.Value] = {}
        self.new_nodes: dict[ir.Node, ir.Node] = {}
        self._kept: dict[Place, Indices | None] = {}
        self._names: set[str] = set()
        inputs = {str(v.name): facts.shape(v) for v in source.graph.inputs}
        self.declared: dict[ir.Value, ir.Shape | None] = {}
        self._pair(source.graph, self.model.graph)
        constants = coupling.constants
        self._cached = sum(value.const_value.nbytes for value in constants if value.const_value is not None) <= CACHED
        self.facts = shapes.start(self.model, {name: s for name, s in inputs.items() if s is not None})

    def kept(self, value: ir.Value | None, axis: int) -> Indices | None:
        """Kept indices of an axis of a source value, ascending; None when all are kept."""
        if value is None:
            return None
        place = (value, axis)
        if place not in self._kept:
            kept = None
            if self.coupling.has_units(value, axis):
                gone = self.dead[self.coupling.rows(value, axis)].any(axis=1)
                kept = np.flatnonzero(~gone) if gone.any() else None
            self._kept[place] = kept
        return self._kept[place]

    def expected(self, value: ir.Value) -> tuple[int, ...] | None:
        """Shape of a source value after the cut."""
        shape = self.old_facts.shape(value)
        if shape is None:
            return None
        out = []
        for axis, n in enumerate(shape):
            kept = self.kept(value, axis) if self.coupling.coupler.axes.get(value) else None
            out.append(n if kept is None else len(kept))
        return tuple(out)

    def is_cut(self, value: ir.Value | None) -> bool:
        axes = None if value is None else self.coupling.coupler.axes.get(value)
        return any(self.kept(value, axis) is not None for axis in range(len(axes or ())))

    # -- the walk ----------------------------------------------------------------------------------
    def run(self) -> ir.Model:
        """Rewrite everything; the new model."""
        for value in self.coupling.constants:
            if value in self.new_of and self.is_cut(value):
                self._slice(value)
        self._walk(self.source.graph, self.model.graph)
        self._redeclare()
        return self.model

    def again(self) -> ir.Model:
        """The same cut a second time, its weights as they were sliced."""
        model = Rewriter(self.source, self.coupling, self.old_facts, self.dead[:-1]).run()
        RemoveUnusedNodesPass()(model)
        return model

    def _pair(self, old: ir.Graph, new: ir.Graph) -> None:
        """Match the values of a graph and its copy, and forget shapes that may become stale."""
        values = [(v, new.initializers[name]) for name, v in old.initializers.items()]
        values.extend(zip(old.inputs, new.inputs, strict=True))
        for a, b in zip(old, new, strict=True):
            values.extend(zip(a.outputs, b.outputs, strict=True))
            self.new_nodes[a] = b
            for p, q in zip(subgraphs(a), subgraphs(b), strict=True):
                self._pair(p, q)
        outer = set(old.inputs) | set(old.outputs) if old is self.source.graph else set()
        for a_value, b_value in values:
            self.new_of[a_value] = b_value
            self._names.add(str(a_value.name))
            if a_value not in outer and not a_value.is_initializer():
                self.declared[a_value] = a_value.shape
                b_value.shape = None

    def _slice(self, value: ir.Value) -> None:
        """Give a constant its kept indices, computed when asked for: of a large model, one tensor in memory at a time."""
        tensor = value.const_value
        assert tensor is not None
        takes = [(axis, kept) for axis in range(len(tensor.shape)) if (kept := self.kept(value, axis)) is not None]
        shape = ir.Shape(self.expected(value) or ())

        def cut() -> ir.TensorProtocol:
            array = tensor.numpy()
            for axis, kept in takes:
                array = array.take(kept, axis=axis)
            release_all()
            return ir.Tensor(array, dtype=tensor.dtype, shape=shape, name=value.name)

        lazy = ir.LazyTensor(cut, dtype=tensor.dtype, shape=shape, name=value.name, cache=self._cached)
        set_weight(self.new_of[value], lazy)

    def _walk(self, old: ir.Graph, new: ir.Graph) -> None:
        for a, b in zip(tuple(old), tuple(new), strict=True):
            rule = rule_for(a)
            cut = Cut(self, a, b)
            if rule is not None and rule.shrink is not None and self._touches(a):
                rule.shrink(cut)
            inner = list(zip(subgraphs(a), subgraphs(b), strict=True))
            for p, q in inner:
                for value in p.inputs:
                    self._set(value)
                self._walk(p, q)
            for node in [] if inner else cut.nodes():
                shapes.step(node, self.facts, self.opsets)
            for value in a.outputs:
                self._check(a, value)
                self._set(value)

    def _touches(self, node: ir.Node) -> bool:
        """Whether a cut reaches a node: by an axis, or by a size that is read somewhere and computed with."""
        if any(map(self.is_cut, node.inputs)) or any(map(self.is_cut, node.outputs)):
            return True
        for value in node.inputs:
            if value is not None and value.const_value is None:
                old, new = self.old_facts.known(value), self.facts.known(self.new_of[value])
                if old is not None and new is not None and not np.array_equal(old, new):
                    return True
        return False

    def _set(self, value: ir.Value) -> None:
        shape = self.expected(value)
        if shape is not None:
            self.facts.set_shape(self.new_of[value], shape, self.old_facts.dtype(value))

    def _check(self, node: ir.Node, value: ir.Value) -> None:
        want, got = self.expected(value), self.facts.shape(self.new_of[value])
        if want is not None and got is not None and want != got:
            raise RewriteError(
                f"{node.op_type} node '{node_name(node)}': after the cut '{value.name}' would have shape "
                f"{list(got)} where {list(want)} was planned. Please report this model; --keep its weights goes round it"
            )

    def _redeclare(self) -> None:
        """Put back the declared shapes of values, with the new sizes; drop those that cannot be trusted."""
        for value, shape in self.declared.items():
            old, new = self.old_facts.shape(value), self.expected(value)
            if shape is None or old is None or new is None or len(shape) != len(new):
                continue
            dims = []
            for declared, before, after in zip(shape, old, new, strict=True):
                if isinstance(declared, int) and declared != before:
                    break
                # A name of a cut axis stands for its old size, elsewhere too: ONNX Runtime shares memory by names.
                name = declared if before == after else None
                dims.append(after if isinstance(declared, int) else name)
            else:
                self.new_of[value].shape = ir.Shape(dims)

    def unique(self, stem: str) -> str:
        """A value or node name that is not taken."""
        name, n = stem, 0
        while name in self._names:
            n += 1
            name = f"{stem}_{n}"
        self._names.add(name)
        return name


def set_weight(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Change a constant's contents and, with it, its declared shape."""
    value.const_value = tensor
    value.shape = ir.Shape([int(n) for n in tensor.shape.numpy()])
    value.type = ir.TensorType(tensor.dtype)


class Cut:
    """One node being mended: the source node's view, sizes before and after, and what may be changed."""

    def __init__(self, rewriter: Rewriter, old: ir.Node, node: ir.Node) -> None:
        self.rewriter = rewriter
        self.old = old
        self.node = node
        self.view = OpView(old, rewriter.coupling.coupler)
        self._before: list[ir.Node] = []

    # -- reading -----------------------------------------------------------------------------------
    @property
    def opset(self) -> int:
        return self.view.opset

    @property
    def weight_index(self) -> int:
        """Where a convolution has its weight."""
        return weight_input(self.old)

    def attr(self, name: str, default: Any = None) -> Any:
        return attribute(self.old, name, default)

    def known(self, i: int) -> np.ndarray | None:
        """Value of input ``i`` in the source, where known before running."""
        return self.view.known(i)

    def known_new(self, i: int) -> np.ndarray | None:
        """Value of input ``i`` as the cut graph computes it, where known before running."""
        value = self.node.inputs[i] if i < len(self.node.inputs) else None
        return None if value is None else self.rewriter.facts.known(value)

    def old_in(self, i: int) -> tuple[int, ...]:
        return self.view.shape(i)

    def old_out(self, j: int) -> tuple[int, ...]:
        return self.view.out_shape(j)

    def new_in(self, i: int) -> tuple[int, ...]:
        return self.rewriter.expected(self.view.value(i)) or ()

    def new_out(self, j: int) -> tuple[int, ...]:
        return self.rewriter.expected(self.old.outputs[j]) or ()

    def kept_in(self, i: int, axis: int) -> Indices | None:
        """Kept source indices on an axis of input ``i``; None when all are."""
        return self.rewriter.kept(self.view.value(i), axis)

    def kept_out(self, j: int, axis: int) -> Indices | None:
        """Kept source indices on an axis of output ``j``; None when all are."""
        return self.rewriter.kept(self.old.outputs[j], axis)

    def positions(self, kept: Indices | None, wanted: np.ndarray) -> np.ndarray:
        """Where source indices ``wanted`` stand among the ``kept`` ones."""
        if kept is None:
            return wanted
        where = np.searchsorted(kept, wanted)
        if (where >= len(kept)).any() or (kept[np.minimum(where, len(kept) - 1)] != wanted).any():
            raise self.error("it reads indices that were removed")
        return where

    def nodes(self) -> list[ir.Node]:
        """The nodes put in before this one, and this one."""
        return [*self._before, self.node]

    def error(self, reason: str) -> RewriteError:
        return RewriteError(f"{self.old.op_type} node '{node_name(self.old)}' cannot be cut: {reason}")

    # -- changing ----------------------------------------------------------------------------------
    def set_attr(self, name: str, value: Any) -> None:
        """Set or, with None, drop an attribute."""
        self.node.attributes.pop(name, None)
        if value is not None:
            self.node.attributes.add(ir.convenience.convert_attribute(name, value))

    def constant(self, array: np.ndarray, stem: str) -> ir.Value:
        """A new initializer of the node's graph."""
        name = self.rewriter.unique(f"{stem}_pruned")
        value = ir.Value(name=name)
        set_weight(value, ir.Tensor(array, name=name))
        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        graph.register_initializer(value)
        return value

    def insert(
        self, op_type: str, inputs: list[ir.Value | None], attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        """Put a node with one output before this one."""
        stem = self.rewriter.unique(f"{self.node.outputs[0].name}_{op_type}")
        node = ir.node(op_type, inputs, attributes=dict(attributes or {}), name=stem)
        node.outputs[0].name = self.rewriter.unique(f"{stem}_out")
        self.node.prepend(node)
        self._before.append(node)
        return node.outputs[0]

    def set_input(self, i: int, value: np.ndarray | ir.Value) -> None:
        """Give the node its own constant (or another value) as input ``i``; shared ones stay as they are."""
        if i >= len(self.node.inputs):
            self.node.resize_inputs(i + 1)
        old = self.node.inputs[i]
        stem = f"{self.node.outputs[0].name}_input{i}" if old is None else str(old.name)
        self.node.replace_input_with(i, value if isinstance(value, ir.Value) else self.constant(value, stem))

    def override(self, i: int, entries: Mapping[int, float]) -> None:
        """Change entries of a 1-d input: a constant is copied, a computed one mended as it runs."""
        self._mend(i, entries, self._where)

    def mend_shape(self, i: int, *, zero_copies: bool) -> None:
        """Make the target shape at input ``i`` give the planned output shape; only wrong entries change.

        Entries that come from constants are replaced. Those that are computed from sizes which may differ
        from run to run are scaled by planned / found, so that no dynamic size is baked in.
        """
        found, planned = self.known_new(i), self.new_out(0)
        if found is None:
            raise self.error("its target shape is computed when it runs")
        own = self.new_in(0)
        offset = len(planned) - len(found)
        entries: dict[int, float] = {}
        for t, size in enumerate(found.tolist()):
            want = planned[t + offset]
            copied = zero_copies and size == 0 and t < len(own) and own[t] == want
            if size not in (-1, want) and not copied and not (size == 1 and broadcasts_ones(self.old)):
                entries[t] = want
        if entries:
            self._mend(i, entries, lambda value, wrong: self._scale(value, wrong, found))

    def _mend(
        self, i: int, entries: Mapping[int, float], dynamic: Callable[[ir.Value, Mapping[int, float]], ir.Value]
    ) -> None:
        value = self.node.inputs[i]
        assert value is not None
        fixed = self._edit(value, entries)
        if fixed is not None:
            self.set_input(i, fixed)
            return
        # A Concat of constant and computed pieces: change the constant pieces that are wrong.
        producer, left = value.producer(), dict(entries)
        if producer is not None and joins(producer):
            pieces: list[ir.Value | None] = []
            start = 0
            for piece in producer.inputs:
                known = None if piece is None else self.rewriter.facts.known(piece)
                if piece is None or known is None:
                    break
                mine = {t - start: n for t, n in entries.items() if start <= t < start + known.size}
                own = self._edit(piece, mine) if mine else None
                if own is not None:
                    left = {t: n for t, n in left.items() if not start <= t < start + known.size}
                    pieces.append(self.constant(own, str(piece.name)))
                else:
                    pieces.append(piece)
                start += known.size
            else:
                if len(left) < len(entries):
                    value = self.insert("Concat", pieces, {"axis": 0})
                    shapes.step(self._before[-1], self.rewriter.facts, self.rewriter.opsets)
        if left:
            value = dynamic(value, left)
        self.set_input(i, value)

    def _edit(self, value: ir.Value, entries: Mapping[int, float]) -> np.ndarray | None:
        if value.const_value is None:
            return None
        array: np.ndarray = value.const_value.numpy().copy()
        for t, n in entries.items():
            array.reshape(-1)[t] = n
        return array

    def _where(self, value: ir.Value, entries: Mapping[int, float]) -> ir.Value:
        known = self.rewriter.facts.known(value)
        if known is None:
            raise self.error("sizes it needs are computed when it runs")
        mask, new = np.zeros(known.shape, np.bool_), np.zeros_like(known)
        for t, n in entries.items():
            mask.reshape(-1)[t], new.reshape(-1)[t] = True, n
        return self.insert("Where", [self.constant(mask, "mask"), self.constant(new, "size"), value])

    def _scale(self, value: ir.Value, entries: Mapping[int, float], found: np.ndarray) -> ir.Value:
        up, down = np.ones_like(found), np.ones_like(found)
        for t, want in entries.items():
            common = math.gcd(int(want), int(found[t]))
            up[t], down[t] = int(want) // common, int(found[t]) // common
        scaled = self.insert("Mul", [value, self.constant(up, "scale")])
        return self.insert("Div", [scaled, self.constant(down, "scale")])

    def set_slice(self, axis: int, positions: np.ndarray) -> None:
        """Make a Slice take ``positions`` of its cut input along one axis; a Gather where no slice can."""
        steps = np.diff(positions)
        step = int(steps[0]) if len(steps) else 1
        regular = step != 0 and bool((steps == step).all())
        if not regular:
            taken = self.insert("Gather", [self.node.inputs[0], self.constant(positions.astype(np.int64), "indices")],
                                {"axis": axis})  # fmt: skip
            self.set_input(0, taken)
            positions, step = np.arange(len(positions)), 1
        start, end = int(positions[0]), int(positions[-1]) + (1 if step > 0 else -1)
        # One past the front is written as far below as the type allows.
        end = end if end >= 0 else np.iinfo(np.int32).min
        rank = len(self.old_in(0))
        if self.opset < 10:
            axes = self.attr("axes") or list(range(len(self.attr("starts"))))
            t = [int(a) % rank for a in axes].index(axis)
            for name, size in (("starts", start), ("ends", end)):
                values = list(attribute(self.node, name))
                values[t] = size
                self.set_attr(name, values)
            return
        known = self.known(3) if self.view.has(3) else None
        where = list(range(len(self.known(1)))) if known is None else [int(a) % rank for a in known.reshape(-1)]  # type: ignore[arg-type]
        t = where.index(axis)
        self.override(1, {t: start})
        self.override(2, {t: end})
        if self.view.has(4) or step != 1:
            if not self.view.has(4):
                if not self.view.has(3):
                    self.set_input(3, np.arange(len(where)))
                self.set_input(4, np.ones(len(where), np.int64))
            self.override(4, {t: step})

    def set_pads(self, begin: np.ndarray, end: np.ndarray, changed: Mapping[int, tuple[int, int]]) -> None:
        """Change how much a Pad puts before and after some axes."""
        rank = len(begin)
        if self.opset < 11:
            pads = np.concatenate([begin, end])
            for axis, (before, after) in changed.items():
                pads[axis], pads[axis + rank] = before, after
            self.set_attr("pads" if "pads" in self.old.attributes else "paddings", pads.tolist())
            return
        axes = self.known(3) if self.view.has(3) else None
        where = list(range(rank)) if axes is None else [int(a) % rank for a in axes.reshape(-1)]
        entries: dict[int, float] = {}
        for axis, (before, after) in changed.items():
            entries[where.index(axis)] = before
            entries[where.index(axis) + len(where)] = after
        self.override(1, entries)
