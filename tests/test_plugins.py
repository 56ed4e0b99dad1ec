"""Passes from outside: a real package that is installed, a broken one, and two that claim one name."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from graphprune import plugins
from graphprune.errors import UsageError
from tests.nets import two_convs

HERE = Path(__file__).resolve().parent


def test_pyproject_registers_the_built_in_passes() -> None:
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())
    assert project["project"]["entry-points"]["graphprune.passes"] == plugins.BUILTIN


def test_every_built_in_pass_loads() -> None:
    for entry in plugins.discover().entries():
        if entry.distribution == plugins.OWN:
            assert not entry.error and entry.help and entry.kind


def test_installed_plugin_is_listed_and_runs(tmp_path: Path) -> None:
    target = tmp_path / "site"
    # With its build backend at hand the package needs no network to be built.
    isolation = ["--no-build-isolation"] if importlib.util.find_spec("hatchling") else []
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", *isolation, "--target", str(target)]
    subprocess.run([*pip, str(HERE / "example_plugin")], check=True, capture_output=True)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(target), str(HERE.parent)]),
           "GRAPHPRUNE_CACHE": str(tmp_path / "cache")}  # fmt: skip

    def graphprune(*args: str) -> str:
        command = [sys.executable, "-m", "graphprune.cli", *args]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=env, cwd=tmp_path).stdout

    listed = {entry["name"]: entry for entry in json.loads(graphprune("passes", "--json"))}
    assert listed["spread"]["distribution"] == "graphprune-example-plugin" and not listed["spread"]["error"]
    onnx.save(two_convs(16, 12), tmp_path / "m.onnx")
    out = json.loads(graphprune("run", "m.onnx", "-o", "o.onnx", "--pass", "spread{power=2}", "--report", "r.html", "--json"))
    assert out["verify"]["passed"]
    assert "spread" in (tmp_path / "r.html").read_text() and "standard deviation" in (tmp_path / "r.html").read_text()
    both = ["--pass", "spread", "--pass", "l1", "--samples", "2", "--no-latency", "--json"]
    rows = json.loads(graphprune("compare", "m.onnx", *both, "--executor", "processes:2"))
    assert [row["criterion"] for row in rows["rows"]] == ["spread", "l1"] and not any("failed" in row for row in rows["rows"])
    assert -1 <= rows["correlation"]["spread"]["l1"] <= 1
    curves = json.loads(graphprune("sensitivity", "m.onnx", "--pass", "spread", "--samples", "2", "--json", "--executor", "here"))
    assert curves["criterion"] == "spread" and curves["curves"]


HEAD = """
from dataclasses import dataclass
from typing import ClassVar
from graphprune.passes.base import Pass
"""
PLAIN = """
class P(Pass):
    name: ClassVar[str] = "oops"
    def run(self, state): pass
"""
FROZEN = HEAD + "@dataclass(frozen=True)" + PLAIN


def install(folder: Path, distribution: str, passes: dict[str, str]) -> None:
    """What an installer leaves of a distribution: its metadata."""
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {target}" for name, target in passes.items()]
    (info / "entry_points.txt").write_text("\n".join(["[graphprune.passes]", *lines, ""]))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path, for packages; passes are looked for anew."""
    monkeypatch.syspath_prepend(str(tmp_path))
    plugins.discover.cache_clear()
    yield tmp_path
    plugins.discover.cache_clear()


def test_a_name_clash_is_an_error_of_that_name_alone() -> None:
    sources = {"l1": [plugins.Source(plugins.BUILTIN["l1"], "graphprune"), plugins.Source("other:L1", "other")],
               "l2": [plugins.Source(plugins.BUILTIN["l2"], "graphprune")]}  # fmt: skip
    registry = plugins.Registry(sources)
    with pytest.raises(UsageError, match=r"graphprune.*and other"):
        registry.load("l1")
    assert registry.load("l2").name == "l2"
    assert any(entry.name == "l1" and entry.error for entry in registry.entries())


def test_passes_of_installed_metadata(site: Path) -> None:
    install(site, "some-plugin", {"oops": "graphprune_some:P", "l2": "graphprune_some:P"})
    install(site, "other-plugin", {"twice": "graphprune_some:P", "fine": "graphprune_fine:P"})
    install(site, "third-plugin", {"twice": "graphprune_third:P"})
    install(site, "graphprune", dict(plugins.BUILTIN))  # what installing graphprune itself leaves
    (site / "graphprune_some.py").write_text("import a_module_that_is_not_there\n")
    (site / "graphprune_fine.py").write_text(FROZEN.replace("oops", "fine") + "    size: int = 3\n")
    registry = plugins.discover()
    entries = {entry.name: entry for entry in registry.entries()}
    assert set(registry.names()) == {*plugins.BUILTIN, "oops", "twice", "fine"}
    assert {name for name, entry in entries.items() if entry.error} == {"oops", "twice", "l2"}
    assert entries["fine"].distribution == "other-plugin" and entries["fine"].module == "graphprune_fine:P"
    assert [str(option) for option in entries["fine"].options] == ["size: int = 3"]
    assert entries["oops"].distribution == "some-plugin"
    assert "No module named 'a_module_that_is_not_there'" in entries["oops"].error
    with pytest.raises(UsageError, match=r"'twice' is registered by other-plugin .* and third-plugin"):
        registry.load("twice")
    with pytest.raises(UsageError, match=r"'l2' is registered by graphprune .* and some-plugin"):
        registry.load("l2")
    with pytest.raises(UsageError, match="no pass is called 'fien'; did you mean 'fine'"):
        registry.load("fien")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise SystemExit(3)", "does not load: SystemExit: 3"),
        ("def P(:", "does not load: SyntaxError"),
        ("class Q: pass", "does not load: AttributeError"),
        ("P = 3", "not a dataclass that extends Pass"),
        ("from graphprune.plan import Plan as P", "not a dataclass that extends Pass"),
        (HEAD + PLAIN, r"no dataclass itself: write @dataclass\(frozen=True\)"),
        (HEAD + "@dataclass" + PLAIN, "does not load: TypeError.*frozen"),
        (FROZEN.replace("oops", "other"), "calls itself 'other'"),
        (FROZEN + "    kind: ClassVar[str] = 'magic'", "its kind is 'magic', not one of transform, analysis"),
        (FROZEN + "    size: 'NoSuchType' = 3", "annotations cannot be read.*NoSuchType"),
    ],
)
def test_broken_plugins_are_listed_with_their_error(site: Path, body: str, message: str) -> None:
    (site / "graphprune_oops.py").write_text(body + "\n")
    sys.modules.pop("graphprune_oops", None)
    install(site, "oops-plugin", {"oops": "graphprune_oops:P"})
    entries = {entry.name: entry for entry in plugins.discover().entries()}
    assert [name for name, entry in entries.items() if entry.error] == ["oops"]
    assert re.search(message, entries["oops"].error)
    assert entries["oops"].distribution == "oops-plugin"
