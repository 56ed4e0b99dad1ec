"""Samples around the one example that a torch module was given with: the example itself, then others like it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphprune.inputs import Array, Feed, Hints, InputSpec, Samples, image_axes, is_float
from graphprune.synthetic import Synthetic, synthetic_source


@dataclass(frozen=True)
class ExampleSource:
    """Sample 0 is the example; in the others floating inputs vary, integers and booleans stay.

    Nobody knows which other ids and masks a module accepts together. A floating input of one or two values is a mask or
    a switch and stays as well, unless it is an image.
    """

    specs: tuple[InputSpec, ...]
    feed: Mapping[str, Array]
    made_up: Synthetic
    fixed: frozenset[str] = field(default=frozenset())

    def sample(self, index: int) -> Feed:
        """Sample ``index``: input name to array, of the example's shapes."""
        if index == 0:
            return dict(self.feed)
        other = self.made_up.sample(index)
        return {name: array if name in self.fixed else _like(other[name], array) for name, array in self.feed.items()}


def _like(noise: Array, example: Array) -> Array:
    """Noise with the mean and the standard deviation of the example, in its type."""
    wide = example.astype(np.float64)
    mean, std = float(wide.mean()), float(wide.std())
    noise = noise.astype(np.float64)
    noise = (noise - noise.mean()) / max(float(noise.std()), 1e-12)
    return np.asarray(mean + (std or 1.0) * noise, example.dtype)


def _is_fixed(spec: InputSpec, example: Array) -> bool:
    if not is_float(spec.dtype) or example.size == 0 or not np.isfinite(example.astype(np.float64)).all():
        return True
    if "mask" in spec.name.lower():
        return True
    if image_axes(spec) is not None:
        return False
    first = example.reshape(-1)[:65536]
    return len(np.unique(first.astype(np.float64))) <= 2


def example_samples(
    feed: Mapping[str, Array], specs: Sequence[InputSpec], *, n: int, seed: int, hints: Hints
) -> Samples:
    """Samples for a torch module whose example inputs are known.

    Parameters
    ----------
    feed
        Graph input name -> the example's array. Its axis 0 is part of the sample: every feed is a whole call.
    """
    feed = {spec.name: feed[spec.name] for spec in specs}
    shapes = {name: array.shape for name, array in feed.items()}
    fixed = frozenset(spec.name for spec in specs if _is_fixed(spec, feed[spec.name]))
    made_up = synthetic_source(specs, shapes, seed=seed, hints=hints)
    made_up = Synthetic(made_up.specs, shapes, frozenset(), seed, hints, made_up.image_size, made_up.length)
    count = n if len(fixed) < len(feed) else 1
    what = "the example inputs" + (f" and {count - 1} like them" if count > 1 else "")
    return Samples(
        ExampleSource(tuple(specs), feed, made_up, fixed), count, shapes, batched=frozenset(), batch=1, static=True,
        description=f"{what} (give --data for real ones)",
    )  # fmt: skip
