"""An independent judge of a cut torch module: plain torch, nothing of graphprune but the plan's data.

The source is built afresh, the slices that the plan removed are zeroed in its tensors, and both modules run on the same
inputs.  Where a cut goes through a LayerNorm or RMSNorm module, its statistics are taken over what is kept.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import utils
from torch.nn.utils import parametrize
from torch.utils import _pytree as pytree

Kept = dict[str, dict[int, list[int]]]
Made = tuple[Any, tuple[Any, ...], dict[str, Any]]
TOLERANCE = 1e-4
_NORM = re.compile(r"Layer_?Norm|RMS|RootMean", re.IGNORECASE)


@dataclass
class Judgement:
    """What was found: ``problems`` is empty for a right cut."""

    problems: list[str] = field(default_factory=list)
    error: float = 0.0
    effect: float = 0.0  # how much masking changed the source's outputs: 0 means the comparison had no power
    exact: bool = True  # no inexact unit was cut
    lanes: float | None = None  # error against the original with norms over what is kept, where units are inexact
    cut: int = 0
    graph: bool = False  # the module came back as a graph, not as the user's own class
    closed: bool = False  # and says that it takes the example's batch size only


# ------------------------------------------------------------------------------------------------ running


def as_module(source: Any) -> nn.Module:
    """The module of a source: an ExportedProgram gives its own."""
    return source if isinstance(source, nn.Module) else source.module()


def outputs(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """Every tensor that comes out, in order; inputs are copied, so that nothing is changed in place."""
    args, kwargs = pytree.tree_map(lambda x: x.clone() if isinstance(x, Tensor) else x, (args, dict(kwargs)))
    with torch.no_grad():
        found = module(*args, **kwargs)
    return [leaf for leaf in pytree.tree_leaves(found) if isinstance(leaf, Tensor)]


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name they have."""
    return {
        **dict(module.named_parameters(remove_duplicate=False)),
        **dict(module.named_buffers(remove_duplicate=False)),
    }


def difference(want: list[Tensor], got: list[Tensor]) -> float:
    """Largest difference of two lists of outputs, of each output's own maximum; infinite where sizes differ."""
    if len(want) != len(got):
        return float("inf")
    worst = 0.0
    for w, g in zip(want, got, strict=True):
        if w.shape != g.shape:
            return float("inf")
        if not w.numel():
            continue
        w, g = w.detach().double(), g.detach().double()
        if not torch.equal(w.isfinite(), g.isfinite()):
            return float("inf")
        w, g = (torch.nan_to_num(t, 0, 0, 0) for t in (w, g))
        worst = max(worst, float((w - g).abs().max()) / max(float(w.abs().max()), 1e-12))
    return worst


# ---------------------------------------------------------------------------------------- masked original


def kept_of(plan: Any) -> Kept:
    """Tensor name -> axis -> kept indices, of a plan."""
    return {n: {int(a): list(k) for a, k in e["kept"].items()} for n, e in plan.tensors.items()}


@torch.no_grad()
def mask(module: nn.Module, kept: Kept, buffers: bool = True) -> None:
    """Zero what ``kept`` leaves out, in place.

    What a weight is divided by (its norm, its spread) is part of the trained weight: weight norm and spectral norm are
    made plain first, and a module that computes such a weight itself takes the mask as ``mask_<tensor>``.
    """
    kept = made_plain(module, kept)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    done = set()
    for name, tensor in tensors(module).items():
        if name not in kept or not tensor.is_floating_point() or name.endswith("running_var"):
            continue
        if id(tensor) in done or (name not in parameters and not buffers):
            continue
        done.add(id(tensor))
        owner, _, leaf = name.rpartition(".")
        holder = module.get_submodule(owner)
        target = torch.ones_like(tensor) if hasattr(holder, f"mask_{leaf}") else tensor
        for axis, alive in kept[name].items():
            gone = sorted(set(range(tensor.shape[axis])) - set(alive))
            target.index_fill_(axis, torch.tensor(gone, dtype=torch.int64), 0)
        if target is not tensor:
            setattr(holder, f"mask_{leaf}", target)


