"""Every op of the default domain is either understood or frozen on purpose, and the docs say which."""

from __future__ import annotations

import runpy
from pathlib import Path

import onnx

from graphprune.rules import load_rules

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_every_op_has_a_rule_or_a_reason() -> None:
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
    missing = sorted(name for name in names if ("", name) not in load_rules())
    assert not missing, f"onnx {onnx.__version__} has ops with neither a rule nor a reason: {missing}"


def test_frozen_ops_have_reasons() -> None:
    for rule in load_rules().values():
        assert rule.couple is not None or len(rule.reason) > 8, rule.name
        assert rule.couple is None or rule.text, rule.name


def test_table_in_the_docs_is_up_to_date() -> None:
    page = runpy.run_path(str(DOCS / "make_ops_table.py"))["text"]()
    assert (DOCS / "ops.md").read_text() == page, "run: python docs/make_ops_table.py"
