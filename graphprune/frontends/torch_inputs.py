"""Example inputs of a torch module: what they mean, and the tensors in them, flat and by name."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from graphprune.errors import UsageError

#: Attributes under which libraries keep an example of what a module takes: Lightning, transformers.
CONVENTIONS = ("example_input_array", "dummy_inputs")
_DEPTH = 12
_PLAIN = (str, bytes, int, float, complex, bool, type(None), type, torch.dtype, torch.device, torch.nn.Module)

Call = tuple[tuple[Any, ...], dict[str, Any]]
Rebuild = Callable[[Sequence[torch.Tensor]], Call]


def call_of(module: torch.nn.Module, example_inputs: Any) -> Call:
    """Positional and keyword arguments that example inputs mean.

    - a Tensor (or anything that is no tuple, list or Mapping): the one argument;
    - a Mapping: keyword arguments if ``forward`` takes its keys, else the one argument;
    - a tuple or list: positional arguments (a list also the one argument, where ``forward`` takes one); a Mapping at
      its end holds keyword arguments if ``forward`` has parameters of its keys. ``(args, kwargs)`` with a tuple of
      arguments is taken as such where ``forward`` accepts it.

    Raises
    ------
    UsageError
        None are given and the module keeps none, or ``forward`` does not take them.
    """
    name = type(module).__name__
    signature = _signature(module)
    if example_inputs is None:
        if _fits(signature, (), {}):
            return (), {}
        found = next((value for key in CONVENTIONS if (value := _kept(module, key)) is not None), None)
        if found is None:
            raise UsageError(
                f"{name} needs example inputs: gp.prune(module, example_inputs), a tensor, a tuple of positional "
                f"arguments or a dict of keyword arguments, for {name}.forward{_shown(signature)}"
            )
        example_inputs = found
    candidates = list(_readings(example_inputs, signature))
    for args, kwargs in candidates:
        if _fits(signature, args, kwargs):
            return args, kwargs
    args, kwargs = candidates[0]
    try:
        assert signature is not None
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(
            f"{name}.forward{_shown(signature)} does not take the example inputs ({error}): give a tuple of positional "
            "arguments, a dict of keyword arguments, or (args, kwargs)"
        ) from error
    raise AssertionError("unreachable")


def _kept(module: torch.nn.Module, key: str) -> Any:
    try:
        return getattr(module, key, None)
    except Exception:  # a property of the user's that fails keeps no example
        return None


def _signature(module: torch.nn.Module) -> inspect.Signature | None:
    try:
        return inspect.signature(module.forward)
    except (TypeError, ValueError):
        return None


def _shown(signature: inspect.Signature | None) -> str:
    return "(...)" if signature is None else str(signature.replace(return_annotation=inspect.Signature.empty))


def _fits(signature: inspect.Signature | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    if signature is None:
        return True
    try:
        signature.bind(*args, **kwargs)
    except TypeError:
        return False
    return True


def _readings(example: Any, signature: inspect.Signature | None) -> Iterator[Call]:
    """What example inputs may mean, the likeliest first."""
    if isinstance(example, Mapping):
        if all(isinstance(key, str) for key in example):
            yield (), dict(example)
        yield (example,), {}
    elif isinstance(example, (tuple, list)):
        named = example and isinstance(example[-1], Mapping) and _are_parameters(example[-1], signature)
        if named and len(example) == 2 and isinstance(example[0], tuple) and not hasattr(example[0], "_fields"):
            yield tuple(example[0]), dict(example[1])
        if named:
            yield tuple(example[:-1]), dict(example[-1])
        yield tuple(example), {}
        if isinstance(example, list):
            yield (example,), {}
    else:
        yield (example,), {}


def _are_parameters(mapping: Mapping[Any, Any], signature: inspect.Signature | None) -> bool:
    """Whether every key names a parameter of ``forward`` itself."""
    if signature is None or not mapping:
        return not mapping
    return all(key in signature.parameters for key in mapping)


@dataclasses.dataclass(frozen=True)
class Flat:
    """The tensors of a call, by name, and the way back to the call.

    Attributes
    ----------
    names
        One a tensor: the parameter of ``forward`` that it goes to, with a path within it (``batch.mask``).
    tensors
        In the order of the parameters.
    args, kwargs
        The call, where a `Slot` stands for each tensor.
    labels
        Names of the positional arguments.
    """

    names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    labels: tuple[str, ...] = ()

    def spread(self, specs: Any) -> list[Any]:
        """One spec a tensor, from specs that are arranged as the call is: what ``dynamic_shapes`` of torch.export are.

        Raises
        ------
        UsageError
            They are arranged otherwise.
        """
        found: list[Any] = [None] * len(self.tensors)
        if isinstance(specs, Mapping):
            own = dict(specs)
            for label in self.labels:
                rest, _, number = label.rpartition("_")
                if label not in own and rest in own and number.isdigit() and isinstance(own[rest], (tuple, list)):
                    own.update({f"{rest}_{i}": spec for i, spec in enumerate(own.pop(rest))})
            unknown = set(own) - set(self.labels) - set(self.kwargs)
            if unknown:
                raise UsageError(
                    f"dynamic_shapes names '{sorted(unknown)[0]}', the call has {', '.join((*self.labels, *self.kwargs))}"
                )
            pairs = [(item, own.get(label)) for item, label in zip(self.args, self.labels, strict=True)]
            pairs += [(item, own.get(key)) for key, item in self.kwargs.items()]
        elif isinstance(specs, (tuple, list)) and len(specs) == len(self.args) + len(self.kwargs):
            pairs = list(zip((*self.args, *self.kwargs.values()), specs, strict=True))
        else:
            raise UsageError("dynamic_shapes must have one entry for each argument, in order or by name")
        for item, spec in pairs:
            _spread(item, spec, found)
        return found

    def rebuild(self, tensors: Sequence[torch.Tensor]) -> Call:
        """The call with other tensors in place of its own."""
        args = tuple(_fill(item, tensors) for item in self.args)
        return args, {key: _fill(item, tensors) for key, item in self.kwargs.items()}


@dataclasses.dataclass(frozen=True)
class Slot:
    """The place of tensor ``index`` in a call."""

    index: int


@dataclasses.dataclass(frozen=True)
class Tree:
    """Something that holds tensors: how to make another of it, and what it holds by name."""

    make: Callable[[list[Any]], Any]
    keys: tuple[str, ...]
    items: tuple[Any, ...]


def flatten(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Flat:
    """The tensors of a call: in tuples, lists, dicts, dataclasses and other objects, at any depth."""
    tensors: list[torch.Tensor] = []
    names: list[str] = []

    def visit(value: Any, path: str, depth: int = 0) -> Any:
        if isinstance(value, torch.Tensor):
            tensors.append(value)
            names.append(path)
            return Slot(len(tensors) - 1)
        tree = take_tree(value) if depth < _DEPTH else None
        if tree is None:
            return value
        before = len(tensors)
        items = [visit(v, f"{path}.{k}", depth + 1) for k, v in zip(tree.keys, tree.items, strict=True)]
        return value if len(tensors) == before else Tree(tree.make, tree.keys, tuple(items))

    signature = _signature(module)
    labels = [f"input_{i}" if len(args) > 1 else "input" for i in range(len(args))]
    if signature is not None:
        position = 0
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                for i in range(position, len(args)):
                    labels[i] = f"{parameter.name}_{i - position}"
                break
            if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) and position < len(args):
                labels[position] = parameter.name
                position += 1
    new_args = tuple(visit(value, label) for value, label in zip(args, labels, strict=True))
    new_kwargs = {key: visit(value, str(key)) for key, value in kwargs.items()}
    return Flat(tuple(names), tuple(tensors), new_args, new_kwargs, tuple(labels))


def _spread(item: Any, spec: Any, found: list[Any]) -> None:
    if spec is None:
        return
    if isinstance(item, Slot):
        found[item.index] = spec
    elif isinstance(item, Tree):
        if isinstance(spec, Mapping):
            specs = [spec.get(key) for key in item.keys]
        elif isinstance(spec, (tuple, list)) and len(spec) == len(item.items):
            specs = list(spec)
        else:
            raise UsageError(f"dynamic_shapes holds {spec!r} for an argument of {len(item.items)} parts: give one entry each")
        for inner, one in zip(item.items, specs, strict=True):
            _spread(inner, one, found)


def _fill(item: Any, tensors: Sequence[torch.Tensor]) -> Any:
    if isinstance(item, Slot):
        return tensors[item.index]
    if isinstance(item, Tree):
        return item.make([_fill(inner, tensors) for inner in item.items])
    return item


def take_tree(value: Any) -> Tree | None:
    """What a value holds, if it is something that may hold tensors."""
    if isinstance(value, _PLAIN) or callable(value):
        return None
    kind = type(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return Tree(lambda items: kind(*items), tuple(value._fields), tuple(value))
    if isinstance(value, (tuple, list)):
        if kind in (tuple, list, torch.Size):
            return Tree(kind, tuple(map(str, range(len(value)))), tuple(value))
        return None if isinstance(value, tuple) else Tree(_refill(value), tuple(map(str, range(len(value)))), tuple(value))
    if dataclasses.is_dataclass(value):
        fields = [f.name for f in dataclasses.fields(value) if hasattr(value, f.name)]
        return Tree(_reset(value, fields), tuple(fields), tuple(getattr(value, name) for name in fields))
    if isinstance(value, Mapping):
        keys = list(value)
        return Tree(_remap(value, keys), tuple(map(str, keys)), tuple(value[key] for key in keys))
    if hasattr(value, "__dict__"):
        fields = list(vars(value))
        return Tree(_reset(value, fields), tuple(fields), tuple(vars(value).values()))
    return None


def _refill(value: Any) -> Callable[[list[Any]], Any]:
    def make(items: list[Any]) -> Any:
        new = copy.copy(value)
        new[:] = items
        return new

    return make


def _remap(value: Any, keys: list[Any]) -> Callable[[list[Any]], Any]:
    def make(items: list[Any]) -> Any:
        if type(value) is dict:
            return dict(zip(keys, items, strict=True))
        new = copy.copy(value)
        for key, item in zip(keys, items, strict=True):
            new[key] = item
        return new

    return make


def _reset(value: Any, fields: list[str]) -> Callable[[list[Any]], Any]:
    def make(items: list[Any]) -> Any:
        new = copy.copy(value)
        for name, item in zip(fields, items, strict=True):
            try:
                setattr(new, name, item)
            except AttributeError:  # frozen
                object.__setattr__(new, name, item)
        return new

    return make


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The tensors that a module gives back, each once.

    Attributes
    ----------
    names, tensors
        Those in tuples, lists, dicts and dataclasses first.
    plain
        How many those are. The rest lie in other objects, such as a cache of keys and values that a module hands on.
    holders
        Names of the classes of those objects.
    """

    names: tuple[str, ...]
    tensors: tuple[torch.Tensor, ...]
    plain: int
    holders: tuple[str, ...]


