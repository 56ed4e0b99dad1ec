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
from graphprune.errors import GraphPruneError
from graphprune.frontends.torch_export import array_of as as_array
from graphprune.frontends.torch_inputs import Flat, flatten, outputs_of
from graphprune.passes.verify import relative_error, saturated

Arrays = list[np.ndarray[Any, Any]]


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
        return Call(module, lambda: self.flat.rebuild([tensor.clone() for tensor in self.inputs[number]]))

    def feed(self, number: int) -> dict[str, np.ndarray[Any, Any]]:
        """One of the inputs for the graph."""
        return {name: as_array(tensor) for name, tensor in zip(self.names, self.inputs[number], strict=True)}

    def wanted(self, model: ir.Model, known: tuple[Feed, Feed] | None = None) -> list[Arrays]:
        """What a graph gives for each of the inputs; a second one that it does not take is left out.

        ``known`` is an input with what the graph was seen to give for it: that run is not made again.
        """
        runner = Runner(model)
        names = [str(value.name) for value in model.graph.outputs]
        found: list[Arrays] = []
        for number in range(len(self.inputs)):
            feed = self.feed(number)
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
        worst = 0.0
        flats = saturated(model)
        names = [str(value.name) for value in model.graph.outputs]
        for number, arrays in enumerate(wanted):
            got = [as_array(tensor) for tensor in outputs_of(self.call(module, number).run()).tensors]
            if len(got) < len(arrays):
                raise Declined(f"it gives {len(got)} tensors where the graph gives {len(arrays)}")
            for name, a, b in zip(names, arrays, got, strict=False):
                error = difference(a, b, saturates=name in flats)
                if not error <= self.tolerance:
                    shapes = "" if a.shape == b.shape else f" (shape {list(b.shape)} instead of {list(a.shape)})"
                    raise Declined(
                        f"its output '{name}' differs from the cut graph's by {error:.2g} of its maximum{shapes}"
                    )
                worst = max(worst, error)
        return worst


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


def others(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Other inputs of the same kind: fresh numbers of the same spread; whole numbers, where there are no others, reversed."""
    generator = torch.Generator().manual_seed(1)
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
