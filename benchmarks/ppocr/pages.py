"""Rendered scenes for the text detector: lines of text on photographs and textures, with their boxes.

    python -m benchmarks.ppocr.pages          # writes the calibration set to benchmarks/.cache/ppocr/

The backgrounds are pictures that the scikit-image package ships (those without text in them).
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from benchmarks.ppocr.boxes import Boxes
from benchmarks.ppocr.files import CACHE, picture_paths
from benchmarks.ppocr.lines import FONTS, Image8, font
from benchmarks.ppocr.words import text_line

GROUNDS = (
    "astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "moon.png", "motorcycle_left.png", "rocket.jpg",
)  # fmt: skip
TEST_SEED, CALIBRATION_SEED = 20_002, 10_002
LUMA = np.array([0.299, 0.587, 0.114])


@lru_cache(maxsize=16)
def _ground(index: int) -> Image.Image:
    return Image.open(picture_paths(GROUNDS)[index]).convert("RGB")


def _background(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """A random part of a random picture, float64[height, width, 3], at a random scale and contrast; or plain paper."""
    if rng.random() < 0.2:
        return np.full((height, width, 3), rng.uniform(150, 255)) + rng.normal(0, 4, (height, width, 3))
    picture = _ground(int(rng.integers(len(GROUNDS))))
    scale = max(height / picture.height, width / picture.width) * rng.uniform(1.0, 1.6)
    size = math.ceil(picture.width * scale), math.ceil(picture.height * scale)
    left, top = int(rng.integers(size[0] - width + 1)), int(rng.integers(size[1] - height + 1))
    part = np.asarray(picture.resize(size).crop((left, top, left + width, top + height)), np.float64)
    contrast = rng.uniform(0.35, 0.9)
    return part * contrast + rng.uniform(0, 255) * (1 - contrast)


def _ink(rng: np.random.Generator, behind: NDArray[np.float64]) -> NDArray[np.float64]:
    """A colour float64[3] that stands out from most of what is behind it, float64[h, w, 3]."""
    luma = (behind @ LUMA).ravel()
    for _ in range(64):
        colour = rng.uniform(0, 255, 3)
        if np.mean(abs(luma - LUMA @ colour) > 75) > 0.97:
            return colour
    return np.full(3, 255.0 if luma.mean() < 128 else 0.0)


def scene(rng: np.random.Generator, height: int, width: int) -> tuple[Image8, Boxes]:
    """One picture uint8[height, width, 3] with up to fourteen lines of text, and the box of each.

    A box is what has ink and a tenth of the font size around it: the detector was trained on boxes that people drew, which
    are not tight.
    """
    picture = _background(rng, height, width)
    taken: list[list[float]] = []
    for _ in range(int(rng.integers(4, 15))):
        face = font(int(rng.integers(len(FONTS))), int(rng.integers(16, 45)))
        layer = Image.new("L", (width, height))
        left, top, right, bottom = face.getbbox(text := text_line(rng, longest=22))
        if right - left > width - 24:
            continue
        x, y = int(rng.integers(12, width - (right - left) - 11)), int(rng.integers(12, height - (bottom - top) - 11))
        ImageDraw.Draw(layer).text((x - left, y - top), text, font=face, fill=255)
        layer = layer.rotate(rng.normal(0, 0.5), Image.Resampling.BICUBIC, center=(x + (right - left) / 2, y))
        if (box := layer.getbbox()) is None:
            continue
        x0, y0, x1, y1 = box
        # Lines on top of or next to each other have no agreed boxes: leave one line height between them.
        gap = face.size
        if any(x0 - gap < b[2] and b[0] < x1 + gap and y0 - gap < b[3] and b[1] < y1 + gap for b in taken):
            continue
        ink = _ink(rng, picture[y0:y1, x0:x1])
        cover = np.asarray(layer, np.float64)[y0:y1, x0:x1, None] / 255
        picture[y0:y1, x0:x1] += (ink - picture[y0:y1, x0:x1]) * cover
        edge = 0.1 * face.size
        taken.append([max(x0 - edge, 0), max(y0 - edge, 0), min(x1 + edge, width), min(y1 + edge, height)])
    smooth = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    smooth = smooth.filter(ImageFilter.GaussianBlur(max(rng.normal(0.3, 0.3), 0)))
    noisy = np.asarray(smooth, np.float64) + rng.normal(0, rng.uniform(0, 6), (height, width, 3))
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8), np.array(taken, np.float64).reshape(-1, 4)


@dataclass(frozen=True)
class Pages:
    """Scenes of one size: ``pictures`` uint8[height, width, 3] each, red first, and the ``boxes`` of their lines."""

    pictures: list[Image8]
    boxes: list[Boxes]


def make_pages(n: int, seed: int, height: int = 480, width: int = 640) -> Pages:
    """Render ``n`` scenes; sides are multiples of 32, as the detector wants."""
    rng = np.random.default_rng(seed)
    made = [scene(rng, height, width) for _ in range(n)]
    return Pages([picture for picture, _ in made], [boxes for _, boxes in made])


@lru_cache(maxsize=1)
def test_pages(n: int = 24, seed: int = TEST_SEED) -> Pages:
    """The held-out test scenes."""
    return make_pages(n, seed)


def to_input(picture: Image8) -> NDArray[np.float32]:
    """Input float32[3, height, width]: (x / 255 - 0.5) / 0.5, planes blue, green, red, as rapidocr feeds the detector."""
    return np.ascontiguousarray((picture[..., ::-1].transpose(2, 0, 1) / np.float32(127.5) - 1).astype(np.float32))


def calibration(n: int = 64, size: int = 384, seed: int = CALIBRATION_SEED) -> Path:
    """Path of the calibration scenes, an ``.npy`` float32[n, 3, size, size] for ``graphprune run --data``."""
    path = CACHE / f"pages_calibration_{n}x{size}_{seed}.npy"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        np.save(path, np.stack([to_input(picture) for picture in make_pages(n, seed, size, size).pictures]))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=64, help="calibration scenes (64)")
    parser.add_argument("--size", type=int, default=384, help="their height and width in pixels (384)")
    args = parser.parse_args()
    print(calibration(args.samples, args.size))


if __name__ == "__main__":
    main()
