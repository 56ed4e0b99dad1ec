"""Rendered lines of text with known labels, in the input format of PP-OCRv4's recogniser.

    python -m benchmarks.ppocr.lines          # writes the calibration and test sets to benchmarks/.cache/ppocr/

Everything follows from a seed. The fonts are those that matplotlib ships, so that whoever has matplotlib has the same lines.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from benchmarks.ppocr.files import CACHE, font_paths
from benchmarks.ppocr.words import text_line

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono",
    "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
)  # fmt: skip
HEIGHT = 48
TEST_SEED, CALIBRATION_SEED = 20_001, 10_001

Image8 = NDArray[np.uint8]


@lru_cache(maxsize=512)
def font(index: int, size: int) -> ImageFont.FreeTypeFont:
    """One of :data:`FONTS` at ``size`` pixels per em."""
    # The basic layout is the same everywhere; raqm shapes text differently where it is installed.
    return ImageFont.truetype(str(font_paths(FONTS)[index]), size, layout_engine=ImageFont.Layout.BASIC)


def colours(rng: np.random.Generator, contrast: float = 90.0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Text and background colours float64[3] in 0..255 that differ in luma by ``contrast`` at least."""
    luma = np.array([0.299, 0.587, 0.114])
    while True:
        text, ground = rng.uniform(0, 255, 3), rng.uniform(0, 255, 3)
        if rng.random() < 0.5:  # most text is dark on light, or nearly grey
            text, ground = text * 0.25, 255 - (255 - ground) * 0.35
        if abs(luma @ (text - ground)) >= contrast:
            return text, ground


def _ground(rng: np.random.Generator, colour: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """A background float64[height, width, 3]: flat, a gradient, or blotches of a coarse random field."""
    ground = np.broadcast_to(colour, (height, width, 3)).copy()
    kind = rng.random()
    if kind < 0.35:
        ground += np.linspace(-1, 1, width)[None, :, None] * rng.uniform(-35, 35, 3)
    elif kind < 0.65:
        field = rng.uniform(0, 255, (int(rng.integers(2, 5)), int(rng.integers(3, 16)))).astype(np.uint8)
        coarse = Image.fromarray(field).resize((width, height), Image.Resampling.BICUBIC)
        ground += (np.asarray(coarse, np.float64)[..., None] / 127.5 - 1) * rng.uniform(-25, 25, 3)
    return ground


def render(rng: np.random.Generator, text: str) -> Image8:
    """Render one line uint8[height, width, 3] at a random size, with noise, blur and a small rotation.

    Parameters
    ----------
    rng
        What is random comes from here, in a fixed order.
    text
        Characters that all of :data:`FONTS` have.
    """
    face = font(int(rng.integers(len(FONTS))), int(rng.integers(22, 57)))
    spacing, gap = face.size * rng.uniform(0.0, 0.03), face.size * rng.uniform(0.12, 0.26)
    x, boxes = 0.0, []
    for char in text:
        boxes.append(x)
        x += face.getlength(char) + (gap if char == " " else spacing)
    left, top, right, bottom = face.getbbox(text)
    pad_x, pad_y = (int(face.size * rng.uniform(0.0, 0.12)) for _ in range(2))
    pad_y = max(pad_y, 1)
    # Slanted glyphs reach beyond their advance width.
    width = math.ceil(x + (right - left) - face.getlength(text)) + 2 * pad_x
    height = bottom - top + 2 * pad_y
    mask = Image.new("L", (width, height))
    draw = ImageDraw.Draw(mask)
    for char, at in zip(text, boxes, strict=True):
        draw.text((pad_x + at - min(left, 0), pad_y - top), char, font=face, fill=255)
    angle = rng.normal(0, 0.6) if width < 12 * height else rng.normal(0, 0.2)
    mask = mask.rotate(angle, Image.Resampling.BICUBIC, expand=True)
    ink, ground = colours(rng)
    cover = np.asarray(mask, np.float64)[..., None] / 255
    picture = _ground(rng, ground, *cover.shape[:2]) * (1 - cover) + ink * cover
    blur = max(rng.normal(0.35, 0.35), 0.0) * face.size / 40
    smooth = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(blur))
    noisy = np.asarray(smooth, np.float64) + rng.normal(0, rng.uniform(0, 9), (*cover.shape[:2], 3))
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8)


