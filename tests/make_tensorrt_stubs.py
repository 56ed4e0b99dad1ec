"""Type stubs of TensorRT's Python package, read from the package itself: what the tests check our calls against.

    pip download --no-deps tensorrt-cu12-bindings==10.3.0 && unzip tensorrt_cu12_bindings-*.whl
    python tests/make_tensorrt_stubs.py tensorrt_bindings/tensorrt.so 10.3.0

The compiled module says its signatures in its docstrings. It is loaded without TensorRT: libraries that it wants are made here by
the C compiler, empty, as reading docstrings calls none of them. Needs gcc, nm and readelf, and the Python that the module is for.
What is written holds signatures only, of the classes that `graphprune.backends.tensorrt.engine` uses.
"""

import ast
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

CLASSES = """
    ILogger Logger Builder BuilderFlag DeviceType MemoryPoolType NetworkDefinitionCreationFlag INetworkDefinition OnnxParser ParserError
    IBuilderConfig IOptimizationProfile Dims IHostMemory CalibrationAlgoType IInt8Calibrator IInt8EntropyCalibrator2 ProfilingVerbosity
""".split()
#: Names that mean something in a stub as they are.
PLAIN = {"self", "int", "float", "bool", "str", "bytes", "None", "object", "list", "tuple", "dict", "List", "Tuple", "Dict", "Any"}


def main(library: str, version: str) -> None:
    """Load the module beside empty libraries, in a process of its own, and write its stub."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = subprocess.check_output(["nm", "-D", "--undefined-only", library], text=True).split("\n")
        own = re.compile(r"^\s+U ((?:create|get|init|_ZN\d*nv)\w+)$")
        names = [found[1] for line in wanted if (found := own.match(line))]
        source = Path(folder) / "empty.c"
        source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in names if name != "getenv"))
        needed = subprocess.check_output(["readelf", "-d", library], text=True)
        for file in re.findall(r"NEEDED.*\[(libnv[^\]]+)\]", needed):
            subprocess.check_call(["gcc", "-w", "-shared", "-fPIC", "-o", f"{folder}/{file}", f"-Wl,-soname,{file}", str(source)])
        env = {**os.environ, "LD_LIBRARY_PATH": folder, "PYTHONPATH": str(Path(library).resolve().parent)}
        text = subprocess.check_output([sys.executable, __file__, "--read"], env=env, text=True)
    to = Path(__file__).with_name("tensorrt_stubs") / version / "tensorrt.pyi"
    to.parent.mkdir(parents=True, exist_ok=True)
    head = f"# Signatures of TensorRT {version}, read from its Python package by tests/make_tensorrt_stubs.py.\n"
    to.write_text(head + text)


def read() -> str:
    """The stub of the module on the path."""
    import tensorrt

    lines = ["from typing import Any, ClassVar, overload", "", "__version__: str"]
    for name in CLASSES:
        cls = getattr(tensorrt, name, None)
        if cls is None:
            continue
        base = cls.__mro__[1].__name__
        lines += ["", f"class {name}({base}):" if base in CLASSES else f"class {name}:"]
        body = members(cls)
        if name == "Logger":  # its __init__.py copies them there
            body += [f"{one}: ClassVar[ILogger.Severity]" for one in tensorrt.ILogger.Severity.__members__]
        lines += [f"    {line}" for line in body or ["..."]]
    return "\n".join(lines) + "\n"


def members(cls: type) -> "list[str]":
    """Lines of a class."""
    if hasattr(cls, "__members__"):
        return [*(f"{one}: ClassVar[{cls.__qualname__}]" for one in cls.__members__ if one != "None"), "def __int__(self) -> int: ..."]
    found = []
    for name, value in sorted(vars(cls).items()):
        doc = getattr(value, "__doc__", "") or ""
        if isinstance(value, type):
            found += [f"class {name}:", *(f"    {line}" for line in members(value))]
        elif isinstance(value, property):
            got = re.match(r"\(.*\) -> (.*)", ((value.fget and value.fget.__doc__) or "").strip())
            kind = typed(got[1]) if got else "Any"
            found += ["@property", f"def {name}(self) -> {kind}: ..."]
            if value.fset is not None:
                found += [f"@{name}.setter", f"def {name}(self, value: {kind}) -> None: ..."]
        elif doc and (name == "__init__" or not name.startswith(("_", "add_")) or name == "add_optimization_profile"):
            overloads = re.findall(rf"^\s*(?:\d+\. )?({name}\(.*\).*)$", doc, re.M)
            overloads = [line for line in overloads if "*args, **kwargs" not in line] or overloads[:1]
            marks = ["@overload"] * (len(overloads) > 1) + ["@staticmethod"] * isinstance(value, staticmethod)
            found += [line for one in overloads for line in (*marks, defined(one))]
    if cls.__name__ == "IHostMemory":  # pybind11's buffers say nothing of themselves
        found.append("def __buffer__(self, flags: int, /) -> memoryview: ...")
    return found


def defined(signature: str) -> str:
    """A line of a stub from a line of a docstring."""
    text = re.sub(r"= <[^>]*>(?: \([^)]*\))?", "= ...", signature)
    text = re.sub(r"\b(?:nvinfer1|nvonnxparser)::", "", text).replace("IParserError", "ParserError").replace("::", ".")
    try:
        node = ast.parse(f"def {text}: ...").body[0]
    except SyntaxError:
        return f"def {signature.partition('(')[0]}(self, *args: Any, **kwargs: Any) -> Any: ..."
    assert isinstance(node, ast.FunctionDef)
    parts, filled = [], len(node.args.args) - len(node.args.defaults)
    for i, argument in enumerate(node.args.args):
        kind = "" if i == 0 or argument.annotation is None else f": {typed(ast.unparse(argument.annotation))}"
        parts.append(f"{'self' if i == 0 and argument.arg == 'arg0' else argument.arg}{kind}{' = ...' if i >= filled else ''}")
    result = typed(ast.unparse(node.returns)) if node.returns else "Any"
    return f"def {node.name}({', '.join(parts)}) -> {result}: ..."


def typed(text: str) -> str:
    """A type as stubs write it; that of a class that is left out is Any."""
    text = re.sub(r"(?:tensorrt|typing|collections\.abc)\.(?:tensorrt\.)?", "", text).strip()
    text = re.sub(r"\b(List|Tuple|Dict)\b", lambda m: m[1].lower(), text)
    text = re.sub(r"\blist\b(?!\[)", "list[Any]", text)
    names = set(re.findall(r"[A-Za-z_:][\w.:]*", text))
    unknown = [n for n in names if n.split(".")[0] not in (*CLASSES, *PLAIN)]
    if unknown:
        return "Any"
    try:
        ast.parse(text, mode="eval")
    except SyntaxError:
        return "Any"
    return text


if __name__ == "__main__":
    if sys.argv[1] == "--read":
        print(read(), end="")
    else:
        main(sys.argv[1], sys.argv[2])
