"""Pictures of small drones before skies, clouds, woods and towns, with birds and planes beside them; drawn, with exact boxes.

    python -m examples.drone.data OUT --split test --pictures 400     # as a COCO folder

Every picture follows from its split and number alone. A drone's box is the tight box of its own pixels as drawn, before the
camera's blur and noise; where it leaves the picture, the box is cut off there. Birds, planes and balloons have no box.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

#: Height and width of a picture.
SIZE = (160, 224)
#: First seed of each split: no picture is in two.
SPLITS = {"train": 0, "calibration": 1_000_000, "val": 2_000_000, "test": 3_000_000}
#: Shapes are drawn so many times larger, and brought down smoothly.
FINE = 4
#: Opacity from which a pixel belongs to a drone, and the share of it that must lie in the picture for it to count.
SOLID, SEEN = 0.15, 0.4

Picture = NDArray[np.uint8]
Boxes = NDArray[np.float32]
_SKIES = (((70, 120, 190), (190, 215, 235)), ((150, 160, 170), (205, 208, 210)), ((60, 70, 110), (240, 170, 120)),
          ((40, 50, 80), (120, 130, 150)), ((110, 160, 215), (225, 235, 240)))  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A picture, uint8[h, w, 3], and its drones, float32[n, 4]: left, top, right, bottom in pixels."""

    picture: Picture
    boxes: Boxes


def scene(split: str, number: int) -> Scene:
    """One picture of a split."""
    rng = np.random.default_rng(SPLITS[split] + number)
    canvas = _background(rng)
    for _ in range(int(rng.integers(0, 4))):
        _paste(canvas, _distractor(rng), rng)
    boxes = []
    for _ in range(int(rng.choice(4, p=(0.12, 0.5, 0.26, 0.12)))):
        box = _paste(canvas, _drone(rng, _pose(rng)), rng, boxes)
        if box is not None:
            boxes.append(box)
    return Scene(_camera(canvas, rng), np.asarray(boxes, np.float32).reshape(-1, 4))


def clip(frames: int, seed: int = 0) -> Iterator[Picture]:
    """Pictures of drones that fly before one background, uint8[h, w, 3] each."""
    rng = np.random.default_rng(SPLITS["test"] + 500_000 + seed)
    still = _background(rng)
    flights = []
    for _ in range(3):
        pose = _pose(rng)
        start, speed = rng.uniform((0.1, 0.1), (0.9, 0.6)), rng.uniform(-0.006, 0.006, 2)
        flights.append((pose, start, speed, rng.uniform(0, 6.3), int(rng.integers(1 << 30))))
    bird = rng.uniform((0.0, 0.1), (0.3, 0.5)), rng.uniform((0.004, -0.002), (0.009, 0.002)), int(rng.integers(1 << 30))
    for number in range(frames):
        canvas = still.copy()
        place = np.mod(bird[0] + bird[1] * number, 1.0)
        _put(canvas, _bird(np.random.default_rng(bird[2]), beat=number / 4), place)
        for pose, start, speed, phase, one in flights:
            at = start + speed * number + 0.03 * np.array([math.cos(phase + number / 15), math.sin(phase + number / 11)])
            at = 1 - np.abs(np.mod(at, 2.0) - 1)  # back from the edges
            turned = replace(pose, yaw=pose.yaw + number / 25, roll=pose.roll + 0.1 * math.sin(number / 9))
            _put(canvas, _drone(np.random.default_rng(one), turned), at)
        yield _camera(canvas, np.random.default_rng(number), steady=True)


# -- what stands still -----------------------------------------------------------------------------------------------


def _fractal(rng: np.random.Generator, shape: tuple[int, int], octaves: int = 5, first: int = 2) -> NDArray[np.float32]:
    """Smooth noise of several scales, 0 to 1."""
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        cells = first << octave
        grid = rng.random((cells + 1, int(cells * 1.4) + 1), np.float32)
        grown = Image.fromarray(grid).resize(shape[::-1], Image.Resampling.BICUBIC)
        total += np.asarray(grown) / (1 << octave)
    low, high = float(total.min()), float(total.max())
    return np.asarray((total - low) / max(high - low, 1e-6), np.float32)


