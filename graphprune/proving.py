"""``gp.verify``: the proof of a cut on disk, once more, from its plan."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.backends import openvino
from graphprune.comparing import compare, run_all
from graphprune.errors import DataError, ModelError, UsageError, VerificationError
from graphprune.inputs import Feed
from graphprune.passes.base import State
from graphprune.passes.verify import TOLERANCE, Verify, tolerance_of
from graphprune.pipeline import load_any
from graphprune.plan import Plan, plan_path
from graphprune.replay import replay
from graphprune.rules import attribute

#: Of a scale: how far an integer may be from what it stands for; a bias is rounded in float32 on the way.
HALF_A_STEP = 0.51


def verify(source: Any, cut: str | os.PathLike[str], plan: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Prove that a cut model on disk equals the masked original of its source, by the plan beside it.

    An ``.onnx`` file runs in ONNX Runtime, OpenVINO's IR (``.xml``) in OpenVINO.

    Returns
    -------
    dict
        ``max_rel_error``, ``tolerance``, ``passed``, ``exact_units``, ``inexact_units``; ``recovered`` where weights were
        re-fitted after the cut: the proof is then of the cut as the plan replays it, and of the file's sizes; ``quantised``
        where they are integers: of those that were not re-fitted, to half a step of their scales.

    Raises
    ------
    VerificationError
        It does not.
    """
    if not Path(cut).exists():
        raise UsageError(f"'{cut}' does not exist")
    read = Plan.load(plan_path(cut) if plan is None else plan)
    loaded = load_any(source)
    recorded = read.source.get("sha256")
    if recorded and loaded.sha256 and recorded != loaded.sha256:
        raise UsageError("the source is not the file the plan was made from (sha256 differs): give the original")
    state = replay(loaded, read)
    assert state.rewriter is not None and state.cut is not None and state.plan is not None
    if state.plan.tensors != {k: {"shape": list(v["shape"]), "kept": v["kept"]} for k, v in read.tensors.items()}:
        raise VerificationError("the plan is not one that this model's coupling allows: some tensors are cut alone")
    # A recovered model computes something else by intention: what is proved is the cut that it started from.
    recovery = read.recovery if isinstance(read.recovery, Mapping) else {}
    after = [part for part in (recovery, read.sparsify) if isinstance(part, Mapping)]
    changed, dropped = (frozenset(str(name) for part in after for name in part.get(key) or ()) for key in ("tensors", "dropped"))
    quantised = len(dict(read.quantize).get("tensors") or ()) if isinstance(read.quantize, Mapping) else 0
    from graphprune.calibration import samples_for
    from graphprune.masking import masked_original

    check = Verify()
    feeds = list(samples_for(state, n=check.count(state)))
    masked = masked_original(state.rewriter)
    if openvino.is_ir(cut):
        return _verify_ir(state, masked, Path(cut), read, changed, quantised, feeds)
    given = load_any(cut).model
    _check_ends(state.model, given)
    if quantised:
        check_integers(state.cut, given, changed)
    else:
        _check_weights(state.cut, given, changed, dropped)
    try:
        for outputs in run_all(given, feeds if changed or quantised else feeds[:1]):
            _check_finite_outputs(outputs, bool(changed or quantised))
        allowed = tolerance_of(state.model)
        worst, where = compare(masked, state.cut if changed or quantised else given, feeds, allowed)
    except (ModelError, DataError, UsageError) as error:
        run_all(masked, feeds)  # raises what is wrong with the source, if it is the source
        raise VerificationError(f"the cut model does not run on the source's inputs: {error}") from error
    report = {**state.plan.verify, "max_rel_error": worst, "tolerance": allowed, "passed": bool(worst <= allowed)}
    report["recovered"], report["quantised"] = len(changed), quantised
    if not report["passed"]:
        raise VerificationError(f"output '{where}' differs by {worst:.2g} of its maximum (allowed {allowed:g})")
    return report


def _verify_ir(
    state: State, masked: ir.Model, path: Path, plan: Plan, changed: frozenset[str], quantised: int, feeds: Sequence[Feed],
) -> dict[str, Any]:  # fmt: skip
    """The same for OpenVINO's IR: constants that have kept their names, and the outputs in OpenVINO."""
    assert state.cut is not None and state.plan is not None
    written = plan.verify.get("openvino") or {}
    compressed = bool(written.get("compress_to_fp16"))
    found = openvino.constants(path)
    for (number, name), value in _constants(state.cut).items():
        mine, other = value.const_value, found.get(name)
        if number or mine is None or other is None:
            continue  # of another graph, or folded by OpenVINO: the outputs tell
        if tuple(mine.shape) != other.shape:
            raise VerificationError(f"tensor '{name}' has shape {list(other.shape)} where the plan gives {list(mine.shape)}")
        array = mine.numpy().astype(other.dtype) if compressed else mine.numpy()
        alike = other.dtype != array.dtype or np.array_equal(array, other, equal_nan=array.dtype.kind == "f")
        if name not in changed and not alike:
            raise VerificationError(f"tensor '{name}' does not hold the source's values at the kept indices")
    if changed or quantised:
        # What recovery or INT8 made has no masked original: the cut that it started from is proved, and that the file runs.
        for feed in feeds:
            _check_finite_outputs(openvino.Compiled(path).run(feed), True)
        allowed = tolerance_of(state.model)
        worst, where = compare(masked, state.cut, feeds, allowed)
        if not worst <= allowed:
            raise VerificationError(f"output '{where}' differs by {worst:.2g} of its maximum (allowed {allowed:g})")
        proof: dict[str, Any] = {"max_rel_error": worst, "tolerance": allowed}
    else:
        proof = openvino.prove(masked, path, feeds, TOLERANCE["float16"] if compressed else None)
    return {**state.plan.verify, **proof, "passed": True, "recovered": len(changed), "quantised": quantised}


