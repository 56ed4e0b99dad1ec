"""Estimated speeds of Jetsons beside published ones.

    python -m benchmarks.roofline

YOLOv3 and YOLOv4 at 416 x 416 are built here from their published configurations (weights zero, batch norm folded), ResNet-50 comes from the zoo.
Published: YOLOv4 by tkDNN (FP16, batch 1), ResNet-50 on TX2, YOLOv3-416 FP16 as users report it. What is fitted
(``graphprune/devices/reached.csv``) is the mean of the first two groups by kind of GPU; the YOLOv3 rows are not in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import graphprune as gp
from graphprune.devices import named
from graphprune.latency.roofline import Roofline

ZOO = Path(__file__).resolve().parent / ".cache" / "zoo"
#: Network, device, published milliseconds of one image (least and most), whether the fit sees it.
PUBLISHED = (
    ("yolo_v4", "nano", 1000 / 3.9, 1000 / 3.9, True), ("yolo_v4", "tx2", 1000 / 9.45, 1000 / 9.45, True),
    ("yolo_v4", "xavier-nx", 1000 / 22.4, 1000 / 22.4, True), ("yolo_v4", "agx-xavier", 1000 / 41.0, 1000 / 41.0, True),
    ("resnet50", "tx2", 15.7, 15.7, True), ("resnet50", "tx2:fp32", 27.1, 27.1, True),
    ("yolo_v3", "nano", 1000 / 3.1, 1000 / 3.1, False), ("yolo_v3", "tx2", 1000 / 10, 1000 / 5, False),
    ("yolo_v3", "xavier-nx", 1000 / 22, 1000 / 22, False), ("yolo_v3", "agx-xavier", 1000 / 20, 1000 / 20, False),
)  # fmt: skip


class Net:
    """Writes a detector node by node; weights are zeros, which no estimate looks at."""

    def __init__(self, act: str) -> None:
        self.nodes: list[Any] = []
        self.weights: list[Any] = [numpy_helper.from_array(np.asarray([1, 1, 2, 2], np.float32), "twice")]
        self.act, self.n = act, 0
        self.width = {"x": 3}

    def add(self, op: str, inputs: list[str], width: int, **attributes: Any) -> str:
        self.n += 1
        out = f"v{self.n}"
        self.nodes.append(helper.make_node(op, inputs, [out], name=f"{op}_{self.n}", **attributes))
        self.width[out] = width
        return out

    def conv(self, x: str, width: int, k: int = 1, s: int = 1, act: str | None = None) -> str:
        weight = f"w{self.n}"
        self.weights.append(numpy_helper.from_array(np.zeros((width, self.width[x], k, k), np.float32), weight))
        y = self.add("Conv", [x, weight], width, pads=[k // 2] * 4, strides=[s, s], kernel_shape=[k, k])
        act = self.act if act is None else act
        return y if act == "none" else self.add(act, [y], width)

    def convs(self, x: str, *widths: int) -> str:
        """1 x 1 and 3 x 3 in turns."""
        for n, width in enumerate(widths):
            x = self.conv(x, width, 1 if n % 2 == 0 else 3)
        return x

    def res(self, x: str, inner: int) -> str:
        return self.add("Add", [x, self.conv(self.conv(x, inner), self.width[x], 3)], self.width[x])

    def cat(self, *xs: str) -> str:
        return self.add("Concat", list(xs), sum(self.width[x] for x in xs), axis=1)

    def up(self, x: str) -> str:
        return self.add("Resize", [x, "", "twice"], self.width[x], mode="nearest")

    def model(self, outputs: list[str], size: int = 416) -> onnx.ModelProto:
        given = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, size, size))
        graph = helper.make_graph(self.nodes, "net", [given], [helper.make_empty_tensor_value_info(o) for o in outputs], self.weights)
        return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))


def yolo_v3() -> onnx.ModelProto:
    """Darknet-53 and three heads."""
    net = Net("LeakyRelu")
    x, maps = net.conv("x", 32, 3), []
    for width, depth in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        x = net.conv(x, width, 3, 2)
        for _ in range(depth):
            x = net.res(x, width // 2)
        maps.append(x)
    outputs, x = [], ""
    for width, feature in zip((512, 256, 128), reversed(maps), strict=False):
        x = feature if not x else net.cat(net.up(net.conv(x, width)), feature)
        x = net.convs(x, width, 2 * width, width, 2 * width, width)
        outputs.append(net.conv(net.conv(x, 2 * width, 3), 255, act="none"))
    return net.model(outputs)


def yolo_v4() -> onnx.ModelProto:
    """CSPDarknet-53 with Mish, spatial pyramid pooling, path aggregation."""
    net = Net("Mish")
    x, maps = net.conv("x", 32, 3), []
    for width, depth in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        x = net.conv(x, width, 3, 2)
        half = width if width == 64 else width // 2
        side, x = net.conv(x, half), net.conv(x, half)
        for _ in range(depth):
            x = net.res(x, width // 2)
        x = net.conv(net.cat(net.conv(x, half), side), width)
        maps.append(x)
    net.act = "LeakyRelu"
    x = net.convs(x, 512, 1024, 512)
    pools = [net.add("MaxPool", [x], 512, kernel_shape=[k, k], pads=[k // 2] * 4, strides=[1, 1]) for k in (13, 9, 5)]
    low = net.convs(net.cat(*pools, x), 512, 1024, 512)
    middle = net.convs(net.cat(net.conv(maps[3], 256), net.up(net.conv(low, 256))), 256, 512, 256, 512, 256)
    high = net.convs(net.cat(net.conv(maps[2], 128), net.up(net.conv(middle, 128))), 128, 256, 128, 256, 128)
    outputs = [net.conv(net.conv(high, 256, 3), 255, act="none")]
    middle = net.convs(net.cat(net.conv(high, 256, 3, 2), middle), 256, 512, 256, 512, 256)
    outputs.append(net.conv(net.conv(middle, 512, 3), 255, act="none"))
    low = net.convs(net.cat(net.conv(middle, 512, 3, 2), low), 512, 1024, 512, 1024, 512)
    outputs.append(net.conv(net.conv(low, 1024, 3), 255, act="none"))
    return net.model(outputs)


def main() -> None:
    states = {"yolo_v3": gp.inspect(yolo_v3()), "yolo_v4": gp.inspect(yolo_v4()), "resnet50": gp.inspect(ZOO / "resnet50.onnx")}
    print("| network, batch 1 | device | published, ms | estimated, ms | estimated / published | share of the roofline | fitted |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for network, device, least, most, fitted in PUBLISHED:
        roofline = Roofline(states[network], named(device), {})
        ms = float(roofline.full.sum())
        launches = 1e-3 * roofline.launch_us * len(roofline.kernels)
        # Of a range the middle.
        reached = roofline.share * (ms - launches) / ((least + most) / 2 - launches)
        published = f"{least:.1f}" if least == most else f"{least:.1f} to {most:.1f}"
        ratio = f"{ms / least:.2f}" if least == most else f"{ms / most:.2f} to {ms / least:.2f}"
        print(f"| {network} | {device} | {published} | {ms:.1f} | {ratio} | {reached:.2f} | {'yes' if fitted else 'no'} |", flush=True)


if __name__ == "__main__":
    main()
