"""The proof that a cut module computes what the cut graph computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from graphprune.backends.inplace.solve import Call, Declined
from graphprune.backends.ort import Feed, Runner
from graphprune.comparing import relative_error, saturated
from graphprune.decisions import shaky
from graphprune.errors import GraphPruneError
from graphprune.frontends.torch_export import array_of as as_array
from graphprune.frontends.torch_inputs import Flat, flatten, outputs_of

Arrays = list[np.ndarray[Any, Any]]
#: Inputs that are drawn where on all others rounding decides.
MOST_OTHERS = 4


class Undecided(Declined):
    """Nothing was compared: on every input rounding decides."""


@dataclass
class Proof:
    """Inputs to compare on, and what the graphs give for them.

    Attributes
    ----------
    inputs
        Tensors of the example call, and of a second one with other numbers.
    names
        Graph inputs, in the order of the tensors.
    """

    flat: Flat
    names: Sequence[str]
    tolerance: float
    inputs: list[list[torch.Tensor]] = field(default_factory=list)

    @classmethod
    def of(cls, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], names: Sequence[str],
           tolerance: float, *, twice: bool = True) -> Proof:  # fmt: skip
        """The inputs for a module's example call, and with ``twice`` for another like it."""
        flat = flatten(module, args, kwargs)
        own = [tensor.detach() for tensor in flat.tensors]
        return cls(flat, names, tolerance, [own, others(own)] if twice else [own])

    def taken_by(self, module: torch.nn.Module) -> Proof:
        """Without a second input that the source itself does not take: ids of boxes that make no box, say."""
        if len(self.inputs) > 1:
            try:
                self.call(module, 1).run()
            except Exception:
                del self.inputs[1:]
        return self

    def call(self, module: torch.nn.Module, number: int = 0) -> Call:
        """A call with one of the inputs, each time with copies of its own."""
        return self._call(module, self.inputs[number])

    def _call(self, module: torch.nn.Module, inputs: list[torch.Tensor]) -> Call:
        return Call(module, lambda: self.flat.rebuild([tensor.clone() for tensor in inputs]))

    def _feed(self, inputs: list[torch.Tensor]) -> dict[str, np.ndarray[Any, Any]]:
        """An input for the graph."""
        return {name: as_array(tensor) for name, tensor in zip(self.names, inputs, strict=True)}

    def wanted(self, model: ir.Model, known: tuple[Feed, Feed] | None = None) -> list[Arrays]:
        """What a graph gives for each of the inputs; a second one that it does not take is left out.

        ``known`` is an input with what the graph was seen to give for it: that run is not made again.
        """
        runner = Runner(model)
        names = [str(value.name) for value in model.graph.outputs]
        found: list[Arrays] = []
        for number in range(len(self.inputs)):
            feed = self._feed(self.inputs[number])
            try:
                out = known[1] if known is not None and _same(known[0], feed) else runner.run(feed)
            except GraphPruneError:
                if not number:
                    raise
                del self.inputs[number:]
                break
            found.append([np.asarray(out[name]) for name in names])
        return found

    def check(self, module: torch.nn.Module, wanted: Sequence[Arrays], model: ir.Model) -> float:
        """Compare a module with what a graph gives.

        Returns
        -------
        float
            The largest difference relative to an output's maximum.

        Raises
        ------
        Declined
            One is over the tolerance, or has another shape.
        """
        worst, compared = 0.0, 0
        for number, arrays in enumerate(wanted):
            try:
                worst = max(worst, self._difference(module, self.inputs[number], arrays, model))
                compared += 1
            except Declined:
                if not self._is_shaky(model, self.inputs[number]):
                    raise
        for seed in range(2, 2 + MOST_OTHERS) if wanted and not compared else ():
            fresh = others(self.inputs[0], seed)
            if not self._is_shaky(model, fresh):
                arrays = list(Runner(model).run(self._feed(fresh)).values())
                return self._difference(module, fresh, arrays, model)
        if wanted and not compared:
            raise Undecided(
                f"on all of {len(wanted) + MOST_OTHERS} inputs its outputs hang on a choice between numbers so nearly equal that "
                "rounding decides (a top-k, say), so that nothing can be compared"
            )
        return worst

    def _difference(self, module: torch.nn.Module, inputs: list[torch.Tensor], arrays: Arrays, model: ir.Model) -> float:
        """How much a module differs on one input from what a graph gives for it."""
        worst = 0.0
        flats = saturated(model)
        names = [str(value.name) for value in model.graph.outputs]
        got = [as_array(tensor) for tensor in outputs_of(self._call(module, inputs).run()).tensors]
        if len(got) < len(arrays):
            raise Declined(f"it gives {len(got)} tensors where the graph gives {len(arrays)}")
        for name, a, b in zip(names, arrays, got, strict=False):
            error = difference(a, b, saturates=name in flats)
            if not error <= self.tolerance:
                shapes = "" if a.shape == b.shape else f" (shape {list(b.shape)} instead of {list(a.shape)})"
                raise Declined(f"its output '{name}' differs from the cut graph's by {error:.2g} of its maximum{shapes}")
            worst = max(worst, error)
        return worst

    def _is_shaky(self, model: ir.Model, inputs: list[torch.Tensor]) -> bool:
        names = [str(value.name) for value in model.graph.outputs]
        return shaky(model, self._feed(inputs), names, difference, self.tolerance)


def _same(a: Feed, b: Feed) -> bool:
    """Whether two inputs are the same, bit for bit."""
    return a.keys() == b.keys() and all(a[n].dtype == b[n].dtype and a[n].shape == b[n].shape and
                                        a[n].tobytes() == b[n].tobytes() for n in b)  # fmt: skip


def difference(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], *, saturates: bool = False) -> float:
    """Relative error as in a proof; in the flat part of a saturating output, rounding of a whole is allowed for."""
    if a.dtype.kind == "V" or b.dtype.kind == "V":  # bfloat16
        a, b = a.astype(np.float32), b.astype(np.float32)
    error = relative_error(a, b)
    if saturates and a.shape == b.shape and a.dtype.kind == "f" and a.size:
        error = min(error, float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max()))
    return error


def others(tensors: Sequence[torch.Tensor], seed: int = 1) -> list[torch.Tensor]:
    """Other inputs of the same kind: fresh numbers of the same spread; whole numbers, where there are no others, reversed."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    floats = any(tensor.is_floating_point() for tensor in tensors)
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():
            drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
            wide = tensor.float()
            spread = wide.std() if tensor.numel() > 1 else torch.tensor(1.0)
            new = drawn.to(tensor.device) * spread + wide.mean()
            out.append(new.clamp(wide.min(), wide.max()).to(tensor.dtype))
        elif not floats and tensor.ndim and tensor.dtype != torch.bool:
            out.append(tensor.flip(-1))
        else:
            out.append(tensor)
    return out