def made_plain(module: nn.Module, kept: Kept) -> Kept:
    """Take weight norm and spectral norm off, leaving the weight they give; ``kept`` under its name."""
    plain = dict(kept)
    for name, child in list(module.named_modules()):
        stem = f"{name}." if name else ""
        if parametrize.is_parametrized(child, "weight"):
            kinds = {type(p).__name__ for p in child.parametrizations["weight"]}  # type: ignore[union-attr, index]
            if kinds <= {"_WeightNorm", "_SpectralNorm"}:
                parametrize.remove_parametrizations(child, "weight", leave_parametrized=True)
                direction = "original1" if "_WeightNorm" in kinds else "original"
                _rename(plain, f"{stem}parametrizations.weight.", direction, f"{stem}weight")
        elif hasattr(child, "weight_v") and hasattr(child, "weight_g"):
            utils.remove_weight_norm(child)
            _rename(plain, f"{stem}weight_", "v", f"{stem}weight")
        elif hasattr(child, "weight_orig") and hasattr(child, "weight_u"):
            utils.remove_spectral_norm(child)
            _rename(plain, f"{stem}weight_", "orig", f"{stem}weight")
    return plain


def _rename(kept: Kept, prefix: str, leaf: str, name: str) -> None:
    found = kept.get(prefix + leaf)
    for old in [key for key in kept if key.startswith(prefix)]:
        del kept[old]
    if found is not None:
        kept[name] = found


def norms_over_kept(module: nn.Module, kept: Kept) -> None:
    """LayerNorm and RMSNorm modules whose weight is cut take their statistics over what is kept alone, in place."""
    for name, child in module.named_modules():
        weight = getattr(child, "weight", None)
        alive = kept.get(f"{name}.weight", {}).get(0)
        if (
            alive is None
            or not isinstance(weight, Tensor)
            or weight.ndim != 1
            or not _NORM.search(type(child).__name__)
        ):
            continue
        width = weight.shape[0]
        if len(alive) < width:
            child.forward = _over(child, torch.tensor(alive), width)  # type: ignore[method-assign]


def _over(norm: nn.Module, alive: Tensor, width: int) -> Callable[[Tensor], Tensor]:
    small = {key: nn.Parameter(t.detach()[alive]) for key, t in norm.named_parameters() if t.shape == (width,)}
    whole = type(norm).forward

    def forward(x: Tensor) -> Tensor:
        axis = x.ndim - 1 if x.shape[-1] == width else 1
        saved, shape = {key: norm._parameters[key] for key in small}, getattr(norm, "normalized_shape", None)
        try:
            norm._parameters.update(small)
            if shape is not None:
                norm.normalized_shape = (len(alive),)
            found = whole(norm, x.index_select(axis, alive))
        finally:
            norm._parameters.update(saved)
            if shape is not None:
                norm.normalized_shape = shape
        return torch.zeros_like(x, dtype=found.dtype).index_copy(axis, alive, found)

    return forward