def _check_ends(source: ir.Model, given: ir.Model) -> None:
    """The cut file takes and gives what its source does."""
    for what in ("inputs", "outputs"):
        ours, theirs = ([str(v.name) for v in getattr(m.graph, what)] for m in (source, given))
        if ours != theirs:
            raise VerificationError(
                f"the cut model's {what} are {', '.join(theirs) or 'none'}, the source's are "
                f"{', '.join(ours) or 'none'}: is it a cut of another model?"
            )


def _constants(model: ir.Model) -> dict[tuple[int, str], ir.Value]:
    """Constants of all graphs of a model, by the number of their graph and their name."""
    return {(i, name): value for i, graph in enumerate(model.graphs()) for name, value in graph.initializers.items()}


def _bits(tensor: ir.TensorProtocol) -> np.ndarray[Any, Any]:
    """Contents to compare bit for bit: NaN and -0.0 count as well. Strings as they are."""
    flat = tensor.numpy().reshape(-1)
    return flat if flat.dtype == object else flat.view(np.uint8)


def _check_finite_outputs(outputs: Mapping[str, np.ndarray[Any, Any]], changed: bool) -> None:
    """A recovered or quantised model gives numbers."""
    bad = [name for name, array in outputs.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
    if bad and changed:
        raise VerificationError(f"output '{bad[0]}' of the recovered or quantised model is not finite")


def check_integers(expected: ir.Model, given: ir.Model, changed: frozenset[str]) -> None:
    """Weights that are integers stand for the source's at the kept indices, to half a step; sizes only of re-fitted ones.

    Weights that norms were folded into have other names and other values: nothing is known of them.
    """
    ours = _constants(expected)
    for node in given.graph:
        codes = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if codes is None or codes.const_value is None:
            continue
        value = ours.get((0, str(codes.name).removesuffix("_quantized")))
        if value is None or value.const_value is None or value.const_value.dtype != ir.DataType.FLOAT:
            continue
        integers, scale, zero = codes.const_value.numpy(), _contents(node, 1), _contents(node, 2)
        wanted = value.const_value
        if integers.shape != tuple(wanted.shape):
            raise VerificationError(
                f"tensor '{value.name}' has shape {list(integers.shape)} where the plan gives {list(wanted.shape)}"
            )
        if str(value.name) in changed or scale is None:
            continue
        shape = [1] * integers.ndim
        if scale.size > 1:
            shape[attribute(node, "axis", 1)] = scale.size
        step, offset = (np.zeros(1) if a is None else a.astype(np.float64) for a in (scale, zero))
        step, offset = (a.reshape(shape) if a.size > 1 else a.reshape(()) for a in (step, offset))
        off = np.abs((integers.astype(np.float64) - offset) * step - wanted.numpy().astype(np.float64))
        if not (off <= HALF_A_STEP * step).all():
            raise VerificationError(f"tensor '{value.name}' does not hold the source's values at the kept indices, quantised")


def _contents(node: ir.Node, index: int) -> np.ndarray[Any, Any] | None:
    """A constant input of a node."""
    value = node.inputs[index] if index < len(node.inputs) else None
    return None if value is None or value.const_value is None else value.const_value.numpy()


def _check_weights(expected: ir.Model, given: ir.Model, changed: frozenset[str], dropped: frozenset[str]) -> None:
    """Every weight of the cut file is the source's at the kept indices; sizes only of those that recovery changed."""
    theirs = _constants(given)
    for (number, name), value in _constants(expected).items():
        other = theirs.get((number, name))
        if other is None and name in dropped:
            continue
        if other is None or other.const_value is None or value.const_value is None:
            raise VerificationError(f"the cut model lacks tensor '{name}'")
        a, b = value.const_value, other.const_value
        if a.dtype != b.dtype or tuple(a.shape) != tuple(b.shape):
            raise VerificationError(f"tensor '{name}' has shape {list(b.shape)} where the plan gives {list(a.shape)}")
        if name not in changed and a.size and not np.array_equal(_bits(a), _bits(b)):
            raise VerificationError(f"tensor '{name}' does not hold the source's values at the kept indices")
