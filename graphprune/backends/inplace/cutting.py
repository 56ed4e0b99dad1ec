"""Cutting a torch module where it lies: tensors sliced, attributes mended, the result proved, or everything put back."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from graphprune.backends.inplace.attention import adapt, give_back
from graphprune.backends.inplace.expect import expected
from graphprune.backends.inplace.holders import Path, put_back, write
from graphprune.backends.inplace.layers import follow
from graphprune.backends.inplace.proof import Proof
from graphprune.backends.inplace.solve import Declined, Search, describe
from graphprune.backends.inplace.tensors import (
    Sliced,
    computed_weights,
    named_tensors,
    owners,
    settle_computed,
)
from graphprune.backends.ort import Feed
from graphprune.cut import Rewriter
from graphprune.errors import GraphPruneError
from graphprune.frontends.torch_source import TorchSource
from graphprune.ops.traits import bias_of
from graphprune.passes.base import State
from graphprune.passes.verify import HEAVY, tolerance_of

#: Solutions that are proved before a module is given up.
MOST_PROOFS = 10
#: MACs of one call above which its sizes are found without computing it.
LARGE = 10_000_000_000


@dataclass(frozen=True)
class Mended:
    """What a cut in place did.

    Attributes
    ----------
    attributes
        As in a plan.
    error
        Largest difference to the cut graph, relative to an output's maximum.
    stale
        Parameters that a graph of autograd's from before the cut still holds.
    """

    attributes: list[dict[str, Any]]
    error: float
    stale: list[str]


def cut_in_place(state: State, optimizer: torch.optim.Optimizer | None = None) -> Mended:
    """Cut the module that a run started from.

    Raises
    ------
    Declined
        Its code does not allow it. The module is exactly as it was then.
    """
    source = state.loaded.torch
    assert source is not None and state.rewriter is not None and state.cut is not None and state.plan is not None
    module = source.module
    if module is None:
        raise Declined("an ExportedProgram has no code that could be cut")
    plain = state.rewriter.again() if state.plan.recovery.get("used") else state.cut
    proof = proof_of(state)
    call = proof.call(module)
    call.on_stand_ins = state.before is not None and state.before.macs > LARGE
    search = Search(call, expected(state.rewriter, source.prefix, owners(module)))
    with _declining("it could not be watched while it ran"):
        search.record()
    wanted = proof.wanted(plain, known_of(state))
    sliced = Sliced()
    adapted: list[Any] = []
    undo: list[tuple[dict[str, Any], str, Any]] = []
    try:
        computed = computed_weights(module, state.plan.tensors)
        adapted.extend(adapt(module, state.plan.tensors))
        indices = changed_indices(module, state.rewriter)
        sliced.cut(module, state.plan.tensors, optimizer)
        settle_computed(computed, sliced)
        for name, tensor, new in indices:
            sliced.put(name, tensor, new)
        changes, error = _solve(module, search, proof, wanted, plain, undo)
        if plain is not state.cut:
            put_values(module, source, state.cut, sliced)
            error = proof.check(module, proof.wanted(state.cut), state.cut)
    except BaseException as failed:
        put_back(undo)
        give_back(adapted)
        sliced.restore()
        if isinstance(failed, Declined) or not isinstance(failed, Exception):
            raise
        raise Declined(" ".join(f"{type(failed).__name__}: {failed}".split())) from failed
    return Mended(describe(changes, search.slots), error, sliced.stale)


def proof_of(state: State) -> Proof:
    """The inputs that a module of a run is compared on."""
    source = state.loaded.torch
    assert source is not None
    names = [str(value.name) for value in state.model.graph.inputs]
    tolerance = max(tolerance_of(state.model), 1e-4)
    light = state.before is None or state.before.macs <= HEAVY
    found = Proof.of(source.module, source.args, source.kwargs, names, tolerance, twice=light)
    return found if source.module is None else found.taken_by(source.module)


def known_of(state: State) -> tuple[Feed, Feed] | None:
    """What the cut graph gave in its own proof; None where a recovery may have changed it since."""
    return None if state.plan is None or state.plan.recovery else state.proved


def _solve(
    module: torch.nn.Module, search: Search, proof: Proof, wanted: Any, plain: ir.Model,
    undo: list[tuple[dict[str, Any], str, Any]],
) -> tuple[dict[tuple[str, Path], int], float]:  # fmt: skip
    """Write the first values of its attributes with which a module passes the proof."""
    found = search.solutions()
    if search.call.on_stand_ins:
        found = itertools.chain(found, search.solutions(computing=True))
    for changes in itertools.islice(found, MOST_PROOFS):
        undo.extend(mend(module, changes))
        try:
            return changes, proof.check(module, wanted, plain)
        except Exception as error:
            search.reasons.append(search.blame(error))
            put_back(undo)
            undo.clear()
    raise search.reason()


def mend(module: torch.nn.Module, changes: Mapping[tuple[str, Path], int]) -> list[tuple[dict[str, Any], str, Any]]:
    """Write new attributes, and let those of torch's own layers follow; what to give to ``put_back``."""
    undo = write(module, changes)
    for one in module.modules():
        for key, value in follow(one).items():
            before = vars(one).get(key)
            if before is not None and before != value:
                undo.append((vars(one), key, before))
                vars(one)[key] = value
    return undo