@contextmanager
def slow_paths() -> Iterator[None]:
    """torch's fused transformer layer goes past its own sub-modules: keep to them."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def masked_outputs(
    make: Callable[[], Made], kept: Kept, *, lanes: bool, batch: Callable[[Any], Any] | None = None
) -> list[Tensor]:
    """Outputs of the masked original; a buffer that divides may not be zero, so that buffers are then left as they are."""
    found: list[Tensor] = []
    for buffers in (True, False):
        source, args, kwargs = make()
        module = as_module(source)
        mask(module, kept, buffers)
        if lanes:
            norms_over_kept(module, kept)
        if batch is not None:
            args, kwargs = batch((args, kwargs))
        found = outputs(module, args, kwargs)
        if all(bool(t.isfinite().all()) for t in found if t.is_floating_point()):
            break
    return found


# ------------------------------------------------------------------------------------------------ judging


def another_batch(inputs: Any) -> Any:
    """The same inputs with their first row once more at the end."""
    return pytree.tree_map(lambda t: torch.cat([t, t[:1]]) if isinstance(t, Tensor) and t.ndim else t, inputs)


def judge(
    make: Callable[[], Made], result: Any, *, batch: bool = True, backward: bool = True, tolerance: float = TOLERANCE
) -> Judgement:
    """Judge ``result`` of a cut of what ``make()`` gives.

    Parameters
    ----------
    make
        Gives the same source, positional and keyword inputs at every call.
    result
        With ``module``, ``ir``, ``plan`` and ``state.loaded.torch.feed``.
    batch
        The first axis of every input is the batch: try another one.
    """
    found = Judgement()
    kept = kept_of(result.plan)
    found.cut = len(kept)
    found.exact = all(g["exact"] or g["kept"] == g["units"] for g in result.plan.groups)
    source, args, kwargs = make()
    module, cut = as_module(source), result.module
    found.graph = type(cut) is not type(module)
    want = outputs(module, args, kwargs)
    got = outputs(cut, args, kwargs)
    if [t.shape for t in want] != [t.shape for t in got] or [t.dtype for t in want] != [t.dtype for t in got]:
        found.problems.append(f"outputs were {[tuple(t.shape) for t in want]}, are {[tuple(t.shape) for t in got]}")
        return found
    with slow_paths():
        masked = masked_outputs(make, kept, lanes=False)
        found.effect = difference(want, masked)
        if found.exact:
            found.error = difference(masked, got)
            if found.error > tolerance:
                found.problems.append(f"differs from the masked original by {found.error:.1e}")
        else:
            found.lanes = difference(masked_outputs(make, kept, lanes=True), got)
    check_runtime(result, got, found, tolerance)
    check_sizes(module, cut, result.plan, kept, found)
    found.closed = getattr(result.plan, "attributes", {}).get("open") is False
    if batch and not found.closed:
        check_batch(make, cut, kept, found, tolerance)
    if backward:
        check_backward(make, cut, found)
    return found


def check_runtime(result: Any, got: list[Tensor], found: Judgement, tolerance: float) -> None:
    """The module equals the cut IR in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    model = onnx_ir.to_proto(result.ir).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = {i.name for i in session.get_inputs()}
    feed = {name: np.asarray(value) for name, value in result.state.loaded.torch.feed.items() if name in names}
    there = [torch.as_tensor(np.asarray(value)) for value in session.run(None, feed)]
    worst = difference(there, got)
    found.error = max(found.error, worst)
    if worst > tolerance:
        found.problems.append(f"differs from its own ONNX form by {worst:.1e}")


def names_of(cut: nn.Module) -> Mapping[str, str]:
    """Source name -> name in a module that came back as a graph."""
    names: Mapping[str, str] = getattr(cut, "meta", {}).get("names", {})
    return names


def check_sizes(module: nn.Module, cut: nn.Module, plan: Any, kept: Kept, found: Judgement) -> None:
    """Every tensor has the planned size, what stands in no plan its old one; the counts agree."""
    before, after, names = tensors(module), tensors(cut), names_of(cut)
    in_plan = {id(before[name]): name for name in kept if name in before}
    removed = counted = 0
    seen = set()
    for name, tensor in before.items():
        other = after.get(names.get(name, name))
        want = list(tensor.shape)
        planned = in_plan.get(id(tensor))
        for axis, alive in kept.get(planned or name, {}).items():
            want[axis] = len(alive)
        if other is None:
            if planned and not found.graph and tensor.is_floating_point():
                found.problems.append(f"'{name}' is gone from the module")
            continue
        if planned is None and not tensor.is_floating_point():
            continue  # a table of indices follows what it points into
        if list(other.shape) != want:
            found.problems.append(f"'{name}' has size {list(other.shape)}, the plan says {want}")
        if other.dtype != tensor.dtype and not names:
            found.problems.append(f"'{name}' was {tensor.dtype}, is {other.dtype}")
        if id(tensor) not in seen and tensor.is_floating_point():
            seen.add(id(tensor))
            counted += tensor.numel()
            removed += tensor.numel() - int(np.prod(want))
    if not found.graph:  # a graph has no parameter that nothing reads
        parameters = sum(p.numel() for p in cut.parameters())
        wanted = sum(int(np.prod(_size(p, before, in_plan, kept))) for p in module.parameters())
        if parameters != wanted:
            found.problems.append(f"the module has {parameters} parameters, the plan says {wanted}")
    miscount = abs(plan.before["params"] - plan.after["params"] - removed)
    # Constants that the graph holds beside the module's tensors (folded norms) are counted, and may shrink with them.
    if all(name in before for name in kept) and miscount > abs(plan.before["params"] - counted):
        found.problems.append(
            f"the plan counts {plan.before['params']} -> {plan.after['params']}, {removed} were removed"
        )


