"""Whether a node is one that a target's parser takes: operator, opset, element types, and the table's rules."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import onnx
import onnx_ir as ir

from graphprune.backends.tensorrt.rewriting import Context, attribute, given, is_constant, schema, used
from graphprune.devices import Operator, operator
from graphprune.devices.tables import first_with, lacking_in_rtx, typed_by

#: Names of element types in the tables.
TYPES = {
    ir.DataType.FLOAT: "FP32", ir.DataType.FLOAT16: "FP16", ir.DataType.BFLOAT16: "BF16", ir.DataType.INT32: "INT32",
    ir.DataType.INT64: "INT64", ir.DataType.INT8: "INT8", ir.DataType.UINT8: "UINT8", ir.DataType.BOOL: "BOOL",
    ir.DataType.FLOAT8E4M3FN: "FP8", ir.DataType.INT4: "INT4", ir.DataType.DOUBLE: "FP64",
}  # fmt: skip
#: Plugins that come with TensorRT, by the first version that has them.
PLUGINS = {"EfficientNMS_TRT": (8, 0)}
RESIZE_COORDINATES = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")


@dataclass(frozen=True)
class Problem:
    """Why a target does not take a node.

    Attributes
    ----------
    kind
        ``op``, ``opset``, ``type`` or the name of a rule.
    """

    kind: str
    reason: str


def problem(node: ir.Node, context: Context) -> Problem | None:
    """The first thing that keeps a target from taking a node, None where it takes it."""
    if node.domain not in ("", "ai.onnx"):
        if node.op_type in PLUGINS and context.target.tensorrt >= PLUGINS[node.op_type] and not context.target.rtx:
            return None
        return Problem("op", f"operator {node.domain}.{node.op_type} is no ONNX operator and no plugin of TensorRT")
    found = _opset_problem(node, context)
    if found is not None:
        return found
    row = operator(node.op_type, context.target.tensorrt)
    if row is None:
        first = first_with(node.op_type)
        since = f"it comes with TensorRT {'.'.join(map(str, first))}" if first else "no TensorRT of the tables takes it"
        if first and first <= context.target.tensorrt:
            since = "later versions dropped it"
        return Problem("op", f"TensorRT {_version(context)} does not take {node.op_type}: {since}")
    lacking = lacking_in_rtx().get(node.op_type) if context.target.rtx else None
    if lacking is not None:
        return Problem("op", f"TensorRT-RTX does not take {node.op_type}: {lacking.note}")
    return _type_problem(node, row, context) or _rule_problem(node, row, context)


def _version(context: Context) -> str:
    return ".".join(map(str, context.target.tensorrt[:2]))


def extra_attributes(node: ir.Node, context: Context) -> tuple[list[str], list[str]]:
    """Attributes that the target's opset does not know: those that say nothing (defaults), and the others."""
    at, to = schema(node.op_type, context.opset_of(node)), schema(node.op_type, context.opset)
    silent: list[str] = []
    telling: list[str] = []
    if at is None or to is None:
        return silent, telling
    for name in node.attributes:
        if name in to.attributes:
            continue
        default = at.attributes[name].default_value if name in at.attributes else None
        value = attribute(node, name)
        stated = onnx.helper.get_attribute_value(default) if default is not None and default.type else None
        stated = stated.decode() if isinstance(stated, bytes) else stated
        alike = value == stated or (stated is None and value in (0, [], ""))
        (silent if alike else telling).append(name)
    return silent, telling