def to_height(picture: Image8, height: int = HEIGHT) -> Image8:
    """Scale to ``height`` pixels at the same aspect ratio, with PaddleOCR's rounding of the width (up)."""
    h, w = picture.shape[:2]
    size = (math.ceil(height * w / h), height)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


def to_input(pictures: list[Image8], width: int) -> NDArray[np.float32]:
    """Batch float32[n, 3, height, width]: (x / 255 - 0.5) / 0.5, planes blue, green, red; zeros to the right.

    Parameters
    ----------
    pictures
        uint8[height, w, 3], red first, of one height; wider ones than ``width`` are squeezed, as PaddleOCR does.
    width
        Width of the batch, in pixels.
    """
    batch = np.zeros((len(pictures), 3, pictures[0].shape[0], width), np.float32)
    for i, picture in enumerate(pictures):
        if picture.shape[1] > width:
            squeezed = Image.fromarray(picture).resize((width, picture.shape[0]), Image.Resampling.BILINEAR)
            picture = np.asarray(squeezed)
        batch[i, :, :, : picture.shape[1]] = picture[..., ::-1].transpose(2, 0, 1) / np.float32(127.5) - 1
    return batch


@dataclass(frozen=True)
class Lines:
    """Rendered lines at their own widths.

    Attributes
    ----------
    pictures
        uint8[48, w, 3] each, red first.
    texts
        What they say.
    """

    pictures: list[Image8]
    texts: list[str]

    def save(self, path: Path) -> None:
        """Write ``.npz``: the pictures side by side, their widths, their texts."""
        path.parent.mkdir(parents=True, exist_ok=True)
        widths = np.array([picture.shape[1] for picture in self.pictures])
        np.savez_compressed(path, pixels=np.concatenate(self.pictures, axis=1), widths=widths, texts=np.array(self.texts))

    @staticmethod
    def load(path: Path) -> Lines:
        """Read what :meth:`save` wrote."""
        with np.load(path) as data:
            pixels, widths, texts = data["pixels"], data["widths"], data["texts"]
        return Lines(np.split(pixels, np.cumsum(widths)[:-1], axis=1), [str(text) for text in texts])

    def batches(self, size: int, least: int = 32) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Indices int64[n] and inputs float32[n, 3, 48, w] of batches, narrow lines first.

        Each is as wide as its widest line, never below ``least`` pixels.
        """
        order = np.argsort([picture.shape[1] for picture in self.pictures], kind="stable")
        found = []
        for start in range(0, len(order), size):
            chosen = order[start : start + size]
            pictures = [self.pictures[i] for i in chosen]
            found.append((chosen, to_input(pictures, max(least, *(p.shape[1] for p in pictures)))))
        return found


def make_lines(n: int, seed: int, widest: int | None = None) -> Lines:
    """Render ``n`` lines; with ``widest``, only such that are at most that many pixels wide at height 48."""
    pictures: list[Image8] = []
    texts: list[str] = []
    rng = np.random.default_rng(seed)
    while len(texts) < n:
        text = text_line(rng)
        picture = to_height(render(rng, text))
        if widest is None or picture.shape[1] <= widest:
            pictures.append(picture)
            texts.append(text)
    return Lines(pictures, texts)


def test_lines(n: int = 500, seed: int = TEST_SEED) -> Lines:
    """The held-out test lines, from the cache if they are there."""
    path = CACHE / f"lines_test_{n}_{seed}.npz"
    if not path.exists():
        make_lines(n, seed).save(path)
    return Lines.load(path)


def calibration(n: int = 512, width: int = 320, seed: int = CALIBRATION_SEED) -> Path:
    """Path of the calibration lines, an ``.npy`` float32[n, 3, 48, width] for ``graphprune run --data``; no labels."""
    path = CACHE / f"lines_calibration_{n}x{width}_{seed}.npy"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        np.save(path, to_input(make_lines(n, seed, widest=width).pictures, width))
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--samples", type=int, default=512, help="calibration lines (512)")
    parser.add_argument("--width", type=int, default=320, help="their width in pixels (320)")
    parser.add_argument("--test", type=int, default=500, help="test lines (500)")
    args = parser.parse_args()
    print(calibration(args.samples, args.width))
    print(f"{len(test_lines(args.test).texts)} test lines in {CACHE}")


if __name__ == "__main__":
    main()
