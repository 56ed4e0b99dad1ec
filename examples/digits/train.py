"""Train the example classifier on scikit-learn's digits and write it with its data sets as plain files.

Needs torch, onnxscript and scikit-learn. Nothing else in the repository does: the files written here are kept
beside this script, so the example runs with the core dependencies alone.

    python examples/digits/train.py

Writes, next to this file,

* ``digits.onnx``: the network, batch axis dynamic, BatchNormalization nodes kept (a training framework
  usually folds them away on export, and a criterion that reads them would have nothing to read);
* ``digits_calibration.npz``: ``image`` float32[512, 1, 8, 8], training images without labels;
* ``digits_test.npz``: ``image`` float32[450, 1, 8, 8] and ``label`` int64[450], never seen in training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnxscript import optimizer
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
SEED = 0
EPOCHS = 60
BATCH = 64
CALIBRATION = 512


class ConvBlock(nn.Module):
    """Convolution, batch normalisation and, unless ``act`` is off, ReLU."""

    def __init__(
        self, c_in: int, c_out: int, kernel: int, stride: int = 1, *, groups: int = 1, act: bool = True
    ):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(c_out)
        self.act = nn.ReLU() if act else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


class Residual(nn.Module):
    """Two 3x3 convolutions around a skip connection: the trunk's channels are decided together."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = ConvBlock(channels, channels, 3)
        self.second = ConvBlock(channels, channels, 3, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(x + self.second(self.first(x)))


class Gate(nn.Module):
    """Squeeze and excite: one factor per channel, computed from the channel means."""

    def __init__(self, channels: int, hidden: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, 1)
        self.expand = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.expand(functional.relu(self.reduce(mean))))


class Depthwise(nn.Module):
    """Expand, depthwise 3x3 with stride, gate, project: the inverted bottleneck of mobile networks."""

    def __init__(self, c_in: int, hidden: int, c_out: int, stride: int):
        super().__init__()
        self.expand = ConvBlock(c_in, hidden, 1)
        self.depthwise = ConvBlock(hidden, hidden, 3, stride, groups=hidden)
        self.gate = Gate(hidden, hidden // 4)
        self.project = ConvBlock(hidden, c_out, 1, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(self.gate(self.depthwise(self.expand(x))))


class DigitsNet(nn.Module):
    """Stem, residual block, gated depthwise block, residual block, global pool, linear: 10 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(1, 24, 3)
        self.block1 = Residual(24)
        self.block2 = Depthwise(24, 64, 32, stride=2)
        self.block3 = Residual(32)
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.stem(image))))
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def split() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images and labels, test images and labels; pixels scaled from 0..16 to 0..1."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    x, x_test, y, y_test = train_test_split(images, labels, test_size=450, random_state=SEED, stratify=labels)
    return x, y, x_test, y_test


def shifted(images: Tensor, generator: torch.Generator) -> Tensor:
    """Every image moved by -1, 0 or 1 pixel along each axis, zeros moving in."""
    padded = functional.pad(images, (1, 1, 1, 1))
    rows = torch.randint(0, 3, (len(images), 1), generator=generator) + torch.arange(8)
    columns = torch.randint(0, 3, (len(images), 1), generator=generator) + torch.arange(8)
    return padded[torch.arange(len(images))[:, None, None], :, rows[:, :, None], columns[:, None]].movedim(
        -1, 1
    )


def train(images: Tensor, labels: Tensor) -> DigitsNet:
    """Train from a fixed seed: AdamW, one-cycle schedule, label smoothing, one-pixel shifts."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = DigitsNet()
    steps = EPOCHS * (len(images) // BATCH)
    adamw = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(adamw, max_lr=5e-3, total_steps=steps)
    for _ in range(EPOCHS):
        order = torch.randperm(len(images), generator=generator)
        for chosen in order[: len(images) // BATCH * BATCH].split(BATCH):
            logits = model(shifted(images[chosen], generator))
            loss = functional.cross_entropy(logits, labels[chosen], label_smoothing=0.05)
            adamw.zero_grad()
            loss.backward()
            adamw.step()
            schedule.step()
    return model.eval()


def export(model: DigitsNet, path: Path) -> None:
    """Write the network as ONNX, batch axis dynamic, batch normalisation kept, which is checked."""
    example = torch.zeros(2, 1, 8, 8)
    # optimize=False: the exporter's full optimiser would fold BatchNormalization into the convolutions.
    program = torch.onnx.export(
        model,
        (example,),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        optimize=False,
        verbose=False,
    )
    optimizer.fold_constants(program.model)
    optimizer.remove_unused_nodes(program.model)
    proto = program.model_proto
    for node in proto.graph.node:  # exporter notes: stack traces and paths of the machine that ran it
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output, *proto.graph.initializer):
        del value.metadata_props[:]
    del proto.graph.metadata_props[:], proto.metadata_props[:]
    onnx.checker.check_model(proto, full_check=True)
    norms = sum(node.op_type == "BatchNormalization" for node in proto.graph.node)
    expected = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    if norms != expected:
        raise SystemExit(f"{norms} BatchNormalization nodes in the file, {expected} in the network")
    onnx.save(proto, path)


def main() -> None:
    """Train, say how well it went, write the three files."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    x, y, x_test, y_test = split()
    model = train(torch.from_numpy(x), torch.from_numpy(y))
    with torch.no_grad():
        accuracy = (model(torch.from_numpy(x_test)).argmax(1).numpy() == y_test).mean()
    print(f"parameters {sum(p.numel() for p in model.parameters())}, test accuracy {accuracy:.4f}")
    export(model, HERE / "digits.onnx")
    np.savez_compressed(HERE / "digits_calibration.npz", image=x[:CALIBRATION])
    np.savez_compressed(HERE / "digits_test.npz", image=x_test, label=y_test)


if __name__ == "__main__":
    main()
