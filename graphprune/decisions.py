"""Where rounding decides: two models compared given the same choices.

``TopK``, ``ArgMax``, suppression and comparisons jump: of two scores that agree to seven digits the one or the other comes
first, and what is looked up by them differs wholly. Two models that compute the same can differ so, by the rounding of sums
that are added up in another order. Then such nodes are taken for what they are: their inputs must agree, and everything behind
them is compared with the choices that the first model made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.backends.ort import Feed, Runner
from graphprune.coupling import node_name
from graphprune.ops.traits import decides

#: Choices that hang on others are taken one after the other: so many in a row.
MOST_ROUNDS = 16
#: How much of an array's maximum is its last digits, for a network of usual depth.
LAST_DIGITS = 1e-6

Arrays = Mapping[str, NDArray[Any]]
#: Difference of the outputs of two models, and the output that shows it.
Judge = Callable[[Arrays, Arrays], tuple[float, str]]
#: Difference of two arrays.
Difference = Callable[[NDArray[Any], NDArray[Any]], float]


def decided(
    first: ir.Model, second: ir.Model, feeds: tuple[Feed, Feed], wanted: list[str], judge: Judge, difference: Difference,
    allowed: float,
) -> tuple[float, list[str]] | None:  # fmt: skip
    """Compare two models on one input, the second with those choices of the first that rounding alone made otherwise.

    Parameters
    ----------
    first, second
        Models whose values have the same names; neither is changed.
    feeds
        The input as each takes it.
    wanted
        Values that ``judge`` asks for.
    allowed
        Difference up to which the inputs of a choice agree, and up to which the models do.

    Returns
    -------
    tuple or None
        The difference that is left, at most ``allowed``, and the nodes whose choices were taken over; None where the models
        differ by more than rounding.
    """
    nodes = _choices(first, second)
    if not nodes:
        return None
    inputs = {node: [str(v.name) for v in node.inputs if v is not None and v.const_value is None] for node in nodes}
    names = list(dict.fromkeys([*wanted, *(n for node in nodes for n in (*inputs[node], *_outputs(node)))]))
    left = Runner(first, outputs=names).run(feeds[0])
    given: dict[str, NDArray[Any]] = {}
    taken: list[str] = []
    for _ in range(MOST_ROUNDS):
        right = Runner(_with_inputs(second, given), outputs=names).run({**feeds[1], **given})
        new = [node for node in nodes if not given.keys() >= set(_outputs(node))
               and all(difference(left[n], right[n]) <= allowed for n in inputs[node])
               and any(not np.array_equal(left[n], right[n]) for n in _outputs(node))]  # fmt: skip
        if not new:
            error = judge(left, right)[0]
            return (error, taken) if taken and error <= allowed else None
        for node in new:
            given.update({n: np.asarray(left[n]) for n in _outputs(node)})
            taken.append(f"{node.op_type} '{node_name(node)}'")
    return None


def shaky(model: ir.Model, feed: Feed, wanted: list[str], difference: Difference, allowed: float) -> bool:
    """Whether rounding can change what a model gives for an input.

    What choices are made by is moved in its last digits: the outputs ``wanted`` then change by more than ``allowed``.
    """
    nodes = [node for node in model.graph if decides(node)]
    inputs = list(dict.fromkeys(str(v.name) for node in nodes for v in node.inputs if v is not None and v.producer() is not None))
    if not inputs:
        return False
    before = Runner(model, outputs=[*wanted, *inputs]).run(feed)
    draw = np.random.default_rng(0)
    moved = {}
    for name in inputs:
        array = np.asarray(before[name])
        if array.dtype.kind == "f" and array.size:
            noise = LAST_DIGITS * float(np.abs(array[np.isfinite(array)]).max(initial=0)) * draw.standard_normal(array.shape)
            moved[name] = (array + noise).astype(array.dtype)
    after = Runner(_with_inputs(model, moved), outputs=wanted).run({**feed, **moved})
    return any(not difference(before[name], after[name]) <= allowed for name in wanted)


def _outputs(node: ir.Node) -> list[str]:
    return [str(value.name) for value in node.outputs if value.name]


def _choices(first: ir.Model, second: ir.Model) -> list[ir.Node]:
    """Nodes of the second model that choose, and that the first one has as well."""
    there = {tuple(_outputs(node)): node.op_type for node in first.graph if decides(node)}
    return [node for node in second.graph if decides(node) and there.get(tuple(_outputs(node))) == node.op_type]


def _with_inputs(model: ir.Model, given: Arrays) -> ir.Model:
    """A copy that takes values as inputs that it would compute itself; weights are shared."""
    if not given:
        return model
    copy = model.clone()
    for node in tuple(copy.graph):
        for value in node.outputs:
            if (array := given.get(str(value.name))) is None:
                continue
            dtype = ir.DataType.from_numpy(array.dtype)
            new = ir.Value(name=value.name, shape=ir.Shape(array.shape), type=ir.TensorType(dtype))
            value.name = f"{value.name}_decided"
            for user, index in tuple(value.uses()):
                user.replace_input_with(index, new)
            for graph in copy.graphs():
                for index, output in enumerate(graph.outputs):
                    if output is value:
                        graph.outputs[index] = new
            copy.graph.inputs.append(new)
    return copy
