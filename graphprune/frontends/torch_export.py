"""Ways to get the graph of a torch module out of torch, one after the other."""

from __future__ import annotations

import collections
import contextlib
import copy
import dataclasses
import functools
import hashlib
import io
import logging
import math
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch.nn.utils import parametrize

from graphprune.errors import ExportError
from graphprune.frontends.aten import Unknown, translate
from graphprune.frontends.onnx import load
from graphprune.frontends.torch_bag import without_loops
from graphprune.frontends.torch_decompose import prepare
from graphprune.frontends.torch_inputs import Flat, Outputs, outputs_of
from graphprune.frontends.torch_projected import without_projections

PREFIX = "module."
#: Bytes of weights that a trace by TorchScript may copy.
LARGEST_TRACE = 1_500_000_000
#: Elements from which a matrix that a tracer made is taken for a weight without its name.
LOST_WEIGHT = 16
_MESSAGE = 600
#: What writes operators of other libraries as ONNX, as ``torch.onnx.export(custom_translation_table=...)`` takes it.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any] | list[Callable[..., Any]]] = {}


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
    known = [one for name, one in logging.root.manager.loggerDict.items() if name.startswith("torch.")]
    # The others follow; every level that is set empties the caches of all loggers.
    children = [one for one in known if isinstance(one, logging.Logger) and one.level != logging.NOTSET]
    levels = [child.level for child in children]
    # Where it cannot go on, torch prints the graph so far.
    unseen = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(unseen), contextlib.redirect_stderr(unseen):
        warnings.simplefilter("ignore")
        for one in (logger, *children):
            one.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(level)
            for child, before in zip(children, levels, strict=True):
                child.setLevel(before)


#: What a module holds things in; its hooks are in OrderedDicts.
_KEPT_IN = (dict, collections.OrderedDict, collections.defaultdict, list, set)


