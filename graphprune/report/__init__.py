"""The report of a run: one HTML file that holds all it needs and asks nothing of the network.

``payload`` gathers what is shown as JSON; the page in ``template`` draws it. Names from a model reach the page as JSON
text only, and the page writes them as text only; its content security policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from graphprune.errors import OutputError

if TYPE_CHECKING:
    from graphprune.passes.base import State
    from graphprune.plan import Plan

#: Scripts of the page, in order.
_SCRIPTS = ("elements.js", "charts.js", "graph.js", "report.js")
SUFFIXES = (".html", ".htm")


def render(state: State, plan: Plan) -> bytes:
    """The report of a finished run."""
    from graphprune.report.payload import payload

    return page(payload(state, plan))


def page(data: dict[str, Any]) -> bytes:
    """The page that shows ``data`` (see :func:`graphprune.report.payload.payload`)."""
    style = _read("report.css")
    script = '"use strict";\n' + "\n".join(map(_read, _SCRIPTS))
    # Within a script element nothing but '<' could end it; ASCII only, so that no encoding matters.
    text = json.dumps(data, ensure_ascii=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    title = html.escape(f"{data['model']['name']}: graphprune report")
    return (
        Template(_read("report.html"))
        .substitute(title=title, style=style, script=script, data=text, style_hash=_hash(style), script_hash=_hash(script))
        .encode("utf-8", "xmlcharrefreplace")
    )


def check_name(path: str | os.PathLike[str]) -> None:
    """Raise :class:`OutputError` for a name that is no HTML file's."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise OutputError(f"--report {path}: give a name that ends in .html")


def _read(name: str) -> str:
    return files("graphprune.report").joinpath("template", name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"
