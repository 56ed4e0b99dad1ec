"""Load a torch module: its graph as ``onnx_ir`` has it, its weights where they lie, under the module's own names.

The module is traced by ``torch.export`` in eval mode, on stand-ins for its tensors, and translated by torch's own ONNX
exporter; nothing is copied and the module comes out as it went in. The result is in the normal form of
:mod:`graphprune.frontends.onnx`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch

from graphprune import shapes
from graphprune.errors import ExportError, UsageError
from graphprune.frontends.onnx import SOURCE_FILES, Loaded, load
from graphprune.frontends.onnx_normal import normalize
from graphprune.frontends.torch_export import PREFIX, Export, array_of, convert, export, quiet, tensor_of
from graphprune.frontends.torch_inputs import Flat, Outputs, call_of, flatten
from graphprune.frontends.torch_source import SCOPE, TRACE, TorchSource
from graphprune.plan import DERIVED, TRAINED

_TRACE_PROPERTY = "pkg.torch.onnx.stack_trace"
_SCOPE_PROPERTY = "pkg.torch.onnx.name_scopes"


def is_torch(source: Any) -> bool:
    """Whether it is something that `load_module` takes."""
    return isinstance(source, (torch.nn.Module, torch.export.ExportedProgram))


def load_module(
    module: Any, example_inputs: Any = None, *, dynamic_shapes: Any = None, dynamic_batch: bool = False
) -> Loaded:
    """Load a torch module.

    Parameters
    ----------
    module
        An ``nn.Module``, a ``torch.fx.GraphModule`` or a ``torch.export.ExportedProgram``. It is left as it is.
    example_inputs
        What ``forward`` is called with: a tensor, a tuple or list of positional arguments, a Mapping of keyword
        arguments, or ``(args, kwargs)``; see :func:`graphprune.frontends.torch_inputs.call_of`. An ExportedProgram
        brings its own.
    dynamic_shapes
        As ``torch.export.export`` takes it.
    dynamic_batch
        Leave axis 0 of the inputs that share the first one's size there open, where the module allows; a note says where
        it does not. For a batch of 1, the module is traced on the example taken twice.

    Returns
    -------
    Loaded
        ``torch`` holds the module, its inputs and its names.

    Raises
    ------
    ExportError
        torch cannot make a graph of it; its reason in one message.
    UsageError
        Example inputs that ``forward`` does not take.
    """
    if isinstance(module, torch.export.ExportedProgram):
        return _load_program(module, example_inputs)
    if not isinstance(module, torch.nn.Module):
        raise UsageError(f"a torch source is an nn.Module or an ExportedProgram, not {type(module).__name__}")
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError(f"{module.original_name} is TorchScript, whose code cannot be cut: give the nn.Module it was made from")
    _check_weights(module)
    args, kwargs = call_of(module, example_inputs)
    flat = flatten(module, args, kwargs)
    if not flat.tensors:
        raise UsageError(f"the example inputs of {type(module).__name__} hold no tensor: there is nothing to prune for")
    result = _export(module, flat, dynamic_shapes, dynamic_batch)
    tensors: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
    parameters = frozenset(tensors)
    tensors.update(module.named_buffers(remove_duplicate=False))
    return _loaded(module, result, flat.names, flat.tensors, (args, kwargs), tensors, parameters, PREFIX)


def _export(module: torch.nn.Module, flat: Flat, dynamic_shapes: Any, dynamic_batch: bool) -> Export:
    """The graph, with open sizes where they are asked for."""
    if dynamic_shapes is not None:
        return export(module, flat, flat.spread(dynamic_shapes))
    if not dynamic_batch:
        return export(module, flat)
    sizes = [tensor.shape[0] for tensor in flat.tensors if tensor.ndim]
    batched = [bool(tensor.ndim) and tensor.shape[0] == sizes[0] for tensor in flat.tensors]
    specs = [{0: torch.export.Dim.AUTO} if one else None for one in batched]
    wider = flat
    if sizes and sizes[0] == 1:  # a size of 1 is taken for a constant
        doubled = [torch.cat([t, t]) if one else t for t, one in zip(flat.tensors, batched, strict=True)]
        wider = dataclasses.replace(flat, tensors=tuple(doubled))
    reason = "the module works with that size alone"
    try:
        result = export(module, wider, specs, patient=False)
        if _is_open(result.model, wider, batched):
            return result
    except ExportError as error:
        reason = str(error)
    result = export(module, flat)
    size = sizes[0] if sizes else 1
    result.notes.append(f"the batch of the graph is fixed to {size}, that of the example inputs: {reason}")
    return result


def _is_open(model: ir.Model, flat: Flat, batched: Sequence[bool]) -> bool:
    """Whether the batch is open, and the shapes of the graph fit together for one more sample."""
    found = []
    for value, tensor, one in zip(model.graph.inputs, flat.tensors, batched, strict=True):
        if one and (value.shape is None or isinstance(value.shape[0], int)):
            return False
        found.append((str(value.name), tuple(tensor.shape), one))
    sizes = {name: (shape[0] + 1, *shape[1:]) if one else shape for name, shape, one in found}
    before = {name: shape for name, shape, _ in found}
    return len(shapes.infer(model, sizes).problems) <= len(shapes.infer(model, before).problems)


def _load_program(program: torch.export.ExportedProgram, example_inputs: Any) -> Loaded:
    args, kwargs = program.example_inputs or ((), {})
    module = program.module(check_guards=False)  # called as the source was; the graph itself takes the weights as well
    if example_inputs is not None:
        args, kwargs = call_of(module, example_inputs)
    flat = flatten(module, tuple(args), kwargs)
    with torch.no_grad(), quiet():
        try:
            result = Export(convert(program), program, None)
        except Exception as error:
            raise ExportError(f"torch cannot write the ExportedProgram as ONNX: {' '.join(str(error).split())}") from error
    tensors = {**program.state_dict, **program.constants}
    tensors = {name: value for name, value in tensors.items() if isinstance(value, torch.Tensor)}
    parameters = frozenset(program.graph_signature.parameters)
    names = [str(value.name) for value in result.model.graph.inputs]
    return _loaded(None, result, names, flat.tensors, (tuple(args), kwargs), tensors, parameters, "")


def _check_weights(module: torch.nn.Module) -> None:
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise UsageError(f"'{name}' of {type(module).__name__} is on the meta device: load the weights first")


def _loaded(
    module: torch.nn.Module | None, result: Export, names: Iterable[str], inputs: Iterable[torch.Tensor],
    call: tuple[tuple[Any, ...], dict[str, Any]], tensors: Mapping[str, torch.Tensor], parameters: frozenset[str],
    prefix: str,
) -> Loaded:  # fmt: skip
    """Names and weights of the module's own in the exported model, in normal form."""
    model = result.model
    shared = _shared(tensors)
    owned = _own_weights(model, tensors, prefix)
    names = _name_ends(model, list(names), result.outputs, prefix)
    if result.outputs is not None and len(result.outputs.names) == len(model.graph.outputs):
        _drop_state(model, result.outputs.plain)
    for node in model.graph.all_nodes():
        found = {TRACE: node.metadata_props.get(_TRACE_PROPERTY), SCOPE: node.metadata_props.get(_SCOPE_PROPERTY)}
        node.metadata_props.clear()
        node.meta.update({key: text for key, text in found.items() if text})
    if model.functions:
        model = load(model).model
    else:
        normalize(model)
    model.metadata_props.clear()
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            value.metadata_props.clear()
            if name not in owned or graph is not model.graph:
                value.meta[DERIVED] = True
            else:
                value.meta[TRAINED] = name in parameters
    model.meta[SOURCE_FILES] = ()
    used = [name for name in model.graph.initializers if name in owned]
    aliases = {name: (name, *(other for other in shared[id(tensors[name])] if other != name)) for name in used}
    source = TorchSource(
        module=module, args=call[0], kwargs=call[1], aliases=aliases,
        parameters=frozenset(n for n in used if n in parameters),
        buffers=frozenset(n for n in used if n not in parameters),
        feed={name: array_of(tensor) for name, tensor in zip(names, inputs, strict=False)},
        exported=result.exported, prefix=prefix, notes=tuple(result.notes),
    )  # fmt: skip
    size = sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors.values()}.values())
    return Loaded(model, None, size, torch=source)


