"""What parameters alone make, computed in advance where a cut must not change it."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import onnx_ir as ir

from graphprune.calibration import evaluate_parameter
from graphprune.coupler import subgraphs
from graphprune.cut import set_weight
from graphprune.plan import DERIVED
from graphprune.rules import rule_for

MADE_FROM = "graphprune.made_from"
"""Key in ``Value.meta`` of a constant computed in advance: names of the weights that it was made from."""

#: Families of ops that look across the axes of what they are given.
FOLDED = ("linear", "reduce")
#: Those of a torch module: learned queries that pass through layers are layers' inputs there, not weights, and the
#: layers that only they pass through stay, to be cut and trained.
FOLDED_OF_MODULES = ("reduce",)
#: Results larger than this many elements are left to be computed.
LARGEST = 1 << 24


def fold_constants(model: ir.Model, families: Collection[str] = FOLDED) -> int:
    """Compute in advance what looks across the axes of parameters: norms of weight normalisation, tables.

    What constants alone make is part of the trained network: it must not change when some of what it was
    made from is cut. The result gets no entry in plans, since it is no tensor of the file.

    A torch module (`FOLDED_OF_MODULES`) computes such things anew from what is kept of its tensors. There a reduction is
    part of a weight only where it meets what it was made from (``v / |v|``); one that is read beside data, as a codebook's
    squared norms are, is an operand like any other, and cut with the rest.
    """
    made_from = _made_from(model)
    folded = 0
    for node in tuple(model.graph):
        rule = rule_for(node) if node.outputs and node.outputs[0] in made_from else None
        if rule is None or rule.family not in FOLDED:
            continue
        apart = families is FOLDED_OF_MODULES and rule.family == "reduce" and not _meets_its_source(node, made_from)
        for value in node.outputs if not apart else ():
            array = None if value.is_graph_output() or not value.uses() else evaluate_parameter(model, value)
            # A single number made of parameters is a norm in every family: spectral norm's is a product.
            if array is None or array.size > (LARGEST if rule.family in families else 1):
                continue
            constant = ir.Value(name=f"{value.name}_folded")
            set_weight(constant, ir.Tensor(array, name=constant.name))
            constant.meta[DERIVED] = True
            constant.meta[MADE_FROM] = tuple(str(source.name) for source in made_from[value])
            model.graph.register_initializer(constant)
            value.replace_all_uses_with(constant)
            folded += 1
    return folded


def _made_from(model: ir.Model) -> dict[ir.Value, frozenset[ir.Value]]:
    """Values that constants alone make -> the weights among what they are made from."""
    found: dict[ir.Value, frozenset[ir.Value]] = {}
    for node in model.graph:
        given = [v for v in node.inputs if v is not None]
        if not node.inputs or not all(v.const_value is not None or v in found for v in given):
            continue
        rule = rule_for(node)
        if rule is None or subgraphs(node) or rule.family in ("frozen", "control"):
            continue
        sources = [found[v] if v in found else _itself(v) for v in given]
        found.update(dict.fromkeys(node.outputs, frozenset().union(*sources)))
    return found


def _itself(value: ir.Value) -> frozenset[ir.Value]:
    tensor = value.const_value
    plain = tensor is None or tensor.size < 2 or tensor.dtype in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
    return frozenset(() if plain else (value,))  # axes and shapes are no weights


def _meets_its_source(node: ir.Node, made_from: Mapping[ir.Value, frozenset[ir.Value]]) -> bool:
    """Whether what a node makes of constants is combined, before any data, with something else made from the same ones."""
    sources = made_from[node.outputs[0]]
    behind, stack = set(node.outputs), list(node.outputs)
    while stack:
        for user, _ in stack.pop().uses():
            if not user.outputs or user.outputs[0] not in made_from:
                continue
            others = [v for v in user.inputs if v is not None and v not in behind]
            if any((made_from[v] if v in made_from else _itself(v)) & sources for v in others):
                return True
            stack.extend(v for v in user.outputs if v not in behind)
            behind.update(user.outputs)
    return False
