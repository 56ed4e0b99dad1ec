"""What a model takes: input specs, the concrete shapes of dynamic inputs, and the samples fed to it."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import ml_dtypes
import numpy as np

from graphprune.errors import UsageError
from graphprune.spec import nearest

Array = np.ndarray[Any, np.dtype[Any]]
Feed = dict[str, Array]
"""Input name to array, as ``onnxruntime.InferenceSession.run`` takes it."""

IMAGE_CHANNELS = (1, 3, 4)
LAYOUTS = ("NCHW", "NHWC")

_BATCH_NAME = re.compile(r"batch|^(n|b|bs|bsz)$", re.IGNORECASE)
_SEQUENCE_NAME = re.compile(r"seq|time|len|token|past|frame|step", re.IGNORECASE)
_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}


@dataclass(frozen=True)
class InputSpec:
    """One input of a model.

    Attributes
    ----------
    name
        Its name in the graph.
    dtype
        NumPy type, ml_dtypes included; ``object`` for strings.
    shape
        Per axis its size, or a symbol or None where the axis is dynamic. Sizes below 1 count as dynamic.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]

    def __str__(self) -> str:
        return f"'{self.name}' {self.dtype.name}{list_shape(self.shape)}"

    def size(self, axis: int) -> int | None:
        """Size of one axis, None where it is dynamic."""
        size = self.shape[axis]
        return size if isinstance(size, int) and size > 0 else None

    def symbol(self, axis: int) -> str:
        """Name of a dynamic axis, empty where the axis has none."""
        size = self.shape[axis]
        return size if isinstance(size, str) else ""


@dataclass(frozen=True)
class Hints:
    """What a caller knows of a model's inputs beyond their specs.

    Attributes
    ----------
    limits
        Input name to the exclusive upper bound of its integers, such as the rows of the table it indexes.
    strides
        Input name to the product of the strides behind it: spatial sizes are made multiples of it.
    """

    limits: Mapping[str, int] = field(default_factory=dict)
    strides: Mapping[str, int] = field(default_factory=dict)


def list_shape(shape: Iterable[int | str | None]) -> str:
    """A shape as text: ``[1, batch, ?]``."""
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether a type is a floating-point one, bfloat16 and the 8-bit ones included."""
    try:
        ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError):
        return False
    return dtype.kind != "c"


def is_int(dtype: np.dtype[Any]) -> bool:
    """Whether a type is an integer one (bool is not), the 4-bit ones included."""
    return int_range(dtype) is not None


def int_range(dtype: np.dtype[Any]) -> tuple[int, int] | None:
    """Lowest and highest value of an integer type, None for other types."""
    try:
        info = ml_dtypes.iinfo(dtype)  # type: ignore[no-untyped-call]
    except (ValueError, TypeError):
        return None
    return int(info.min), int(info.max)


@dataclass(frozen=True)
class ImageAxes:
    """Which axes of an input are those of an image; ``batch`` is None where the input is a single image."""

    batch: int | None
    channel: int
    height: int
    width: int


def image_axes(spec: InputSpec, layout: str | None = None) -> ImageAxes | None:
    """Read the layout of an image off an input's shape, or None where it does not look like an image.

    Rank 4 is an image when a channel axis of 1, 3 or 4 (or a dynamic one) stands second (NCHW) or last
    (NHWC), rank 3 when it has 1, 3 or 4 channels first or 3 or 4 last, and height and width of 16 or more.
    ``layout`` (``"NCHW"`` or ``"NHWC"``) decides instead of the shape.
    """
    rank = len(spec.shape)
    byte = spec.dtype in (np.dtype(np.uint8), np.dtype(np.int8))
    if rank not in (3, 4) or not (is_float(spec.dtype) or byte) or "mask" in spec.name.lower():
        return None
    if any(_SEQUENCE_NAME.search(spec.symbol(axis)) for axis in range(rank)):
        return None
    first, last = ImageAxes(0, 1, 2, 3), ImageAxes(0, 3, 1, 2)
    sizes = [spec.size(axis) for axis in range(rank)]
    if rank == 3:
        if sizes[0] in IMAGE_CHANNELS and min(sizes[1] or 0, sizes[2] or 0) >= 16 and layout != "NHWC":
            # [1, steps, features] is as common as one grey image: only a square is taken for the latter.
            return ImageAxes(None, 0, 1, 2) if sizes[0] != 1 or sizes[1] == sizes[2] else None
        if sizes[2] in IMAGE_CHANNELS[1:] and min(sizes[0] or 0, sizes[1] or 0) >= 16 and layout != "NCHW":
            return ImageAxes(None, 2, 0, 1)
        return None
    if layout is not None:
        return first if layout == "NCHW" else last
    if sizes[1] in IMAGE_CHANNELS:
        return first
    if sizes[3] in IMAGE_CHANNELS:
        return last
    return first if sizes[1] is None else None


def parse_shapes(texts: Iterable[str], names: Sequence[str] | None = None) -> dict[str, tuple[int, ...]]:
    """Read ``--shape`` options: ``["x=1x3x224x224"]`` is ``{"x": (1, 3, 224, 224)}``.

    Parameters
    ----------
    texts
        One ``NAME=SIZExSIZE...`` each; the name may be left out when the model has one input.
    names
        The model's inputs, where known: other names are refused.

    Raises
    ------
    UsageError
        A text that cannot be read, a name that is unknown, missing or given twice.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for text in texts:
        name, equals, sizes = text.rpartition("=")
        if equals:
            name = name.strip()
        elif names is not None and len(names) == 1:
            name = names[0]
        else:
            inputs = f": the model has {', '.join(names)}" if names else ""
            raise UsageError(f"--shape {text}: name the input, as in NAME=1x3x224x224{inputs}")
        if names is not None and name not in names:
            raise UsageError(
                f"--shape {text}: no input is named '{name}'{nearest(name, names)} (inputs: {', '.join(names)})"
            )
        if name in shapes:
            raise UsageError(f"--shape {text}: the shape of '{name}' is given twice")
        parts = [part.strip() for part in re.split(r"[x,]", sizes.strip().lower())]
        if not all(re.fullmatch(r"[0-9]{1,12}", part) and int(part) > 0 for part in parts):
            raise UsageError(f"--shape {text}: '{sizes}' is not a shape: write sizes of 1 or more, as in 1x3x224x224")
        shapes[name] = tuple(map(int, parts))
    return shapes


