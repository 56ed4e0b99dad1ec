"""Graphs, programs and wrappers as sources; what is refused."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tests.torch_patterns.base import cbr, conv, head, pattern
from tests.torch_patterns.interfaces import Two

IMAGE = (2, 3, 8, 8)
ROWS = (4, 10)


@pattern(IMAGE, cut="0 3 7", name="SequentialWithNames")
def sequential() -> nn.Module:
    return nn.Sequential(conv(3, 12), nn.ReLU(), nn.Identity(), conv(12, 16), nn.Mish(), *head(16))


@pattern(IMAGE, cut="stem.conv stem.norm last", name="OrderedNames")
def ordered() -> nn.Module:
    stem = nn.Sequential(OrderedDict(conv=conv(3, 12), norm=nn.BatchNorm2d(12), act=nn.SiLU()))
    return nn.Sequential(OrderedDict(stem=stem, last=conv(12, 4)))


@pattern(IMAGE, cut="0.0 1", name="TracedGraph")
def traced() -> nn.Module:
    """A GraphModule as the source."""
    return fx.symbolic_trace(nn.Sequential(cbr(3, 12), conv(12, 8), nn.ReLU(), conv(8, 4)))


@pattern(ROWS, cut="a b", name="TracedForward")
def traced_forward() -> nn.Module:
    return fx.symbolic_trace(Two())


@pattern(IMAGE, cut="0.0 1", name="ExportedGraph")
def exported_module() -> nn.Module:
    """What ``torch.export`` gives back as a module."""
    net = nn.Sequential(cbr(3, 12), conv(12, 4)).eval()
    program = torch.export.export(net, (torch.randn(IMAGE),), dynamic_shapes=({0: torch.export.Dim.AUTO},))
    module: nn.Module = program.module()
    module.eval = lambda: module  # type: ignore[method-assign] # it refuses to be switched
    return module


@pattern(IMAGE, cut="0.0 1", name="ExportedProgram", batch=False)
def exported_program() -> Any:
    net = nn.Sequential(cbr(3, 12), conv(12, 4)).eval()
    return torch.export.export(net, (torch.randn(IMAGE),))


@pattern(ROWS, cut="net.a net.b", name="WrappedInAnother")
class Wrapper(nn.Module):
    """The network is an attribute's attribute; a plain list hides another reference to a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Two()
        self.hidden_list = [self.net.a]

    def forward(self, x: Tensor) -> Tensor:
        return self.net.b(F.relu(self.hidden_list[0](x)))


@pattern(ROWS, cut="layers.0 layers.1")
class AttributesOfItsOwn(nn.Module):
    """Sizes are kept as attributes and used in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.width, self.heads = 16, 4
        self.layers = nn.ModuleList([nn.Linear(10, 16), nn.Linear(16, 3)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[0](x).view(-1, self.heads, self.width // self.heads)
        return self.layers[1](torch.tanh(y).reshape(-1, self.width))


@pattern(ROWS, cut="layers.0")
class ChecksItsSizes(nn.Module):
    """An assertion about the width in the module's own code."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(10, 16), nn.Linear(16, 3)])

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers[0](x)
        assert y.shape[-1] == 16, "the width is wrong"
        return self.layers[1](F.relu(y))


@pattern(ROWS, name="NothingToCut", refusal="nothing is prunable")
def nothing() -> nn.Module:
    return nn.Linear(10, 3)


@pattern(ROWS, name="DataDependentBranch", refusal="nothing is prunable")
class DataDependent(Two):
    """Which path is taken depends on the data: TorchScript follows that of the example inputs, which has no weights."""

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.hidden(x)) if x.sum() > 0 else x[:, :3]
