"""Faster R-CNN with a ResNet-50 and an FPN (Ren et al., arXiv 1506.01497; Lin et al., arXiv 1612.03144).

Parameters are called as in torchvision's ``fasterrcnn_resnet50_fpn`` (295 tensors), so that its state dicts load: those
that it saves now, and the published file of 2019 under its older names. Its numbers too are torchvision's: anchors,
box coding, 1,000 proposals, RoIAlign of 7 x 7 with 2 x 2 samples a cell.

Torchvision takes a list of pictures and gives lists. Here a batch has one size, and every picture has the same number of
proposals, so that the batch of the exported graph stays open: a proposal that was suppressed keeps its row, with scores 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.detectors.initialise import calm, ready, temper
from examples.detectors.regions import nms, roi_align

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Side of the anchors at each of the five levels; each in three shapes, height / width.
SIDES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
#: No box grows by more than that, as a logarithm.
LARGEST = math.log(1000 / 16)
#: What random heads give, as far apart as trained ones do.
SPREADS = {
    "rpn.head.cls_logits": 2.0, "rpn.head.bbox_pred": 0.2,
    "roi_heads.box_predictor.cls_score": 1.0, "roi_heads.box_predictor.bbox_pred": 1.0,
}  # fmt: skip


class FrozenBatchNorm(nn.Module):
    """A batch norm whose parameters and statistics never change."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(width))
        self.register_buffer("bias", torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_var", torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=0.0)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1, and the shortcut."""

    def __init__(self, cin: int, width: int, stride: int) -> None:
        super().__init__()
        out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(cin, width, 1, bias=False), FrozenBatchNorm(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), FrozenBatchNorm(width)
        self.conv3, self.bn3 = nn.Conv2d(width, out, 1, bias=False), FrozenBatchNorm(out)
        self.downsample = None
        if cin != out:
            self.downsample = nn.Sequential(nn.Conv2d(cin, out, 1, stride, bias=False), FrozenBatchNorm(out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(y)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Gives the maps at strides 4, 8, 16 and 32."""

    def __init__(self, width: int, depths: Sequence[int]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), FrozenBatchNorm(width)
        cin = width
        for number, depth in enumerate(depths, 1):
            inner, stride = width * 2 ** (number - 1), 1 if number == 1 else 2
            blocks = [Bottleneck(cin if i == 0 else 4 * inner, inner, stride if i == 0 else 1) for i in range(depth)]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
            cin = 4 * inner

    def forward(self, x: Tensor) -> list[Tensor]:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        maps = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            maps.append(x)
        return maps


class FPN(nn.Module):
    """Maps of one width at every level: each its own, and the deeper one's, twice as large. One more by skipping pixels."""

    def __init__(self, widths: Sequence[int], out: int) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(w, out, 1)) for w in widths])
        self.layer_blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(out, out, 3, 1, 1)) for _ in widths])

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        found: list[Tensor] = []
        deeper = None
        for x, inner, layer in reversed(list(zip(maps, self.inner_blocks, self.layer_blocks, strict=True))):
            x = inner(x)
            deeper = x if deeper is None else x + F.interpolate(deeper, size=x.shape[2:])
            found.insert(0, layer(deeper))
        return [*found, F.max_pool2d(found[-1], 1, 2)]


class Backbone(nn.Module):
    """ResNet and FPN."""

    def __init__(self, width: int, depths: Sequence[int], out: int) -> None:
        super().__init__()
        self.body = ResNet(width, depths)
        self.fpn = FPN([4 * width * 2**i for i in range(len(depths))], out)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.fpn(self.body(x))


def anchors_of(side: float, h: int, w: int, stride: tuple[int, int]) -> Tensor:
    """Anchors of one level, float[h * w * 3, 4] as left, top, right, bottom."""
    heights = side * torch.tensor(RATIOS).sqrt()
    widths = side / torch.tensor(RATIOS).sqrt()
    shapes = (torch.stack((-widths, -heights, widths, heights), 1) / 2).round()
    y, x = torch.meshgrid(torch.arange(h) * stride[0], torch.arange(w) * stride[1], indexing="ij")
    places = torch.stack((x, y, x, y), 2).view(-1, 1, 4)
    return (places + shapes).view(-1, 4)


