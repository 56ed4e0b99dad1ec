"""Defer what ``onnx_ir`` imports and rarely needs.

``onnx_ir`` imports sympy, half a second of a run, for arithmetic on symbolic dimensions, which nothing here asks for. While
``onnx_ir`` is being imported, these modules are handed out as :class:`importlib.util.LazyLoader`'s, which load at
the first attribute that someone reads. Nothing else that imports sympy is affected, and a sympy already imported
stays as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from importlib.abc import Loader  # importlib.abc itself is 20 ms, and protocols need no base class

_HOST = "onnx_ir"
_DEFERRED = ("sympy", "onnx_ir._symbolic_shapes")  # the second reads sympy's attributes as it is imported


class _HostLoader:
    """Loads the host with the deferring finder in place, and takes it away again."""

    def __init__(self, inner: Loader) -> None:
        self.inner = inner

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.inner.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        # The module and its readers see the loader that they would have without us.
        module.__loader__ = self.inner
        if module.__spec__ is not None:
            module.__spec__.loader = self.inner
        finder = _DeferringFinder()
        sys.meta_path.insert(0, finder)
        try:
            self.inner.exec_module(module)
        finally:
            sys.meta_path.remove(finder)


class _HostFinder:
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _HOST:
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _HostLoader(spec.loader))
        return spec


class _DeferringFinder:
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in _DEFERRED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


def install() -> None:
    """Arrange for the next import of ``onnx_ir`` to be the light one; does nothing where it is imported already."""
    if _HOST not in sys.modules:
        sys.meta_path.insert(0, _HostFinder())
