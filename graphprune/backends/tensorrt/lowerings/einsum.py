"""Einsum as transposes, reshapes and a matrix product."""

from __future__ import annotations

import math

import onnx_ir as ir

from graphprune.backends.tensorrt.rewriting import Builder, Values, attribute, lowers


@lowers("Einsum")
def einsum(node: ir.Node, b: Builder) -> Values | None:
    """Transpose, MatMul and Reshape."""
    operands = [v for v in node.inputs if v is not None]
    parsed = _parse(str(attribute(node, "equation")), [b.rank(v) for v in operands])
    if parsed is None or len(operands) > 2:
        return None
    terms, result = parsed
    if len(operands) == 1:
        return _one(b, operands[0], terms[0], result)
    sizes: dict[str, int | None] = {}
    for term, value in zip(terms, operands, strict=True):
        for letter, size in zip(term, b.dims(value) or (), strict=False):
            sizes[letter] = size if sizes.get(letter) in (None, 1) else sizes[letter]
    # What one operand alone has and the result lacks is summed before.
    for i in (0, 1):
        alone = [axis for axis, c in enumerate(terms[i]) if c not in terms[1 - i] and c not in result]
        if alone:
            operands[i] = b.reduce("ReduceSum", operands[i], alone, keepdims=0)
            terms[i] = "".join(c for axis, c in enumerate(terms[i]) if axis not in alone)
    left, right = terms
    batch = [c for c in result if c in left and c in right]
    summed = [c for c in left if c in right and c not in result]
    rows = [c for c in left if c not in right]
    columns = [c for c in right if c not in left]
    out = _product(b, operands, (left, right), (batch, rows, summed, columns), sizes)
    return None if out is None else _ordered(b, out, "".join((*batch, *rows, *columns)), result)


def _parse(equation: str, ranks: list[int | None]) -> tuple[list[str], str] | None:
    """Letters of operands and result; an ellipsis becomes letters of its own, missing results are implied."""
    equation = equation.replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks) or None in ranks:
        return None
    free = [chr(c) for c in range(0x3B1, 0x3B1 + 24)]
    hidden = [int(rank or 0) - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    most = max((n for term, n in zip(terms, hidden, strict=True) if "..." in term), default=0)
    dots = "".join(free[:most])
    if not arrow:
        plain = left.replace("...", "").replace(",", "")
        result = ("..." if "..." in left else "") + "".join(sorted(c for c in set(plain) if plain.count(c) == 1))
    spelled = [term.replace("...", dots[most - n :]) for term, n in zip(terms, hidden, strict=True)]
    if any(len(set(term)) < len(term) for term in spelled):
        return None  # a diagonal
    return spelled, result.replace("...", dots)


def _one(b: Builder, value: ir.Value, term: str, result: str) -> ir.Value:
    gone = [axis for axis, c in enumerate(term) if c not in result]
    if gone:
        value = b.reduce("ReduceSum", value, gone, keepdims=0)
    return _ordered(b, value, "".join(c for c in term if c in result), result)


def _ordered(b: Builder, value: ir.Value, have: str, want: str) -> ir.Value:
    """Axes named ``have`` in the order of ``want``."""
    if have == want:
        return b.op("Identity", value) if not b.nodes else value
    return b.op("Transpose", value, perm=[have.index(c) for c in want])


def _product(
    b: Builder,
    operands: list[ir.Value],
    terms: tuple[str, str],
    parts: tuple[list[str], ...],
    sizes: dict[str, int | None],
) -> ir.Value | None:
    """[batch, rows, summed] x [batch, summed, columns], groups of axes merged into one where they are several."""
    batch, rows, summed, columns = parts
    shaped = []
    for value, term, groups in zip(operands, terms, ((rows, summed), (summed, columns)), strict=True):
        lacking = [c for c in (*batch, *groups[0], *groups[1]) if c not in term]
        if lacking:
            return None
        value = _ordered_plain(b, value, term, "".join((*batch, *groups[0], *groups[1])))
        if any(len(group) != 1 for group in groups):
            if any(len(group) > 1 for group in groups):
                merged = [_merged([sizes[c] for c in group]) for group in groups]
                front = [sizes[c] for c in batch]
                if sum(n is None for n in (*front, *merged)) > 1:
                    return None
                value = b.reshape(value, [-1 if n is None else n for n in (*front, *merged)])
            else:
                at = [len(batch) + i for i, group in enumerate(groups) if not group]
                value = b.unsqueeze(value, *at)
        shaped.append(value)
    out = b.op("MatMul", *shaped)
    if len(rows) == 1 and len(columns) == 1:
        return out
    back = [sizes[c] for c in (*batch, *rows, *columns)]
    if sum(n is None for n in back) > 1:
        if len(rows) > 1 or len(columns) > 1:
            return None
        return b.squeeze(out, *[len(batch) + i for i, group in enumerate((rows, columns)) if not group])
    return b.reshape(out, [-1 if n is None else n for n in back])


def _ordered_plain(b: Builder, value: ir.Value, have: str, want: str) -> ir.Value:
    return value if have == want else b.op("Transpose", value, perm=[have.index(c) for c in want])


def _merged(sizes: list[int | None]) -> int | None:
    return None if None in sizes else math.prod(int(n or 0) for n in sizes)