def decode(deltas: Tensor, boxes: Tensor, weights: Sequence[float], h: int, w: int) -> Tensor:
    """Boxes moved and stretched, within the picture.

    Parameters
    ----------
    deltas
        float[..., 4]: moves as shares of the size, and logarithms of stretches, times ``weights``.
    boxes
        float[..., 4] as left, top, right, bottom.
    """
    low, high = boxes.chunk(2, -1)
    size, centre = high - low, (low + high) / 2
    move, stretch = (deltas / torch.tensor(weights)).chunk(2, -1)
    centre, half = centre + move * size, size * stretch.clamp(max=LARGEST).exp() / 2
    limit = torch.tensor([w, h], dtype=deltas.dtype)
    low, high = centre - half, centre + half
    return torch.cat((torch.minimum(low.clamp(min=0), limit), torch.minimum(high.clamp(min=0), limit)), -1)


class RPNHead(nn.Module):
    """For every anchor whether something is there, and how to move it; the same weights at every level."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Sequential(nn.Conv2d(width, width, 3, 1, 1)))
        self.cls_logits = nn.Conv2d(width, len(RATIOS), 1)
        self.bbox_pred = nn.Conv2d(width, 4 * len(RATIOS), 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.conv(x))
        scores = self.cls_logits(x).permute(0, 2, 3, 1).flatten(1)
        deltas = self.bbox_pred(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, 4))
        return scores, deltas


class RPN(nn.Module):
    """Proposals: the best of every level, without those that overlap, then the best of all."""

    def __init__(self, width: int, before: int, after: int, overlap: float = 0.7) -> None:
        super().__init__()
        self.before, self.after, self.overlap = before, after, overlap
        self.head = RPNHead(width)

    def forward(self, maps: Sequence[Tensor], h: int, w: int) -> tuple[Tensor, Tensor]:
        boxes, scores = [], []
        for x, side in zip(maps, SIDES, strict=True):
            logits, deltas = self.head(x)
            anchors = anchors_of(side, x.shape[2], x.shape[3], (h // x.shape[2], w // x.shape[3]))
            best, places = logits.topk(min(self.before, logits.shape[1]), 1)
            deltas = deltas.gather(1, places.unsqueeze(2).expand(-1, -1, 4))
            found = decode(deltas, F.embedding(places, anchors), (1.0, 1.0, 1.0, 1.0), h, w)
            seen = (found[..., 2:] - found[..., :2]).amin(2) >= 1e-3
            score = torch.where(seen, best.sigmoid(), -1.0)
            boxes.append(found)
            scores.append(torch.where(nms(found, score, self.overlap), score, -1.0))
        table, every = torch.cat(boxes, 1), torch.cat(scores, 1)
        best, places = every.topk(min(self.after, every.shape[1]), 1)
        return table.gather(1, places.unsqueeze(2).expand(-1, -1, 4)), best > 0


class BoxHead(nn.Module):
    """Two layers on what lies under a proposal."""

    def __init__(self, cin: int, width: int) -> None:
        super().__init__()
        self.fc6, self.fc7 = nn.Linear(cin, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc7(F.relu(self.fc6(x.flatten(1)))))


class BoxPredictor(nn.Module):
    """Logits of the classes, the first of which is nothing, and a box for each."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.cls_score, self.bbox_pred = nn.Linear(width, classes), nn.Linear(width, 4 * classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(x), self.bbox_pred(x).unflatten(1, (-1, 4))


class RoIHeads(nn.Module):
    """What each proposal shows, and where exactly it is."""

    def __init__(self, width: int, inner: int, classes: int, cells: int = 7) -> None:
        super().__init__()
        self.cells = cells
        self.box_head = BoxHead(width * cells**2, inner)
        self.box_predictor = BoxPredictor(inner, classes)

    def forward(self, maps: Sequence[Tensor], proposals: Tensor, h: int, w: int) -> tuple[Tensor, Tensor]:
        count = proposals.shape[1]
        regions = proposals.flatten(0, 1)
        picture = torch.arange(proposals.shape[0]).unsqueeze(1).expand(-1, count).flatten()
        side = (regions[:, 2:] - regions[:, :2]).prod(1).sqrt()
        level = (4 + (side / 224).log2() + 1e-6).floor().clamp(2, 5).view(-1, 1, 1, 1)
        # Of every level for every region, and one of them taken: sizes stay what they are, whatever the picture shows.
        parts = [roi_align(x, regions, picture, 0.5**n, self.cells) for n, x in enumerate(maps, 2)]
        pooled = parts[0]
        for n, part in enumerate(parts[1:], 3):
            pooled = torch.where(level == n, part, pooled)
        logits, deltas = self.box_predictor(self.box_head(pooled))
        boxes = decode(deltas, regions.unsqueeze(1), (10.0, 10.0, 5.0, 5.0), h, w)
        return logits.softmax(1).unflatten(0, (-1, count)), boxes.unflatten(0, (-1, count))


