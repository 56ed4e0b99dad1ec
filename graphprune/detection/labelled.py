"""Annotated pictures: COCO's JSON and Pascal VOC's XML, in the layouts that they are found in."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from graphprune.errors import DataError
from graphprune.images import IMAGE_SUFFIXES

#: Parts of data sets, those that judge first.
SPLITS = ("val", "valid", "validation", "test", "minival", "trainval", "train")
#: Pascal VOC's classes, in their order.
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
    "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
#: How Roboflow, and others after it, name the annotations beside pictures.
BESIDE = "_annotations.coco.json"


@dataclass(frozen=True)
class Truth:
    """One annotated object.

    Attributes
    ----------
    corners
        Left, top, right, bottom in pixels of the picture.
    category
        Its number.
    area
        Square pixels, by which COCO tells small from large.
    crowd
        Stands for several objects (COCO): what is found inside is neither right nor wrong.
    difficult
        Neither to find nor wrong to find (VOC).
    """

    corners: tuple[float, float, float, float]
    category: int
    area: float
    crowd: bool = False
    difficult: bool = False


@dataclass(frozen=True)
class Picture:
    """An image file with its objects."""

    path: Path
    truths: tuple[Truth, ...]


@dataclass(frozen=True)
class DataSet:
    """Annotated pictures.

    Attributes
    ----------
    kind
        ``COCO`` or ``VOC``.
    source
        File or folder that the annotations come from.
    categories
        Number to name, in the order of the numbers.
    """

    kind: str
    source: Path
    pictures: tuple[Picture, ...]
    categories: Mapping[int, str]

    def __str__(self) -> str:
        objects = sum(len(picture.truths) for picture in self.pictures)
        return f"{len(self.pictures)} pictures, {objects} objects, {len(self.categories)} classes ({self.kind}, {self.source})"


def read_coco(path: Path, split: str = "") -> DataSet:
    """COCO's annotations: a ``.json``, or a folder that has one in a usual place.

    Parameters
    ----------
    path
        ``instances_val2017.json``, or a folder with ``annotations/*.json``, or with ``_annotations.coco.json`` beside the pictures.
    split
        Part of the data set where there are several annotation files: what the file's or its folder's name has in it.

    Raises
    ------
    DataError
        No annotations, several that may be meant, or pictures that are not there.
    """
    file = path if path.is_file() else _annotations(path, split)
    data = _json(file)
    if data is None:
        raise DataError(f"{file} is no COCO annotation file: it needs 'images', 'annotations' and 'categories'")
    try:
        categories = {int(c["id"]): str(c["name"]) for c in sorted(data["categories"], key=lambda c: int(c["id"]))}
        names = {image["id"]: str(image["file_name"]) for image in data["images"]}
        truths: dict[Any, list[Truth]] = {number: [] for number in names}
        for one in data["annotations"]:
            if (of := truths.get(one["image_id"])) is not None and len(one.get("bbox") or ()) == 4:
                left, top, width, height = map(float, one["bbox"])
                of.append(
                    Truth(
                        (left, top, left + width, top + height), int(one["category_id"]),
                        float(one.get("area") or width * height), bool(one.get("iscrowd", 0)),
                    )
                )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{file} cannot be read as COCO annotations: {type(error).__name__}: {error}") from error
    if not truths or not any(truths.values()):
        raise DataError(f"{file} annotates no boxes: {len(names)} images, {len(data['annotations'])} annotations")
    unknown = sorted({one.category for many in truths.values() for one in many} - set(categories))
    if unknown:
        raise DataError(f"{file} has objects of category {unknown[0]}, which its 'categories' do not list")
    paths = _images(file, names.values())
    pictures = tuple(Picture(paths[name], tuple(truths[number])) for number, name in names.items())
    return DataSet("COCO", file, pictures, categories)


def _json(file: Path) -> dict[str, Any] | None:
    """Contents of an annotation file; None where it is another sort of JSON."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{file} is no JSON: {error}") from error
    return data if isinstance(data, dict) and {"images", "annotations", "categories"} <= set(data) else None


def _annotations(folder: Path, split: str) -> Path:
    """The annotation file in a folder."""
    _check_folder(folder)
    places = [folder / "annotations" / "instances_*.json", folder / "annotations" / "*.json", folder / BESIDE,
              folder / "*" / BESIDE, folder / "*.json", folder / "*" / "*.json"]  # fmt: skip
    for place in places:
        base = next(parent for parent in place.parents if "*" not in str(parent))
        found = sorted(p for p in base.glob(str(place.relative_to(base))) if p.is_file())
        if split:
            found = [p for p in found if split in p.stem or split == p.parent.name]
        if place.name == "*.json":
            found = [p for p in found if not p.name.startswith(("captions", "person_keypoints", "stuff", "panoptic"))]
            found = found if len(found) == 1 else [p for p in found if _json(p) is not None]
        if len(found) > 1:
            found = _judging(found, lambda p: (p.stem, p.parent.name))
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(str(p.relative_to(folder)) for p in found[:6])
            raise DataError(f"{folder} has several annotation files ({listed}): give one, as in coco:{found[0]}")
    wanted = f" for split '{split}'" if split else ""
    raise DataError(
        f"{folder} has no COCO annotations{wanted}: looked for annotations/*.json, {BESIDE} and *.json; give the file itself, as "
        f"in coco:{folder}/labels.json"
    )


def _judging(found: Sequence[Path], words: Any) -> list[Path]:
    """Of several parts of a data set, those that judge: ``val`` before ``test`` before ``train``."""
    for split in SPLITS:
        chosen = [p for p in found if any(split in word for word in words(p))]
        if chosen:
            return chosen
    return list(found)


def _images(file: Path, names: Iterable[str]) -> dict[str, Path]:
    """Where the pictures that an annotation file names lie."""
    names = list(names)
    stem = file.stem.removeprefix("instances_")
    near = [file.parent, file.parent.parent]
    inner = [root / sub for root in near for sub in (stem, f"images/{stem}", "images", "JPEGImages", "data", "train", "val")]
    roots = [root for root in (*near[:1], *inner, *near[1:]) if root.is_dir()]
    for root in roots:
        if (root / names[0]).is_file() and (root / names[-1]).is_file():
            paths = {name: root / name for name in names}
            break
    else:
        # Names with folders of another machine, or pictures of several parts in folders of their own.
        known = {p.name: p for p in sorted(file.parent.parent.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES}
        paths = {name: known.get(Path(name.replace("\\", "/")).name, file.parent / name) for name in names}
    missing = [name for name, found in paths.items() if not found.is_file()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(names)} pictures of {file} are not there, '{missing[0]}' for one: they are looked for beside "
            f"it, in {stem}/, images/ and images/{stem}/ beside it or above"
        )
    return paths


def read_voc(path: Path, split: str = "") -> DataSet:
    """Pascal VOC's annotations: a folder with ``Annotations`` and ``JPEGImages``, or with ``.xml`` files beside the pictures.

    Parameters
    ----------
    path
        The folder (``VOC2007``), or one above it where there is only one.
    split
        Name of a list in ``ImageSets/Main``. By default ``val``, or what there is; all pictures where there are no lists.

    Raises
    ------
    DataError
        No annotations, several folders that may be meant, or pictures that are not there.
    """
    root = _voc_root(path)
    folder = root / "Annotations" if (root / "Annotations").is_dir() else root
    wanted = _voc_list(root, split)
    every = {p.stem: p for p in sorted(folder.glob("*.xml"))}
    if wanted is None and split:
        raise DataError(f"{root} has no ImageSets/Main/{split}.txt")
    if absent := [stem for stem in wanted or () if stem not in every]:
        raise DataError(f"{folder} has no annotations of {len(absent)} listed pictures, '{absent[0]}.xml' for one")
    # The numbers of classes go by all annotations, or a part of the data set without buses would number others differently.
    trees = {stem: _xml(file) for stem, file in every.items()}
    found = sorted({_text(o, "name") for tree in trees.values() for o in tree.iter("object")})
    names = VOC_CLASSES if set(found) <= set(VOC_CLASSES) else tuple(found)
    if not found:
        raise DataError(f"{folder} annotates no objects in {len(trees)} files")
    number = {name: n for n, name in enumerate(names)}
    pictures = []
    for stem in every if wanted is None else wanted:
        truths = tuple(_voc_object(o, number) for o in trees[stem].iter("object"))
        pictures.append(Picture(_voc_image(root, stem, trees[stem]), truths))
    return DataSet("VOC", folder, tuple(pictures), dict(enumerate(names)))


def _voc_root(path: Path) -> Path:
    _check_folder(path)
    if (path / "Annotations").is_dir() or next(path.glob("*.xml"), None) is not None:
        return path
    for depth in ("*/Annotations", "*/*/Annotations", "*/*.xml"):
        found = sorted({p.parent for p in path.glob(depth)})
        if len(found) > 1:
            found = _judging(found, lambda p: (p.name,)) if depth.endswith("xml") else found
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(str(p.relative_to(path)) for p in found[:6])
            raise DataError(f"{path} has several folders with annotations ({listed}): give one, as in voc:{found[0]}")
    raise DataError(f"{path} has no VOC annotations: looked for Annotations/*.xml and *.xml")


