"""The reference detectors: published names, shapes and files; regions against ONNX Runtime; cuts, proved and lowered, of small ones."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import graphprune as gp
from graphprune.backends.tensorrt import lower
from graphprune.devices import resolve
from graphprune.frontends.onnx import load
from tests.oracle import check

torch = pytest.importorskip("torch")

from examples.detectors import MODELS, darknet  # noqa: E402
from examples.detectors.__main__ import export, main  # noqa: E402
from examples.detectors.arcface import ArcFace  # noqa: E402
from examples.detectors.cfg import model as cfg_model  # noqa: E402
from examples.detectors.faster_rcnn import SPREADS, FasterRCNN, anchors_of, decode, detections  # noqa: E402
from examples.detectors.initialise import read_state, ready, temper  # noqa: E402
from examples.detectors.regions import nms, roi_align  # noqa: E402
from examples.detectors.retinaface import RetinaFace  # noqa: E402
from examples.detectors.yolov3 import ANCHORS, YOLOv3  # noqa: E402
from examples.detectors.yolov4 import YOLOv4  # noqa: E402
from examples.detectors.yolov8 import YOLOv8  # noqa: E402

# ------------------------------------------------------------------------------------- published definitions

#: Network -> how many parameters (buffers not counted) and tensors the published state dict has, and some of its tensors.
PUBLISHED: dict[str, tuple[Callable[[], Any], int, int, dict[str, tuple[int, ...]]]] = {
    "yolov8n": (YOLOv8, 3_157_200, 355, {
        "model.0.conv.weight": (16, 3, 3, 3), "model.2.m.0.cv1.conv.weight": (16, 16, 3, 3), "model.2.cv2.bn.running_var": (32,),
        "model.4.m.1.cv2.conv.weight": (32, 32, 3, 3), "model.6.cv2.conv.weight": (128, 256, 1, 1), "model.9.cv2.conv.weight": (256, 512, 1, 1),
        "model.12.cv1.conv.weight": (128, 384, 1, 1), "model.15.cv1.conv.weight": (64, 192, 1, 1), "model.21.cv1.conv.weight": (256, 384, 1, 1),
        "model.22.cv2.0.0.conv.weight": (64, 64, 3, 3), "model.22.cv2.2.2.bias": (64,), "model.22.cv3.1.2.weight": (80, 80, 1, 1),
        "model.22.dfl.conv.weight": (1, 16, 1, 1),
    }),
    "yolov8s": (lambda: YOLOv8(size="s"), 11_166_560, 355, {}),
    "yolov8m": (lambda: YOLOv8(size="m"), 25_902_640, 475, {}),
    "yolov8l": (lambda: YOLOv8(size="l"), 43_691_520, 595, {}),
    "yolov8x": (lambda: YOLOv8(size="x"), 68_229_648, 595, {}),
    "fasterrcnn_resnet50_fpn": (FasterRCNN, 41_755_286, 295, {
        "backbone.body.conv1.weight": (64, 3, 7, 7), "backbone.body.bn1.running_mean": (64,),
        "backbone.body.layer1.0.downsample.1.bias": (256,), "backbone.body.layer2.0.conv2.weight": (128, 128, 3, 3),
        "backbone.body.layer3.5.conv3.weight": (1024, 256, 1, 1), "backbone.fpn.inner_blocks.3.0.weight": (256, 2048, 1, 1),
        "backbone.fpn.layer_blocks.0.0.bias": (256,), "rpn.head.conv.0.0.weight": (256, 256, 3, 3), "rpn.head.cls_logits.weight": (3, 256, 1, 1),
        "rpn.head.bbox_pred.bias": (12,), "roi_heads.box_head.fc6.weight": (1024, 12544), "roi_heads.box_head.fc7.bias": (1024,),
        "roi_heads.box_predictor.cls_score.weight": (91, 1024), "roi_heads.box_predictor.bbox_pred.weight": (364, 1024),
    }),
    "retinaface_mobile0.25": (RetinaFace, 426_608, 300, {
        "body.stage1.0.0.weight": (8, 3, 3, 3), "body.stage1.1.0.weight": (8, 1, 3, 3), "body.stage3.1.4.num_batches_tracked": (),
        "fpn.output3.0.weight": (64, 256, 1, 1), "fpn.merge1.1.running_var": (64,), "ssh1.conv3X3.0.weight": (32, 64, 3, 3),
        "ssh2.conv7x7_3.0.weight": (16, 16, 3, 3), "ClassHead.0.conv1x1.weight": (4, 64, 1, 1), "LandmarkHead.2.conv1x1.bias": (20,),
    }),
    "iresnet50": (ArcFace, 43_590_848, 475, {
        "conv1.weight": (64, 3, 3, 3), "prelu.weight": (64,), "layer1.0.downsample.0.weight": (64, 64, 1, 1), "layer3.13.bn3.weight": (256,),
        "layer4.0.conv2.weight": (512, 512, 3, 3), "bn2.running_mean": (512,), "fc.weight": (512, 25088), "features.running_var": (512,),
    }),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_names_shapes_and_counts_are_the_published_ones(name: str) -> None:
    build, parameters, tensors, some = PUBLISHED[name]
    with torch.device("meta"):
        module = build()
    state = module.state_dict()
    if name.startswith("faster"):  # torchvision counts parameters, and its frozen norms have none
        assert not [n for n, _ in module.named_parameters() if ".bn" in n]
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert len(state) == tensors
    assert {key: tuple(state[key].shape) for key in some} == some


#: Network -> float32 numbers of the published file, convolutions, and kernels at some places, read off the .cfg.
CFG = {
    YOLOv3: (62_001_757, 75, {
        0: (32, 3, 3, 3), 2: (32, 64, 1, 1), 51: (1024, 512, 3, 3), 52: (512, 1024, 1, 1), 58: (255, 1024, 1, 1), 59: (256, 512, 1, 1),
        60: (256, 768, 1, 1), 66: (255, 512, 1, 1), 67: (128, 256, 1, 1), 68: (128, 384, 1, 1), 74: (255, 256, 1, 1),
    }),
    YOLOv4: (64_429_405, 110, {
        0: (32, 3, 3, 3), 2: (64, 64, 1, 1), 4: (32, 64, 1, 1), 7: (64, 128, 1, 1), 9: (64, 128, 1, 1), 72: (512, 1024, 1, 1),
        75: (512, 2048, 1, 1), 78: (256, 512, 1, 1), 93: (255, 256, 1, 1), 94: (256, 128, 3, 3), 101: (255, 512, 1, 1), 109: (255, 1024, 1, 1),
    }),
}  # fmt: skip


@pytest.mark.parametrize("network", CFG)
def test_convolutions_stand_in_the_order_of_the_cfg(network: Any) -> None:
    count, convolutions, some = CFG[network]
    with torch.device("meta"):
        found = [parts for _, parts in darknet.tensors(network())]
    assert (sum(t.numel() for parts in found for t in parts), len(found)) == (count, convolutions)
    assert {place: tuple(found[place][-1].shape) for place in some} == some


# ------------------------------------------------------------------------------------------- Darknet's files


def small_yolo(network: Any, classes: int = 2) -> Any:
    return network(classes, 4, (1, 1, 1, 1, 1))


@pytest.mark.parametrize("network", [YOLOv3, YOLOv4])
@pytest.mark.parametrize("header", [darknet.Header(0, 2, 5, 1 << 40), darknet.Header(0, 1, 0, 77)])
def test_weights_make_the_round_trip(network: Any, header: darknet.Header, tmp_path: Path) -> None:
    net, x = ready(lambda: small_yolo(network), (2, 3, 64, 64))
    path = tmp_path / "small.weights"
    count = darknet.save_weights(net, path, header)
    assert path.stat().st_size == (20 if header.long else 16) + 4 * count
    again = small_yolo(network).eval()
    assert not torch.equal(again(x), net(x))
    assert darknet.load_weights(again, path) == header
    assert torch.equal(again(x), net(x))


def test_a_layer_lies_in_the_file_as_darknet_writes_it(tmp_path: Path) -> None:
    numbers = np.arange(1, 2 * 4 + 2 * 3 * 9 + 3 + 3 * 2 + 1, dtype="<f4")
    path = tmp_path / "w.weights"
    path.write_bytes(struct.pack("<iiiq", 0, 2, 0, 32013312) + numbers.tobytes())
    net = torch.nn.Sequential(darknet.Conv(3, 2, 3), torch.nn.Conv2d(2, 3, 1))
    assert darknet.load_weights(net, path).seen == 32013312
    norm = net[0].bn
    assert [t.tolist() for t in (norm.bias, norm.weight, norm.running_mean, norm.running_var)] == [[1, 2], [3, 4], [5, 6], [7, 8]]
    assert net[0].conv.weight[1, 2, 2, 1] == numbers[8 + 27 + 18 + 7]
    assert net[1].bias.tolist() == [63, 64, 65] and net[1].weight.flatten().tolist() == [66, 67, 68, 69, 70, 71]


def test_a_file_of_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.weights"
    darknet.save_weights(small_yolo(YOLOv3, 3), path)
    with pytest.raises(ValueError, match=r"of another network|ends within"):
        darknet.load_weights(small_yolo(YOLOv3), path)
    data = path.read_bytes()
    path.write_bytes(data[:-4])
    with pytest.raises(ValueError, match=r"ends within 'head3\.1'"):
        darknet.load_weights(small_yolo(YOLOv3, 3), path)
    path.write_bytes(data[:-2])
    with pytest.raises(ValueError, match="no whole number"):
        darknet.load_weights(small_yolo(YOLOv3, 3), path)
    path.write_bytes(b"\0\0\0")
    with pytest.raises(ValueError, match="too short"):
        darknet.load_weights(small_yolo(YOLOv3, 3), path)


def test_a_backbone_alone_loads_partially(tmp_path: Path) -> None:
    net, path = small_yolo(YOLOv3), tmp_path / "backbone"
    count = darknet.save_weights(torch.nn.Sequential(net.stem, net.stages), path)
    assert count < sum(t.numel() for _, parts in darknet.tensors(net) for t in parts)
    other = small_yolo(YOLOv3)
    with pytest.raises(ValueError, match="ends within 'set5"):
        darknet.load_weights(other, path)
    darknet.load_weights(other, path, partial=True)
    assert torch.equal(other.stages[4][0].conv.weight, net.stages[4][0].conv.weight)


def test_boxes_are_decoded_as_darknet_does() -> None:
    raw = torch.zeros(1, 3 * 6, 2, 4)
    raw[0, 6 + 0, 1, 2], raw[0, 6 + 3, 1, 2] = 1.0, 0.5  # the second anchor's x and height in one cell
    found = darknet.decode(raw, ((10, 20), (30, 40), (50, 60)), 16, 1.1).view(3, 2, 4, 6)
    sigmoid = 1 / (1 + np.exp(-1.0))
    want = [(sigmoid * 1.1 - 0.05 + 2) * 16, (0.5 + 1) * 16, 30, 40 * np.exp(0.5), 0.5, 0.5]
    assert found[1, 1, 2].tolist() == pytest.approx(want, rel=1e-6)


CFG_TEXT = """
[net]
width = 32   # a comment
height=64
channels=3

