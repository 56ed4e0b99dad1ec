"""Write docs/ops.md: the rule of every op, from the registry itself.

    python docs/make_ops_table.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnx

from graphprune.rules import OpRule, load_rules

TARGET = Path(__file__).with_name("ops.md")
HEAD = """# The table of ops

Made by `python docs/make_ops_table.py` from the rules in `graphprune/ops/`; a test fails when it is out of date, and
another one when a release of onnx brings an op that is neither here nor frozen by design. *Sizes* tells whether a
shrink rule mends numbers that the op stores. The notation of rules is explained in [coupling](coupling.md).
"""


def rows(domain: str) -> list[OpRule]:
    """Rules of a domain, by family and name."""
    found = [rule for (where, _), rule in load_rules().items() if where == domain]
    return sorted(found, key=lambda rule: (rule.couple is None, rule.family, rule.name))


def table(domain: str) -> str:
    """A Markdown table of a domain's ops that are cut, and a list of those that are not."""
    lines = ["| op | family | rule | sizes |", "| --- | --- | --- | --- |"]
    frozen: dict[str, list[str]] = {}
    for rule in rows(domain):
        if rule.couple is None:
            frozen.setdefault(rule.reason, []).append(rule.name)
        else:
            text = rule.text.replace("|", "\\|")
            lines.append(f"| {rule.name} | {rule.family} | `{text}` | {'yes' if rule.shrink else ''} |")
    lines += ["", "Frozen by design:", ""]
    lines += [f"- {', '.join(sorted(names))}: {reason}" for reason, names in sorted(frozen.items())]
    return "\n".join(lines)


def text() -> str:
    """The whole page."""
    names = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if not schema.domain}
    covered = {name for domain, name in load_rules() if not domain}
    parts = [HEAD, f"## The default domain: {len(names & covered)} of {len(names)} ops\n", table(""),
             "\n## com.microsoft\n", table("com.microsoft")]  # fmt: skip
    return "\n".join(parts) + "\n"


def main() -> int:
    if "--check" in sys.argv:
        return 0 if TARGET.exists() and TARGET.read_text() == text() else 1
    TARGET.write_text(text())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