def _voc_list(root: Path, split: str) -> list[str] | None:
    """Pictures of a part of the data set; None where there are no lists."""
    folder = root / "ImageSets" / "Main"
    # Lists of one class, aeroplane_val.txt, have a second column.
    files = {p.stem: p for p in sorted(folder.glob("*.txt")) if "_" not in p.stem} if folder.is_dir() else {}
    name = split or next((s for s in SPLITS if s in files), next(iter(files), ""))
    if name not in files:
        return None
    return [line.split()[0] for line in files[name].read_text(encoding="utf-8").splitlines() if line.strip()]


def _xml(file: Path) -> ElementTree.Element:
    try:
        return ElementTree.parse(file).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"{file} cannot be read as VOC annotations: {error}") from error


def _text(element: ElementTree.Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _voc_object(element: ElementTree.Element, number: Mapping[str, int]) -> Truth:
    """VOC counts pixels from 1, and the last one is inside."""
    name, box = _text(element, "name"), element.find("bndbox")
    try:
        assert box is not None
        left, top, right, bottom = (float(_text(box, tag)) for tag in ("xmin", "ymin", "xmax", "ymax"))
    except (AssertionError, ValueError) as error:
        raise DataError(f"an object '{name}' of the annotations has no bndbox of four numbers") from error
    left, top = left - 1, top - 1
    if not all(map(math.isfinite, (left, top, right, bottom))):
        raise DataError(f"an object '{name}' of the annotations has a bndbox that is not finite")
    return Truth(
        (left, top, right, bottom), number[name], max(right - left, 0) * max(bottom - top, 0),
        difficult=_text(element, "difficult") == "1",
    )  # fmt: skip


def _voc_image(root: Path, stem: str, tree: ElementTree.Element) -> Path:
    named = Path(_text(tree, "filename").replace("\\", "/")).name
    for folder in (root / "JPEGImages", root / "images", root):
        for name in filter(None, (named, *(stem + suffix for suffix in sorted(IMAGE_SUFFIXES)))):
            if (folder / name).is_file():
                return folder / name
    raise DataError(f"the picture of {stem}.xml is not there: '{named or stem}' was looked for in {root}/JPEGImages and {root}")


def _check_folder(folder: Path) -> None:
    if not folder.is_dir():
        raise DataError(f"{folder} " + ("is not a folder" if folder.exists() else "does not exist"))