def outputs_of(value: Any) -> Outputs:
    """The tensors that a module gives back; what is no tensor is left out."""
    found: list[tuple[str, torch.Tensor]] = []
    later: list[tuple[str, Any]] = []
    _collect(value, "", found, later, 0)
    plain = len(found)
    for path, held in later:
        tree = take_tree(held)
        if tree is not None:
            for key, item in zip(tree.keys, tree.items, strict=True):
                _collect(item, f"{path}.{key}" if path else key, found, None, 0)
    names = tuple(name for name, _ in found)
    holders = tuple(dict.fromkeys(type(held).__name__ for _, held in later))
    return Outputs(names, tuple(tensor for _, tensor in found), plain or len(found), holders if plain else ())


def _collect(
    value: Any, path: str, found: list[tuple[str, torch.Tensor]], later: list[tuple[str, Any]] | None, depth: int
) -> None:
    if isinstance(value, torch.Tensor):
        if all(value is not other for _, other in found):
            found.append((path or "output", value))
        return
    tree = take_tree(value) if depth < _DEPTH else None
    if tree is None:
        return
    if later is not None and not isinstance(value, (tuple, list, Mapping)) and not dataclasses.is_dataclass(value):
        later.append((path, value))
        return
    for key, item in zip(tree.keys, tree.items, strict=True):
        inner = f"{path}.{key}" if path else (f"output_{key}" if key.isdigit() else key)
        _collect(item, inner, found, later, depth + 1)
