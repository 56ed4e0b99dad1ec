"""If, Loop, Scan and SequenceMap: their bodies are graph modules of their own, run by Python."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from torch import nn

from graphprune.backends.torch_ops.registry import Result, lower

if TYPE_CHECKING:
    from graphprune.backends.torch_call import Call


def _body(call: Call, name: str) -> tuple[nn.Module, list[Any]]:
    from graphprune.backends.torch_build import build_body

    graph = call.attr(name)
    if not isinstance(graph, ir.Graph):
        raise call.refuse(f"it has no {name}")
    return build_body(call.builder, graph)


class If(nn.Module):
    """Run one of two branches."""

    def __init__(self, then: nn.Module, other: nn.Module, count: int) -> None:
        super().__init__()
        self.then, self.other, self.count = then, other, count

    def forward(self, condition: Any, *captured: Any) -> Any:
        """Return the outputs of the branch; ``captured`` are values of the graph around it."""
        if bool(condition):
            return self.then(*captured[: self.count])
        return self.other(*captured[self.count :])


@lower("If")
def _if(call: Call) -> Result:
    then, first = _body(call, "then_branch")
    other, second = _body(call, "else_branch")
    found = call.builder.val(call.value(0))
    condition = call.host(0) if found.host is not None else call.tensor(0)
    return call.unpack(call.module(If(then, other, len(first)), "branch", condition, *first, *second))


class Loop(nn.Module):
    """Run a body while it says so, and at most a number of times."""

    def __init__(self, body: nn.Module, states: int, scans: int, bounded: bool, conditional: bool) -> None:
        super().__init__()
        self.body, self.states, self.scans = body, states, scans
        self.bounded, self.conditional = bounded, conditional

    def forward(self, *args: Any) -> Any:
        """Take count and condition where given, states, captured values; return states and stacked results."""
        rest = list(args)
        limit = int(rest.pop(0)) if self.bounded else None
        going = bool(rest.pop(0)) if self.conditional else True
        states, captured = rest[: self.states], rest[self.states :]
        device = next((s.device for s in states if isinstance(s, torch.Tensor)), None)
        stacks: list[list[torch.Tensor]] = [[] for _ in range(self.scans)]
        step = 0
        while going and (limit is None or step < limit):
            number = torch.tensor(step, dtype=torch.int64, device=device)
            found = self.body(number, torch.tensor(True, device=device), *states, *captured)
            going, states = bool(found[0]), list(found[1 : 1 + self.states])
            for stack, value in zip(stacks, found[1 + self.states :], strict=True):
                stack.append(value)
            step += 1
        return (*states, *(torch.stack(s) if s else torch.empty(0, device=device) for s in stacks))


@lower("Loop")
def _loop(call: Call) -> Result:
    body, captured = _body(call, "body")
    states = [call.tensor(i) for i in range(2, call.inputs)]
    head = [call.tensor(i) for i in (0, 1) if call.has(i)]
    module = Loop(body, len(states), call.outputs - len(states), call.has(0), call.has(1))
    return call.unpack(call.module(module, "loop", *head, *states, *captured))


class Scan(nn.Module):
    """Run a body over slices of inputs."""

    def __init__(
        self, body: nn.Module, states: int, inputs: int, axes: tuple[int, ...], back: tuple[int, ...],
        out_axes: tuple[int, ...], out_back: tuple[int, ...],
    ) -> None:  # fmt: skip
        super().__init__()
        self.body, self.states, self.inputs = body, states, inputs
        self.axes, self.back, self.out_axes, self.out_back = axes, back, out_axes, out_back

    def forward(self, *args: Any) -> Any:
        """Take states, scanned inputs and captured values; return states and stacked results."""
        states = list(args[: self.states])
        scanned = args[self.states : self.states + self.inputs]
        captured = args[self.states + self.inputs :]
        steps = scanned[0].shape[self.axes[0]]
        stacks: list[list[torch.Tensor]] = [[] for _ in self.out_axes]
        for t in range(steps):
            pieces = [
                x.select(axis, steps - 1 - t if back else t)
                for x, axis, back in zip(scanned, self.axes, self.back, strict=True)
            ]
            found = self.body(*states, *pieces, *captured)
            states = list(found[: self.states])
            for stack, value in zip(stacks, found[self.states :], strict=True):
                stack.append(value)
        results = [
            torch.stack(stack[::-1] if back else stack, axis)
            for stack, axis, back in zip(stacks, self.out_axes, self.out_back, strict=True)
        ]
        return (*states, *results)


class BatchedScan(nn.Module):
    """Scan as before opset 9: a first axis of batch, every entry scanned by itself."""

    def __init__(self, scan: Scan, lengths: bool) -> None:
        super().__init__()
        self.scan, self.lengths = scan, lengths

    def forward(self, *args: Any) -> Any:
        """Take lengths where given, then what `Scan` takes, with a batch axis."""
        lengths, rest = (args[0], args[1:]) if self.lengths else (None, args)
        count = self.scan.states + self.scan.inputs
        batched, captured = rest[:count], rest[count:]
        results = []
        for n in range(batched[0].shape[0]):
            entry = [x[n] for x in batched]
            if lengths is not None:
                for i in range(self.scan.states, count):
                    entry[i] = entry[i][: int(lengths[n])]
            results.append(self.scan(*entry, *captured))
        return tuple(torch.stack(parts) for parts in zip(*results, strict=True))


@lower("Scan")
def _scan(call: Call) -> Result:
    body, captured = _body(call, "body")
    inputs = int(call.attr("num_scan_inputs"))
    first = 1 if call.version < 9 else 0
    states = call.inputs - first - inputs
    outputs = call.outputs - states
    if call.version < 9:
        back = call.attr("directions") or (0,) * inputs
        scan = Scan(body, states, inputs, (0,) * inputs, back, (0,) * outputs, (0,) * outputs)
        args = [call.tensor(i) for i in range(first, call.inputs)]
        given = [call.tensor(0)] if call.has(0) else []
        return call.unpack(call.module(BatchedScan(scan, bool(given)), "scan", *given, *args, *captured))
    scan = Scan(
        body, states, inputs, call.attr("scan_input_axes") or (0,) * inputs,
        call.attr("scan_input_directions") or (0,) * inputs, call.attr("scan_output_axes") or (0,) * outputs,
        call.attr("scan_output_directions") or (0,) * outputs,
    )  # fmt: skip
    return call.unpack(call.module(scan, "scan", *call.tensors(), *captured))


class SequenceMap(nn.Module):
    """Run a body on every item of sequences."""

    def __init__(self, body: nn.Module, inputs: int, outputs: int) -> None:
        super().__init__()
        self.body, self.inputs, self.outputs = body, inputs, outputs

    def forward(self, *args: Any) -> Any:
        """Take sequences (or tensors, given to every run) and captured values; return sequences."""
        given, captured = args[: self.inputs], args[self.inputs :]
        found = [
            self.body(*(x[i] if isinstance(x, (list, tuple)) else x for x in given), *captured)
            for i in range(len(given[0]))
        ]
        return tuple([result[k] for result in found] for k in range(self.outputs))


@lower("SequenceMap")
def _sequence_map(call: Call) -> Result:
    body, captured = _body(call, "body")
    module = SequenceMap(body, call.inputs, call.outputs)
    return call.unpack(call.module(module, "sequence_map", *call.tensors(), *captured))