def _opset_problem(node: ir.Node, context: Context) -> Problem | None:
    at, to = schema(node.op_type, context.opset_of(node)), schema(node.op_type, context.opset)
    if to is None:
        since = min((s.since_version for s in _history(node.op_type)), default=None)
        if since is None:
            return Problem("op", f"operator {node.op_type} is not in ONNX")
        return Problem(
            "opset", f"{node.op_type} is of opset {since}, TensorRT {_version(context)} reads up to {context.opset}"
        )
    if at is None or at.since_version == to.since_version:
        return None
    if len([v for v in node.inputs if v is not None]) > to.max_input or len(node.inputs) > to.max_input:
        return Problem(
            "opset", f"{node.op_type} has {len(node.inputs)} inputs, in opset {context.opset} it takes {to.max_input}"
        )
    if (node.op_type, at.since_version, to.since_version) in CHANGED:
        return Problem("opset", f"{node.op_type} means something else in opset {context.opset}")
    _, telling = extra_attributes(node, context)
    if telling and operator(node.op_type, context.target.tensorrt) is not None:  # else that is what there is to say
        return Problem("opset", f"attribute '{telling[0]}' of {node.op_type} is not in opset {context.opset}")
    for index, value in enumerate(node.inputs):
        dtype = None if value is None else context.facts.dtype(value)
        if dtype is None:
            continue
        formal = to.inputs[min(index, len(to.inputs) - 1)]
        name = f"tensor({onnx.helper.tensor_dtype_to_string(int(dtype)).removeprefix('TensorProto.').lower()})"
        if formal.types and name not in formal.types and name.startswith("tensor("):
            return Problem("type", f"{node.op_type} does not take {dtype.name.lower()} in opset {context.opset}")
    return None


#: Operator, version it is of, version it would be read as, where the same text means something else.
CHANGED = frozenset((("GroupNormalization", 21, 18), ("GridSample", 20, 16)))


@lru_cache(1)
def _all_schemas() -> dict[str, list[onnx.defs.OpSchema]]:
    found: dict[str, list[onnx.defs.OpSchema]] = {}
    for one in onnx.defs.get_all_schemas_with_history():
        if one.domain == "":
            found.setdefault(one.name, []).append(one)
    return found


def _history(op_type: str) -> list[onnx.defs.OpSchema]:
    return _all_schemas().get(op_type, [])


def type_name(dtype: ir.DataType, context: Context) -> str:
    """TensorRT's name of an element type; before version 10 int64 is read as int32."""
    if dtype == ir.DataType.INT64 and context.target.tensorrt < (10,):
        return "INT32"
    return TYPES.get(dtype, dtype.name)


def _type_problem(node: ir.Node, row: Operator, context: Context) -> Problem | None:
    taken = row.types.split()
    if not taken:
        return None
    values = [node.outputs[0] if index < 0 else given(node, index) for index in typed_by(node.op_type)]
    for value in values:
        dtype = None if value is None else context.facts.dtype(value)
        if dtype is not None and (name := type_name(dtype, context)) not in taken:
            return Problem("type", f"{node.op_type} of {name}: TensorRT {_version(context)} takes {', '.join(taken)}")
    return None


Rule = Callable[[ir.Node, str, Context], bool]


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("..")
    return int(low), int(high or low)


def _spatial(node: ir.Node, text: str, context: Context) -> bool:
    rank = None if node.inputs[0] is None else context.facts.rank(node.inputs[0])
    return rank is None or rank - 2 in _numbers(text)


def _constant(node: ir.Node, text: str, _context: Context) -> bool:
    return all(given(node, i) is None or is_constant(given(node, i)) for i in _numbers(text))


def _unused(node: ir.Node, text: str, _context: Context) -> bool:
    return not any(used(node, i) for i in _numbers(text))


def _attribute(node: ir.Node, text: str, context: Context) -> bool:
    name, _, wanted = text.partition("=")
    value = attribute(node, name)
    if value is None:
        return True
    return all(str(v) == wanted for v in value) if isinstance(value, list) else str(value) == wanted


def _zero_point(node: ir.Node, text: str, context: Context) -> bool:
    value = given(node, int(text))
    if value is None:
        # Left out it is 0, which is off the middle of what is quantised to uint8.
        return context.facts.dtype(node.outputs[0]) != ir.DataType.UINT8
    known = context.facts.known(value)
    return known is not None and not np.asarray(known, np.float64).any()


def _read_by(node: ir.Node, text: str, context: Context) -> bool:
    reader, dtype = operator(text, context.target.tensorrt), context.facts.dtype(node.outputs[0])
    # uint8 is the zero point's matter: symmetric, it is lowered to int8.
    return reader is None or dtype is None or type_name(dtype, context) in (*reader.types.split(), "UINT8")


