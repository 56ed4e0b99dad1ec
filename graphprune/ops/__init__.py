"""Everything known about single ops: one module a family, coupling and shrink rules side by side."""

from __future__ import annotations

__all__ = ["coverage"]


def coverage(domain: str = "") -> tuple[str, ...]:
    """Ops of the installed onnx that nobody has described: names of one domain, in any version of its opset.

    Returns
    -------
    tuple of str
        Names without a coupling rule that are not frozen by design either; empty when all are described.
    """
    import onnx.defs

    from graphprune.rules import load_rules

    rules = load_rules()
    schemas = onnx.defs.get_all_schemas_with_history()
    return tuple(sorted({s.name for s in schemas if s.domain == domain and (domain, s.name) not in rules}))
