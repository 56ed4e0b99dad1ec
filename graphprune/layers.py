"""Linear layers of a cut model beside the layers of the source that they came from.

A :class:`Layer` knows where its weight and its intercept are kept, which rows of the source's output it has
to reproduce, and how to change them. It is what recovery works on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.calibration import evaluate_parameter
from graphprune.cut import Rewriter, set_weight
from graphprune.ops.linear_form import LinearForm, Positions, ProductForm, added_constant, linear_form, norm_mean
from graphprune.ops.observe import Path, hidden, walk

Array = NDArray[Any]


@dataclass(frozen=True)
class Intercept:
    """Where a constant that a layer adds to its outputs is kept.

    Attributes
    ----------
    value
        The constant, of as many elements as the layer has outputs; None: the layer gets a new bias.
    gain
        What one added to an entry of ``value`` adds to the output.
    """

    value: ir.Value | None
    gain: float


@dataclass
class Layer:
    """One linear layer.

    Attributes
    ----------
    old, node
        The node in the source and in the cut model.
    form
        The cut node as matrices.
    weight
        Its weight in the cut model: a constant, or what constants alone make.
    intercept
        Where an intercept goes; None where there is no place for one.
    users
        Nodes that share the weight, this one included.
    shape
        Of the weight in the cut model.
    path
        The bodies that the node is in.
    """

    old: ir.Node
    node: ir.Node
    form: LinearForm
    weight: ir.Value
    intercept: Intercept | None
    users: tuple[ir.Node, ...]
    shape: tuple[int, ...]
    path: Path = ()

    @property
    def unknowns(self) -> int:
        """Inputs that each output is a weighted sum of."""
        return int(self.form.matrix(np.empty(self.shape, np.float32)).shape[2])

    @property
    def name(self) -> str:
        return self.node.name or str(self.node.outputs[0].name)

    @property
    def x(self) -> ir.Value:
        value = self.node.inputs[self.form.x]
        assert value is not None
        return value


def make_layer(model: ir.Model, old: ir.Node, node: ir.Node, paths: Mapping[ir.Node, Path]) -> Layer | str | None:
    """The layer that a node of ``model`` is; why its weight cannot be fitted; None for other nodes.

    ``paths``: the bodies around every node of ``model``.
    """
    form = linear_form(node)
    if form is None:
        return None
    weight = node.inputs[form.w]
    assert weight is not None
    reason = hidden(paths[node]) or _unfit(weight, form, paths)
    if reason:
        return reason
    array = evaluate_parameter(model, weight)
    if array is None or array.ndim < 2:
        return f"its weight '{weight.name}' cannot be read as a matrix"
    if isinstance(form, ProductForm) and array.ndim != 2:
        return f"its weight '{weight.name}' is a stack of matrices"
    users = tuple(user for user, _ in weight.uses())
    return Layer(old, node, form, weight, _intercept(node, form, array.ndim), users, array.shape, paths[node])


def find_layers(rewriter: Rewriter, model: ir.Model, order: Sequence[ir.Node]) -> tuple[list[Layer], dict[str, str]]:
    """Layers whose weights can be fitted, in order, and why others cannot.

    Parameters
    ----------
    model
        The cut model.
    order
        Its nodes in the order they run, those of bodies before the node that carries these.

    Returns
    -------
    layers, left
        ``left``: name of a node with a linear form -> the reason why its weight stays.
    """
    olds = {new: old for old, new in rewriter.new_nodes.items()}
    paths = dict(walk(model.graph))
    layers: list[Layer] = []
    left: dict[str, str] = {}
    for node in order:
        found = make_layer(model, olds[node], node, paths) if node in olds else None
        if isinstance(found, Layer):
            layers.append(found)
        elif found is not None:
            left[node.name or str(node.outputs[0].name)] = found
    return layers, left


def _unfit(weight: ir.Value, form: LinearForm, paths: Mapping[ir.Node, Path]) -> str:
    """Why a weight cannot be changed, empty if it can."""
    for user, index in weight.uses():
        other = linear_form(user)
        if other is None or other.w != index or type(other) is not type(form):
            return f"its weight '{weight.name}' is read by {user.op_type} '{user.name or user.outputs[0].name}' as well"
        if reason := hidden(paths[user]):
            return f"its weight '{weight.name}' is read by '{user.name or user.outputs[0].name}' as well, and {reason}"
    if weight.is_graph_output():
        return f"its weight '{weight.name}' is an output of the model"
    if weight.const_value is not None:
        dtype = weight.const_value.dtype
        return "" if dtype.is_floating_point() else f"its weight '{weight.name}' is {dtype.name.lower()}"
    stack, seen = [weight], set()
    while stack:
        value = stack.pop()
        producer = value.producer()
        if producer is None or value in seen:
            continue
        seen.add(value)
        if len(value.uses()) > 1 and value is not weight:
            return f"'{value.name}', from which its weight is made, serves other nodes as well"
        if producer.op_type.endswith("DequantizeLinear"):
            return f"its weight '{weight.name}' is quantised"
        for source in producer.inputs:
            if source is None:
                continue
            if source.const_value is not None and source.const_value.size > 1 and len(source.uses()) > 1:
                return f"'{source.name}', from which its weight is made, serves other nodes as well"
            stack.append(source)
    return ""


def _alone(value: ir.Value | None) -> bool:
    """Whether a value is a float constant that one node reads."""
    return (
        value is not None
        and value.const_value is not None
        and value.const_value.dtype.is_floating_point()
        and len(value.uses()) == 1
        and not value.is_graph_output()
    )


def _intercept(node: ir.Node, form: LinearForm, rank: int) -> Intercept | None:
    """Where the layer's intercept is kept, or could be."""
    given = form.bias is not None and form.bias < len(node.inputs) and node.inputs[form.bias] is not None
    if given:
        assert form.bias is not None
        bias = node.inputs[form.bias]
        plain = bias is not None and bias.const_value is not None and bias.const_value.dtype.is_floating_point()
        return Intercept(bias, form.bias_gain()) if plain else None
    out = node.outputs[0]
    uses = tuple(out.uses())
    if len(uses) == 1 and not out.is_graph_output():
        user, index = uses[0]
        mean = norm_mean(user) if index == 0 else None
        if mean is not None:
            return Intercept(mean, -1.0) if _alone(mean) else None
        added = added_constant(user, index)
        if added is not None and _alone(added):
            assert added.const_value is not None
            shape = [int(n) for n in added.const_value.shape.numpy()]
            if shape and math.prod(shape) == max(shape) > 1 and form.takes(shape, rank):
                return Intercept(added, 1.0)
    return Intercept(None, form.bias_gain()) if form.bias is not None else None


