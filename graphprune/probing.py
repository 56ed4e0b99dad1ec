"""Choose concrete sizes for the dynamic axes of a model's inputs, such that the model can run on them."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir

from graphprune.errors import UsageError
from graphprune.ops.traits import contracted
from graphprune.shapes import run_graph, start

# Image sides in the order they are tried; 224 first because it is what most files were trained on, and
# divisible by 32, which every common pyramid of strides needs.
_SIDES = (224, 64, 320, 640, 32, 48, 512, 256, 96, 128, 416, 299)
# Sequence lengths; the large ones are frames and samples of audio.
_LENGTHS = (16, 8, 32, 64, 128, 256, 1, 512, 1024, 3000, 16_000)
_CHANNELS = (3, 1, 4, 16)
_TRIALS = 28
_ROLES = ("batch", "channel", "side", "length")
_PIXELS = (
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
    ir.DataType.UINT8,
)


def probe_inputs(model: ir.Model, overrides: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Choose a concrete shape for every graph input that is not an initializer.

    Batch axes get 1, equal names equal sizes, images and sequences the first size of a list with which the
    whole graph's shapes agree. Where none does, the sizes that got furthest are returned.

    Parameters
    ----------
    model
        A model whose local functions have been inlined.
    overrides
        Shapes that are given, by input name; checked against the static sizes of the file.

    Returns
    -------
    dict
        Input name to shape. Inputs without a declared rank are left out unless overridden.

    Raises
    ------
    UsageError
        An override names no input, or contradicts its declared rank or a static size.
    """
    inputs = [v for v in model.graph.inputs if not v.is_initializer()]
    _check(inputs, overrides)
    plan = _Plan(inputs, overrides)
    best: dict[str, tuple[int, ...]] = {}
    furthest = -1
    for trial in plan.trials():
        shapes = plan.shapes(trial)
        facts = start(model, shapes)
        count = run_graph(model.graph, facts, model.graph.opset_imports, stop=True)
        if not facts.problems:
            return shapes
        if count > furthest:
            best, furthest = shapes, count
    return best


def _static(size: int | ir.SymbolicDim) -> int | None:
    # Old exporters write 0 or -1 for "any".
    return size if isinstance(size, int) and size > 0 else None


def _check(inputs: list[ir.Value], overrides: Mapping[str, tuple[int, ...]]) -> None:
    by_name = {v.name or "": v for v in inputs}
    for name, given in overrides.items():
        value = by_name.get(name)
        if value is None:
            raise UsageError(f"no input is called {name!r}; the model's inputs are {', '.join(by_name) or '(none)'}")
        text = "x".join(map(str, given))
        if any(size < 0 for size in given):
            raise UsageError(f"the shape {text} given for input {name!r} has a negative size")
        if value.shape is None:
            continue
        declared = "x".join(str(d) for d in value.shape)
        sizes = [_static(d) for d in value.shape]
        if len(sizes) != len(given):
            raise UsageError(
                f"input {name!r} is declared as {declared or 'a scalar'} ({len(sizes)} axes), "
                f"but {text} with {len(given)} axes was given"
            )
        for axis, (fixed, size) in enumerate(zip(sizes, given, strict=True)):
            if fixed is not None and fixed != size:
                raise UsageError(
                    f"axis {axis} of input {name!r} is fixed to {fixed} in the file (declared {declared}), "
                    f"but {text} was given; only dynamic axes can be chosen"
                )


class _Plan:
    """The dynamic axes of all inputs, each under the key it shares its size by, with the role it plays."""

    def __init__(self, inputs: list[ir.Value], overrides: Mapping[str, tuple[int, ...]]) -> None:
        self.inputs = inputs
        self.overrides = overrides
        self.bound: dict[str, int] = {}
        self.roles: dict[str, int] = {}
        for value in inputs:
            given = overrides.get(value.name or "")
            for axis, size in enumerate(value.shape or ()):
                if _static(size) is not None:
                    continue
                key = _key(value, axis, size)
                if given is not None:
                    self.bound.setdefault(key, given[axis])
                hint = _hint(value, axis)
                if hint is not None:
                    self.bound.setdefault(key, hint)
                role = _role(value, axis)
                self.roles[key] = min(self.roles.get(key, role), role)

    def trials(self) -> list[tuple[int, int, int]]:
        """Return (channels, side, length) to try, the likeliest first."""
        free = {role for key, role in self.roles.items() if key not in self.bound}
        lists = [
            _CHANNELS if 1 in free else (3,),
            _SIDES if 2 in free else (0,),
            _LENGTHS if 3 in free else (0,),
        ]
        grid = [
            (i + j + k, (c, s, n))
            for i, c in enumerate(lists[0])
            for j, s in enumerate(lists[1])
            for k, n in enumerate(lists[2])
        ]
        grid.sort(key=lambda item: item[0])
        return [trial for _, trial in grid[:_TRIALS]]

    def shapes(self, trial: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
        sizes = dict(self.bound)
        for key, role in self.roles.items():
            sizes.setdefault(key, (1, *trial)[role])
        names = {k: n for k, n in sizes.items() if k.isidentifier()}
        found: dict[str, tuple[int, ...]] = {}
        for value in self.inputs:
            name = value.name or ""
            if name in self.overrides:
                found[name] = tuple(int(d) for d in self.overrides[name])
            elif value.shape is not None:
                found[name] = tuple(self._size(value, a, d, sizes, names) for a, d in enumerate(value.shape))
        return found

    def _size(
        self,
        value: ir.Value,
        axis: int,
        size: int | ir.SymbolicDim,
        sizes: Mapping[str, int],
        names: Mapping[str, int],
    ) -> int:
        fixed = _static(size)
        if fixed is not None:
            return fixed
        key = _key(value, axis, size)
        # "past + sequence" is what exporters call the length of a mask over a cache.
        if key not in self.bound and isinstance(size, ir.SymbolicDim) and re.search(r"[-+*/]", key):
            try:
                worked = size.evaluate(names)
            except Exception:  # a free-form name that only looks like an expression
                worked = size
            if isinstance(worked, int) and worked > 0:
                return worked
        return sizes[key]


def _key(value: ir.Value, axis: int, size: int | ir.SymbolicDim) -> str:
    if isinstance(size, int) or size.value is None:
        return f"{value.name}#{axis}"
    return size.value


def _hint(value: ir.Value, axis: int) -> int | None:
    """Read a contracted axis's size off the weight of a node that consumes the input."""
    rank = len(value.shape or ())
    for node, index in value.uses():
        size = None if index else contracted(node, axis, rank)
        if size is not None:
            return size
    return None


def _role(value: ir.Value, axis: int) -> int:
    """Return the index in `_ROLES` of what the axis most likely is."""
    shape = value.shape
    assert shape is not None
    if axis == 0:
        return 0
    if len(shape) != 4 or value.dtype not in _PIXELS:
        return 3
    free = [_static(d) is None for d in shape]
    last = _static(shape[3])
    if free[1] and free[2] and last in (1, 3, 4):
        return 2  # channels last
    if not free[3] or (not free[1] and _static(shape[1]) not in (1, 3, 4) and not free[2]):
        return 3  # a cache, not an image: only its length is free
    return 1 if axis == 1 else 2
