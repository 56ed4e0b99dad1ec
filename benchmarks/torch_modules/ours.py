"""graphprune on a module, judged in both modes by the tests' oracle."""

from __future__ import annotations

import time
from typing import Any

from benchmarks.torch_modules.peer import told
from benchmarks.torch_modules.sources import Make
from tests import torch_oracle

MODES = {"half": False, "exact": True}


def run(make: Make, batch: bool = True) -> dict[str, Any]:
    """Cut at rate 0.5 of every group, and only what is exact; ``verdict`` is exact, refused, wrong or crash."""
    found: dict[str, Any] = {"half": once(make, False, batch)}
    # Where no inexact unit was cut, the mode of exact units makes the same cut.
    same = found["half"].get("proved", False)
    found["exact"] = {**found["half"], "same": True} if same else once(make, True, batch)
    verdicts = [found[mode]["verdict"] for mode in MODES]
    # With nothing exact to cut, the mode of exact units rightly refuses: the other mode speaks.
    nothing = found["exact"]["verdict"] == "refused" and "nothing" in found["exact"]["why"]
    worst = [v for v in ("crash", "wrong", "refused") if v in (verdicts[:1] if nothing else verdicts)]
    return {"verdict": worst[0] if worst else "exact", **found}


def once(make: Make, exact: bool, batch: bool) -> dict[str, Any]:
    """One mode."""
    import graphprune as gp

    source, args, kwargs = make()
    start = time.perf_counter()
    try:
        result = gp.prune(source, (args, kwargs) if kwargs else args, rate=0.5, scope="group", exact=exact)
        module = result.module
    except gp.GraphPruneError as error:
        return {"verdict": "refused", "why": " ".join(str(error).split())[:300]}
    except Exception as error:
        return {"verdict": "crash", "why": told(error)}
    seconds = time.perf_counter() - start
    plan = result.plan
    facts = {
        "seconds": round(seconds, 2), "params": plan.after["params"] / max(plan.before["params"], 1),
        "macs": plan.after["macs"] / max(plan.before["macs"], 1), "form": type(module).__name__,
    }  # fmt: skip
    try:
        judged = torch_oracle.judge(make, result, batch=batch)
    except Exception as error:
        return {"verdict": "crash", "why": f"judging: {told(error)}", **facts}
    facts |= {
        "error": judged.error, "effect": judged.effect, "proved": judged.exact, "lanes": judged.lanes,
        "graph": judged.graph, "closed": judged.closed, "why": "; ".join(judged.problems)[:400],
    }  # fmt: skip
    return {"verdict": "wrong" if judged.problems else "exact", **facts}