class FasterRCNN(nn.Module):
    """Pictures float[batch, 3, h, w] in [0, 1], h and w multiples of 32.

    Gives the scores of every proposal's classes, float[batch, proposals, classes] (class 0 is nothing), and a box for each
    class, float[batch, proposals, classes, 4] as left, top, right, bottom in pixels. ``detections`` makes a list of them.

    Parameters
    ----------
    width
        Channels of the first convolution.
    depths
        Blocks of the four stages.
    out, inner
        Channels of the FPN, and of the box head.
    before, after
        Proposals of a level before suppression, and of a picture after it.
    """

    def __init__(
        self, classes: int = 91, width: int = 64, depths: Sequence[int] = (3, 4, 6, 3), out: int = 256, inner: int = 1024,
        before: int = 1000, after: int = 1000,
    ) -> None:  # fmt: skip
        super().__init__()
        self.backbone = Backbone(width, depths, out)
        self.rpn = RPN(out, before, after)
        self.roi_heads = RoIHeads(out, inner, classes)
        self.register_load_state_dict_pre_hook(_present_names)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, w = x.shape[2:]
        maps = self.backbone((x - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1))
        proposals, there = self.rpn(maps, h, w)
        scores, boxes = self.roi_heads(maps[:4], proposals, h, w)
        return scores * there.unsqueeze(2), boxes


def _present_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Names of torchvision before 0.13, as they are now."""
    for name in list(state):
        kind, _, last = name.removeprefix(prefix).rpartition(".")
        parent, _, number = kind.rpartition(".")
        if parent in ("backbone.fpn.inner_blocks", "backbone.fpn.layer_blocks") and number.isdigit():
            state[f"{prefix}{kind}.0.{last}"] = state.pop(name)
        elif kind == "rpn.head.conv":
            state[f"{prefix}{kind}.0.0.{last}"] = state.pop(name)


def detections(
    scores: Tensor, boxes: Tensor, score: float = 0.05, overlap: float = 0.5, most: int = 100
) -> list[dict[str, Tensor]]:
    """What was found in each picture, best first.

    Parameters
    ----------
    scores, boxes
        What the network gives.
    score, overlap, most
        Least score; intersection over union above which the worse of one class goes; boxes a picture.

    Returns
    -------
    list
        A picture each: ``boxes`` float[n, 4], ``labels`` int64[n], ``scores`` float[n].
    """
    found = []
    for table, places in zip(scores, boxes, strict=True):
        row, label = (table[:, 1:] > score).nonzero(as_tuple=True)
        label = label + 1
        box, value = places[row, label], table[row, label]
        small = (box[:, 2:] - box[:, :2]).amin(1) < 1e-2
        apart = box + label[:, None] * (box.max() + 1) if len(box) else box  # no class meets another
        keep = nms(apart[None], torch.where(small, 0.0, value)[None], overlap)[0].nonzero().flatten()
        keep = keep[value[keep].argsort(descending=True)][:most]
        found.append({"boxes": box[keep], "labels": label[keep], "scores": value[keep]})
    return found


def model(size: int = 320, *, proposals: int = 100, classes: int = 91) -> tuple[nn.Module, Tensor]:
    """The network with random weights, and an example input.

    Published weights are used with 1,000 proposals. Of so many random ones some are always so nearly equal that torch and
    ONNX Runtime rank them differently, and what comes out cannot be compared.
    """
    net, example = ready(lambda: FasterRCNN(classes, before=proposals, after=proposals), (1, 3, size, size))
    calm(net, example, [block.bn3 for block in net.modules() if isinstance(block, Bottleneck)])
    temper(net, example, SPREADS)
    return net, example
