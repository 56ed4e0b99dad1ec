"""Image files as samples: decoded, resized, laid out and normalised as an input asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from graphprune.errors import DataError, UsageError
from graphprune.inputs import (
    IMAGE_CHANNELS,
    LAYOUTS,
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
    resolve_shapes,
)
from graphprune.synthetic import Synthetic, is_static_batch, synthetic_source

if TYPE_CHECKING:
    from PIL import Image

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".gif"})

#: Pillow's name of a picture of so many channels.
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LONGEST_SIDE = 640
_STEP = 32
_ORIENTATION = 0x0112  # EXIF tag; 5 to 8 swap height and width


def choose(total: int, n: int, seed: int) -> Array:
    """``n`` of ``total`` indices, seeded and in order, or all of them when there are no more: int64[min]."""
    if total <= n:
        return np.arange(total)
    return np.sort(np.random.default_rng(seed).choice(total, n, replace=False))


def _folder(file: Path, root: Path) -> str | None:
    """Name of the folder right below ``root`` that a file is in."""
    inner = file.relative_to(root).parts
    return inner[0] if len(inner) > 1 else None


def _open(path: Path) -> Image.Image:
    """First frame of an image file, not yet decoded."""
    from PIL import Image

    try:
        return Image.open(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def decode(path: Path, channels: int) -> Image.Image:
    """An image file, upright and with 1, 3 or 4 channels of 8 bits.

    Raises
    ------
    DataError
        It cannot be read.
    """
    from PIL import Image, ImageOps

    with _open(path) as image:
        try:
            upright = ImageOps.exif_transpose(image)
            if upright.mode.startswith(("I", "F")):
                upright = _eight_bits(upright)
            if "transparency" in upright.info and channels == 3:
                upright = upright.convert("RGBA")
            return upright.convert(MODES[channels])
        except (OSError, ValueError, SyntaxError, MemoryError, Image.DecompressionBombError) as error:
            raise DataError(f"{path} cannot be read as an image: {error}") from error


def _fitted(path: Path, channels: int, size: tuple[int, int]) -> Array:
    """An image as uint8[height, width, channels]: upright, shorter side fitted, centre cropped."""
    from PIL import Image, ImageOps

    fitted = ImageOps.fit(decode(path, channels), size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(fitted).reshape(*size, channels)


def _eight_bits(image: Image.Image) -> Image.Image:
    """A grey image of 16 or 32 bits or of floats in 8 bits; a plain conversion would clip at 255."""
    from PIL import Image

    pixels = np.asarray(image, dtype=np.float64)
    highest = pixels.max(initial=0)
    # Floats come as 0..1, 0..255 or 0..65535; integers as 0..65535, unless they are 8 bits in a wide file.
    full = next((full for full in (1, 255) if highest <= full and (full > 1 or image.mode == "F")), 65535)
    return Image.fromarray(np.clip(np.rint(pixels * (255 / full)), 0, 255).astype(np.uint8))


@dataclass(frozen=True)
class _ImageSource:
    """Samples from image files; inputs beside the image come from ``others``."""

    files: tuple[Path, ...]
    spec: InputSpec
    axes: ImageAxes
    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    others: Synthetic
    root: Path
    #: Names of the folders right below the root, of all images there.
    classes: tuple[str, ...] = ()

    def label(self, index: int) -> str | None:
        """Name of the folder right below the root that an image is in; None where it is in the root itself."""
        return _folder(self.files[index], self.root)

    def sample(self, index: int) -> Feed:
        """Decode one image and make up what else the model takes."""
        pixels = _fitted(self.files[index], self.channels, self.size)
        dtype = self.spec.dtype
        limits = int_range(dtype)
        array: Array
        if limits is None:
            mean, std = np.asarray(self.mean, dtype=np.float32), np.asarray(self.std, dtype=np.float32)
            array = ((pixels.astype(np.float32) / 255 - mean) / std).astype(dtype)
        else:
            array = (pixels.astype(np.int16) + limits[0]).astype(dtype)
        if self.axes.channel < self.axes.height:
            array = np.ascontiguousarray(array.transpose(2, 0, 1))
        return {self.spec.name: array, **self.others.sample(index)}


def _image_input(path: Path, specs: Sequence[InputSpec], layout: str | None) -> tuple[InputSpec, ImageAxes, int]:
    """The one input that images are for, its axes and its number of channels."""
    found = [(spec, axes) for spec in specs if (axes := image_axes(spec, layout)) is not None]
    listed = ", ".join(map(str, specs)) or "none"
    if not found:
        raise DataError(
            f"{path} holds images, and no input of the model takes images (inputs: {listed}): "
            "give a .npy, or a .npz with one array per input"
        )
    if len(found) > 1:
        names = ", ".join(f"'{spec.name}'" for spec, _ in found)
        raise DataError(
            f"{path} holds images, and several inputs take images ({names}): give a .npz with one array per input"
        )
    spec, axes = found[0]
    channels = spec.size(axes.channel) or 3
    if channels not in IMAGE_CHANNELS:
        other = LAYOUTS[layout == "NCHW"]
        advice = f"try --layout {other}" if layout else "give a .npy with arrays that fit"
        raise DataError(
            f"{path} holds images, which have 1, 3 or 4 channels, and input {spec} has {channels} on axis "
            f"{axes.channel}: {advice}"
        )
    return spec, axes, channels


def _normalisation(
    spec: InputSpec, channels: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    """Mean and standard deviation per channel for pixels of 0..1, and the two in words."""
    if not is_float(spec.dtype):
        if mean is not None or std is not None:
            raise UsageError(f"--mean and --std are for float inputs: {spec} takes the pixels as they are")
        return (), (), "pixels as they are"
    if mean is None and std is None:
        if channels == 3:
            return *_IMAGENET, "ImageNet mean and std"
        return (0.5,) * channels, (0.5,) * channels, "mean 0.5, std 0.5"
    means, stds = tuple(mean or (0.0,)), tuple(std or (1.0,))
    for option, values in (("--mean", means), ("--std", stds)):
        if len(values) not in (1, channels):
            raise UsageError(
                f"{option} has {len(values)} values, input {spec} has {channels} channels: give 1 or {channels}"
            )
        if not np.isfinite(values).all():
            raise UsageError(f"{option} must be finite numbers, not {', '.join(map(str, values))}")
    if min(stds) <= 0:
        raise UsageError(f"--std must be above 0, not {', '.join(map(str, stds))}")
    scale = 255 if max(map(abs, (*means, *stds))) > 2 else 1
    words = f"mean {', '.join(f'{v:g}' for v in means)}, std {', '.join(f'{v:g}' for v in stds)}"
    words += " on 0..255" if scale > 1 else ""
    spread = channels if len(means) == 1 else 1, channels if len(stds) == 1 else 1
    return tuple(v / scale for v in means * spread[0]), tuple(v / scale for v in stds * spread[1]), words


def _own_size(path: Path) -> tuple[int, int]:
    """Height and width of an upright image, its pixels not decoded."""
    with _open(path) as image:
        width, height = image.size
        return (width, height) if image.getexif().get(_ORIENTATION, 1) >= 5 else (height, width)


def _fit_size(files: Sequence[Path], height: int | None, width: int | None, step: int) -> tuple[int, int]:
    """Height and width for an input that leaves one or both open: the images' median size, or their median
    aspect ratio where one is fixed, in multiples of ``step``, the long side at most 640."""
    h, w = np.median([_own_size(path) for path in files], axis=0)
    if height is not None:
        w *= height / h
    elif width is not None:
        h *= width / w
    else:
        shrink = min(1.0, _LONGEST_SIDE / max(h, w))
        h, w = h * shrink, w * shrink

    def rounded(side: float) -> int:
        return max(step, min(_LONGEST_SIDE // step * step, round(side / step) * step))

    return height or rounded(h), width or rounded(w)


def image_samples(
    path: Path,
    files: Sequence[Path],
    specs: Sequence[InputSpec],
    *,
    n: int,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    layout: str | None,
    shapes: Mapping[str, tuple[int, ...]] | None,
    seed: int,
    batch: int,
    hints: Hints | None,
) -> Samples:
    """Samples from image files; :func:`graphprune.data.load` says what the parameters mean."""
    if layout is not None and layout not in LAYOUTS:
        raise UsageError(f"--layout must be {' or '.join(LAYOUTS)}, not {layout}")
    spec, axes, channels = _image_input(path, specs, layout)
    means, stds, words = _normalisation(spec, channels, mean, std)
    chosen = tuple(files[index] for index in choose(len(files), n, seed))
    for file in chosen:  # a file that is no image is better found now than in the middle of a run
        _open(file).close()

    wanted = dict(shapes or {})
    if spec.name not in wanted:
        step = max(_STEP, (hints or Hints()).strides.get(spec.name, 1))
        height, width = spec.size(axes.height), spec.size(axes.width)
        if height is None or width is None:
            height, width = _fit_size(chosen, height, width, step)
        sizes = {axes.channel: channels, axes.height: height, axes.width: width}
        if axes.batch is not None:
            sizes[axes.batch] = spec.size(axes.batch) or min(batch, len(chosen))
        wanted[spec.name] = tuple(sizes[axis] for axis in range(len(spec.shape)))
    resolved = resolve_shapes(specs, wanted, hints, min(batch, len(chosen)))
    shape = resolved[spec.name]
    if shape[axes.channel] not in IMAGE_CHANNELS:
        raise UsageError(
            f"--shape gives input {spec} {shape[axes.channel]} channels on axis {axes.channel}; images have 1, 3 or 4"
        )

    others = tuple(other for other in specs if other.name != spec.name)
    made_up = synthetic_source(specs, resolved, seed=seed, hints=hints, layout=layout)
    made_up = Synthetic(
        others, made_up.shapes, made_up.batched, seed, made_up.hints, made_up.image_size, made_up.length
    )
    batched = batched_inputs(specs, resolved)[1] | ({spec.name} if axes.batch is not None else set())
    size = shape[axes.height], shape[axes.width]
    classes = tuple(sorted({name for file in files if (name := _folder(file, path)) is not None}))
    names = ", ".join(f"'{other.name}'" for other in others)
    of = f" of {len(files)}" if len(chosen) < len(files) else ""
    order = "channels first" if axes.channel < axes.height else "channels last"
    return Samples(
        _ImageSource(chosen, spec, axes, shape[axes.channel], size, means, stds, made_up, path, classes),
        len(chosen),
        resolved,
        batched=batched,
        batch=shape[axes.batch] if axes.batch is not None else 1,
        static=is_static_batch(specs, batched),
        description=f"{len(chosen)}{of} images from {path} at {size[0]}x{size[1]} (height x width), "
        f"{order}, {words}" + (f"; {names} made up" if names else ""),
    )
