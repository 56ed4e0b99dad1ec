"""A plain torch training loop with pruning in the middle: train, cut the module in place, train on. Less than a minute on a CPU.

    pip install 'graphprune[torch]' scikit-learn
    python examples/torch_loop.py
"""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import graphprune as gp


class Net(nn.Module):
    """Two convolutions with a shortcut around the second, a pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 32, 1))
        self.head = nn.Linear(32 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        x = F.adaptive_max_pool2d(x + self.block(x), 2)
        return self.head(x.flatten(1))


def train(net: nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor, y: torch.Tensor, epochs: int) -> None:
    """The loop that one has anyway; it knows nothing of pruning."""
    net.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(64):
            loss = F.cross_entropy(net(x[chosen]), y[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@torch.no_grad()
def accuracy(net: nn.Module, x: torch.Tensor, y: torch.Tensor) -> float:
    net.eval()
    return float((net(x).argmax(1) == y).float().mean())


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1, torch.tensor(digits.target)
    x, y, x_test, y_test = x[:1400], y[:1400], x[1400:], y[1400:]

    net = Net()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    train(net, optimizer, x, y, epochs=6)
    trained = accuracy(net, x_test, y_test)

    net.eval()
    # Afterwards net is smaller, and so is what AdamW keeps of its parameters.
    result = gp.prune(net, x[:2], passes=["l1"], budget="macs=0.4", optimizer=optimizer)
    cut = accuracy(net, x_test, y_test)
    before, after = result.plan.before, result.plan.after
    print(f"MACs {before['macs']:,} -> {after['macs']:,}, proved to {result.plan.verify['max_rel_error']:.1e}")

    train(net, optimizer, x, y, epochs=6)  # the same loop and the same optimizer go on
    print(f"accuracy: trained {trained:.3f}, cut {cut:.3f}, trained on {accuracy(net, x_test, y_test):.3f}")
    print(net)


if __name__ == "__main__":
    main()
