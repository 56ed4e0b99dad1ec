"""What the cut graph says of shapes: by module, and by line of its code."""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from graphprune.coupler import subgraphs
from graphprune.cut import Rewriter
from graphprune.frontends.torch_source import SCOPE, TRACE

Shape = tuple[int, ...]
Line = tuple[str, int]
_LINE = re.compile(r'File "([^"]+)", line (\d+)')


@dataclass
class Expected:
    """Shapes and sizes before and after the cut, as the graph has them.

    Attributes
    ----------
    shapes
        Module -> shape before -> (last line of user code, shape after), for everything computed in that module itself.
    sizes
        Module -> size before -> how often it becomes which size, in that module itself.
    """

    shapes: dict[str, dict[Shape, list[tuple[Line | None, Shape]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    sizes: dict[str, dict[int, Counter[int]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(Counter))
    )
    everywhere: dict[int, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))

    def note(self, module: str, before: Shape, after: Shape, line: Line | None = None) -> None:
        """Add a value: its shape before and after."""
        self.shapes[module][before].append((line, after))
        if len(before) == len(after):
            for old, new in zip(before, after, strict=True):
                self.note_size(module, old, new)

    def note_size(self, module: str, before: int, after: int) -> None:
        """Add one size before and after."""
        self.sizes[module][before][after] += 1
        self.everywhere[before][after] += 1

    def of_call(self, modules: Iterable[str], before: Shape, lines: frozenset[Line]) -> frozenset[Shape] | None:
        """Shapes that a result of a call may have after the cut; None where the graph says nothing of it."""
        found = [entry for name in modules for entry in self.shapes.get(name, {}).get(before, ())]
        here = [after for line, after in found if line in lines]
        return frozenset(here or (after for _, after in found)) or None

    def candidates(self, scopes: Iterable[str], value: int) -> list[int]:
        """Values that an attribute may have after the cut, likeliest first; the old one is among them."""
        if value < 2:  # no axis of one index is ever cut
            return [value]
        out: list[int] = []
        for name in scopes:
            counts = self.sizes.get(name, {}).get(value, Counter())
            out.extend(new for new, _ in counts.most_common() if new != value)
            if value in counts:
                out.append(value)
        out.append(value)
        out.extend(new for new, _ in self.everywhere.get(value, Counter()).most_common())
        return list(dict.fromkeys(out))

    def within(self, module: str, value: int) -> set[int]:
        """What sizes of this value become, in a module and all that it holds."""
        prefix = f"{module}." if module else ""
        out: set[int] = set()
        for name, sizes in self.sizes.items():
            if (name == module or name.startswith(prefix)) and value in sizes:
                out.update(sizes[value])
        return out


def module_of(node: ir.Node, prefix: str) -> str | None:
    """Name of the module whose ``forward`` made a node; None where the export does not say."""
    scopes = node.meta.get(SCOPE)
    if not scopes:
        return None
    try:
        names = ast.literal_eval(scopes) if isinstance(scopes, str) else list(scopes)
    except (ValueError, SyntaxError):
        return None
    name = str(names[-2]) if len(names) > 1 else ""
    name = re.sub(r"@\d+", "", name)
    return "" if f"{name}." == prefix else name.removeprefix(prefix)


def last_line(node: ir.Node) -> Line | None:
    """The innermost line of user code that made a node."""
    found = _LINE.findall(str(node.meta.get(TRACE, "")))
    return (found[-1][0], int(found[-1][1])) if found else None


def expected(rewriter: Rewriter, prefix: str, owners: Mapping[str, Iterable[str]]) -> Expected:
    """Read what a rewrite expects.

    Parameters
    ----------
    prefix
        Stands before the module's own names in scopes.
    owners
        Initializer name -> modules that hold this tensor.
    """
    found = Expected()

    def walk(graph: ir.Graph, outer: str) -> None:
        for node in graph:
            module = module_of(node, prefix)
            module = outer if module is None else module
            line = last_line(node)
            for value in node.outputs:
                before, after = rewriter.old_facts.shape(value), rewriter.expected(value)
                if before is not None and after is not None:
                    found.note(module, tuple(before), tuple(after), line)
            new = rewriter.new_nodes.get(node)
            for name, attribute in node.attributes.items():
                if new is not None and attribute.type == ir.AttributeType.INT and name in new.attributes:
                    found.note_size(module, attribute.as_int(), new.attributes[name].as_int())
            for inner in subgraphs(node):
                walk(inner, module)

    walk(rewriter.source.graph, "")
    for value in rewriter.coupling.constants:
        before, after = rewriter.old_facts.shape(value), rewriter.expected(value)
        for module in owners.get(str(value.name), ()) if before and after else ():
            assert before is not None and after is not None
            for old, new_size in zip(before, after, strict=True):
                found.note_size(module, old, new_size)
    return found
