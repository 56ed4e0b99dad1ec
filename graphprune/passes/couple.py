"""``couple``: run the network on labels to find what lives and dies together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphprune import shapes
from graphprune.coupler import Coupler
from graphprune.coupling import Frozen, finish, node_name
from graphprune.errors import ModelError
from graphprune.facts import Facts
from graphprune.folding import MADE_FROM
from graphprune.passes.base import Kind, Pass, State

#: Elements of one value that are still computed (8 GB of float32).
LARGEST_VALUE = 1 << 31
#: The same for what constants alone make, such as ConstantOfShape: no data in the file stand for that size.
LARGEST_MADE = 1 << 28


@dataclass(frozen=True)
class Couple(Pass):
    """Find the units: which indices of which tensors can only be removed together, and which never."""

    name: ClassVar[str] = "couple"
    kind: ClassVar[Kind] = "analysis"

    def run(self, state: State) -> None:
        facts = state.facts or probe(state)
        state.facts = facts
        check_sizes(state)
        coupler = Coupler(facts, state.model.graph.opset_imports, varied(state))
        coupler.run(state.model.graph)
        for source, statistic in standardised(state):
            coupler.standardised(source, statistic)
        state.coupling = finish(coupler)
        reason = "only constants are computed from it: the result is folded into the model"
        for value, node in state.folded:
            sizes = [] if value.shape is None else [n for n in value.shape if isinstance(n, int)]
            entries = [Frozen(value, axis, n, node_name(node), reason, node.op_type) for axis, n in enumerate(sizes)]
            state.coupling.folded.extend(entries)
        for name, node in coupler.unknown_ops.items():
            state.note(
                f"op {name} has no coupling rule: what meets it is frozen (first at '{node.name or node.op_type}')"
            )
        for node, problem in coupler.unshaped[:3]:
            state.note(f"{node.op_type} '{node.name}' is frozen: {problem}")
        if len(coupler.unshaped) > 3:
            state.note(f"... and {len(coupler.unshaped) - 3} more nodes frozen for unknown shapes (see inspect)")


def standardised(state: State) -> Iterator[tuple[ir.Value, ir.Value]]:
    """Weights that a torch module standardises in code of its own, and what was taken over them in advance (a mean, a spread).

    torch's own weight norm and parametrizations are left out: there the computed weight counts as the trained one, and what it
    is computed from is set so that it stays what it was.
    """
    torch = state.loaded.torch
    if torch is None:
        return
    for value in state.model.graph.initializers.values():
        for name in value.meta.get(MADE_FROM, ()):
            source = state.model.graph.initializers.get(name)
            if source is not None and name in torch.parameters and not torch.is_computed_from(name):
                yield source, value


def check_sizes(state: State) -> None:
    """Refuse to label what no memory holds.

    Raises
    ------
    ModelError
        A value of absurd size, by name.
    """
    facts = state.need_facts()
    for node in state.model.graph:
        made = all(value is None or value.const_value is not None for value in node.inputs)
        for value in node.outputs:
            shape = facts.shape(value)
            if shape is not None and math.prod(shape) > (LARGEST_MADE if made else LARGEST_VALUE):
                raise ModelError(
                    f"{node.op_type} '{node_name(node)}' makes '{value.name}' of shape {list(shape)}, more than memory "
                    "holds: the file is damaged, or give smaller sizes of dynamic axes with --shape"
                )


def varied(state: State) -> Facts | None:
    """Facts on other sizes of the dynamic axes: a value that differs there is computed, not constant."""
    facts, model = state.need_facts(), state.model
    best: Facts | None = None
    growths: tuple[Callable[[int], int], ...] = (
        lambda n: n + 32 if n >= 32 else n + 1, lambda n: 2 * n, lambda n: n + 1, lambda n: n + 8,
    )  # fmt: skip
    for grow in growths:
        sizes, dynamic = {}, False
        for value in model.graph.inputs:
            shape = facts.shape(value)
            if value.is_initializer() or shape is None:
                continue
            fixed = [isinstance(d, int) for d in value.shape] if value.shape is not None else [False] * len(shape)
            sizes[str(value.name)] = tuple(n if f else grow(n) for n, f in zip(shape, fixed, strict=True))
            dynamic |= not all(fixed)
        if not dynamic:
            return None
        found = shapes.infer(model, sizes)
        if len(found.problems) <= len(facts.problems):
            return found
        if best is None or len(found.problems) < len(best.problems):
            best = found
    return best


def probe(state: State) -> Facts:
    """Shapes to analyse on: dynamic axes get concrete sizes, dynamic batches 2 where the graph allows.

    With a batch of 1 a reshape that mixes batch and channels could not be told from one that does not.
    """
    example = {} if state.loaded.torch is None else state.loaded.torch.feed
    given = {name: tuple(array.shape) for name, array in example.items()}
    chosen = shapes.probe_inputs(state.model, {**given, **state.options.shapes})
    facts = shapes.infer(state.model, chosen)
    wider = dict(chosen)
    open_inputs = [
        (str(value.name), value.shape)
        for value in state.model.graph.inputs
        if str(value.name) in chosen and str(value.name) not in state.options.shapes and value.shape is not None
    ]
    # A batch axis has its name wherever it stands: second in [time, batch, features].
    batches = {str(shape[0]) for _, shape in open_inputs if len(shape) and not isinstance(shape[0], int)} - {"None"}
    for name, shape in open_inputs:
        wider[name] = tuple(
            2 if size == 1 and not isinstance(dim, int) and (axis == 0 or str(dim) in batches) else size
            for axis, (size, dim) in enumerate(zip(chosen[name], shape, strict=True))
        )
    if wider != chosen:
        other = shapes.infer(state.model, wider)
        if len(other.problems) <= len(facts.problems):
            return other
    return facts
