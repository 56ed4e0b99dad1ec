"""Small image classifiers in plain torch, in the shapes the pruning literature measures.

Each takes float32[batch, channels, height, width] (1x28x28 or 3x32x32; any size from 14 up, since all end in a global
average) and gives float32[batch, classes] logits. The first convolution has stride 2 in all of them, which the papers'
versions for 32x32 images do not have: it quarters the work, so that one core trains all five within the hour.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def _conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; a 1x1 convolution (option B) where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *_conv_bn(inputs, outputs, 3, stride), nn.ReLU(inplace=True), *_conv_bn(outputs, outputs)
        )
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_conv_bn(inputs, outputs, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


class ResNet(nn.Module):
    """He et al. 2016, section 4.2: three stages of (depth - 2) / 6 blocks with 16, 32 and 64 channels."""

    def __init__(self, depth: int, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_conv_bn(channels, 16, 3, 2), nn.ReLU(inplace=True)]
        width = 16
        for stage, outputs in enumerate((16, 32, 64)):
            for block in range((depth - 2) // 6):
                layers.append(BasicBlock(width, outputs, 2 if stage and not block else 1))
                width = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class DenseLayer(nn.Module):
    """BN, ReLU, 3x3 convolution to ``growth`` channels, concatenated behind the input."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1)


class DenseNet(nn.Module):
    """Huang et al. 2017 without bottlenecks: three dense blocks of (depth - 4) / 3 layers each."""

    def __init__(self, depth: int, growth: int, channels: int, classes: int) -> None:
        super().__init__()
        width = 16
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 2, 1, bias=False)]
        for block in range(3):
            for _ in range((depth - 4) // 3):
                layers.append(DenseLayer(width, growth))
                width += growth
            layers += [nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            if block < 2:
                layers += [nn.Conv2d(width, width, 1, bias=False), nn.AvgPool2d(2)]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class VGG(nn.Module):
    """VGG-16 with batch normalisation, widths times ``scale``, one linear layer behind a global average."""

    def __init__(self, scale: float, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = channels
        for stage, (outputs, convs) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
            if stage:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            for conv in range(convs):
                stride = 1 if stage or conv else 2
                layers += [*_conv_bn(width, int(outputs * scale), 3, stride), nn.ReLU(inplace=True)]
                width = int(outputs * scale)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


class InvertedResidual(nn.Module):
    """Sandler et al. 2018: 1x1 expansion, 3x3 depthwise, linear 1x1 projection."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers: list[nn.Module] = []
        if expand > 1:
            layers += [*_conv_bn(inputs, hidden, 1), nn.ReLU6(inplace=True)]
        layers += [*_conv_bn(hidden, hidden, 3, stride, groups=hidden), nn.ReLU6(inplace=True)]
        self.body = nn.Sequential(*layers, *_conv_bn(hidden, outputs, 1))
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """MobileNetV2's blocks for small images: expansion 4, strides 2-2-2, 16 to 96 channels, head of 256."""

    STAGES = ((1, 16, 1, 1), (4, 24, 2, 1), (4, 32, 3, 2), (4, 64, 3, 2), (4, 96, 2, 1))

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_conv_bn(channels, 16, 3, 2), nn.ReLU6(inplace=True)]
        width = 16
        for expand, outputs, blocks, stride in self.STAGES:
            for block in range(blocks):
                layers.append(InvertedResidual(width, outputs, 1 if block else stride, expand))
                width = outputs
        self.features = nn.Sequential(*layers, *_conv_bn(width, 256, 1), nn.ReLU6(inplace=True))
        self.classifier = nn.Linear(256, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


#: Builders by name: ``NETS[name](channels, classes)``.
NETS: dict[str, Callable[[int, int], nn.Module]] = {
    "resnet20": lambda channels, classes: ResNet(20, channels, classes),
    "resnet56": lambda channels, classes: ResNet(56, channels, classes),
    "densenet40": lambda channels, classes: DenseNet(40, 12, channels, classes),
    "densenet22": lambda channels, classes: DenseNet(22, 12, channels, classes),
    "vgg16_slim": lambda channels, classes: VGG(0.375, channels, classes),
    "mobilenetv2": MobileNetV2,
}


def build(name: str, channels: int, classes: int) -> nn.Module:
    """One of :data:`NETS` with He initialisation (fan out), so that a few epochs suffice."""
    net = NETS[name](channels, classes)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net
