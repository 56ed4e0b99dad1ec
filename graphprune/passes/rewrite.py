"""``rewrite``: the decision carried out, giving a smaller model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from graphprune import __version__
from graphprune.coupling import Coupling
from graphprune.cut import Rewriter
from graphprune.errors import GraphPruneError
from graphprune.frontends.onnx import plan_name
from graphprune.passes.base import Kind, Pass, State
from graphprune.plan import DERIVED, Plan

#: Units above which a plan leaves the scores out: they would make most of the file.
MOST_SCORES = 200_000


@dataclass(frozen=True)
class Rewrite(Pass):
    """Slice every tensor by the decision and mend what ops store as numbers. Changes the graph (a copy)."""

    name: ClassVar[str] = "rewrite"
    kind: ClassVar[Kind] = "transform"
    changes_graph: ClassVar[bool] = True

    def run(self, state: State) -> None:
        if state.dead is None:
            raise GraphPruneError("nothing was selected yet: run 'select' first")
        rewriter = Rewriter(state.model, state.need_coupling(), state.need_facts(), state.dead)
        cut = rewriter.run()
        RemoveUnusedNodesPass()(cut)
        state.rewriter, state.cut = rewriter, cut
        state.plan = make_plan(state, rewriter)


def make_plan(state: State, rewriter: Rewriter) -> Plan:
    """The plan of a decision."""
    coupling = state.need_coupling()
    assert state.dead is not None and state.before is not None and state.after is not None
    path = state.loaded.path
    plan = Plan(
        source={"path": None if path is None else str(path), "sha256": state.loaded.sha256},
        options=state.options.to_json(),
        before=state.before.to_json() | _timed(state, "before"),
        after=state.after.to_json() | _timed(state, "after"),
        graphprune=__version__,
        groups=group_entries(coupling, state.dead),
        frozen=frozen_entries(coupling),
        scores=score_entries(state, coupling),
    )
    for value in coupling.constants:
        if rewriter.is_cut(value) and DERIVED not in value.meta:
            shape = list(state.need_facts().shape(value) or ())
            kept = {str(a): k.tolist() for a in range(len(shape)) if (k := rewriter.kept(value, a)) is not None}
            for name in names_of(state, value):
                plan.tensors[name] = {"shape": shape, "kept": kept}
    plan.verify = {
        "exact_units": int((state.dead & ~coupling.inexact).sum()),
        "inexact_units": int((state.dead & coupling.inexact).sum()),
        "passed": False,
    }
    return plan


def names_of(state: State, value: ir.Value) -> tuple[str, ...]:
    """Names of a tensor in the source: one, or those of all parameters of a torch module that are tied to it."""
    name = plan_name(value)
    return (name,) if state.loaded.torch is None else state.loaded.torch.names(name)


def _timed(state: State, when: str) -> dict[str, float]:
    """The latency that a budget was measured by; there is none without one."""
    return {"latency_ms": state.latency[when]} if when in state.latency else {}


def score_entries(state: State, coupling: Coupling) -> dict[str, object]:
    """Scores as they stand in a plan: for each criterion its unit and, a group, the numbers in the order of its units."""
    few = coupling.n_units <= MOST_SCORES
    return {
        scored.name: {
            "unit": scored.unit,
            "groups": {g.id: [float(f"{v:.6g}") for v in scored.values[g.units]] for g in coupling.groups} if few else {},
        }
        for scored in state.scores
    }


def group_entries(coupling: Coupling, dead: np.ndarray) -> list[dict[str, object]]:
    """Groups as they stand in a plan."""
    return [
        {
            "id": group.id,
            "kind": group.kind,
            "units": len(group.units),
            "kept": int((~dead[group.units]).sum()),
            "exact": group.exact,
            "members": [[plan_name(value), axis] for value, axis in group.members if DERIVED not in value.meta],
        }
        for group in coupling.groups
    ]


def frozen_entries(coupling: Coupling) -> list[dict[str, object]]:
    """Frozen axes as they stand in a plan."""
    return [
        {"tensor": plan_name(f.tensor), "axis": f.axis, "size": f.size, "node": f.node, "op": f.op, "reason": f.reason}
        for f in coupling.frozen
    ]
