"""``verify``: the proof that a cut equals its masked original, and that the result loads and runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir

from graphprune.backends.ort import Runner
from graphprune.calibration import samples_for
from graphprune.comparing import compare_runs, relative_error, run_all
from graphprune.coupling import node_name
from graphprune.cut import Rewriter
from graphprune.errors import GraphPruneError, ModelError, VerificationError
from graphprune.inputs import Feed
from graphprune.masking import masked_original
from graphprune.ops.traits import QUANTISING
from graphprune.passes.base import Kind, Pass, State

#: Allowed difference of an output, relative to its own maximum, by the narrowest float type in the model.
TOLERANCE = {"float64": 1e-4, "float32": 1e-4, "float16": 2e-2, "bfloat16": 1e-1}
#: MACs of one inference above which one input has to do.
HEAVY = 1_000_000_000
#: With quantised values in the graph a difference of rounding shows as a whole step.
QUANTISED = 5e-2


@dataclass(frozen=True)
class Verify(Pass):
    """Run the masked original and the cut model on the same inputs in ONNX Runtime; all outputs must agree.

    Parameters
    ----------
    samples
        Number of inputs to compare on; by default 4, or 1 for networks of more than a billion MACs.
    tolerance
        Allowed difference relative to each output's maximum; by default 1e-4 for float32 models.
    """

    name: ClassVar[str] = "verify"
    kind: ClassVar[Kind] = "check"
    samples: int | None = None
    tolerance: float | None = None

    def run(self, state: State) -> None:
        if state.rewriter is None or state.cut is None or state.plan is None:
            raise GraphPruneError("there is no cut to verify: run 'rewrite' first")
        masked = masked_original(state.rewriter)
        feeds = list(samples_for(state, n=self.count(state)))
        allowed = self.tolerance if self.tolerance is not None else tolerance_of(state.model)
        try:
            found = compare_runs(masked, state.cut, feeds, allowed)
        except ModelError as error:
            try:
                run_all(state.model, feeds)
            except ModelError as before:
                advice = "" if state.options.data is not None else (
                    ". It was given made-up inputs, which may not be what it takes: give samples with --data (an .npz, arrays by "
                    "input name), or sizes with --shape NAME=1x3x224x224"
                )  # fmt: skip
                raise ModelError(
                    f"the model does not run, cut or uncut, so nothing can be proved: {before}{advice}"
                ) from error
            raise VerificationError(f"the cut model does not run: {error}. Nothing was written") from error
        worst = found.worst
        state.plan.verify.update(max_rel_error=worst, passed=worst <= allowed, tolerance=allowed, samples=len(feeds))
        if not worst <= allowed:
            raise VerificationError(self._explain(state, masked, feeds[:1], found.where, worst, allowed))
        if found.decided:
            state.plan.verify["decided"] = {"samples": found.undecided, "nodes": list(found.decided)}
            more = f" and {len(found.decided) - 1} more" if len(found.decided) > 1 else ""
            state.note(
                f"on {found.undecided} of {len(feeds)} inputs the proof met numbers so nearly equal that rounding decides between "
                f"them, at {found.decided[0]}{more}: what goes in agrees, and what follows was compared given the same choice"
            )
        state.proved = feeds[0], found.outputs[0]
        if worst == 0 and len(feeds) > 1 and state.dead is not None and state.dead.any() and _all_alike(state.cut, found.outputs):
            state.note(
                f"the cut model (before any recovery) gives the same outputs for all {len(feeds)} inputs: what told them "
                "apart was removed, and the proof compared constants. Cut less, or share the budget otherwise (--allocate)"
            )

    def count(self, state: State) -> int:
        """Inputs to compare on."""
        if self.samples is not None:
            return max(self.samples, 1)
        return 1 if state.before is not None and state.before.macs > HEAVY else 4

    @staticmethod
    def _explain(state: State, masked: ir.Model, feeds: list[Feed], where: str, worst: float, allowed: float) -> str:
        assert state.rewriter is not None and state.cut is not None
        first = first_difference(state.rewriter, masked, feeds[0], allowed)
        at = f"; the first value that differs is '{first[0]}' of {first[1]}" if first else ""
        return (
            f"the cut model does not equal the masked original: output '{where}' differs by {worst:.2g} of its maximum "
            f"(allowed {allowed:g}){at}. Nothing was written. Please report this model; --keep goes round the layer"
        )


def _all_alike(model: ir.Model, outputs: Iterable[Mapping[str, np.ndarray[Any, Any]]]) -> bool:
    """Whether no floating output tells several inputs apart."""
    names = [str(value.name) for value in model.graph.outputs]
    first, *rest = ({k: out[k] for k in names if out[k].dtype.kind == "f"} for out in outputs)
    return bool(first) and all(relative_error(first[name], out[name]) < 1e-6 for out in rest for name in first)


def tolerance_of(model: ir.Model) -> float:
    """Allowed relative difference, by the model's narrowest arithmetic."""
    widest = 0.0
    for node in model.graph.all_nodes():
        if node.op_type.startswith(QUANTISING):
            return QUANTISED
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.size > 1:
            widest = max(widest, TOLERANCE.get(str(tensor.dtype.numpy()), 0.0))
    return widest or 1e-4


def first_difference(rewriter: Rewriter, masked: ir.Model, feed: Feed, allowed: float) -> tuple[str, str] | None:
    """The first value in topological order that differs at the kept indices, and its node."""
    names = {str(v.name) for node in masked.graph for v in node.outputs}
    present = {str(v.name) for node in rewriter.model.graph for v in node.outputs}
    values = [v for node in rewriter.source.graph for v in node.outputs if v.name in names and v.name in present]
    # Sizes differ wherever something was cut; only what is computed from data can tell of a mistake.
    values = [v for v in values if (t := rewriter.old_facts.dtype(v)) is not None and t.is_floating_point()]
    wanted = [str(v.name) for v in values]
    try:
        a, b = Runner(masked, outputs=wanted).run(feed), Runner(rewriter.model, outputs=wanted).run(feed)
    except GraphPruneError:
        return None
    for value in values:
        left = a[str(value.name)]
        for axis in range(left.ndim if rewriter.is_cut(value) else 0):
            kept = rewriter.kept(value, axis)
            left = left if kept is None else left.take(kept, axis=axis)
        if relative_error(left, b[str(value.name)]) > allowed:
            producer = value.producer()
            return str(value.name), "" if producer is None else f"{producer.op_type} '{node_name(producer)}'"
    return None
