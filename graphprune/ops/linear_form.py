"""Linear ops as matrices: what least squares needs to know of a convolution or a matrix product.

A :class:`LinearForm` writes a node as ``y = U W' + b`` for each output position: ``U`` are the inputs that
the position sees (a patch of the image, a token), ``W`` the weight as a matrix. Grouped ops are several such
products side by side. What differs between ops stands here and nowhere else.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.rules import attribute

Array = NDArray[Any]
Positions = tuple[NDArray[np.int64], ...]

FORMS: dict[str, Callable[[ir.Node], LinearForm | None]] = {}


@dataclass(frozen=True)
class LinearForm(ABC):
    """One node that is linear in an input with a parameter as its weight.

    Attributes
    ----------
    node
        The node, of the model whose arrays are given.
    x, w
        Inputs that are the data and the weight.
    bias
        Input that is the bias, whether given or not; None for ops without one.
    """

    node: ir.Node
    x: int
    w: int
    bias: int | None

    def groups(self) -> int:
        """Products side by side."""
        return 1

    @abstractmethod
    def out_axis(self, rank: int) -> int:
        """The axis of the output (of that rank) that the weight's outputs make."""

    @abstractmethod
    def in_axis(self, rank: int) -> int:
        """The axis of the data input (of that rank) that is summed over."""

    @abstractmethod
    def matrix(self, weight: Array) -> Array:
        """A weight as float[g, o, d]; a view or copy."""

    @abstractmethod
    def array(self, matrix: Array, shape: Sequence[int]) -> Array:
        """A matrix float[g, o, d] back as a weight of ``shape``."""

    @abstractmethod
    def patches(self, x: Array, where: Positions, weight_shape: Sequence[int]) -> Array:
        """What some output positions see, float[r, g, d].

        Parameters
        ----------
        x
            The data input.
        where
            int64[r] for every output axis but ``out_axis``, in order.
        """

    @abstractmethod
    def takes(self, shape: Sequence[int], weight_rank: int) -> bool:
        """Whether a constant of ``shape``, added to the output, has one entry for each of the outputs."""

    @abstractmethod
    def geometry(self, weight_shape: Sequence[int]) -> tuple[Any, ...]:
        """What decides, beside the data, which rows :meth:`patches` makes: equal for nodes that see the same."""

    def bias_gain(self) -> float:
        """Factor that the bias is multiplied by before it is added."""
        return 1.0


def linear_form(node: ir.Node) -> LinearForm | None:
    """The linear form of a node, None where it has none."""
    if node.domain not in ("", "ai.onnx"):
        return None
    make = FORMS.get(node.op_type)
    return None if make is None else make(node)


def norm_mean(node: ir.Node) -> ir.Value | None:
    """The mean that a node subtracts from its first input, channel by channel, before it scales it."""
    if node.op_type != "BatchNormalization" or attribute(node, "training_mode", 0):
        return None
    return node.inputs[3]


def added_constant(node: ir.Node, index: int) -> ir.Value | None:
    """What an Add adds to its input ``index``."""
    return node.inputs[1 - index] if node.op_type == "Add" and node.domain in ("", "ai.onnx") else None


def _form(*names: str) -> Callable[[Callable[[ir.Node], LinearForm | None]], Callable[[ir.Node], LinearForm | None]]:
    def register(make: Callable[[ir.Node], LinearForm | None]) -> Callable[[ir.Node], LinearForm | None]:
        for name in names:
            FORMS[name] = make
        return make

    return register


def _is_parameter(value: ir.Value | None) -> bool:
    """Whether constants alone make a value."""
    stack, seen = [value], set()
    while stack:
        current = stack.pop()
        if current is None:
            return False
        if current in seen or current.const_value is not None:
            continue
        seen.add(current)
        producer = current.producer()
        if producer is None or not producer.inputs:
            return False
        stack.extend(producer.inputs)
    return True


