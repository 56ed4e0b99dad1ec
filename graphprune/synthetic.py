"""Inputs made up for a model when no data is given: plausible enough to run it and to see its statistics."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphprune.errors import UsageError
from graphprune.inputs import (
    Array,
    Feed,
    Hints,
    ImageAxes,
    InputSpec,
    Samples,
    batched_inputs,
    image_axes,
    int_range,
    is_float,
    is_int,
    resolve_shapes,
)

_POSITION = re.compile(r"position|pos_id")
_SEGMENT = re.compile(r"token_type|segment")
_LENGTH = re.compile(r"len(gth)?s?$|_len_|length|seqlen")
_SIZE = re.compile(r"size|im_shape|image_shape")
_SCALE = re.compile(r"scale")


def pink(rng: np.random.Generator, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    """Noise whose amplitude falls as 1/f along the given axes, as that of natural images does.

    Returns
    -------
    float64[*shape]
        Mean 0 and standard deviation 1 over ``axes`` (0 where they hold a single value).
    """
    axes = tuple(sorted(axes))
    spectrum = np.fft.rfftn(rng.standard_normal(shape), axes=axes)
    squares = np.zeros([1] * len(shape))
    for axis in axes:
        frequency = np.fft.rfftfreq(shape[axis]) if axis == axes[-1] else np.fft.fftfreq(shape[axis])
        squares = squares + frequency.reshape([-1 if i == axis else 1 for i in range(len(shape))]) ** 2
    squares[squares == 0] = np.inf  # frequency 0 is the mean, which is taken away
    noise = np.fft.irfftn(spectrum / np.sqrt(squares), s=[shape[axis] for axis in axes], axes=axes)
    deviation = noise.std(axis=axes, keepdims=True)
    return np.asarray(noise / np.where(deviation > 0, deviation, 1))


def _image(rng: np.random.Generator, shape: tuple[int, ...], axes: ImageAxes) -> Array:
    """An image-like array: channels that mostly agree, random contrast and brightness; about -2 to 2."""
    channels, height, width = (shape[axis] for axis in (axes.channel, axes.height, axes.width))
    light, colour = pink(rng, (1, height, width), (1, 2)), pink(rng, (channels, height, width), (1, 2))
    mixed = (0.85 * light + 0.5 * colour) * rng.uniform(0.6, 1.2) + rng.normal(0, 0.3)
    if axes.channel > axes.width:
        mixed = mixed.transpose(1, 2, 0)
    return mixed.reshape(shape)


@dataclass(frozen=True)
class Synthetic:
    """A source of made-up samples.

    Attributes
    ----------
    specs
        The inputs to make.
    shapes
        Concrete shape of *every* input of the model, batch included: lengths and sizes are read off them.
    batched
        Inputs whose axis 0 counts samples; their samples come without it.
    seed
        With the sample's index and the input's name, decides every value.
    """

    specs: tuple[InputSpec, ...]
    shapes: Mapping[str, tuple[int, ...]]
    batched: frozenset[str]
    seed: int = 0
    hints: Hints = field(default_factory=Hints)
    image_size: tuple[int, int] | None = None
    length: int = 16

    def sample(self, index: int) -> Feed:
        """Sample ``index``: input name to array."""
        feed = {}
        for spec in self.specs:
            rng = np.random.default_rng([self.seed, index, zlib.crc32(spec.name.encode())])
            shape = self.shapes[spec.name]
            single = spec.name in self.batched
            array = self._make(spec, (1, *shape[1:]) if single else shape, rng)
            feed[spec.name] = array.reshape(shape[1:]) if single else array
        return feed

    def _make(self, spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        if spec.dtype.kind in "OUST":
            return np.full(shape, "sample", dtype=object)
        # A mask of ones hides nothing: True, a factor of 1, or the same constant under every softmax.
        if spec.dtype.kind == "b" or "mask" in spec.name.lower():
            return np.ones(shape, dtype=spec.dtype)
        limits = int_range(spec.dtype)
        values = self._floats(spec, shape, rng) if limits is None else self._integers(spec, shape, *limits, rng)
        return values.astype(spec.dtype)

    def _named(self, spec: InputSpec, shape: tuple[int, ...]) -> Array | None:
        """Values that an input's name asks for: image sizes, scale factors."""
        name = spec.name.lower()
        if self.image_size is not None and shape and shape[-1] == 2:
            if _SIZE.search(name):
                return np.broadcast_to(np.array(self.image_size), shape)
            if _SCALE.search(name):
                return np.ones(shape)
        return None

    def _integers(
        self, spec: InputSpec, shape: tuple[int, ...], low: int, high: int, rng: np.random.Generator
    ) -> Array:
        """Values for an integer input whose type holds ``low`` to ``high``."""
        name, limit = spec.name.lower(), self.hints.limits.get(spec.name)
        top = high if limit is None else max(0, min(high, limit - 1))
        image, named = image_axes(spec), self._named(spec, shape)
        if image is not None:
            return np.clip(np.rint((low + high) / 2 + 55 * _image(rng, shape, image)), low, high)
        if _POSITION.search(name):
            count = shape[-1] if shape else 1
            return np.resize(np.arange(count) % min(top + 1, 2**31), shape)
        if _SEGMENT.search(name):
            return np.zeros(shape, dtype=np.int64)
        if named is not None:
            return np.minimum(named, top)
        if _LENGTH.search(name):
            return np.full(shape, min(self.length, top))
        if limit is not None:
            return rng.integers(0, top + 1, shape)
        # Nobody knows what is valid: bytes of rank 3 are data, and 0 and 1 index every table worth the name.
        if spec.dtype.itemsize == 1 and len(shape) > 2:
            return rng.integers(low, high + 1, shape)
        return rng.integers(0, 2, shape)

    def _floats(self, spec: InputSpec, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
        image, named = image_axes(spec), self._named(spec, shape)
        if image is not None and np.prod(shape) == np.prod([shape[a] for a in (image.channel, image.height, image.width)]):
            return _image(rng, shape, image)
        if named is not None:
            return named
        if len(shape) == 3:
            return pink(rng, shape, (_time_axis(spec, shape),))
        if len(shape) == 5:
            return pink(rng, shape, (3, 4))
        return rng.standard_normal(shape)


def _time_axis(spec: InputSpec, shape: tuple[int, ...]) -> int:
    """The axis of a rank-3 input along which neighbours are alike: the dynamic one, else the longer one."""
    dynamic = [axis for axis in (1, 2) if spec.size(axis) is None]
    if len(dynamic) == 1:
        return dynamic[0]
    return 1 if shape[1] >= shape[2] else 2


def _full_length(specs: Sequence[InputSpec], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Length of the sequence that length-like inputs speak of."""
    for spec in specs:
        if len(spec.shape) < 2 or "mask" in spec.name.lower():
            continue
        dynamic = [axis for axis in range(1, len(spec.shape)) if spec.size(axis) is None]
        return shapes[spec.name][dynamic[0] if dynamic else 1]
    return 1


def synthetic_source(
    specs: Sequence[InputSpec],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    seed: int,
    hints: Hints | None = None,
    layout: str | None = None,
) -> Synthetic:
    """The source behind :func:`synthetic`, for inputs of known concrete shapes."""
    size = None
    for spec in specs:
        axes = image_axes(spec, layout)
        if axes is not None:
            size = (shapes[spec.name][axes.height], shapes[spec.name][axes.width])
            break
    batched = batched_inputs(specs, shapes)[1]
    length = _full_length(specs, shapes)
    return Synthetic(tuple(specs), dict(shapes), batched, seed, hints or Hints(), size, length)


def _kind(spec: InputSpec) -> str:
    """What an input is filled with, in words; empty for what is not worth a word."""
    if spec.dtype.kind == "b" or "mask" in spec.name.lower():
        return ""
    if image_axes(spec) is not None:
        return "image-like 1/f noise"
    if is_float(spec.dtype):
        return "smooth noise" if len(spec.shape) in (3, 5) else "normal noise"
    return "valid ids" if is_int(spec.dtype) else "placeholder values"


def synthetic(
    specs: Sequence[InputSpec],
    n: int,
    seed: int,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    hints: Hints | None = None,
    *,
    batch: int = 1,
) -> Samples:
    """Made-up samples for a model.

    Images (see :func:`graphprune.inputs.image_axes`) get 1/f noise, rank-3 floats smooth noise, other floats
    normal noise. Integers are ids below the input's limit, or what their name asks for: positions count up,
    segments are 0, lengths are full, masks are 1, image sizes are those of the image input.

    Parameters
    ----------
    specs
        The model's inputs.
    n
        Number of samples.
    seed
        The same seed gives the same samples.
    shapes
        Input name to concrete shape, overriding the defaults of :func:`graphprune.inputs.resolve_shapes`.
    hints
        Upper bounds of ids and strides, where the caller knows them.
    batch
        Samples per feed where the model's batch axis is dynamic.
    """
    if n < 1 or seed < 0 or batch < 1:
        raise UsageError(f"samples and batch must be 1 or more and the seed 0 or more, not {n}, {batch} and {seed}")
    resolved = resolve_shapes(specs, shapes, hints, min(batch, n))
    size, batched = batched_inputs(specs, resolved)
    kinds = " and ".join(sorted({_kind(spec) for spec in specs} - {""})) or "ones"
    samples = f"{n} sample{'s' if n > 1 else ''}"
    return Samples(
        synthetic_source(specs, resolved, seed=seed, hints=hints),
        n,
        resolved,
        batched=batched,
        batch=size,
        static=is_static_batch(specs, batched),
        description=f"synthetic: {samples} of {kinds} (give --data for real ones)",
    )


def is_static_batch(specs: Sequence[InputSpec], batched: frozenset[str]) -> bool:
    """Whether the model takes only full batches: an input that counts samples has a fixed axis 0."""
    return any(spec.name in batched and spec.size(0) is not None for spec in specs)
