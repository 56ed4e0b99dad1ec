"""A plan carried out once more, on the model that it was made from."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphprune.costs import CostModel
from graphprune.errors import UsageError
from graphprune.frontends.onnx import Loaded
from graphprune.options import Options
from graphprune.passes.base import State
from graphprune.passes.canonicalize import Canonicalize
from graphprune.passes.couple import Couple
from graphprune.passes.rewrite import Rewrite, names_of
from graphprune.plan import DERIVED, Plan


def replay(loaded: Loaded, plan: Plan) -> State:
    """Analyse a model anew and cut it as a plan says; nothing is proved.

    Raises
    ------
    UsageError
        The plan is another model's.
    """
    shapes = {name: tuple(shape) for name, shape in dict(plan.options.get("shapes", {})).items()}
    state = State(loaded, Options(shapes=shapes))
    Canonicalize().run(state)
    Couple().run(state)
    state.dead = dead_from_plan(state, plan)
    costs = CostModel(state.model, state.need_coupling(), state.need_facts())
    state.before, state.after = costs.price(), costs.price(state.dead)
    Rewrite().run(state)
    return state


def dead_from_plan(state: State, plan: Plan) -> np.ndarray[Any, Any]:
    """Which units a plan removed, bool[n_units].

    Raises
    ------
    UsageError
        The plan removes indices that this model does not let go, or names tensors it does not have.
    """
    coupling = state.need_coupling()
    # What was folded from constants is no tensor of the file and stands in no plan.
    by_name = {
        name: value for value in coupling.constants if DERIVED not in value.meta for name in names_of(state, value)
    }
    dead = np.ones(coupling.n_units, np.bool_)
    for name in plan.tensors:
        if name not in by_name:
            raise UsageError(
                f"the plan names tensor '{name}', which the source does not have: is it another model's plan?"
            )
    for name, value in by_name.items():
        shape = state.need_facts().shape(value) or ()
        entry = plan.tensors.get(name, {"shape": list(shape), "kept": {}})
        if list(entry.get("shape", ())) != list(shape):
            raise UsageError(f"tensor '{name}' has shape {list(shape)}, the plan says {entry.get('shape')}")
        for axis, n in enumerate(shape):
            rows = coupling.rows(value, axis)
            kept = np.asarray(entry.get("kept", {}).get(str(axis), range(n)), np.int64)
            if kept.size == 0 or kept.min() < 0 or kept.max() >= n:
                raise UsageError(f"tensor '{name}' axis {axis}: the plan keeps indices outside 0..{n - 1}, or none")
            alive = rows[kept]
            dead[alive[alive >= 0]] = False
    return dead
