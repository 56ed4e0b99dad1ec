"""``--eval coco:PATH`` and ``voc:PATH``: layouts of folders, the metric by hand, and what is found out of a detector."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

import graphprune as gp
from graphprune.detection.boxes import Boxes
from graphprune.detection.feeding import Placed
from graphprune.detection.labelled import DataSet, Picture, Truth, read_coco, read_voc
from graphprune.detection.precision import mean_average_precision
from graphprune.detection.way import Asked, model_names
from graphprune.errors import DataError, UsageError
from graphprune.evaluation import Evaluation
from tests.command import call, fails
from tests.detector_nets import COLOURS, coco_folder, colour_detector, voc_folder

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def judged(folder: Path, target: str, **options: Any) -> tuple[dict[str, float], str]:
    """mAP of the colour detector, and what was assumed."""
    onnx.save(colour_detector(**options), folder / "m.onnx")
    evaluation = Evaluation(target)
    figures = evaluation(folder / "m.onnx", "before")
    assert isinstance(figures, dict)
    return figures, evaluation.note


# ------------------------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize(
    ("images", "file"),
    [("images", "annotations/instances_val.json"), ("val2017", "annotations/instances_val2017.json"),
     ("images/val2017", "annotations/instances_val2017.json"), ("valid", "valid/_annotations.coco.json"), (".", "_annotations.coco.json"),
     ("data", "labels.json")],
)  # fmt: skip
def test_coco_layouts(tmp_path: Path, images: str, file: str) -> None:
    path = coco_folder(tmp_path, 3, images=images, file=file)
    for given in (tmp_path, path):
        data = read_coco(given)
        assert [picture.path.name for picture in data.pictures] == ["000.png", "001.png", "002.png"]
        assert all(picture.path.is_file() for picture in data.pictures)
        assert data.categories == {1: "red", 2: "green", 3: "blue"}
        assert len(data.pictures[0].truths) in (2, 3)


def test_the_part_that_judges_is_taken_and_another_may_be_asked_for(tmp_path: Path) -> None:
    coco_folder(tmp_path, 2, images="train", file="train/_annotations.coco.json")
    coco_folder(tmp_path, 3, images="valid", file="valid/_annotations.coco.json")
    assert len(read_coco(tmp_path).pictures) == 3
    assert len(read_coco(tmp_path, "train").pictures) == 2
    with pytest.raises(DataError, match="for split 'night'"):
        read_coco(tmp_path, "night")


def test_several_files_that_may_be_meant(tmp_path: Path) -> None:
    for name in ("a", "b"):
        coco_folder(tmp_path, 1, file=f"annotations/{name}.json")
    with pytest.raises(DataError, match=r"several annotation files \(annotations/a.json, annotations/b.json\)"):
        read_coco(tmp_path)


def test_names_with_folders_of_another_machine(tmp_path: Path) -> None:
    path = coco_folder(tmp_path, 2, images="pictures/night", file="labels/part.json")
    data = json.loads(path.read_text())
    for image in data["images"]:
        image["file_name"] = "C:\\data\\" + image["file_name"]
    path.write_text(json.dumps(data))
    assert all(picture.path.parent.name == "night" for picture in read_coco(path).pictures)


def test_pictures_that_are_not_there(tmp_path: Path) -> None:
    path = coco_folder(tmp_path, 3)
    (tmp_path / "images/001.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 pictures .* '001.png' for one"):
        read_coco(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is no JSON"), ("[]", "no COCO annotation file"), ('{"images": [], "annotations": [], "categories": []}', "annotates no boxes"),
     ('{"images": [{"id": 1}], "annotations": [], "categories": []}', "KeyError: 'file_name'")],
)  # fmt: skip
def test_other_json_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=message):
        read_coco(tmp_path / "a.json")


@pytest.mark.parametrize("where", ["", "VOC2007", "VOCdevkit/VOC2012"])
@pytest.mark.parametrize("lists", [True, False])
def test_voc_layouts(tmp_path: Path, where: str, lists: bool) -> None:
    voc_folder(tmp_path / where, 3, lists=lists)
    data = read_voc(tmp_path)
    assert len(data.pictures) == 3
    assert set(data.categories.values()) == set(COLOURS)
    coco = read_coco(coco_folder(tmp_path / "other", 3))
    for a, b in zip(data.pictures, coco.pictures, strict=True):
        assert [t.corners for t in a.truths] == [t.corners for t in b.truths]
        assert [data.categories[t.category] for t in a.truths] == [coco.categories[t.category] for t in b.truths]


def test_voc_beside_its_pictures(tmp_path: Path) -> None:
    voc_folder(tmp_path / "full", 3)
    (tmp_path / "flat").mkdir()
    for file in [*(tmp_path / "full/Annotations").iterdir(), *(tmp_path / "full/JPEGImages").iterdir()]:
        shutil.copy(file, tmp_path / "flat")
    assert len(read_voc(tmp_path / "flat").pictures) == 3


def test_voc_numbers_classes_by_all_annotations(tmp_path: Path) -> None:
    """A list without one of the classes numbers the others as the whole set does; VOC's own names keep VOC's order."""
    root = voc_folder(tmp_path, 6)
    (root / "ImageSets/Main/val.txt").write_text("000\n")
    assert list(read_voc(root).categories.values()) == sorted(COLOURS)
    for file in (root / "Annotations").iterdir():
        text = file.read_text()
        for colour, name in zip(COLOURS, ("tvmonitor", "bird", "person"), strict=True):
            text = text.replace(f"<name>{colour}<", f"<name>{name}<")
        file.write_text(text)
    categories = read_voc(root).categories
    assert len(categories) == 20 and (categories[2], categories[14], categories[19]) == ("bird", "person", "tvmonitor")


# -------------------------------------------------------------------------------------------------------------- metric


def truths(*objects: tuple[tuple[float, float, float, float], int], **kw: Any) -> tuple[Truth, ...]:
    return tuple(Truth(c, k, (c[2] - c[0]) * (c[3] - c[1]), **kw) for c, k in objects)


def boxes(*found: tuple[tuple[float, float, float, float], int, float]) -> Boxes:
    return Boxes(
        np.array([f[0] for f in found], float).reshape(-1, 4), np.array([f[1] for f in found], np.int64), np.array([f[2] for f in found])
    )  # fmt: skip


A, B, FAR = (0.0, 0.0, 10.0, 10.0), (20.0, 20.0, 40.0, 40.0), (60.0, 60.0, 80.0, 90.0)


def data_set(*pictures: tuple[Truth, ...]) -> DataSet:
    return DataSet("COCO", Path("x"), tuple(Picture(Path(f"{n}.png"), p) for n, p in enumerate(pictures)), {7: "cat", 9: "dog"})


def test_map_by_hand() -> None:
    """One of two cats is found after a false alarm: precision 1/2 up to a recall of 1/2, that is 51 of 101 levels."""
    data = data_set(truths((A, 7), (B, 7)))
    figures = mean_average_precision(data, [boxes((FAR, 7, 0.9), (A, 7, 0.8))])
    assert figures["map50"] == pytest.approx(51 / 101 / 2)
    assert figures["map"] == pytest.approx(51 / 101 / 2)


def test_overlap_decides_at_each_level() -> None:
    """An overlap of 0.8 counts at 0.5, ..., 0.75 and 0.8, seven of ten levels."""
    data = data_set(truths((A, 7)))
    figures = mean_average_precision(data, [boxes(((0, 0, 10, 8.0), 7, 0.9))])
    assert figures == {"map50": pytest.approx(1.0), "map": pytest.approx(0.7)}


def test_classes_are_averaged_over_those_annotated() -> None:
    data = data_set(truths((A, 7)), truths((B, 9)))
    assert mean_average_precision(data, [boxes((A, 7, 0.9)), boxes((B, 7, 0.5))])["map50"] == pytest.approx(0.5)
    only = data_set(truths((A, 7)))
    assert mean_average_precision(only, [boxes((A, 7, 0.9), (B, 9, 0.9))])["map50"] == pytest.approx(1)
    assert mean_average_precision(only, [boxes()]) == {"map50": 0, "map": 0}


def test_difficult_objects_count_as_voc_counts_them() -> None:
    """Neither missed nor falsely found, however often; what overlaps one by less than half is a false alarm."""
    data = data_set((*truths((A, 7)), *truths((B, 7), difficult=True)))
    assert mean_average_precision(data, [boxes((A, 7, 0.5))])["map50"] == pytest.approx(1)
    twice = boxes((B, 7, 0.9), (B, 7, 0.8), (A, 7, 0.5))
    assert mean_average_precision(data, [twice])["map50"] == pytest.approx(1)
    inside = boxes(((21, 21, 29, 29), 7, 0.9), (A, 7, 0.5))
    assert mean_average_precision(data, [inside])["map50"] == pytest.approx(0.5)


def test_crowds_count_as_coco_counts_them() -> None:
    """A small box inside a crowd is no false alarm."""
    data = data_set((*truths((A, 7)), *truths((B, 7), crowd=True)))
    assert mean_average_precision(data, [boxes(((21, 21, 29, 29), 7, 0.9), (A, 7, 0.5))])["map50"] == pytest.approx(1)


def test_boxes_come_back_to_the_picture() -> None:
    placed = Placed((0.5, 0.5), (10.0, 0.0), (100, 60))
    assert placed.back(np.array([[10.0, 0, 40, 50], [0, 10, 90, 90]])).tolist() == [[0, 0, 60, 100], [0, 20, 60, 100]]


# ----------------------------------------------------------------------------------------------- what is found out


@pytest.mark.parametrize(
    ("options", "said"),
    [({}, "RGB, pixels / 255; boxes in 'output0'; classes in the data set's order,"), ({"bgr": True}, "BGR, pixels / 255"),
     (IMAGENET, "RGB, ImageNet mean and std"), ({"form": "rows", "first": 1}, "order, 0 the background"),
     ({"form": "shares", "first": 4}, "by the data set's own numbers; boxes as top, left, bottom, right"),
     ({"height": 32, "width": 96}, "at 32x96"), ({"batch": 4}, "RGB"), ({"batch": "N"}, "RGB"),
     ({"metadata": {"names": "{0: 'Red', 1: 'green', 2: 'blue'}", "stride": "32"}}, "classes by name, 3 of 3")],
    ids=str,
)  # fmt: skip
def test_how_a_detector_is_fed_is_found_out(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    ids = (4, 5, 6) if options.get("first") == 4 else (1, 5, 9)
    coco_folder(tmp_path, ids=ids)
    figures, note = judged(tmp_path, f"coco:{tmp_path}", **options)
    assert figures["map50"] == pytest.approx(1) and figures["map"] > 0.85
    assert said in note and "6 pictures, 14 objects, 3 classes" in note


def test_what_the_user_says_goes(tmp_path: Path) -> None:
    coco_folder(tmp_path)
    figures, note = judged(tmp_path, f"coco:{tmp_path}{{pixels=unit,channels=bgr,fit=stretch,classes=order,samples=4}}")
    assert "stretched, BGR" in note and "4 pictures" in note
    assert figures["map50"] < 0.7  # red for blue
    figures, note = judged(tmp_path, f"coco:{tmp_path}{{mean=[0.485,0.456,0.406],std=[0.229,0.224,0.225]}}", **IMAGENET)
    assert figures["map50"] == pytest.approx(1) and "ImageNet mean and std" in note
    figures, _ = judged(tmp_path, f"voc:{voc_folder(tmp_path / 'voc')}{{channels=rgb,pixels=unit}}")
    assert figures["map50"] < 0.7  # VOC's classes are numbered by name: blue, green, red


def test_nothing_found_is_said(tmp_path: Path) -> None:
    coco_folder(tmp_path, ids=(1, 2, 3))
    for file in (tmp_path / "images").iterdir():
        Image.new("RGB", (90, 60)).save(file)
    figures, note = judged(tmp_path, f"coco:{tmp_path}")
    assert figures == {"map50": 0, "map": 0}
    assert "found nothing of what is annotated in 6 pictures" in note


@pytest.mark.parametrize(
    ("target", "message"),
    [("coco:{here}/no", "does not exist"), ("coco:", "write coco:PATH"), ("coco:{here}{{fot=1}}", "did you mean 'fit'"),
     ("coco:{here}{{fit=crop}}", "letterbox|corner|stretch"), ("coco:{here}{{pixels=unit,mean=[0]}}", "give one of both"),
     ("voc:{here}", "no VOC annotations"), ("coco:{here}{{samples=0}}", "1 or more")],
)  # fmt: skip
def test_what_cannot_be_judged_on_is_refused_at_once(tmp_path: Path, target: str, message: str) -> None:
    coco_folder(tmp_path, 1)
    with pytest.raises((UsageError, DataError), match=message.replace("|", r"\|")):
        Evaluation(target.format(here=tmp_path))


def test_a_classifier_is_no_detector(tmp_path: Path) -> None:
    from tests.patterns.build import Net

    coco_folder(tmp_path, 2)
    g = Net()
    g.out(g.gemm(g.Flatten(g.GlobalAveragePool(g.x("N", 3, 64, 64))), "fc", 3, 10))
    onnx.save(g.model(), tmp_path / "m.onnx")
    with pytest.raises(DataError, match="does not look like boxes"):
        Evaluation(f"coco:{tmp_path}")(tmp_path / "m.onnx", "before")


def test_names_of_classes_in_metadata() -> None:
    assert model_names({"names": "{0: 'a', 1: 'b'}"}) == {0: "a", 1: "b"}
    assert model_names({"classes": "['a', 'b']"}) == {0: "a", 1: "b"}
    assert model_names({"names": "a, b"}) == {} == model_names({"names": "{'a': 1}"})
    assert Asked(size=(320, 640)).sides == (320, 640)


def test_a_run_judges_before_and_after(tmp_path: Path) -> None:
    """The idle half of the channels goes: mAP stays, and stands in table, plan and report."""
    coco_folder(tmp_path)
    onnx.save(colour_detector(), tmp_path / "m.onnx")
    result = gp.prune(tmp_path / "m.onnx", passes=["l1"], rate=0.5, eval=f"coco:{tmp_path}")
    assert result.state.evaluation["after"] == result.state.evaluation["before"]
    assert result.state.evaluation["after"]["map50"] == pytest.approx(1)
    assert any("mAP on 6 pictures" in note for note in result.plan.notes)
    done = call(
        "run", tmp_path / "m.onnx", "-o", tmp_path / "o.onnx", "--pass", "l1", "--pass", "quantize", "--rate", "0.5", "--data",
        tmp_path / "images", "--mean", "0", "--std", "1", "--eval", f"coco:{tmp_path}", "--report", tmp_path / "r.html",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    plan = json.loads((tmp_path / "o.plan.json").read_text())
    assert [stage["stage"] for stage in plan["stages"]] == ["source", "cut", "INT8", "INT8 alone"]
    assert all(set(stage["evaluation"]) == {"map50", "map"} for stage in plan["stages"])
    assert plan["stages"][1]["evaluation"]["map50"] == pytest.approx(1)
    assert "map50" in (tmp_path / "r.html").read_text()
    assert "no VOC annotations" in fails("run", tmp_path / "m.onnx", "--rate", "0.5", "--eval", f"voc:{tmp_path}")
