"""Which nodes the deep learning accelerator takes; the others run on the GPU beside it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from graphprune.backends.tensorrt.legality import parse_rules
from graphprune.backends.tensorrt.rewriting import attribute, given, is_constant, used
from graphprune.devices.tables import dla_rows
from graphprune.facts import Facts

LARGEST_BATCH, LARGEST_SIZE = 4096, 8192
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def why_not(node: ir.Node, facts: Facts) -> str:
    """Why a node runs on the GPU; empty where the DLA takes it.

    Parameters
    ----------
    facts
        Of the lowered model, at the shapes that it is built for.
    """
    row = dla_rows().get(node.op_type)
    if row is None or node.domain not in ("", "ai.onnx"):
        return f"no {node.op_type} on the DLA"
    for value in (*node.inputs, *node.outputs):
        if value is None or is_constant(value):
            continue
        shape = facts.shape(value)
        if shape is None:
            return "the DLA needs static shapes"
        if facts.dtype(value) not in _FLOATS:
            return "the DLA computes on FP16 and INT8 only"
        if shape and (shape[0] > LARGEST_BATCH or any(size > LARGEST_SIZE for size in shape[1:])):
            return (
                f"a size of {max(shape)}: the DLA's limits are {LARGEST_BATCH} for the batch, {LARGEST_SIZE} for others"
            )
    for name, argument in parse_rules(row.rules.replace("pad<kernel", "pad-below-kernel")):
        if not _RULES[name](node, argument, facts):
            return f"{node.op_type} on the DLA: {row.note}"
    return ""


def _limits(text: str) -> tuple[int, int]:
    low, _, high = text.partition("..")
    return int(low), int(high or low)


def _window(node: ir.Node, facts: Facts) -> list[int]:
    weight = given(node, 1)
    shape = attribute(node, "kernel_shape") or (None if weight is None else facts.shape(weight) or (0, 0))[2:]  # type: ignore[index]
    return [int(n) for n in shape]


def _within(values: list[int], text: str) -> bool:
    low, high = _limits(text)
    return all(low <= value <= high for value in values)


def _kernel(node: ir.Node, text: str, facts: Facts) -> bool:
    return _within(_window(node, facts), text)


def _each(name: str, default: int) -> Callable[[ir.Node, str, Facts], bool]:
    return lambda node, text, _facts: _within(attribute(node, name) or [default], text)


def _below_kernel(node: ir.Node, _text: str, facts: Facts) -> bool:
    pads, window = attribute(node, "pads") or [], _window(node, facts)
    return all(pad < window[i % len(window)] for i, pad in enumerate(pads))


def _outputs(node: ir.Node, text: str, facts: Facts) -> bool:
    shape = facts.shape(node.outputs[0])
    return shape is None or _within([shape[1]], text)


def _spatial(node: ir.Node, text: str, facts: Facts) -> bool:
    rank = None if node.inputs[0] is None else facts.rank(node.inputs[0])
    return rank is not None and rank - 2 == int(text)


def _constant(node: ir.Node, text: str, facts: Facts) -> bool:
    value = given(node, int(text))
    return value is None or is_constant(value) or facts.known(value) is not None


def _rank(node: ir.Node, text: str, facts: Facts) -> bool:
    rank = None if node.inputs[0] is None else facts.rank(node.inputs[0])
    return rank is not None and _within([rank], text)


def _axis(node: ir.Node, text: str, facts: Facts) -> bool:
    rank = facts.rank(node.outputs[0])
    return rank is not None and int(attribute(node, "axis", 1)) % rank == int(text)


def _steps(node: ir.Node, text: str, facts: Facts) -> bool:
    value = given(node, 4)
    known = None if value is None else facts.known(value)
    return value is None or (known is not None and bool((known == int(text)).all()))


def _integer_scales(node: ir.Node, _text: str, facts: Facts) -> bool:
    value, source = facts.shape(node.outputs[0]), node.inputs[0]
    before = None if source is None else facts.shape(source)
    if value is None or before is None or len(value) != 4:
        return False
    ratios = np.array(value) / np.array(before)
    most = 32 if attribute(node, "mode", "nearest") == "nearest" else 4
    return bool((ratios == np.round(ratios)).all() and ratios.min() >= 1 and ratios.max() <= most)


_RULES: dict[str, Callable[[ir.Node, str, Facts], bool]] = {
    "kernel": _kernel, "stride": _each("strides", 1), "dilation": _each("dilations", 1), "pad": _each("pads", 0),
    "pad-below-kernel": _below_kernel, "outputs": _outputs, "spatial": _spatial, "constant": _constant, "rank": _rank,
    "axis": _axis, "steps": _steps, "resize-integer": _integer_scales,
    "unused": lambda node, text, _facts: not used(node, int(text)),
}  # fmt: skip