def _evaluate(symbol: str, known: Mapping[str, int]) -> int | None:
    """Value of a symbol such as ``past + 2*seq``, None where it is no arithmetic over known names."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.Name):
            return known[node.id]
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        if isinstance(node, ast.BinOp):
            return _OPERATORS[type(node.op)](value(node.left), value(node.right))
        raise KeyError

    try:
        result = value(ast.parse(symbol, mode="eval").body)
    except (KeyError, SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return None
    return result if result > 0 else None


def _default_size(spec: InputSpec, axis: int, batch: int, stride: int) -> int:
    """A sensible size for a dynamic axis, by the axis' name, the input's rank and its static axes."""
    rank, symbol, image = len(spec.shape), spec.symbol(axis), image_axes(spec)
    if _BATCH_NAME.search(symbol):
        return batch
    if image is not None:
        if axis in (image.height, image.width):
            other = spec.size(image.height + image.width - axis) or 0
            return max(other, -(-224 // stride) * stride)
        return 3 if axis == image.channel else batch
    if axis == 0 and not _SEQUENCE_NAME.search(symbol):
        return batch
    if not is_float(spec.dtype):
        return 16
    if rank == 2 or (rank == 3 and axis == 2 and spec.size(1) in (1, 2)):
        return 16000  # a second of sound
    if rank == 3:
        return 128 if axis == 2 and spec.size(1) is not None else 64
    if rank == 5:
        return (batch, 3, 8, 112, 112)[axis]
    return 56 if rank == 4 and axis >= 2 and not _SEQUENCE_NAME.search(symbol) else 16


def _check_override(spec: InputSpec, shape: tuple[int, ...]) -> None:
    if len(shape) != len(spec.shape):
        raise UsageError(
            f"--shape {spec.name}={'x'.join(map(str, shape))}: the input has rank {len(spec.shape)}, "
            f"{list_shape(spec.shape)}: give {len(spec.shape)} sizes"
        )
    for axis, size in enumerate(shape):
        if spec.size(axis) not in (None, size):
            raise UsageError(
                f"--shape {spec.name}={'x'.join(map(str, shape))}: axis {axis} of the input is fixed at "
                f"{spec.size(axis)} in the model, {list_shape(spec.shape)}: only dynamic axes can be set"
            )


def resolve_shapes(
    specs: Sequence[InputSpec],
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    hints: Hints | None = None,
    batch: int = 1,
) -> dict[str, tuple[int, ...]]:
    """A concrete shape for every input.

    Dynamic axes take the size given in ``shapes``; else that of an axis of the same name; else the value of
    their name where it is arithmetic over other names (``past + sequence``); else a default by position: the
    batch, 224 for the sides of an image, 16 for ids, 64 to 128 for features, 16,000 for sound.

    Raises
    ------
    UsageError
        ``shapes`` names no input, contradicts a fixed axis, or gives one symbol two sizes.
    """
    shapes, hints = shapes or {}, hints or Hints()
    by_name = {spec.name: spec for spec in specs}
    bound: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in by_name:
            raise UsageError(f"no input is named '{name}'{nearest(name, by_name)} (inputs: {', '.join(by_name)})")
        _check_override(by_name[name], shape)
        for axis, size in enumerate(shape):
            symbol = by_name[name].symbol(axis)
            if symbol and bound.setdefault(symbol, size) != size:
                raise UsageError(
                    f"--shape gives the axis named '{symbol}' two sizes, {bound[symbol]} and {size} (input '{name}')"
                )
    # Plain names first: an expression needs the names it is made of.
    for spec in specs:
        for axis in range(len(spec.shape)):
            symbol = spec.symbol(axis)
            if symbol.isidentifier() and symbol not in bound:
                bound[symbol] = _default_size(spec, axis, batch, hints.strides.get(spec.name, 1))
    resolved = {}
    for spec in specs:
        sizes = []
        for axis in range(len(spec.shape)):
            symbol = spec.symbol(axis)
            known = spec.size(axis) or bound.get(symbol) or _evaluate(symbol, bound)
            size = known or _default_size(spec, axis, batch, hints.strides.get(spec.name, 1))
            if symbol:
                bound.setdefault(symbol, size)
            sizes.append(size)
        resolved[spec.name] = shapes.get(spec.name, tuple(sizes))
    return resolved


def batched_inputs(specs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, frozenset[str]]:
    """How many samples a feed holds, and the inputs whose axis 0 counts them.

    The image input decides, else the first input of rank 2 or more, else the first of rank 1.
    """

    inner = {spec.symbol(axis) for spec in specs for axis in range(1, len(spec.shape))} - {""}

    def counts(spec: InputSpec) -> bool:
        if spec.shape and spec.symbol(0) in inner and not _BATCH_NAME.search(spec.symbol(0)):
            return False  # a size that another axis has as well counts no samples
        image = image_axes(spec)
        if image is not None:
            return image.batch is not None
        later_batch = any(_BATCH_NAME.search(spec.symbol(axis)) for axis in range(1, len(spec.shape)))
        return bool(spec.shape) and not later_batch and not _SEQUENCE_NAME.search(spec.symbol(0))

    ranked = sorted(specs, key=lambda spec: (image_axes(spec) is None, len(spec.shape) < 2))
    leader = next((spec for spec in ranked if spec.shape), None)
    if leader is None or not counts(leader):
        batch, fixed = 1, True
    else:
        batch, fixed = shapes[leader.name][0], leader.size(0) is not None
    # A table of 8 rows beside a dynamic batch that happens to be 8 does not count samples.
    names = {
        spec.name
        for spec in specs
        if counts(spec) and shapes[spec.name][0] == batch and (fixed or batch == 1 or spec.size(0) is None)
    }
    return batch, frozenset(names)


class Source(Protocol):
    """Where samples come from: sample ``i`` as input name to array, without the batch axis."""

    def sample(self, index: int) -> Feed:
        """Make or read one sample; the same index always gives the same arrays."""


class Samples:
    """Feeds for a model, made or read as they are asked for, the same ones on every iteration.

    Parameters
    ----------
    source
        Where the samples come from.
    count
        Number of samples.
    shapes
        Input name to concrete shape of one feed, batch included.
    batched
        Inputs whose axis 0 counts samples.
    batch
        Samples per feed. The last feed is filled up with the first samples when ``static`` (the model takes
        no smaller batch), otherwise it may be smaller.
    description
        One line that says what is used.
    """

    def __init__(
        self,
        source: Source,
        count: int,
        shapes: Mapping[str, tuple[int, ...]],
        *,
        batched: frozenset[str],
        batch: int,
        static: bool,
        description: str,
    ) -> None:
        self.source = source
        self.count = count
        self.shapes = dict(shapes)
        self.batched = batched
        self.batch = batch
        self.static = static
        self.description = description

    def __len__(self) -> int:
        """Number of samples, not of feeds."""
        return self.count

    @property
    def feeds(self) -> int:
        """Number of feeds that one iteration gives."""
        return -(-self.count // self.batch)

    def __iter__(self) -> Iterator[Feed]:
        for start in range(0, self.count, self.batch):
            stop = start + self.batch
            indices = range(start, stop if self.static else min(stop, self.count))
            samples = [self.source.sample(index % self.count) for index in indices]
            yield {
                name: np.stack([sample[name] for sample in samples]) if name in self.batched else array
                for name, array in samples[0].items()
            }

    def __repr__(self) -> str:
        return f"<Samples {self.description}>"
