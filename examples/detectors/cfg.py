"""Any network of Darknet's from its ``.cfg``: YOLOv3 and v4 of other sizes, tiny ones, one's own.

    python -m examples.detectors export cfg --cfg yolov4-tiny.cfg --weights yolov4-tiny.weights
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.detectors.darknet import decode, leaky
from examples.detectors.initialise import ready

Section = tuple[str, dict[str, str]]
ACTIVATIONS = {
    "linear": nn.Identity, "leaky": leaky, "mish": nn.Mish, "relu": nn.ReLU, "swish": nn.SiLU, "logistic": nn.Sigmoid,
}  # fmt: skip


def sections(path: str | Path) -> Iterator[Section]:
    """Kind and options of each section."""
    options: dict[str, str] | None = None
    kind = ""
    for line in Path(path).read_text().splitlines():
        text = line.partition("#")[0].partition(";")[0].strip()
        if text.startswith("["):
            if options is not None:
                yield kind, options
            kind, options = text.strip("[] "), {}
        elif text and options is not None:
            key, _, value = text.partition("=")
            options[key.strip()] = value.strip()
    if options is not None:
        yield kind, options


def _numbers(text: str) -> list[int]:
    return [int(float(number)) for number in text.split(",") if number.strip()]


class Darknet(nn.Module):
    """A network of a ``.cfg``: pictures float[batch, 3, h, w] in [0, 1]; boxes as `decode` gives them, or raw maps.

    Parameters
    ----------
    path
        The ``.cfg``.
    raw
        Give the maps before each ``[yolo]``.

    Raises
    ------
    ValueError
        It has a section or an activation that is not known here.
    """

    def __init__(self, path: str | Path, *, raw: bool = False) -> None:
        super().__init__()
        (kind, net), *layers = sections(path)
        if kind not in ("net", "network"):
            raise ValueError(f"{path} begins with [{kind}], not with [net]")
        self.raw, self.layers = raw, layers
        self.channels, self.size = int(net.get("channels", 3)), (int(net.get("height", 416)), int(net.get("width", 416)))
        self.blocks = nn.ModuleList()
        widths: list[int] = []
        for number, (kind, options) in enumerate(layers):
            before = widths[-1] if widths else self.channels
            block: nn.Module = nn.Identity()
            width = before
            if kind == "convolutional":
                width = int(options["filters"])
                block = _convolution(before, width, options)
            elif kind == "maxpool":
                k, s = int(options.get("size", options.get("stride", 1))), int(options.get("stride", 1))
                room = int(options.get("padding", k - 1))  # in all; the smaller half is before
                uneven = [nn.ConstantPad2d((0, 1, 0, 1), float("-inf"))] if room % 2 and s == 1 else []
                block = nn.Sequential(*uneven, nn.MaxPool2d(k, s, room // 2))
            elif kind == "route":
                width = sum(widths[at] for at in _places(options, number)) // int(options.get("groups", 1))
            elif kind not in ("shortcut", "upsample", "yolo"):
                raise ValueError(f"{path}: [{kind}] is not known here")
            self.blocks.append(block)
            widths.append(width)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        height = x.shape[2]
        seen: list[Tensor] = []
        found: list[Tensor] = []
        for number, ((kind, options), block) in enumerate(zip(self.layers, self.blocks, strict=True)):
            if kind == "route":
                x = torch.cat([seen[at] for at in _places(options, number)], 1)
                groups = int(options.get("groups", 1))
                x = x.chunk(groups, 1)[int(options.get("group_id", 0))]
            elif kind == "shortcut":
                for at in _numbers(options["from"]):
                    x = x + seen[at if at >= 0 else number + at]
                x = ACTIVATIONS[options.get("activation", "linear")]()(x)
            elif kind == "upsample":
                x = F.interpolate(x, scale_factor=float(options.get("stride", 2)))
            elif kind == "yolo":
                sizes = _numbers(options["anchors"])
                anchors = [(sizes[2 * i], sizes[2 * i + 1]) for i in _numbers(options["mask"])]
                scale = float(options.get("scale_x_y", 1))
                found.append(x if self.raw else decode(x, anchors, height // x.shape[2], scale))
            else:
                x = block(x)
            seen.append(x)
        if not found:
            return x
        return tuple(found) if self.raw else torch.cat(found, 1)


def _places(options: dict[str, str], number: int) -> list[int]:
    return [at if at >= 0 else number + at for at in _numbers(options["layers"])]


def _convolution(cin: int, cout: int, options: dict[str, str]) -> nn.Sequential:
    k, norm = int(options.get("size", 1)), int(options.get("batch_normalize", 0))
    room = k // 2 if int(options.get("pad", 0)) else int(options.get("padding", 0))
    act = options.get("activation", "logistic")
    if act not in ACTIVATIONS:
        raise ValueError(f"the activation '{act}' is not known here: {', '.join(ACTIVATIONS)}")
    conv = nn.Conv2d(cin, cout, k, int(options.get("stride", 1)), room, groups=int(options.get("groups", 1)), bias=not norm)
    return nn.Sequential(conv, *([nn.BatchNorm2d(cout)] if norm else []), ACTIVATIONS[act]())


def model(cfg: str | Path, size: int | None = None, *, raw: bool = False) -> tuple[nn.Module, Tensor]:
    """The network of a ``.cfg`` with random weights, and an example input of the size that it states."""
    net = Darknet(cfg, raw=raw)
    height, width = (size, size) if size else net.size
    return ready(lambda: Darknet(cfg, raw=raw), (1, net.channels, height, width))
