"""The user's own torch module made smaller where it lies, or a graph in its place where its code does not allow that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphprune.backends.inplace.cutting import cut_in_place, known_of, proof_of
from graphprune.backends.inplace.graph import CutGraph, graph_module
from graphprune.backends.inplace.masked import masked
from graphprune.backends.inplace.proof import Arrays, Proof, Undecided
from graphprune.backends.inplace.saved import load, stage
from graphprune.backends.inplace.solve import Declined
from graphprune.backends.torch import to_module
from graphprune.errors import GraphPruneError, VerificationError
from graphprune.folding import MADE_FROM
from graphprune.frontends.torch import load_module
from graphprune.passes.base import State
from graphprune.replay import replay

__all__ = ["CutGraph", "Declined", "check_export", "cut_in_place", "cut_module", "load", "stage"]


def cut_module(state: State, optimizer: Any = None) -> Any:
    """The smaller torch module of a finished run.

    Parameters
    ----------
    state
        Of a run on a torch module.
    optimizer
        A ``torch.optim.Optimizer`` whose state of the module's parameters is cut as they are.

    Returns
    -------
    torch.nn.Module
        The module that was given, cut in place; or, where its code does not allow it, a `CutGraph` that is called as it
        was. A note says which line of code stood against it, and the module itself is as it was then.
    """
    source, plan = state.loaded.torch, state.plan
    assert source is not None and plan is not None
    try:
        done = cut_in_place(state, optimizer)
    except Declined as error:
        module, is_open = fall_back(state, error.told())
        plan.attributes = {"kind": "graph", "reason": error.told(), "open": is_open}
        if optimizer is not None:
            state.note("the optimizer still holds the parameters of the source: make a new one for result.module")
        return module
    plan.attributes = {"kind": "module", "class": type(source.module).__name__, "mended": done.attributes}
    plan.verify["module"] = done.error
    if done.stale:
        state.note(
            f"a loss or output from before the cut is still alive and holds {len(done.stale)} parameters at their old "
            f"sizes ('{done.stale[0]}'): delete it before the next backward()"
        )
    return source.module


def fall_back(state: State, reason: str) -> tuple[Any, bool]:
    """The cut graph as a torch module, proved like one that was cut in place; whether it takes any batch size."""
    source = state.loaded.torch
    assert source is not None and state.cut is not None
    if source.module is None:
        state.note("an ExportedProgram has no code to keep: result.module is a graph")
        return to_module(state.cut), False
    proof = proof_of(state)
    check_export(state, proof)
    result = proof.call(source.module).run()
    wanted = proof.wanted(state.cut, known_of(state))
    for cut in (open_batch(state), state.cut):
        if cut is None:
            continue
        try:
            module = graph_module(cut, source.module, source.args, source.kwargs, result, reason)
            proof.check(module, wanted, state.cut)
        except Exception as error:  # of torch's, of any kind; the graph for the example's own sizes is tried next
            failed = error
            continue
        check_masked(state, proof, wanted)
        is_open = cut is not state.cut
        what = "" if is_open else "; it takes the example's batch size only"
        state.note(f"the module's own code does not allow the cut, result.module is a graph{what}. {reason}")
        return module, is_open
    told = " ".join(f"{type(failed).__name__}: {failed}".split())
    raise GraphPruneError(f"neither the module ({reason}) nor its graph ({told}) could be cut; use result.ir")


def check_export(state: State, proof: Proof | None = None) -> None:
    """Prove that the graph, before anything is cut, computes what the module does.

    A module that was cut in place has shown that by what it gives. A graph in its place has only been compared with
    graphs, and what was wrong with the translation is wrong in all of them.

    Raises
    ------
    VerificationError
        It does not: torch's exporter translated the module wrongly.
    """
    source = state.loaded.torch
    if source is None or source.module is None:
        return
    proof = proof_of(state) if proof is None else proof
    try:
        proof.check(source.module, proof.wanted(state.model), state.model)
    except Undecided as error:
        raise VerificationError(
            f"{type(source.module).__name__} cannot be compared with its graph: {error}. Nothing was cut. Give weights that were "
            "trained, or example inputs like those that it will run on"
        ) from error
    except Declined as error:
        told = str(error).replace("the cut graph's", "that of the graph which torch's exporter made of it")
        way = "" if source.exported is not None else " by TorchScript, which holds what was decided for the example inputs"
        raise VerificationError(
            f"{type(source.module).__name__} is not translated rightly{way}: uncut as it is, {told}. Nothing was cut. Give "
            "example inputs like those that it will run on, or pass a torch.export.ExportedProgram of your own"
        ) from error


def check_masked(state: State, proof: Proof, wanted: Sequence[Arrays]) -> None:
    """Prove a cut graph against the module itself, with what was removed made zero in its own tensors.

    The graph has been proved against its own masked original, which is another where a translation loses what a number was
    made from. Nothing is compared where units are inexact (zeros are seen there), where weights were fitted anew, or where
    the module's own code makes a weight from a tensor that is cut.

    Raises
    ------
    VerificationError
        They differ.
    """
    source, plan = state.loaded.torch, state.plan
    assert source is not None and plan is not None and state.cut is not None and state.rewriter is not None
    if plan.verify["inexact_units"] or plan.recovery.get("used"):
        return
    folded = {name for v in state.rewriter.source.graph.initializers.values() for made in v.meta.get(MADE_FROM, ())
              for name in source.names(made)}  # fmt: skip
    for buffers in (True, False):
        with masked(source.module, plan.tensors, buffers) as parts:
            if computed := sorted(folded & plan.tensors.keys() - parts):
                more = f" and {len(computed) - 1} more" if len(computed) > 1 else ""
                state.note(
                    f"the module's own code computes weights from '{computed[0]}'{more} (it standardises them, say): they are cut "
                    "as computed, with what was taken over the whole weight, and not as if zeros stood in the tensor itself"
                )
                return
            try:
                proof.check(source.module, wanted, state.cut)
                return
            except Declined as error:
                failed = error
    raise VerificationError(
        f"the graph that stands for {type(source.module).__name__} does not equal its masked original: {failed}. Nothing was "
        "cut. Please report this module; keep= goes round the layer"
    ) from failed


def open_batch(state: State) -> ir.Model | None:
    """The same cut of a graph that takes any batch size; None where torch cannot export one."""
    source = state.loaded.torch
    assert source is not None and state.plan is not None and state.cut is not None
    try:
        loaded = load_module(source.module, (source.args, source.kwargs), dynamic_batch=True)
        if all(isinstance(n, int) for value in loaded.model.graph.inputs for n in (value.shape or ())):
            return None
        again = replay(loaded, state.plan)
        if again.plan is None or again.plan.tensors != state.plan.tensors or again.cut is None:
            return None
        for name, value in again.cut.graph.initializers.items():
            known = state.cut.graph.initializers.get(name)
            if known is not None and known.const_value is not None and name in source.aliases:
                value.const_value = ir.Tensor(np.array(known.const_value.numpy()), name=name)
    except Exception:  # an open size may fail anywhere in torch
        return None
    return again.cut