def _background(rng: np.random.Generator) -> NDArray[np.float32]:
    h, w = SIZE
    top, bottom = (np.asarray(c, np.float32) + rng.normal(0, 10, 3) for c in _SKIES[int(rng.integers(len(_SKIES)))])
    down = np.linspace(0, 1, h, dtype=np.float32)[:, None, None] ** rng.uniform(0.6, 1.6)
    sky = np.broadcast_to(top + (bottom - top) * down, (h, w, 3)).astype(np.float32)
    cover = np.clip((_fractal(rng, SIZE) - rng.uniform(0.25, 0.8)) * rng.uniform(1.5, 4), 0, 1)[..., None]
    light = rng.uniform(140, 250) * (1 - 0.35 * _fractal(rng, SIZE, 4)[..., None])
    sky = sky + (light - sky) * cover * rng.uniform(0.3, 0.95)
    if rng.random() < 0.3:
        y, x = np.mgrid[:h, :w].astype(np.float32)
        far = np.hypot(x - rng.uniform(0, w), y - rng.uniform(0, h / 2)) / rng.uniform(10, 60)
        sky = sky + (255 - sky) * np.exp(-far)[..., None] * rng.uniform(0.3, 0.9)
    if rng.random() < 0.65:
        _ground(sky, rng)
    return sky


def _ground(sky: NDArray[np.float32], rng: np.random.Generator) -> None:
    """Hills, woods, houses and wires, in place."""
    h, w = SIZE
    for depth in range(int(rng.integers(1, 4))):
        level = h * rng.uniform(0.55, 0.95)
        ridge = level - h * rng.uniform(0.02, 0.15) * np.interp(
            np.arange(w), np.linspace(0, w, 9), rng.random(9)) - rng.uniform(0, 3) * rng.random(w)  # fmt: skip
        colour = np.array([rng.uniform(30, 110), rng.uniform(50, 120), rng.uniform(25, 90)], np.float32)
        texture = 0.5 + _fractal(rng, SIZE, 4, 16)[..., None]
        under = (np.arange(h)[:, None] > ridge[None])[..., None]
        sky[:] = np.where(under, colour * texture * (1 - 0.15 * depth), sky)
    layer = Image.new("RGBA", (w, h))
    draw = ImageDraw.Draw(layer)
    for _ in range(int(rng.integers(0, 6))):
        left, wide, high = rng.uniform(-10, w), rng.uniform(8, 36), rng.uniform(10, 75)
        grey = tuple(int(v) for v in np.clip(rng.uniform(50, 190) + rng.normal(0, 12, 3), 0, 255))
        draw.rectangle((left, h - high, left + wide, h), fill=(*grey, 255))
        for row in np.arange(h - high + 3, h, 6.0):
            for column in np.arange(left + 2, left + wide - 3, 5.0):
                if rng.random() < 0.7:
                    pane = (int(v * rng.uniform(0.4, 1.2)) % 256 for v in grey)
                    draw.rectangle((column, row, column + 2, row + 3), fill=(*pane, 255))
    for _ in range(int(rng.integers(0, 30))):
        x, r = rng.uniform(0, w), rng.uniform(3, 14)
        y = h - rng.uniform(0, 35)
        green = (int(rng.uniform(15, 70)), int(rng.uniform(40, 95)), int(rng.uniform(10, 50)), 255)
        draw.ellipse((x - r, y - r * 1.2, x + r, y + r), fill=green)
    for _ in range(int(rng.integers(0, 3))):
        y0, y1 = rng.uniform(20, h, 2)
        draw.line((0, y0, w, y1), fill=(30, 30, 30, int(rng.uniform(60, 200))), width=1)
    over = np.asarray(layer.filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9))), np.float32)
    alpha = over[..., 3:] / 255
    sky[:] = sky * (1 - alpha) + over[..., :3] * alpha


# -- what flies ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pose:
    """How a drone is seen: width in pixels, turn, tilt (height of a circle of its plane, by its width), roll, brightness, haze."""

    width: float
    yaw: float
    tilt: float
    roll: float
    shade: float
    fade: float


def _pose(rng: np.random.Generator) -> Pose:
    width = float(np.exp(rng.uniform(math.log(9), math.log(62))))
    shade = rng.uniform(10, 80) if rng.random() < 0.75 else rng.uniform(150, 245)
    return Pose(width, rng.uniform(0, math.pi), rng.uniform(0.12, 0.65), rng.normal(0, 0.18), shade, rng.uniform(0.0, 0.35))