[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=mish

[convolutional]
filters=4
size=1
stride=1
pad=1
activation=linear

[route]
layers=-2
groups=2
group_id=1

[shortcut]
from=-2
activation=relu

[maxpool]
size=2
stride=2

[upsample]
stride=2

[route]
layers=-1, 0

[maxpool]
size=2
stride=1

[convolutional]
filters=14
size=1
activation=logistic

[yolo]
mask=1,0
anchors=10,20, 30,40
classes=2
scale_x_y=1.1
"""


def test_a_cfg_is_the_network_that_it_says(tmp_path: Path) -> None:
    import torch.nn.functional as F

    (tmp_path / "net.cfg").write_text(CFG_TEXT)
    net, x = cfg_model(tmp_path / "net.cfg")
    assert x.shape == (1, 3, 64, 32)
    convs = [block for block in net.blocks if list(block.children()) and isinstance(block[0], torch.nn.Conv2d)]
    one = F.mish(convs[0][1](convs[0][0](x)))
    summed = F.relu(one[:, 4:] + convs[1][0](one))
    joined = torch.cat((F.interpolate(F.max_pool2d(summed, 2), scale_factor=2.0), one), 1)
    pooled = F.max_pool2d(F.pad(joined, (0, 1, 0, 1), value=-1e9), 2, 1)
    raw = torch.sigmoid(convs[2][0](pooled))
    assert torch.equal(net(x), darknet.decode(raw, [(30, 40), (10, 20)], 2, 1.1))
    darknet.save_weights(net, tmp_path / "net.weights")
    again, _ = cfg_model(tmp_path / "net.cfg", raw=True)
    darknet.load_weights(again, tmp_path / "net.weights")
    assert torch.equal(again(x)[0], raw)
    (tmp_path / "net.cfg").write_text("[net]\n[gru]\n")
    with pytest.raises(ValueError, match=r"\[gru\] is not known"):
        cfg_model(tmp_path / "net.cfg")


# ------------------------------------------------------------------------------------------------ state dicts


def small_rcnn() -> Any:
    return FasterRCNN(5, 8, (1, 1, 1, 1), 16, 32, 20, 20)


def test_older_names_of_torchvision_load(tmp_path: Path) -> None:
    net = small_rcnn()
    older = {name.replace("_blocks.0.0.", "_blocks.0.").replace("rpn.head.conv.0.0.", "rpn.head.conv."): value
             for name, value in net.state_dict().items()}  # fmt: skip
    for level in "123":
        older = {name.replace(f"_blocks.{level}.0.", f"_blocks.{level}."): value for name, value in older.items()}
    assert "backbone.fpn.layer_blocks.2.weight" in older and "rpn.head.conv.weight" in older
    torch.save({"model": {f"module.{name}": value for name, value in older.items()}}, tmp_path / "w.pth")
    other = small_rcnn()
    other.load_state_dict(read_state(tmp_path / "w.pth"), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


def test_what_is_no_state_dict_is_said_to_be_none(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_state(tmp_path / "list.pth")
    torch.save({"model": torch.nn.Linear(2, 2)}, tmp_path / "objects.pt")
    with pytest.raises(ValueError, match="holds Python objects"):
        read_state(tmp_path / "objects.pt")


def test_random_weights_are_the_same_every_time_and_no_channel_is_dead() -> None:
    (a, x), (b, y) = (ready(lambda: small_yolo(YOLOv3), (1, 3, 64, 64)) for _ in range(2))
    assert torch.equal(x, y) and torch.equal(a(x), b(y))
    assert all((norm.weight.abs() > 0.1).all() for norm in a.modules() if isinstance(norm, torch.nn.BatchNorm2d))


# ---------------------------------------------------------------------------------------------------- regions


class Regions(torch.nn.Module):
    def forward(self, x: Any, boxes: Any, scores: Any) -> Any:
        keep = nms(boxes, scores, 0.5)
        picture = torch.arange(x.shape[0]).unsqueeze(1).expand(-1, boxes.shape[1]).flatten()
        return roi_align(x, boxes.flatten(0, 1), picture, 0.25, 3), keep


def test_regions_are_what_onnx_runtime_computes(tmp_path: Path) -> None:
    from examples.detectors.regions import TRANSLATIONS

    rng = np.random.default_rng(0)
    corner, size = rng.uniform(-6, 50, (3, 30, 2)), rng.uniform(0.5, 40, (3, 30, 2))
    feeds = {
        "x": rng.standard_normal((3, 4, 12, 16)), "boxes": np.concatenate((corner, corner + size), 2),
        "scores": np.where(rng.random((3, 30)) < 0.1, -1, rng.random((3, 30))),
    }  # fmt: skip
    feeds = {name: array.astype(np.float32) for name, array in feeds.items()}
    tensors = tuple(map(torch.from_numpy, feeds.values()))
    program = torch.onnx.export(
        Regions().eval(), tensors, dynamo=True, input_names=list(feeds), custom_translation_table=TRANSLATIONS, verbose=False,
        dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in feeds),
    )  # fmt: skip
    program.save(tmp_path / "regions.onnx")
    assert {"RoiAlign", "NonMaxSuppression"} <= {n.op_type for n in onnx.load(tmp_path / "regions.onnx").graph.node}
    session = ort.InferenceSession(tmp_path / "regions.onnx", providers=["CPUExecutionProvider"])
    for count in (3, 1):
        pooled, keep = session.run(None, {name: array[:count] for name, array in feeds.items()})
        mine = Regions()(*(t[:count] for t in tensors))
        np.testing.assert_allclose(mine[0], pooled, atol=2e-6)
        assert np.array_equal(mine[1].numpy(), keep) and 0 < keep.sum() < keep.size


def test_regions_by_hand() -> None:
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)  # a pixel holds its column
    pooled = roi_align(ramp, torch.tensor([[2.0, 1.0, 6.0, 3.0]]), torch.tensor([0]), 1.0, 2)
    assert pooled[0, 0].tolist() == [[3.0, 5.0], [3.0, 5.0]]
    boxes = torch.tensor([[[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 4.9], [20, 20, 30, 30], [0, 0, 10, 10]]]).float()
    assert nms(boxes, torch.tensor([[0.5, 0.9, 0.3, 0.1, -1]]), 0.5).tolist() == [[False, True, False, True, False]]
    assert nms(boxes, torch.tensor([[0.5, 0.4, 0.3, 0.1, -1]]), 0.5).tolist() == [[True, False, True, True, False]]


def test_regions_have_gradients() -> None:
    x = torch.rand(1, 2, 8, 8, requires_grad=True)
    roi_align(x, torch.tensor([[1.0, 1.0, 6.0, 6.0]]), torch.tensor([0]), 1.0, 2).sum().backward()
    assert x.grad is not None and float(x.grad.sum()) == pytest.approx(8.0, rel=1e-5)  # 2 channels of 4 cells, weights of 1


def test_anchors_and_boxes_of_faster_rcnn() -> None:
    anchors = anchors_of(32, 2, 3, (4, 8))
    assert anchors.shape == (18, 4)
    # As torchvision's generator gives them for sizes of 32: height / width of 1/2, 1 and 2.
    assert anchors[:3].tolist() == [[-23, -11, 23, 11], [-16, -16, 16, 16], [-11, -23, 11, 23]]
    assert anchors[3 * 4 + 1].tolist() == [8 - 16, 4 - 16, 8 + 16, 4 + 16]  # second row, second column
    moved = decode(torch.tensor([[1.0, 0.0, 0.0, np.log(2.0)]]), torch.tensor([[10.0, 10.0, 20.0, 30.0]]), (1, 1, 1, 1), 100, 100)
    assert moved[0].tolist() == pytest.approx([20, 0, 30, 40])
    assert decode(torch.full((1, 4), 9.0), torch.tensor([[0.0, 0, 2, 2]]), (1, 1, 1, 1), 50, 60)[0].tolist() == [0, 0, 60, 50]


def test_detections_are_suppressed_class_by_class() -> None:
    scores = torch.tensor([[[0.0, 0.9, 0.2], [0.0, 0.8, 0.0], [0.0, 0.0, 0.04]]])
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [5, 5, 9, 9]]).view(1, 3, 1, 4).expand(1, 3, 3, 4)
    (found,) = detections(scores, boxes)
    assert found["labels"].tolist() == [1, 2] and found["scores"].tolist() == pytest.approx([0.9, 0.2])


# ------------------------------------------------------------------------------------------- cut, and lowered

SMALL: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "yolov3": (lambda: small_yolo(YOLOv3, 3), (1, 3, 64, 64)),
    "yolov4": (lambda: small_yolo(YOLOv4, 3), (1, 3, 64, 64)),
    "yolov8": (lambda: YOLOv8(3, (0.1, 1 / 8, 512)), (1, 3, 64, 64)),
    "faster_rcnn": (small_rcnn, (1, 3, 64, 64)),
    "retinaface": (lambda: RetinaFace(4, 16), (1, 3, 64, 64)),
    "arcface": (lambda: ArcFace((1, 1, 1, 1), 8, 16, 32), (1, 3, 32, 32)),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("detectors")

    def file_of(name: str) -> Path:
        path = folder / f"{name}.onnx"
        if not path.is_file():
            build, shape = SMALL[name]
            module, example = ready(build, shape)
            if name == "faster_rcnn":
                temper(module, example, SPREADS)
            if name == "faster_rcnn":  # its operators are known to this exporter alone
                export(module, example, path)
            else:  # torch's older exporter takes a tenth of the time
                mode = torch.onnx.TrainingMode.PRESERVE
                torch.onnx.export(module, (example,), path, dynamo=False, input_names=["images"], opset_version=17,
                                  dynamic_axes={"images": {0: "batch"}}, training=mode)  # fmt: skip
        return path

    return file_of


@pytest.mark.parametrize("name", SMALL)
def test_the_exported_graph_is_the_module_and_its_batch_is_open(name: str, files: Any) -> None:
    path = files(name)
    module, x = ready(*SMALL[name])
    if name == "faster_rcnn":
        temper(module, x, SPREADS)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    for pictures in (x, torch.cat((x, x.flip(3), x.flip(2)))):
        with torch.no_grad():
            want = module(pictures)
        want = want if isinstance(want, tuple) else (want,)
        for a, b in zip(want, session.run(None, {"images": pictures.numpy()}), strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4 * float(a.abs().max()))


@pytest.mark.parametrize("name", SMALL)
def test_cut_exactly_by_half_with_an_open_batch(name: str, files: Any, tmp_path: Path) -> None:
    source = files(name)
    result = gp.prune(source, passes=["similarity"], rate=0.5, scope="group", exact=True)
    result.save(tmp_path / "cut.onnx")
    plan = result.plan.to_json()
    report = check(
        source, tmp_path / "cut.onnx", plan, rate=0.5, exact=True, dims={"batch": (1, 3)}, ranges={"images": (0.0, 1.0)}
    )
    assert not report.problems and report.max_error < 1e-5 and report.effect > 1e-3
    assert all(group["kept"] < group["units"] for group in plan["groups"] if group["exact"])
    # In nets so small, the layers that are halved once, at the pictures and at the outputs, weigh more.
    assert result.plan.after["macs"] / result.plan.before["macs"] < 0.36


@pytest.mark.parametrize("name", SMALL)
def test_cut_detectors_are_lowered(name: str, files: Any) -> None:
    model = gp.prune(files(name), rate=0.5, scope="group").model
    for device in ("tx2", "agx-orin"):
        bad = {v.op for v in lower(model, resolve(device)).verdicts if v.status == "unsupported"}
        # TensorRT 8.2 has neither; a second stage needs both.
        assert bad == ({"RoiAlign", "NonMaxSuppression"} if (name, device) == ("faster_rcnn", "tx2") else set())


def test_the_command_line_exports_with_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    monkeypatch.setattr("examples.detectors.__main__.export", lambda *given: written.append(given))
    weights, out = tmp_path / "w.pth", tmp_path / "r.onnx"
    net, _ = ready(RetinaFace, (1, 3, 64, 64), seed=3)
    torch.save(net.state_dict(), weights)
    assert main(["export", "retinaface", "--weights", str(weights), "--size", "64", "-o", str(out)]) == 0
    ((module, example, path),) = written
    assert path == out and example.shape == (1, 3, 64, 64)
    assert torch.equal(module.ssh1.conv3X3[0].weight, net.ssh1.conv3X3[0].weight)
    torch.save({"conv.weight": torch.zeros(2)}, weights)
    assert main(["export", "retinaface", "--weights", str(weights), "--size", "64"]) == 2
    assert "does not load into retinaface" in capsys.readouterr().err and len(written) == 1
    with pytest.raises(SystemExit):
        main(["export", "arcface", "--raw"])
    assert "arcface has no --raw" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["yolov3", "yolov8"])
def test_raw_maps_are_what_boxes_are_decoded_from(name: str) -> None:
    build, shape = SMALL[name]
    net, x = ready(build, shape)
    boxes, net.raw = net(x), True
    widths = {"yolov3": 3 * (5 + 3), "yolov8": 4 * 16 + 3}
    strides = {"yolov3": (32, 16, 8), "yolov8": (8, 16, 32)}[name]
    assert [tuple(y.shape) for y in net(x)] == [(1, widths[name], 64 // s, 64 // s) for s in strides]
    if name == "yolov3":
        again = [darknet.decode(y, a, s) for y, (s, a) in zip(net(x), ANCHORS.items(), strict=True)]
        assert torch.equal(torch.cat(again, 1), boxes)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_full_size_factories_are_cut_and_proved(name: str, tmp_path: Path) -> None:
    import importlib

    module, example = importlib.import_module(f"examples.detectors.{name}").model()
    export(module, example, tmp_path / "whole.onnx")
    result = gp.prune(tmp_path / "whole.onnx", rate=0.5, scope="group")
    assert result.plan.after["macs"] / result.plan.before["macs"] <= 0.32
    for device in ("tx2", "agx-orin"):
        verdicts = lower(load(tmp_path / "whole.onnx").model, resolve(device)).verdicts
        assert (name, device) == ("faster_rcnn", "tx2") or all(v.status != "unsupported" for v in verdicts)
