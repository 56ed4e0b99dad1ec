"""Results of long work on disk, by the content of what they were made from: a repeated run is instant.

Keys are hashes of the model's bytes, the data's, the options and the code; nothing has to be thrown away by hand, and deleting
the folder (``~/.cache/graphprune``, or ``$GRAPHPRUNE_CACHE``) costs nothing but time.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import os
import tempfile
from pathlib import Path
from typing import Any

BLOCK = 1 << 22


def folder() -> Path:
    """Where results lie."""
    given = os.environ.get("GRAPHPRUNE_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "graphprune"


def key(*parts: Any) -> str:
    """A name for a result: 32 hexadecimal digits of everything that it depends on, and of this program's own code."""
    text = json.dumps([*parts, _program()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_digest(path: str | os.PathLike[str]) -> str:
    """Hash of a file's bytes; of names, sizes and times of a folder's files."""
    path, digest = Path(path).expanduser(), hashlib.sha256()
    if path.is_dir():
        for item in sorted(p for p in path.rglob("*") if p.is_file()):
            stat = item.stat()
            digest.update(f"{item.relative_to(path)}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def inputs_digest(model: str | os.PathLike[str], data: str | None) -> dict[str, str]:
    """Hashes of a model, files of external data included, and of calibration data."""
    from graphprune.frontends.onnx import SOURCE_FILES, load

    files = load(model).model.meta.get(SOURCE_FILES, (model,))
    return {
        "model": "".join(map(file_digest, files)),
        "data": file_digest(data) if data and Path(data).expanduser().exists() else "",
    }


def source_digest(thing: Any) -> str:
    """Hash of the file that a class or function stands in; its name where there is none."""
    try:
        return file_digest(inspect.getfile(thing))
    except (OSError, TypeError):
        return f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', thing)}"


@functools.cache
def _program() -> str:
    """Hash of this package's code: what another version computed is another result."""
    digest = hashlib.sha256()
    root = Path(__file__).parent
    for item in sorted(root.rglob("*.py")):
        digest.update(str(item.relative_to(root)).encode())
        digest.update(item.read_bytes())
    return digest.hexdigest()


def load(kind: str, name: str) -> Any | None:
    """A result; None where there is none, or none that can be read."""
    try:
        return json.loads((folder() / kind / f"{name}.json").read_text())
    except (OSError, ValueError):
        return None


def store(kind: str, name: str, value: Any) -> None:
    """Keep a result; quietly not where the folder cannot be written."""
    target = folder() / kind / f"{name}.json"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=target.parent, suffix=".part", delete=False) as file:
            json.dump(value, file)
        Path(file.name).replace(target)
    except OSError:
        return