def _static(node: ir.Node, text: str, context: Context) -> bool:
    value = given(node, int(text))
    return value is None or context.facts.shape(value) is not None


def _rank(node: ir.Node, text: str, context: Context) -> bool:
    low, high = _range(text)
    rank = None if node.inputs[0] is None else context.facts.rank(node.inputs[0])
    return rank is None or low <= rank <= high


def _einsum(node: ir.Node, _text: str, context: Context) -> bool:
    equation = str(attribute(node, "equation", "")).replace(" ", "")
    terms = equation.split("->")[0].split(",")
    if "..." in equation or any(len(set(term)) < len(term) for term in terms):
        return False
    sizes: dict[str, set[int | None]] = {}
    for term, value in zip(terms, node.inputs, strict=False):
        for letter, size in zip(term, (None if value is None else context.facts.partial(value)) or (), strict=False):
            sizes.setdefault(letter, set()).add(size)
    return not any(1 in found and len(found) > 1 for found in sizes.values())


def _same_activations(node: ir.Node, _text: str, _context: Context) -> bool:
    names = attribute(node, "activations") or []
    half = len(names) // 2
    return attribute(node, "direction", "forward") != "bidirectional" or names[:half] == names[half:]


def _non_negative(node: ir.Node, text: str, context: Context) -> bool:
    value = given(node, int(text))
    known = None if value is None else context.facts.known(value)
    return known is None or known.size == 0 or bool(known.min() >= 0)


def _pad(node: ir.Node, _text: str, context: Context) -> bool:
    value = given(node, 1)
    pads = attribute(node, "pads") if value is None else context.facts.known(value)
    fill = given(node, 2)
    zero = fill is None or ((known := context.facts.known(fill)) is not None and not known.any())
    if pads is None or attribute(node, "mode", "constant") != "constant" or not zero:
        return False
    both = np.asarray(pads).reshape(2, -1)
    return not both[:, :-2].any()


def _float_constants(node: ir.Node, text: str, context: Context) -> bool:
    value = given(node, 0)
    dtype = None if value is None else context.facts.dtype(value)
    return dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16) or _constant(node, text, context)


def _resize(node: ir.Node, _text: str, _context: Context) -> bool:
    mode = attribute(node, "mode", "nearest")
    if mode not in ("nearest", "linear"):
        return False
    return attribute(node, "coordinate_transformation_mode", "half_pixel") in RESIZE_COORDINATES


def _window_below(node: ir.Node, text: str, _context: Context) -> bool:
    window = attribute(node, "kernel_shape") or ()
    return len(window) != 2 or math.prod(window) < int(text)


def _below(node: ir.Node, text: str, context: Context) -> bool:
    index, limit = map(int, text.split(":"))
    value = given(node, index)
    known = None if value is None else context.facts.known(value)
    return known is None or bool((known < limit).all())


RULES: dict[str, Rule] = {
    "spatial": _spatial, "constant": _constant, "unused": _unused, "attr": _attribute, "zero-point": _zero_point,
    "read-by": _read_by, "static": _static, "rank": _rank, "einsum-plain": _einsum, "same-activations": _same_activations,
    "non-negative": _non_negative, "pad-zero-two-axes": _pad, "float-constants": _float_constants, "resize": _resize,
    "below": _below, "window-below": _window_below, "padded": lambda _n, _t, _c: False, "never-equal": lambda _n, _t, _c: True,
    "no-strings": lambda _n, _t, _c: True,
}  # fmt: skip


def parse_rules(text: str) -> list[tuple[str, str]]:
    """``"spatial=2,3;attr:sorted=1"`` as names and arguments."""
    found = []
    for part in filter(None, text.split(";")):
        match = re.fullmatch(r"([a-z-]+)(?:[:=](.*))?", part)
        if match is None:
            raise ValueError(f"'{part}' is no rule")
        found.append((match[1], match[2] or ""))
    return found


def _rule_problem(node: ir.Node, row: Operator, context: Context) -> Problem | None:
    for name, argument in parse_rules(row.rules):
        if not RULES[name](node, argument, context):
            return Problem(name, f"{node.op_type} in TensorRT {_version(context)}: {row.note}")
    return None
