"""Write an exported program as ONNX where all of its operators are common ones and all of its sizes fixed.

torch's own ONNX exporter takes any program, and for that compiles a library of a thousand functions, promotes types by
tracing, and writes a shape as half a dozen nodes. What most networks are made of is written here directly, in the same
form; a program with anything else in it goes to torch's exporter whole.
"""

from __future__ import annotations

from graphprune.frontends.aten import elementwise, layers, movement
from graphprune.frontends.aten.writer import Unknown, Writer, translate

__all__ = ["Unknown", "Writer", "elementwise", "layers", "movement", "translate"]
