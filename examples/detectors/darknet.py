"""What YOLOv3 and YOLOv4 are made of, and Darknet's ``.weights`` files, read and written.

A file is a header and then nothing but float32: for each convolution in the order of the ``.cfg``, the biases, and
with a batch norm its scales, means and variances, then the kernels ``[out, in, h, w]``. The modules here register
their convolutions in that order. Source: github.com/pjreddie/darknet, src/parser.c.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


def leaky() -> nn.Module:
    """Darknet's ``leaky``."""
    return nn.LeakyReLU(0.1)


class Conv(nn.Module):
    """Convolution that keeps the size (or divides it by the stride), batch norm, activation."""

    def __init__(self, cin: int, cout: int, k: int = 1, s: int = 1, act: Callable[[], nn.Module] = leaky) -> None:
        super().__init__()
        self.conv = nn.Conv2d(cin, cout, k, s, k // 2, bias=False)
        self.bn = nn.BatchNorm2d(cout)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Residual(nn.Module):
    """``x + conv3x3(conv1x1(x))``: Darknet's ``shortcut``."""

    def __init__(self, width: int, inner: int, act: Callable[[], nn.Module] = leaky) -> None:
        super().__init__()
        self.one, self.two = Conv(width, inner, act=act), Conv(inner, width, 3, act=act)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.one(x))


def alternating(cin: int, width: int, count: int) -> nn.Sequential:
    """Convolutions 1x1 to ``width`` and 3x3 to twice that in turns, the first of them on ``cin`` channels."""
    return nn.Sequential(*[
        Conv(cin if i == 0 else 2 * width, width) if i % 2 == 0 else Conv(width, 2 * width, 3) for i in range(count)
    ])  # fmt: skip


def output(width: int, classes: int, anchors: int = 3) -> nn.Sequential:
    """A head: for every anchor and cell a box, an objectness and the classes, as logits."""
    return nn.Sequential(Conv(width, 2 * width, 3), nn.Conv2d(2 * width, anchors * (5 + classes), 1))


def decode(raw: Tensor, anchors: Sequence[tuple[float, float]], stride: int, scale: float = 1.0) -> Tensor:
    """Boxes in pixels of the input, and probabilities.

    Parameters
    ----------
    raw
        float[batch, anchors * (5 + classes), h, w].
    anchors
        Width and height in pixels.
    stride
        Pixels a cell.
    scale
        Darknet's ``scale_x_y``: centres may lie beyond their cell.

    Returns
    -------
    Tensor
        float[batch, anchors * h * w, 5 + classes]: centre x, y, width, height, objectness, classes.
    """
    _, channels, h, w = raw.shape
    count = len(anchors)
    table = raw.view(-1, count, channels // count, h, w).permute(0, 1, 3, 4, 2)
    x, y = torch.arange(w, dtype=raw.dtype), torch.arange(h, dtype=raw.dtype)
    cells = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)
    centre = (table[..., :2].sigmoid() * scale - (scale - 1) / 2 + cells) * stride
    size = table[..., 2:4].exp() * torch.tensor(anchors, dtype=raw.dtype).view(count, 1, 1, 2)
    found = torch.cat((centre, size, table[..., 4:].sigmoid()), -1)
    return found.reshape(-1, count * h * w, channels // count)


@dataclass(frozen=True)
class Header:
    """The first 16 or 20 bytes: version, and the number of pictures the training has seen."""

    major: int = 0
    minor: int = 2
    revision: int = 5
    seen: int = 0

    @property
    def long(self) -> bool:
        """Whether ``seen`` has 64 bits: it has from version 0.2 on."""
        return self.major * 10 + self.minor >= 2 and self.major < 1000 and self.minor < 1000

    def pack(self) -> bytes:
        """As it is written."""
        return struct.pack("<iiiq" if self.long else "<iiii", self.major, self.minor, self.revision, self.seen)

    @classmethod
    def unpack(cls, data: bytes) -> tuple[Header, int]:
        """The header and its length in bytes.

        Raises
        ------
        ValueError
            There are too few bytes.
        """
        try:
            version = struct.unpack_from("<iii", data)
            (seen,) = struct.unpack_from("<q" if cls(*version).long else "<i", data, 12)
        except struct.error as error:
            raise ValueError("too short for the header of a Darknet .weights file") from error
        header = cls(*version, seen)
        return header, len(header.pack())


def tensors(module: nn.Module) -> Iterator[tuple[str, list[Tensor]]]:
    """Name of each convolution of a module, in order, and its tensors in the order of a file."""
    norms: dict[str, nn.BatchNorm2d] = {}
    convs: dict[str, nn.Conv2d] = {}
    last = ""
    for name, child in module.named_modules():
        if isinstance(child, nn.Conv2d):
            convs[name], last = child, name
        elif isinstance(child, nn.BatchNorm2d):
            norms[last] = child
    for name, conv in convs.items():
        norm = norms.get(name)
        if norm is not None:
            first = [norm.bias, norm.weight, norm.running_mean, norm.running_var]
        else:
            first = [conv.bias]
        yield name, [*first, conv.weight]  # type: ignore[list-item]


@torch.no_grad()
def load_weights(module: nn.Module, path: str | Path, *, partial: bool = False) -> Header:
    """Read a ``.weights`` file into a module.

    Parameters
    ----------
    partial
        Take a file that ends between two convolutions, such as a backbone's (``darknet53.conv.74``).

    Raises
    ------
    ValueError
        The file does not hold exactly the module's weights.
    """
    data = Path(path).read_bytes()
    header, at = Header.unpack(data)
    if (len(data) - at) % 4:
        raise ValueError(f"{path}: {len(data) - at} bytes after the header are no whole number of float32")
    numbers = np.frombuffer(data, "<f4", offset=at)
    place = 0
    for name, parts in tensors(module):
        size = sum(part.numel() for part in parts)
        if partial and place == len(numbers):
            break
        if place + size > len(numbers):
            raise ValueError(
                f"{path}: ends within '{name}': it holds {len(numbers):,} numbers, {place:,} go to the convolutions "
                f"before, {size:,} to this one; is it of another network, or of other classes?"
            )
        for part in parts:
            part.copy_(torch.from_numpy(numbers[place : place + part.numel()].copy()).view_as(part))
            place += part.numel()
    if place != len(numbers):
        raise ValueError(f"{path}: holds {len(numbers):,} numbers, the network {place:,}: it is of another network")
    return header


def save_weights(module: nn.Module, path: str | Path, header: Header | None = None) -> int:
    """Write a module's weights as Darknet does.

    Returns
    -------
    int
        How many numbers follow the header.
    """
    path, count = Path(path), 0
    part = path.with_name(path.name + ".part")
    with part.open("wb") as file:
        file.write((header or Header()).pack())
        for _, parts in tensors(module):
            for tensor in parts:
                count += tensor.numel()
                file.write(tensor.detach().cpu().numpy().astype("<f4").tobytes())
    part.replace(path)
    return count