@dataclass(frozen=True)
class _Convolution(LinearForm):
    """What Conv and ConvTranspose share: groups, kernel, strides and pads."""

    def groups(self) -> int:
        return int(attribute(self.node, "group", 1))

    def out_axis(self, rank: int) -> int:
        return 1

    def in_axis(self, rank: int) -> int:
        return 1

    def takes(self, shape: Sequence[int], weight_rank: int) -> bool:
        axis = 1 - (weight_rank - len(shape))
        return axis >= 0 and all(n == 1 or a == axis for a, n in enumerate(shape))

    def geometry(self, weight_shape: Sequence[int]) -> tuple[Any, ...]:
        words = ("group", "strides", "dilations", "pads", "auto_pad", "output_padding", "output_shape")
        return (type(self).__name__, tuple(weight_shape[2:]), *(str(attribute(self.node, w, None)) for w in words))

    def _window(self, weight_shape: Sequence[int]) -> tuple[list[int], list[int], list[int]]:
        kernel = [int(k) for k in weight_shape[2:]]
        n = len(kernel)
        strides = [int(s) for s in attribute(self.node, "strides", [1] * n)]
        dilations = [int(d) for d in attribute(self.node, "dilations", [1] * n)]
        return kernel, strides, dilations


@dataclass(frozen=True)
class ConvForm(_Convolution):
    """``y[n, (g o), p] = sum_ik x[n, (g i), s p + d k - pad] w[(g o), i, k]``."""

    def matrix(self, weight: Array) -> Array:
        g = self.groups()
        return weight.reshape(g, weight.shape[0] // g, -1)

    def array(self, matrix: Array, shape: Sequence[int]) -> Array:
        return matrix.reshape(shape)

    def patches(self, x: Array, where: Positions, weight_shape: Sequence[int]) -> Array:
        kernel, strides, dilations = self._window(weight_shape)
        begins = _pads(self.node, x.shape[2:], kernel, strides, dilations)
        r, taps = len(where[0]), list(itertools.product(*(range(k) for k in kernel)))
        out = np.zeros((r, x.shape[1], len(taps)), x.dtype)
        for t, tap in enumerate(taps):
            at = [w * s + k * d - p for w, s, k, d, p in zip(where[1:], strides, tap, dilations, begins, strict=True)]
            out[:, :, t] = _gather(x, where[0], at)
        return out.reshape(r, self.groups(), -1)


@dataclass(frozen=True)
class ConvTransposeForm(_Convolution):
    """``y[n, (g o), p] = sum_ik x[n, (g i), (p + pad - d k) / s] w[(g i), o, k]`` where the division is even."""

    def matrix(self, weight: Array) -> Array:
        g, o = self.groups(), weight.shape[1]
        taps = math.prod(weight.shape[2:])
        return weight.reshape(g, -1, o, taps).transpose(0, 2, 1, 3).reshape(g, o, -1)

    def array(self, matrix: Array, shape: Sequence[int]) -> Array:
        g, o, taps = len(matrix), shape[1], math.prod(shape[2:])
        return matrix.reshape(g, o, -1, taps).transpose(0, 2, 1, 3).reshape(shape)

    def patches(self, x: Array, where: Positions, weight_shape: Sequence[int]) -> Array:
        kernel, strides, dilations = self._window(weight_shape)
        begins = self._begins(x.shape[2:], kernel, strides, dilations)
        r, taps = len(where[0]), list(itertools.product(*(range(k) for k in kernel)))
        out = np.zeros((r, x.shape[1], len(taps)), x.dtype)
        for t, tap in enumerate(taps):
            raw = [w + p - k * d for w, p, k, d in zip(where[1:], begins, tap, dilations, strict=True)]
            # Positions that the stride skips read nothing: -1 lies outside.
            at = [np.where(a % s == 0, a // s, -1) for a, s in zip(raw, strides, strict=True)]
            out[:, :, t] = _gather(x, where[0], at)
        return out.reshape(r, self.groups(), -1)

    def _begins(self, size: Sequence[int], kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
        n = len(kernel)
        extra = [int(e) for e in attribute(self.node, "output_padding", [0] * n)]
        shape = attribute(self.node, "output_shape", None)
        auto = _text(attribute(self.node, "auto_pad", "NOTSET"))
        if shape is None and auto not in ("SAME_UPPER", "SAME_LOWER"):
            pads = attribute(self.node, "pads", [0] * (2 * n))
            return [0] * n if auto == "VALID" else [int(p) for p in pads[:n]]
        begins = []
        for a in range(n):
            wanted = int(list(shape)[-n:][a]) if shape is not None else size[a] * strides[a]
            total = strides[a] * (size[a] - 1) + extra[a] + (kernel[a] - 1) * dilations[a] + 1 - wanted
            # The specification rounds to the end, unless SAME_UPPER says otherwise.
            begins.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
        return begins


def _gather(x: Array, batch: NDArray[np.int64], at: Sequence[NDArray[np.int64]]) -> Array:
    """x[batch, :, at...] with zeros outside, [r, channels]."""
    inside = np.ones(len(batch), np.bool_)
    clipped = []
    for position, size in zip(at, x.shape[2:], strict=True):
        inside &= (position >= 0) & (position < size)
        clipped.append(np.clip(position, 0, size - 1))
    index: tuple[Any, ...] = (batch, slice(None), *clipped)
    found: Array = x[index]
    if not inside.all():
        found[~inside] = 0
    return found


def _pads(node: ir.Node, size: Sequence[int], kernel: list[int], strides: list[int], dilations: list[int]) -> list[int]:
    """What a Conv puts before each spatial axis."""
    n, auto = len(kernel), _text(attribute(node, "auto_pad", "NOTSET"))
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        begins = []
        for a in range(n):
            out = -(-size[a] // strides[a])
            total = max((out - 1) * strides[a] + (kernel[a] - 1) * dilations[a] + 1 - size[a], 0)
            begins.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
        return begins
    return [0] * n if auto == "VALID" else [int(p) for p in attribute(node, "pads", [0] * (2 * n))[:n]]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@_form("Conv")
def _conv(node: ir.Node) -> LinearForm | None:
    return ConvForm(node, 0, 1, 2) if _is_parameter(node.inputs[1]) else None


@_form("ConvTranspose")
def _conv_transpose(node: ir.Node) -> LinearForm | None:
    return ConvTransposeForm(node, 0, 1, 2) if _is_parameter(node.inputs[1]) else None


@dataclass(frozen=True)
class ProductForm(LinearForm):
    """``y = gain * x w`` over the last axis of x; ``left``: ``y = w x`` over the last but one.

    Attributes
    ----------
    left
        Whether the weight is the left operand.
    transposed
        Whether the weight is stored with its summed axis last, [o, d].
    gain
        Constant factor of the product, and of the bias.
    """

    left: bool = False
    transposed: bool = False
    gain: tuple[float, float] = (1.0, 1.0)

    def out_axis(self, rank: int) -> int:
        return max(rank - 2, 0) if self.left else rank - 1

    in_axis = out_axis

    def matrix(self, weight: Array) -> Array:
        flat = weight if self.transposed else weight.T
        return np.asarray(flat * self.gain[0] if self.gain[0] != 1 else flat)[None]

    def array(self, matrix: Array, shape: Sequence[int]) -> Array:
        flat = matrix[0] / self.gain[0] if self.gain[0] != 1 else matrix[0]
        return np.asarray(flat if self.transposed else flat.T).reshape(shape)

    def patches(self, x: Array, where: Positions, weight_shape: Sequence[int]) -> Array:
        if self.left:
            x = x.swapaxes(-1, -2)
        return np.asarray(x[where] if where else x[None])[:, None, :]

    def geometry(self, weight_shape: Sequence[int]) -> tuple[Any, ...]:
        return "product", self.left

    def takes(self, shape: Sequence[int], weight_rank: int) -> bool:
        return not self.left and all(n == 1 for n in shape[:-1])

    def bias_gain(self) -> float:
        return self.gain[1]


@_form("Gemm")
def _gemm(node: ir.Node) -> LinearForm | None:
    if attribute(node, "transA", 0) or not _is_parameter(node.inputs[1]):
        return None
    gain = float(attribute(node, "alpha", 1.0)), float(attribute(node, "beta", 1.0))
    if 0 in gain:
        return None
    return ProductForm(node, 0, 1, 2, transposed=bool(attribute(node, "transB", 0)), gain=gain)


@_form("MatMul")
def _matmul(node: ir.Node) -> LinearForm | None:
    for w in (1, 0):
        value = node.inputs[w]
        if _is_parameter(value) and not _is_parameter(node.inputs[1 - w]):
            assert value is not None
            if value.shape is not None and len(value.shape) != 2:
                return None
            return ProductForm(node, 1 - w, w, None, left=w == 0, transposed=w == 0)
    return None