def _drone(rng: np.random.Generator, pose: Pose) -> Image.Image:
    """A quadcopter: a body, four arms, blades that whirl, legs, perhaps a camera; RGBA, opacity 1 - haze."""
    side = max(int(pose.width * 1.3), 10) * FINE
    layer = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(layer)
    unit = pose.width * FINE / 2.6
    opaque = int(255 * (1 - pose.fade))
    ink = (*(int(np.clip(pose.shade + v, 0, 255)) for v in rng.normal(0, 8, 3)), opaque)
    spin = rng.uniform(0.35, 0.85)
    centre = side / 2

    def at(angle: float, far: float, up: float = 0.0) -> tuple[float, float]:
        x, y = far * math.cos(angle), far * math.sin(angle) * pose.tilt - up
        c, s = math.cos(pose.roll), math.sin(pose.roll)
        return centre + unit * (x * c - y * s), centre + unit * (x * s + y * c)

    arms = [pose.yaw + math.pi / 4 + n * math.pi / 2 for n in range(4)]
    thick = max(int(unit * rng.uniform(0.08, 0.14)), 2)
    for angle in arms:
        draw.line((*at(angle, 0.15), *at(angle, 0.92)), fill=ink, width=thick)
        x, y = at(angle, 0.92, 0.09)
        blade, flat = unit * 0.38, unit * 0.38 * max(pose.tilt, 0.1)
        draw.ellipse((x - blade, y - flat, x + blade, y + flat), fill=(*ink[:3], int(opaque * spin)))
        draw.ellipse((x - thick, y - thick, x + thick, y + thick), fill=ink)
    for across in (-1, 1):
        foot = 0.32 * across
        if rng.random() < 0.8:
            draw.line((*at(0, foot), *at(0, foot * 1.3, -0.35)), fill=ink, width=max(thick // 2, 1))
            draw.line((*at(math.pi / 2, 0.25, -0.35), *at(-math.pi / 2, 0.25, -0.35)), fill=ink, width=max(thick // 2, 1))
    x, y = at(0, 0)
    long, high = unit * rng.uniform(0.28, 0.4), unit * rng.uniform(0.14, 0.24)
    draw.ellipse((x - long, y - high, x + long, y + high), fill=ink)
    if rng.random() < 0.6:
        x, y = at(0, 0.1, -0.22)
        r = unit * 0.1
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(*(int(v * 0.6) for v in ink[:3]), opaque))
    if rng.random() < 0.3:
        x, y = at(arms[0], 0.8)
        draw.ellipse((x - thick, y - thick, x + thick, y + thick), fill=(230, 40, 40, opaque))
    return layer.resize((side // FINE, side // FINE), Image.Resampling.BOX)


def _bird(rng: np.random.Generator, beat: float | None = None) -> Image.Image:
    """Two wings and a body."""
    width = float(np.exp(rng.uniform(math.log(7), math.log(40))))
    side = max(int(width * 1.3), 9) * FINE
    layer = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(layer)
    half, centre = width * FINE / 2, side / 2
    lift = half * (rng.uniform(-0.6, 0.7) if beat is None else 0.65 * math.sin(beat))
    chord, bend = half * rng.uniform(0.12, 0.28), rng.uniform(0.3, 0.6)
    grey = int(rng.uniform(10, 110)) if rng.random() < 0.75 else int(rng.uniform(170, 250))
    ink = (grey, int(grey * 0.95), int(grey * 0.9), int(255 * rng.uniform(0.65, 1)))
    for across in (-1, 1):
        tip, elbow = (centre + across * half, centre - lift), (centre + across * half * bend, centre - lift * 0.9 - chord * 0.4)
        behind = elbow[0], elbow[1] + chord
        draw.polygon([(centre, centre - chord / 2), elbow, tip, behind, (centre, centre + chord / 2)], fill=ink)
    draw.ellipse((centre - chord * 0.7, centre - chord * 0.9, centre + chord * 0.7, centre + chord * 1.6), fill=ink)
    return layer.rotate(rng.uniform(-25, 25), Image.Resampling.BICUBIC).resize((side // FINE, side // FINE), Image.Resampling.BOX)


def _plane(rng: np.random.Generator) -> Image.Image:
    width = float(np.exp(rng.uniform(math.log(9), math.log(48))))
    side = max(int(width * 1.2), 10) * FINE
    layer = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(layer)
    half, c = width * FINE / 2, side / 2
    grey = int(rng.uniform(30, 240))
    ink = (grey, grey, min(grey + 8, 255), int(255 * rng.uniform(0.7, 1)))
    body, sweep = half * rng.uniform(0.07, 0.12), half * rng.uniform(0.2, 0.5)
    draw.ellipse((c - half, c - body, c + half, c + body), fill=ink)
    for across in (-1, 1):
        wing = c + across * half * rng.uniform(0.5, 0.9)
        draw.polygon([(c + half * 0.25, c), (c - sweep * 0.4, wing), (c - sweep * 0.7, c)], fill=ink)
        draw.polygon([(c - half * 0.75, c), (c - half, c + across * half * 0.3), (c - half, c)], fill=ink)
    turned = layer.rotate(rng.uniform(0, 360), Image.Resampling.BICUBIC)
    return turned.resize((side // FINE, max(int(side // FINE * rng.uniform(0.4, 1)), 3)), Image.Resampling.BOX)


def _balloon(rng: np.random.Generator) -> Image.Image:
    r = rng.uniform(3, 14)
    side = int(r * 4) * FINE
    layer = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(layer)
    c, big = side / 2, r * FINE
    ink = (*(int(v) for v in rng.integers(20, 240, 3)), int(255 * rng.uniform(0.7, 1)))
    draw.ellipse((c - big, c - big * 1.2, c + big, c + big), fill=ink)
    draw.polygon([(c - big * 0.5, c + big * 0.8), (c + big * 0.5, c + big * 0.8), (c, c + big * 1.5)], fill=ink)
    return layer.resize((side // FINE, side // FINE), Image.Resampling.BOX)


def _distractor(rng: np.random.Generator) -> Image.Image:
    draw = rng.random()
    return _bird(rng) if draw < 0.6 else _plane(rng) if draw < 0.85 else _balloon(rng)


# -- putting it together ---------------------------------------------------------------------------------------------


def _paste(
    canvas: NDArray[np.float32], what: Image.Image, rng: np.random.Generator, taken: list[list[float]] | None = None
) -> list[float] | None:
    """Put something at a place drawn; its box, None where too little of it is seen. Drones do not hide each other."""
    for _ in range(8):
        at = rng.uniform((0.02, 0.02), (0.98, 0.92))
        box = _box(what, at)
        if taken is None or box is None or not any(_meet(box, other) for other in taken):
            return _put(canvas, what, at)
    return None


def _meet(a: list[float], b: list[float]) -> bool:
    return a[0] < b[2] + 2 and b[0] < a[2] + 2 and a[1] < b[3] + 2 and b[1] < a[3] + 2


def _corner(what: Image.Image, at: NDArray[np.float64]) -> tuple[int, int]:
    return round(float(at[0]) * SIZE[1] - what.width / 2), round(float(at[1]) * SIZE[0] - what.height / 2)


def _box(what: Image.Image, at: NDArray[np.float64]) -> list[float] | None:
    """The tight box of what lies in the picture."""
    solid = np.asarray(what)[..., 3] / 255 > SOLID
    rows, columns = np.nonzero(solid)
    if not len(rows):
        return None
    x0, y0 = _corner(what, at)
    rows, columns = rows + y0, columns + x0
    inside = (rows >= 0) & (rows < SIZE[0]) & (columns >= 0) & (columns < SIZE[1])
    if inside.mean() < SEEN:
        return None
    rows, columns = rows[inside], columns[inside]
    return [float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)]


def _put(canvas: NDArray[np.float32], what: Image.Image, at: NDArray[np.float64]) -> list[float] | None:
    """Blend something into a canvas in place; its box."""
    box = _box(what, at)
    if box is None:
        return None
    x0, y0 = _corner(what, at)
    left, top = max(x0, 0), max(y0, 0)
    right, bottom = min(x0 + what.width, SIZE[1]), min(y0 + what.height, SIZE[0])
    over = np.asarray(what, np.float32)[top - y0 : bottom - y0, left - x0 : right - x0]
    alpha = over[..., 3:] / 255
    part = canvas[top:bottom, left:right]
    canvas[top:bottom, left:right] = part * (1 - alpha) + over[..., :3] * alpha
    return box


def _camera(canvas: NDArray[np.float32], rng: np.random.Generator, steady: bool = False) -> Picture:
    """Exposure, blur and noise of a cheap camera."""
    picture = canvas if steady else (canvas - 128) * rng.uniform(0.7, 1.2) + 128 + rng.uniform(-25, 25)
    blurred = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).filter(
        ImageFilter.GaussianBlur(0.3 if steady else rng.uniform(0, 0.9)))  # fmt: skip
    noise = rng.normal(0, 2 if steady else rng.uniform(0.5, 8), (*SIZE, 1)) + rng.normal(0, 1.5, (*SIZE, 3))
    return np.clip(np.asarray(blurred, np.float32) + noise, 0, 255).astype(np.uint8)


def write_coco(folder: Path, split: str, pictures: int) -> Path:
    """Write pictures and their boxes as a COCO folder: ``images/`` and ``annotations/instances.json``.

    Returns
    -------
    Path
        ``folder``.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for number in range(pictures):
        made = scene(split, number)
        name = f"{split}_{number:05}.png"
        Image.fromarray(made.picture).save(folder / "images" / name)
        images.append({"id": number + 1, "file_name": name, "height": SIZE[0], "width": SIZE[1]})
        for left, top, right, bottom in made.boxes.tolist():
            w, h = right - left, bottom - top
            annotations.append({"id": len(annotations) + 1, "image_id": number + 1, "category_id": 1, "iscrowd": 0,
                                "bbox": [left, top, w, h], "area": w * h})  # fmt: skip
    whole = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "drone"}]}
    target = folder / "annotations" / "instances.json"
    part = target.with_suffix(".part")
    part.write_text(json.dumps(whole))
    part.replace(target)
    return folder


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--pictures", type=int, default=400)
    options = parser.parse_args()
    print(write_coco(options.out, options.split, options.pictures))


if __name__ == "__main__":
    main()