def changed_indices(module: torch.nn.Module, rewriter: Rewriter) -> list[tuple[str, torch.Tensor, torch.Tensor]]:
    """Buffers of indices into an axis that is cut: name, buffer, and what it is in the cut graph.

    To be called before anything is cut. A buffer is known by its values: the graph may read it in another shape.
    """
    changed = _changed_constants(rewriter)
    found = []
    for name, tensor in named_tensors(module).items() if changed else ():
        if tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.numel() < 2:
            continue
        flat = tensor.detach().cpu().numpy().reshape(-1)
        for before, after in changed:
            if before.size == flat.size and np.array_equal(before, flat):
                shape = tuple(tensor.shape) if after.size == flat.size else (-1,)
                new = torch.as_tensor(after, dtype=tensor.dtype, device=tensor.device).reshape(shape)
                found.append((name, tensor, new))
                break
    return found


def _changed_constants(rewriter: Rewriter) -> list[tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]]:
    """Indices that nodes take before and after the cut, flat, where they changed."""
    found = []
    for old, new in rewriter.new_nodes.items():
        if not old.op_type.startswith(("Gather", "Scatter")) or len(old.inputs) < 2 or len(new.inputs) < 2:
            continue
        a, b = old.inputs[1], new.inputs[1]
        if a is None or b is None:
            continue
        before = rewriter.old_facts.known(a)
        after = rewriter.facts.known(b) if b.const_value is None else b.const_value.numpy()
        if before is not None and after is not None and not np.array_equal(before, after):
            found.append((np.asarray(before).reshape(-1), np.asarray(after).reshape(-1)))
    return found


def put_values(module: torch.nn.Module, source: TorchSource, cut: ir.Model, sliced: Sliced) -> None:
    """Give a cut module the values that its tensors have in a graph, by name.

    Raises
    ------
    Declined
        The graph has weights that the module has no place for.
    """
    tensors = named_tensors(module)
    for name, value in cut.graph.initializers.items():
        tensor = tensors.get(name)
        if tensor is None or value.const_value is None or name not in source.parameters | source.buffers:
            continue
        array = value.const_value.numpy()
        new = torch.from_numpy(np.array(array, np.float32) if array.dtype.kind not in "iub" else np.array(array))
        if tuple(new.shape) != tuple(tensor.shape):
            raise Declined(f"tensor '{name}' has shape {list(tensor.shape)} and {list(new.shape)} in the cut graph")
        sliced.put(name, tensor, new.to(dtype=tensor.dtype, device=tensor.device))
    _put_biases(module, source, cut, sliced)


def _put_biases(module: torch.nn.Module, source: TorchSource, cut: ir.Model, sliced: Sliced) -> None:
    """Give layers without a bias the one that a recovery gave them."""
    modules = dict(module.named_modules(remove_duplicate=False))
    for node in cut.graph:
        value = bias_of(node)
        if value is None or value.const_value is None or node.inputs[1] is None or str(value.name) in source.aliases:
            continue
        layer = modules.get(str(node.inputs[1].name).rpartition(".")[0])
        if layer is None or layer._parameters.get("bias", value) is not None:
            continue
        like = layer._parameters.get("weight")
        array = np.array(value.const_value.numpy(), np.float32)
        if like is not None and array.ndim == 1:
            bias = torch.nn.Parameter(torch.from_numpy(array).to(like), requires_grad=like.requires_grad)
            sliced.add(layer, "bias", bias)


@contextlib.contextmanager
def _declining(what: str) -> Iterator[None]:
    try:
        yield
    except GraphPruneError:
        raise
    except Exception as error:
        raise Declined(f"{what}: {' '.join(f'{type(error).__name__}: {error}'.split())[:300]}") from error