def _shared(tensors: Mapping[str, torch.Tensor]) -> dict[int, list[str]]:
    """Names by the identity of the tensor that they hold."""
    shared: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        shared.setdefault(id(tensor), []).append(name)
    return shared


def _own_weights(model: ir.Model, tensors: Mapping[str, torch.Tensor], prefix: str) -> set[str]:
    """Give initializers the module's own names and its own memory; the names."""
    owned: set[str] = set()
    for node in model.graph.all_nodes():
        for output in node.outputs:
            if output.name in tensors:  # a buffer called "index" beside what aten.index gives
                output.name = f"{output.name}.computed"
    for value in list(model.graph.initializers.values()):
        name = str(value.name).removeprefix(prefix)
        if name not in tensors:
            continue
        value.name = name
        tensor = tensor_of(tensors[name], name)
        if value.const_value is not None and tuple(value.const_value.shape) == tuple(tensor.shape):
            value.const_value = tensor
            owned.add(name)
    return owned


def _name_ends(model: ir.Model, names: list[str], outputs: Outputs | None, prefix: str) -> list[str]:
    """Name graph inputs and outputs after the arguments and results of ``forward``."""
    for index, value in enumerate(list(model.graph.outputs)):
        if value.producer() is None or value in model.graph.outputs[:index]:
            # What goes straight through has two names.
            node = ir.node("Identity", [value], name=f"{value.name}_output_{index}")
            node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
            model.graph.append(node)
            model.graph.outputs[index] = node.outputs[0]
    taken = {str(v.name) for v in model.graph.initializers.values()}
    ends = [*model.graph.inputs, *model.graph.outputs]
    taken.update(str(v.name) for node in model.graph.all_nodes() for v in node.outputs if v not in ends)
    given = []
    wanted = [*names, *([] if outputs is None else outputs.names)]
    if len(wanted) != len(ends):
        wanted = [*names, *(str(v.name) for v in model.graph.outputs)]
    for number, value in enumerate(ends):
        value.name = f"__end_{number}"
    for value, want in zip(ends, wanted, strict=True):
        name, count = want, 1
        while name in taken:
            count += 1
            name = f"{want}_{count}"
        taken.add(name)
        value.name = name
        given.append(name)
    return given[: len(model.graph.inputs)]


def _drop_state(model: ir.Model, plain: int) -> None:
    """Take the tensors of state that a module hands on from the outputs, where no parameter is for them alone."""
    outputs = list(model.graph.outputs)
    if plain == len(outputs):
        return
    needed = [_read(outputs[:plain]), _read(outputs)]
    if needed[0] == needed[1]:
        del model.graph.outputs[plain:]


def _read(values: Iterable[ir.Value]) -> set[ir.Value]:
    """Initializers that values are computed from."""
    seen: set[ir.Value] = set()
    stack = list(values)
    while stack:
        value = stack.pop()
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        if node is not None:
            stack.extend(v for v in node.inputs if v is not None)
            for attribute in node.attributes.values():
                graphs = [attribute.as_graph()] if attribute.type == ir.AttributeType.GRAPH else []
                stack.extend(v for graph in graphs for inner in graph.all_nodes() for v in inner.inputs if v is not None)
    return {value for value in seen if value.is_initializer()}