def _size(tensor: Tensor, before: Mapping[str, Tensor], in_plan: Mapping[int, str], kept: Kept) -> list[int]:
    size = list(tensor.shape)
    for axis, alive in kept.get(in_plan.get(id(tensor), ""), {}).items():
        size[axis] = len(alive)
    return size


def check_batch(make: Callable[[], Made], cut: nn.Module, kept: Kept, found: Judgement, tolerance: float) -> None:
    """Another batch runs where the source takes one, and gives what the masked original gives."""
    source, args, kwargs = make()
    args, kwargs = another_batch((args, kwargs))
    try:
        want = outputs(as_module(source), args, kwargs)
    except Exception:
        return
    try:
        got = outputs(cut, args, kwargs)
    except Exception as error:
        found.problems.append(f"another batch: {type(error).__name__}: {str(error)[:200]}")
        return
    if [t.shape for t in want] != [t.shape for t in got]:
        found.problems.append(
            f"another batch: outputs are {[tuple(t.shape) for t in got]}, not {[tuple(t.shape) for t in want]}"
        )
    elif found.exact:
        with slow_paths():
            worst = difference(masked_outputs(make, kept, lanes=False, batch=another_batch), got)
        if worst > tolerance:
            found.problems.append(f"another batch: differs from the masked original by {worst:.1e}")


def gradients(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> set[str]:
    """Names of the parameters that a backward pass reaches; a step of them must leave finite outputs."""
    # Training starts with train(), which drops what eval mode may have cached, without gradients, in the runs before.
    with contextlib.suppress(NotImplementedError):
        module.train().eval()
    module.zero_grad()
    with torch.enable_grad():
        leaves = [t for t in pytree.tree_leaves(module(*args, **kwargs)) if isinstance(t, Tensor) and t.requires_grad]
        if not leaves:
            return set()
        sum(t.float().pow(2).mean() for t in leaves).backward()  # type: ignore[union-attr]
    reached = {name for name, p in module.named_parameters(remove_duplicate=False) if p.grad is not None}
    torch.optim.SGD(module.parameters(), lr=1e-3).step()
    return reached


def check_backward(make: Callable[[], Made], cut: nn.Module, found: Judgement) -> None:
    """One training step: gradients reach every parameter they reach in the source."""
    source, args, kwargs = make()
    try:
        want = gradients(as_module(source), args, kwargs)
    except Exception:
        return
    try:
        got = gradients(cut, args, kwargs)
    except Exception as error:
        found.problems.append(f"backward: {type(error).__name__}: {str(error)[:200]}")
        return
    names, every = names_of(cut), dict(as_module(source).named_parameters(remove_duplicate=False))
    same = {id(every[name]) for name in every if names.get(name, name) in got}  # a tied one is reached by any of its names
    want = {name for name in want if id(every[name]) not in same}
    if want:
        found.problems.append(f"backward: no gradient for {sorted(want)[:5]}")
    if not all(bool(t.isfinite().all()) for t in outputs(cut, args, kwargs) if t.is_floating_point()):
        found.problems.append("not finite after one step")


def untouched(make: Callable[[], Made], source: Any) -> list[str]:
    """What of ``source`` differs from a fresh one: names, or the outputs."""
    fresh, args, kwargs = make()
    fresh, module = as_module(fresh), as_module(source)
    before, after = tensors(fresh), tensors(module)
    changed = [n for n, t in before.items() if n not in after or not torch.equal(t.cpu(), after[n].cpu())]
    if not changed and difference(outputs(fresh, args, kwargs), outputs(module, args, kwargs)) != 0:
        changed.append("outputs")
    return changed
