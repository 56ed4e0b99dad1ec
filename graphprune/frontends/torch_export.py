"""Ways to get the graph of a torch module out of torch, one after the other."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import onnx_ir as ir
import torch

from graphprune.errors import ExportError
from graphprune.frontends.torch_decompose import prepare
from graphprune.frontends.torch_inputs import Flat, Outputs, outputs_of

PREFIX = "module."
_MESSAGE = 500


class Flattened(torch.nn.Module):
    """The user's module as one that takes and gives tensors only, so that torch need not know any other class."""

    def __init__(self, module: torch.nn.Module, flat: Flat) -> None:
        super().__init__()
        self.training = False
        self.module = module
        self._flat = flat
        self._seen = Seen()

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = self._flat.rebuild(tensors)
        found = outputs_of(self.module(*args, **kwargs))
        self._seen.outputs = found
        return found.tensors

    @property
    def outputs(self) -> Outputs | None:
        """What the last call gave, names only."""
        found = self._seen.outputs
        return None if found is None else dataclasses.replace(found, tensors=())


class Seen:
    """Holds what a call gave; a tracer puts attributes of modules back, but not those of other objects."""

    outputs: Outputs | None = None


@dataclass
class Export:
    """What came out of torch.

    Attributes
    ----------
    model
        As torch wrote it, names as torch chose them.
    exported
        The ExportedProgram, None from TorchScript.
    outputs
        None where they are not known by name.
    """

    model: ir.Model
    exported: Any
    outputs: Outputs | None
    notes: list[str] = field(default_factory=list)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings and log lines of torch: what is of use to the user is in the errors."""
    logger = logging.getLogger("torch")
    level = logger.level
    children = [logging.getLogger(name) for name in list(logging.root.manager.loggerDict) if name.startswith("torch.")]
    levels = [child.level for child in children]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in (logger, *children):
            one.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)
            for child, before in zip(children, levels, strict=True):
                child.setLevel(before)


@contextlib.contextmanager
def left_as_it_was(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every attribute of every submodule is what it was, training flags first of all.

    A tracer runs the module's own code on stand-ins for tensors, and what that code keeps must not stay.
    """
    before = [(one, dict(vars(one)), {k: copy.copy(v) for k, v in vars(one).items() if type(v) in (dict, list, set)})
              for one in module.modules()]  # fmt: skip
    try:
        for one, _, _ in before:
            one.training = False
        yield
    finally:
        for one, attributes, contents in before:
            for key in [key for key in vars(one) if key not in attributes]:
                del vars(one)[key]
            vars(one).update(attributes)
            for key, content in contents.items():
                held = attributes[key]
                if held != content if type(held) is set else not _same(held, content):
                    held.clear()
                    held.extend(content) if type(held) is list else held.update(content)


def _same(a: Any, b: Any) -> bool:
    if len(a) != len(b):
        return False
    if isinstance(a, dict):
        return all(k is j and v is w for (k, v), (j, w) in zip(a.items(), b.items(), strict=True))
    return all(v is w for v, w in zip(a, b, strict=True))


def export(module: torch.nn.Module, flat: Flat, shapes: Sequence[Any] | None) -> Export:
    """Get the graph of a module, by the first way that works.

    Raises
    ------
    ExportError
        None does: torch's reasons.
    """
    failures: list[tuple[str, BaseException]] = []
    with torch.no_grad(), quiet(), left_as_it_was(module):
        for strict in (False, True):
            wrapped = Flattened(module, flat)
            try:
                program = torch.export.export(wrapped, flat.tensors, dynamic_shapes=_shapes(shapes), strict=strict)
                return Export(convert(program), program, None if strict else wrapped.outputs)
            except Exception as error:  # torch raises errors of dozens of kinds
                failures.append(("torch.export" + (" (strict)" if strict else ""), error))
    raise ExportError(explain(type(module).__name__, failures))


def _shapes(shapes: Sequence[Any] | None) -> Any:
    return None if shapes is None else (tuple(shapes),)


def convert(program: Any) -> ir.Model:
    """An ExportedProgram as an IR model, weights shared.

    The exporter decomposes every program first, which traces it once more and takes half of the time. Most programs hold
    only operators that it knows, and nothing is decomposed then: such a program is handed back as it is.
    """
    thorough = program.run_decompositions

    def decompose(table: Any = None, **options: Any) -> Any:
        if table is None:
            return thorough(table, **options)
        quick = copy.copy(program)
        quick._graph_module = copy.deepcopy(program.graph_module)
        return quick if prepare(quick, table) else thorough(table, **options)

    program.run_decompositions = decompose
    try:
        return _written(program)
    except Exception:  # what is left may still be written in the exporter's own way
        del program.run_decompositions
        return _written(program)
    finally:
        vars(program).pop("run_decompositions", None)


def _written(program: Any) -> ir.Model:
    written = torch.onnx.export(program, dynamo=True, optimize=False, verbose=False)
    assert written is not None
    model: ir.Model = written.model
    return model


def explain(name: str, failures: Sequence[tuple[str, BaseException]]) -> str:
    """One message of what torch says."""
    way, error = failures[0]
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    text = " ".join(str(root).split()) or type(root).__name__
    if len(text) > _MESSAGE:
        text = text[:_MESSAGE] + " ..."
    return (
        f"torch cannot export {name}: {type(root).__name__}: {text} ({way}). Write that part of forward without control flow "
        "that depends on values of tensors, give other example inputs, or pass a torch.export.ExportedProgram that you made"
    )