def picks(shape: Sequence[int], out_axis: int, count: int, rng: np.random.Generator) -> Positions:
    """A choice of output positions.

    Parameters
    ----------
    shape
        Of the output, batch included.
    count
        Positions wanted, all if there are no more.

    Returns
    -------
    tuple of int64[r]
        For every axis but ``out_axis``.
    """
    sizes = [n for axis, n in enumerate(shape) if axis != out_axis]
    total = math.prod(sizes)
    flat = np.arange(total) if count >= total else np.sort(rng.choice(total, count, replace=False))
    return tuple(np.unravel_index(flat, sizes)) if sizes else ()


def read(y: Array, where: Positions, out_axis: int, kept: Sequence[NDArray[np.int64] | None]) -> Array:
    """Outputs of the source at some positions of the cut output, float[r, kept outputs].

    Parameters
    ----------
    y
        The source's output.
    where
        From :func:`picks`, in indices of the cut output.
    kept
        Per axis of ``y`` the kept indices, None for all.
    """
    index: list[Any] = []
    positions = iter(where)
    for axis in range(y.ndim):
        if axis == out_axis:
            outputs = kept[axis]
            index.append(np.arange(y.shape[axis]) if outputs is None else outputs)
            continue
        own = next(positions)
        here = kept[axis]
        index.append((own if here is None else here[own])[:, None])
    found: Array = y[tuple(index)]
    return np.asarray(found.reshape(-1, found.shape[-1]), np.float32)


def write(layer: Layer, model: ir.Model, matrix: Array | None, shift: Array | None) -> list[str]:
    """Change a layer's weight and add ``shift: float[o]`` to what it puts out; the constants touched."""
    names = []
    if matrix is not None:
        weight = layer.weight
        array = evaluate_parameter(model, weight)
        assert array is not None
        changed = layer.form.array(matrix, array.shape)
        if weight.const_value is not None:
            _fill(weight, changed)
        else:
            # What constants alone make of it is written out; the nodes that did so are dead now.
            layer.weight = _constant(model, f"{weight.name}_recovered", changed, ir.DataType.from_numpy(array.dtype))
            for user in layer.users:
                user.replace_input_with(layer.form.w, layer.weight)
        names.append(str(layer.weight.name))
    if shift is None or layer.intercept is None:
        return names
    place = layer.intercept
    if place.value is None:
        assert layer.form.bias is not None and layer.weight.const_value is not None
        new = _constant(model, f"{layer.node.outputs[0].name}_bias", shift / place.gain, layer.weight.const_value.dtype)
        if len(layer.node.inputs) <= layer.form.bias:
            layer.node.resize_inputs(layer.form.bias + 1)
        layer.node.replace_input_with(layer.form.bias, new)
        place = layer.intercept = Intercept(new, place.gain)
    else:
        assert place.value.const_value is not None
        old = np.asarray(place.value.const_value.numpy(), np.float64)
        new_values = old + (shift / place.gain).reshape(old.shape if old.size == shift.size else shift.shape)
        if _alone(place.value) and old.size == shift.size:
            _fill(place.value, new_values)
        else:
            # Optimisers merge equal constants: the layer gets its own.
            assert layer.form.bias is not None
            new = _constant(model, f"{place.value.name}_recovered", new_values, place.value.const_value.dtype)
            layer.node.replace_input_with(layer.form.bias, new)
            place = layer.intercept = Intercept(new, place.gain)
    assert place.value is not None
    return [*names, str(place.value.name)]


def _constant(model: ir.Model, stem: str, array: Array, dtype: ir.DataType) -> ir.Value:
    """A new initializer."""
    taken = {v.name for node in model.graph.all_nodes() for v in node.outputs}
    taken.update(name for graph in model.graphs() for name in (*graph.initializers, *(v.name for v in graph.inputs)))
    name, n = stem, 0
    while name in taken:
        n += 1
        name = f"{stem}_{n}"
    value = ir.Value(name=name)
    set_weight(value, ir.Tensor(np.ascontiguousarray(array).astype(dtype.numpy()), name=name, dtype=dtype))
    model.graph.register_initializer(value)
    return value


def _fill(value: ir.Value, array: Array) -> None:
    """New contents of a constant, in its own type."""
    assert value.const_value is not None
    dtype = value.const_value.dtype
    set_weight(value, ir.Tensor(np.ascontiguousarray(array).astype(dtype.numpy()), name=value.name, dtype=dtype))