@contextlib.contextmanager
def left_as_it_was(module: torch.nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every attribute of every submodule is what it was, training flags first of all.

    A tracer runs the module's own code on stand-ins for tensors, and what that code keeps must not stay.
    """
    before = [(one, dict(vars(one)), {k: copy.copy(v) for k, v in vars(one).items() if type(v) in _KEPT_IN})
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


def export(module: torch.nn.Module, flat: Flat, shapes: Sequence[Any] | None = None, *, patient: bool = True) -> Export:
    """Get the graph of a module, by the first way that works.

    Parameters
    ----------
    shapes
        One spec of ``torch.export.Dim`` a tensor of ``flat``; all sizes are fixed without.
    patient
        Try other ways where the first fails: parametrizations evaluated beforehand, ``torch.export`` in strict mode, and,
        with fixed sizes, a trace by TorchScript.

    Raises
    ------
    ExportError
        None does: torch's reasons.
    """
    ways: list[tuple[str, Callable[..., Export]]] = [("torch.export", _exported)]
    if patient:
        if any(parametrize.is_parametrized(one) for one in module.modules()):
            ways.append(("with evaluated parametrizations", _evaluated))
        ways.append(("strict", functools.partial(_exported, strict=True)))
        if shapes is None:
            ways.append(("TorchScript", traced))
    failures: list[tuple[str, BaseException]] = []
    with torch.no_grad(), quiet(), left_as_it_was(module):
        for name, way in ways:
            try:
                return way(Flattened(module, flat), flat, shapes)
            except Exception as error:  # torch raises errors of dozens of kinds
                failures.append((name, error))
    raise ExportError(explain(type(module).__name__, failures)) from failures[0][1]


def _exported(wrapped: Flattened, flat: Flat, shapes: Sequence[Any] | None, strict: bool = False) -> Export:
    specs = None if shapes is None else (tuple(shapes),)
    program = torch.export.export(wrapped, flat.tensors, dynamic_shapes=specs, strict=strict)
    return Export(convert(program), program, None if strict else wrapped.outputs)


def _evaluated(wrapped: Flattened, flat: Flat, shapes: Sequence[Any] | None) -> Export:
    """Export with what parametrizations make as constants: ONNX has no matrix exponential or QR decomposition."""
    with parametrize.cached():
        for one in wrapped.module.modules():
            if parametrize.is_parametrized(one):
                for name in one.parametrizations:
                    getattr(one, name)
        result = _exported(wrapped, flat, shapes)
    result.notes.append(
        "parametrized weights that ONNX has no operators for stand as constants in the graph: what they are made from is not cut"
    )
    return result


def traced(wrapped: Flattened, flat: Flat, shapes: Sequence[Any] | None) -> Export:
    """The graph of one run, by TorchScript's tracer.

    Raises
    ------
    ExportError
        The module is too large for one message, or its weights lost their names.
    """
    held = list({id(t): t for t in (*wrapped.parameters(), *wrapped.buffers())}.values())
    if sum(t.numel() * t.element_size() for t in held) > LARGEST_TRACE:
        raise ExportError("the module is too large for TorchScript's exporter")
    buffers = [(buffer, buffer.clone()) for buffer in wrapped.buffers()]
    message = io.BytesIO()
    mode = torch.onnx.TrainingMode.PRESERVE  # in eval mode it merges norms into convolutions
    try:
        with torch.random.fork_rng(devices=[]), told_apart(held), _unprinted():
            torch.onnx.export(
                wrapped, flat.tensors, message, dynamo=False, do_constant_folding=False, training=mode, opset_version=17,
                input_names=[f"__input_{i}" for i in range(len(flat.tensors))],
            )  # fmt: skip
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)
    model = load(onnx.load_model_from_string(message.getvalue())).model
    own = {name for name, _ in (*wrapped.named_parameters(remove_duplicate=False), *wrapped.named_buffers(remove_duplicate=False))}
    for name, value in model.graph.initializers.items():
        shape = () if value.shape is None else value.shape.numpy()
        if name not in own and value.dtype == ir.DataType.FLOAT and len(shape) > 1 and math.prod(shape) >= LOST_WEIGHT:
            raise ExportError(f"TorchScript's exporter gave a weight of shape {list(shape)} no name of its own")
    _restore_inputs(model, flat)
    note = "traced by TorchScript: where forward decides by values, the graph holds what it decided for the example inputs"
    return Export(model, None, wrapped.outputs, [note])


@contextlib.contextmanager
def _unprinted() -> Iterator[None]:
    """Nothing reaches the standard output inside: where it fails, TorchScript's exporter prints its whole graph from C++."""
    try:
        kept = os.dup(1)
    except OSError:  # there is none
        yield
        return
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)
    try:
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def told_apart(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """No two of the floating-point tensors are equal inside.

    TorchScript's exporter makes one weight of those that are equal, as the layers of a new ``nn.TransformerEncoder`` are:
    all but one would lose their names, and be tied from then on.
    """
    seen: dict[Any, int] = {}
    changed: list[tuple[torch.Tensor, torch.Tensor]] = []
    for tensor in tensors:
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        values = tensor.detach().to("cpu", torch.float64).numpy()
        key = tuple(tensor.shape), tensor.dtype, hashlib.sha256(values.tobytes()).digest()
        seen[key] = count = seen.get(key, -1) + 1
        if count:
            first = tensor.detach()[(0,) * tensor.ndim]
            changed.append((first, first.clone()))
            first.add_(count * 2**-6 * float(first.abs().clamp(min=1)))
    try:
        yield
    finally:
        for first, before in changed:
            first.copy_(before)


def _restore_inputs(model: ir.Model, flat: Flat) -> None:
    """Give the graph the inputs again that nothing reads."""
    present = {value.name: value for value in model.graph.inputs}
    inputs = []
    for index, tensor in enumerate(flat.tensors):
        dtype = ir.tensor(np.zeros(0, str(tensor.dtype).removeprefix("torch."))).dtype
        missing = ir.Value(name=f"__input_{index}", shape=ir.Shape(tensor.shape), type=ir.TensorType(dtype))
        inputs.append(present.get(f"__input_{index}", missing))
    model.graph.inputs.clear()
    model.graph.inputs.extend(inputs)


def convert(program: Any) -> ir.Model:
    """An ExportedProgram as an IR model, weights shared.

    Common operators are written by :mod:`graphprune.frontends.aten`, programs with any other by torch's exporter. That
    decomposes every program first, which traces it once more and takes half of the time. Most programs hold only
    operators that it knows, and nothing is decomposed then: such a program is handed back as it is.
    """
    try:
        return translate(program, tensor_of)
    except Unknown:
        pass
    program = without_projections(without_loops(program))
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


def array_of(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """A tensor as numpy sees it, in its own memory where that is the processor's."""
    tensor = tensor.detach().cpu().resolve_conj().resolve_neg()
    narrow = tensor.dtype == torch.bfloat16
    array: np.ndarray[Any, Any] = (tensor.view(torch.uint16) if narrow else tensor).numpy()
    return array.view(ml_dtypes.bfloat16) if narrow else array


def tensor_of(tensor: torch.Tensor, name: str) -> ir.TensorProtocol:
    """A tensor as the contents of an initializer, in its own memory where that is the processor's."""
    return ir.Tensor(array_of(tensor), name=name)


def _written(program: Any) -> ir.Model:
    written = torch.onnx.export(
        program, dynamo=True, optimize=False, verbose=False, custom_translation_table=dict(TRANSLATIONS)
    )
    assert written is not None
    model: ir.Model = written.model
    return model


def explain(name: str, failures: Sequence[tuple[str, BaseException]]) -> str:
    """One message of what torch says."""
    _, error = failures[0]
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    text = " ".join(str(root).split()) or type(root).__name__
    hint = (
        "write that part of forward without decisions by the values of tensors, give other example inputs, or pass a "
        "torch.export.ExportedProgram of your own"
    )
    if "No ONNX function found" in text:
        hint = "ONNX has no counterpart of that operator: write it with others"
    if len(text) > _MESSAGE:
        text = text[:_MESSAGE] + " ..."
    others = ", ".join(way for way, _ in failures[1:])
    also = f" (nor by other ways: {others})" if others else ""
    return f"torch cannot export {name}{also}{_place(root)}: {type(root).__name__}: {text}. What to do: {hint}"


def _place(error: BaseException) -> str:
    """The last line of the user's own code that an error went through."""
    ours = (str(Path(torch.__file__).parent), str(Path(__file__).parent), "<")
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    frames = [f for f in frames if "site-packages" not in f.filename or "transformers" in f.filename]
    return f", at {Path(frames[-1].filename).name}:{frames[-1].lineno} in {frames[-1].name}" if frames else ""
