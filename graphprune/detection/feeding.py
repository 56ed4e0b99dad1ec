"""Annotated pictures as a detector takes them, and its boxes back in the pictures' own pixels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from graphprune.detection.boxes import Boxes
from graphprune.errors import DataError
from graphprune.images import MODES, decode
from graphprune.inputs import IMAGE_CHANNELS, Array, Feed, ImageAxes, InputSpec, image_axes, int_range

if TYPE_CHECKING:
    from PIL import Image

Fit = Literal["letterbox", "corner", "stretch"]
#: What pads a picture, as Ultralytics and YOLOX do.
GREY = 114
#: Side of a picture where the model leaves it open and nothing says.
SIDE = 640
#: What a picture is padded to a multiple of where the model leaves its sides open.
STEP = 32

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
#: Ways to make numbers of pixels of 0..255: mean and standard deviation per channel, on 0..255.
PIXELS: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "unit": ((0.0,), (255.0,)),
    "imagenet": (tuple(255 * v for v in _IMAGENET[0]), tuple(255 * v for v in _IMAGENET[1])),
    "byte": ((0.0,), (1.0,)),
    "sign": ((127.5,), (127.5,)),
    "caffe": ((123.0, 117.0, 104.0), (1.0,)),
}
#: The same in words.
IN_WORDS = {
    "unit": "pixels / 255", "imagenet": "ImageNet mean and std", "byte": "pixels as they are", "sign": "pixels / 127.5 - 1",
    "caffe": "pixels - (123, 117, 104)",
}  # fmt: skip


@dataclass(frozen=True)
class Placed:
    """Where a picture lies in the model's input.

    Attributes
    ----------
    scale
        Input pixels per picture pixel, across and down.
    shift
        Input pixels to the left of the picture and above it.
    size
        Height and width of the picture.
    """

    scale: tuple[float, float]
    shift: tuple[float, float]
    size: tuple[int, int]

    def back(self, corners: NDArray[Any]) -> NDArray[Any]:
        """Corners in the input's pixels -> in the picture's, cut off at its edges; float64[n, 4]."""
        found = (corners - np.tile(self.shift, 2)) / np.tile(self.scale, 2)
        return np.asarray(np.clip(found, 0, np.tile(self.size[::-1], 2)))


@dataclass(frozen=True)
class Feeder:
    """How pictures go in.

    Attributes
    ----------
    specs
        The model's inputs.
    image
        Its image input, and that input's axes.
    size
        Height and width of the input.
    fit
        ``letterbox`` (whole picture in the middle, grey around), ``corner`` (whole picture at the top left, grey below or to the
        right) or ``stretch`` (to the input's sides).
    mean, std
        Per channel, on 0..255; of float inputs.
    bgr
        Blue first.
    """

    specs: tuple[InputSpec, ...]
    image: InputSpec
    axes: ImageAxes
    size: tuple[int, int]
    fit: Fit = "letterbox"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (255.0,)
    bgr: bool = False

    @property
    def batch(self) -> int:
        """Pictures of a feed: as many as the model insists on."""
        return 1 if self.axes.batch is None else self.image.size(self.axes.batch) or 1

    def feed(self, pictures: Sequence[Path | Image.Image]) -> tuple[Feed, list[Placed]]:
        """One feed of files or pictures; fewer than the model insists on are filled up with the last one."""
        arrays, placed = zip(*(self._picture(picture) for picture in pictures), strict=True)
        if self.axes.batch is None:
            array = arrays[0]
        else:
            array = np.stack([*arrays, *(arrays[-1:] * (self.batch - len(arrays)))])
        feed = {self.image.name: np.ascontiguousarray(array)}
        for spec in self.specs:
            if spec.name != self.image.name:
                feed[spec.name] = self._beside(spec)
        return feed, list(placed)

    def _picture(self, given: Path | Image.Image) -> tuple[Array, Placed]:
        from PIL import Image

        channels = self.image.size(self.axes.channel) or 3
        image = decode(given, channels) if isinstance(given, Path) else given.convert(MODES[channels])
        width, height = image.size
        tall, wide = self.size
        if self.fit == "stretch":
            inner, shift = (wide, tall), (0, 0)
        else:
            scale = min(wide / width, tall / height)
            inner = max(1, round(width * scale)), max(1, round(height * scale))
            spare = wide - inner[0], tall - inner[1]
            shift = (0, 0) if self.fit == "corner" else (spare[0] // 2, spare[1] // 2)
        resized = image if image.size == inner else image.resize(inner, Image.Resampling.BILINEAR)
        pixels = np.full((tall, wide, channels), GREY, np.uint8)
        pixels[shift[1] : shift[1] + inner[1], shift[0] : shift[0] + inner[0]] = np.asarray(resized).reshape(*inner[::-1], channels)
        placed = Placed((inner[0] / width, inner[1] / height), (float(shift[0]), float(shift[1])), (height, width))
        return self._numbers(pixels), placed

    def _numbers(self, pixels: Array) -> Array:
        if self.bgr and pixels.shape[2] == 3:
            pixels = pixels[..., ::-1]
        array: Array
        if (limits := int_range(self.image.dtype)) is not None:
            array = (pixels.astype(np.int16) + limits[0]).astype(self.image.dtype)
        else:
            mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
            if self.bgr and len(mean) == 3:
                mean = mean[::-1]
            if self.bgr and len(std) == 3:
                std = std[::-1]
            array = ((pixels.astype(np.float32) - mean) / std).astype(self.image.dtype)
        return array.transpose(2, 0, 1) if self.axes.channel < self.axes.height else array

    def _beside(self, spec: InputSpec) -> Array:
        """What models ask beside the picture: its size, or by how much it was scaled; boxes then come in the input's pixels."""
        lead = tuple(size if isinstance(size, int) and size > 0 else self.batch for size in spec.shape[:-1])
        name = spec.name.lower()
        if "scale" in name:
            value = np.ones(2)
        else:
            value = np.array(self.size[::-1] if "orig_target" in name else self.size, np.float64)
        return np.broadcast_to(value, (*lead, 2)).astype(spec.dtype)


def feeder(specs: Sequence[InputSpec], size: tuple[int, int] | None) -> Feeder:
    """How pictures fit a model: which input takes them, and at what size.

    Parameters
    ----------
    size
        Height and width where the model leaves them open.

    Raises
    ------
    DataError
        No input takes a picture, several do, or others take what no picture gives.
    """
    found = [(spec, axes) for spec in specs if (axes := image_axes(spec)) is not None]
    listed = ", ".join(map(str, specs)) or "none"
    if len(found) != 1:
        raise DataError(f"--eval on pictures needs a model with one input that takes a picture (inputs: {listed})")
    image, axes = found[0]
    if (image.size(axes.channel) or 3) not in IMAGE_CHANNELS:
        raise DataError(f"--eval on pictures: input {image} has {image.size(axes.channel)} channels, a picture has 1, 3 or 4")
    for spec in specs:
        if spec.name != image.name and not (spec.shape and spec.size(len(spec.shape) - 1) == 2 and len(spec.shape) < 3):
            raise DataError(f"--eval on pictures: nothing says what to feed input {spec} beside the picture (inputs: {listed})")
    open_size = size or (SIDE, SIDE)
    sides = (image.size(axes.height) or open_size[0], image.size(axes.width) or open_size[1])
    return Feeder(tuple(specs), image, axes, sides)


def place_back(boxes: Boxes, placed: Placed, size: tuple[int, int], *, normalised: bool, rows_first: bool) -> Boxes:
    """Boxes as a model gives them, in the picture's pixels.

    Parameters
    ----------
    size
        Height and width of the model's input.
    normalised
        Corners are shares of the input's sides.
    rows_first
        Corners are top, left, bottom, right.
    """
    corners = boxes.corners[:, [1, 0, 3, 2]] if rows_first else boxes.corners
    if normalised:
        corners = corners * np.tile(size[::-1], 2)
    return Boxes(placed.back(corners), boxes.labels, boxes.scores)
