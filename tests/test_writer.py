"""Writing: what was loaded comes back bit for bit; whole files or none; never over the source."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from graphprune.backends import onnx as writer
from graphprune.backends.onnx import Transaction, save, stage, to_bytes, to_proto
from graphprune.errors import ModelError, OutputError
from graphprune.frontends.onnx import load
from tests.model_files import DATA, MODELS, externalise, net, run, same, weight, write

# ---------------------------------------------------------------------------------------------------- round trip


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_round_trip(tmp_path: Path, name: str, external: bool) -> None:
    source = write(MODELS[name](), tmp_path / "m.onnx")
    before = source.read_bytes()
    out = tmp_path / "out.onnx"
    files = save(load(source).model, out, external=external)
    assert files == ([out, tmp_path / "out.onnx.data"] if external else [out])
    onnx.checker.check_model(str(out), full_check=True)
    assert same(run(out), run(source))
    assert source.read_bytes() == before
    if not external:
        assert out.read_bytes() == to_bytes(load(source).model)
    # What was written is in normal form already: writing it again changes nothing.
    again = tmp_path / "again.onnx"
    save(load(out).model, again, external=False)
    assert again.read_bytes() == to_bytes(load(source).model)


def test_external_source(tmp_path: Path) -> None:
    source = externalise(net(), tmp_path / "in")
    out = tmp_path / "out.onnx"
    assert save(load(source).model, out) == [out]
    assert same(run(out), run(source))
    assert save(load(source).model, out, external=True) == [out, tmp_path / "out.onnx.data"]
    assert same(run(out), run(source))


def test_external_by_itself_when_weights_are_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "INLINE_LIMIT", 5000)
    out = tmp_path / "out.onnx"
    files = save(load(net()).model, out)
    assert [file.name for file in files] == ["out.onnx", "out.onnx.data"]
    proto = onnx.load(out, load_external_data=False)
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data} for tensor in proto.graph.initializer
    }
    assert {place["location"] for place in places.values() if place} == {"out.onnx.data"}
    assert all(int(place["offset"]) % 64 == 0 for place in places.values() if place)
    assert not places["b1"]  # 64 bytes are not worth a reference
    assert same(run(out), run(net().SerializeToString()))


def test_file_kept_outside_stays_outside_from_100_mb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_KEEP_EXTERNAL", 5000)
    outside = load(externalise(net(), tmp_path)).model
    assert len(save(outside, tmp_path / "a.onnx")) == 2
    assert len(save(load(net()).model, tmp_path / "b.onnx")) == 1


def test_the_model_is_not_changed_by_writing(tmp_path: Path) -> None:
    model = load(externalise(net(), tmp_path)).model
    tensors = [id(tensor) for tensor in model.graph.initializers.tensors()]
    for external in (False, True):
        save(model, tmp_path / "out.onnx", external=external)
    with pytest.raises(OutputError):
        save(model, tmp_path / "no" / "out.onnx")
    assert [id(tensor) for tensor in model.graph.initializers.tensors()] == tensors


def test_lazy_slices_are_written(tmp_path: Path) -> None:
    """What the rewriter puts in: tensors that cut their part out of the mapped source when asked."""
    model = load(externalise(net(), tmp_path)).model
    value = model.graph.initializers["w2"]
    source = value.const_value
    assert source is not None
    keep = np.arange(15, -1, -1)
    value.const_value = ir.LazyTensor(
        lambda: ir.Tensor(source.numpy()[keep]), source.dtype, ir.Shape([16, 16, 3, 3]), name="w2"
    )
    for external in (False, True):
        save(model, tmp_path / "out.onnx", external=external)
        written = load(tmp_path / "out.onnx").model.graph.initializers["w2"].const_value
        assert written is not None
        assert np.array_equal(written.numpy(), source.numpy()[keep])


def test_a_tensor_of_the_wrong_size_is_an_error_not_a_file(tmp_path: Path) -> None:
    model = load(net()).model
    model.graph.initializers["w2"].const_value = ir.LazyTensor(
        lambda: ir.Tensor(np.zeros((15, 16, 3, 3), np.float32)), ir.DataType.FLOAT, ir.Shape([16, 16, 3, 3]), name="w2"
    )
    with pytest.raises(OutputError, match="'w2'"):
        save(model, tmp_path / "out.onnx")
    assert list(tmp_path.iterdir()) == []


def test_over_2_gb_is_not_put_in_one_message() -> None:
    model = load(net()).model
    model.graph.initializers["w2"].const_value = ir.LazyTensor(
        lambda: ir.Tensor(np.zeros(1, np.float32)), ir.DataType.FLOAT, ir.Shape([1 << 30]), name="w2"
    )
    with pytest.raises(OutputError, match="2 GB"):
        to_proto(model)


MEMORY = """
    import resource, sys
    import numpy as np, onnx_ir as ir
    from graphprune.backends.onnx import save
    from graphprune.frontends.onnx import check_finite, load, weights_of
    loaded = load(sys.argv[1])
    start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    check_finite(weights_of(loaded.model))
    for value in loaded.model.graph.initializers.values():
        source = value.const_value
        if source.size > 1000:
            half = ir.Shape([source.shape[0] // 2, *list(source.shape)[1:]])
            cut = lambda source=source: ir.Tensor(source.numpy()[: source.shape[0] // 2])
            value.const_value = ir.LazyTensor(cut, source.dtype, half, name=value.name)
    save(loaded.model, sys.argv[2])
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("external", [False, True])
def test_memory_stays_small(tmp_path: Path, external: bool) -> None:
    """256 MB of weights, read, checked, cut to half and written, take far less than that."""
    model = net()
    block = weight("extra", 4096, 1024)
    model.graph.initializer.append(block)
    for index in range(15):
        copy = model.graph.initializer.add()
        copy.CopyFrom(block)
        copy.name = f"more{index}"
    source = externalise(model, tmp_path) if external else write(model, tmp_path / "m.onnx")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEMORY), str(source), str(tmp_path / "out.onnx")],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    total = sum(file.stat().st_size for file in tmp_path.iterdir() if file.name.startswith("out"))
    assert total > 128_000_000
    assert int(done.stdout) * 1024 < 128_000_000


# --------------------------------------------------------------------------------------------- places refused


def refused(model: ir.Model, path: Path, *words: str, **more: object) -> None:
    """Writing is refused in one message, and every file is as it was."""
    folder = path.parent if path.parent.is_dir() else path.parent.parent
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(OutputError) as caught:
        save(model, path, **more)  # type: ignore[arg-type]
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_never_over_the_source(tmp_path: Path) -> None:
    source = externalise(net(), tmp_path)
    model = load(source).model
    (tmp_path / "link.onnx").symlink_to(source)
    (tmp_path / "hard.onnx").hardlink_to(source)
    (tmp_path / "other.onnx.data").symlink_to(tmp_path / DATA)
    refused(model, source, "source file", "choose another name")
    refused(model, tmp_path / "link.onnx", "source file")
    refused(model, tmp_path / "hard.onnx", "source file")
    refused(model, tmp_path / "sub" / ".." / "m.onnx", "source file")
    refused(model, tmp_path / DATA, "source file")
    refused(model, tmp_path / "other.onnx", "source file", external=True)
    (tmp_path / "mine").write_bytes(b"precious")
    refused(model, tmp_path / "mine", "source file", source=[tmp_path / "mine"])


def test_source_under_a_relative_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(net(), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    refused(load("m.onnx").model, tmp_path / "m.onnx", "source file")
    refused(load(tmp_path / "m.onnx").model, Path("m.onnx"), "source file")
    model = load("m.onnx").model
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    refused(model, tmp_path / "m.onnx", "source file")
    save(model, "m.onnx")
    assert same(run(tmp_path / "sub" / "m.onnx"), run(tmp_path / "m.onnx"))


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    model = load(net()).model
    refused(model, tmp_path / "no" / "out.onnx", "does not exist", "create it first")
    refused(model, tmp_path, "folder")
    (tmp_path / "file").write_bytes(b"x")
    refused(model, tmp_path / "file" / "out.onnx", "cannot write")
    refused(model, tmp_path / ("n" * 300), "cannot write")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="not a regular file"):
        save(model, tmp_path / "pipe")
    with pytest.raises(OutputError, match="not a regular file"):
        save(model, "/dev/null")
    assert Path("/dev/null").is_char_device()
    with pytest.raises(OutputError, match="cannot write"):
        save(model, "a\0b")


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    model = load(net()).model
    (tmp_path / "out.onnx").write_bytes(b"old")
    (tmp_path / "out.onnx").chmod(0o444)
    refused(model, tmp_path / "out.onnx", "read-only")
    (tmp_path / "closed").mkdir(mode=0o555)
    refused(model, tmp_path / "closed" / "out.onnx", "permission")


# ------------------------------------------------------------------------------------------- all files or none


class Full:
    """A file that takes ``room`` bytes and then says the disk is full."""

    def __init__(self, file: object, room: int, code: int) -> None:
        self.file, self.room, self.code = file, room, code

    def __getattr__(self, name: str) -> object:
        return getattr(self.file, name)

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()  # type: ignore[attr-defined]

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(self.code, os.strerror(self.code))
        return self.file.write(data)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("external", [False, True])
@pytest.mark.parametrize("room", [0, 100, 5000, 9000])
@pytest.mark.parametrize(
    ("code", "word"), [(errno.ENOSPC, "disk is full"), (errno.EDQUOT, "disk is full"), (errno.EIO, "error")]
)
def test_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, external: bool, code: int, word: str
) -> None:
    model = load(net()).model
    (tmp_path / "out.onnx").write_bytes(b"old")
    real = os.fdopen
    monkeypatch.setattr(writer.os, "fdopen", lambda *args, **more: Full(real(*args, **more), room, code))
    refused(model, tmp_path / "out.onnx", word, "nothing was written", external=external)


LIMIT = """
    import resource, signal, sys
    from graphprune.backends.onnx import save
    from graphprune.errors import OutputError
    from graphprune.frontends.onnx import load
    model = load(sys.argv[1]).model
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8000, 8000))
    try:
        save(model, sys.argv[2], external=sys.argv[3] == "True")
    except OutputError as error:
        print(error)
"""


@pytest.mark.parametrize("external", [False, True])
def test_file_size_limit_of_the_system(tmp_path: Path, external: bool) -> None:
    """A real failing write, from the kernel."""
    source = write(net(), tmp_path / "m.onnx")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(LIMIT), str(source), str(tmp_path / "out.onnx"), str(external)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).resolve().parent.parent,
    )
    assert "larger than allowed" in done.stdout
    assert done.stdout.count("\n") == 1
    assert list(tmp_path.iterdir()) == [source]


def test_files_of_a_transaction_appear_together(tmp_path: Path) -> None:
    model = load(net()).model
    with Transaction() as transaction:
        stage(model, tmp_path / "out.onnx", transaction, external=True)
        transaction.write(tmp_path / "out.plan.json", b"{}")
        assert not any(not file.name.startswith(".") for file in tmp_path.iterdir())
        assert [path.name for path in transaction.paths] == ["out.onnx.data", "out.onnx", "out.plan.json"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.onnx", "out.onnx.data", "out.plan.json"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OutputError])
def test_error_in_the_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "out.plan.json").write_bytes(b"old plan")

    def attempt() -> None:
        with Transaction() as transaction:
            stage(load(net()).model, tmp_path / "out.onnx", transaction)
            transaction.write(tmp_path / "out.plan.json", b"{}")
            raise error

    with pytest.raises(error):
        attempt()
    assert [file.name for file in tmp_path.iterdir()] == ["out.plan.json"]
    assert (tmp_path / "out.plan.json").read_bytes() == b"old plan"


def failing_rename(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Path], bool]) -> None:
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if self.suffix == ".tmp" and fails(Path(target)):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)


@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("failing", ["a", "b", "c"])
def test_failed_rename_rolls_all_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, links: bool
) -> None:
    """Old files come back, new ones go, also where the file system has no hard links."""
    (tmp_path / "a").write_bytes(b"old a")
    (tmp_path / "c").write_bytes(b"old c")
    failing_rename(monkeypatch, lambda target: target.name == failing)
    if not links:
        monkeypatch.setattr(
            Path, "hardlink_to", lambda self, target: (_ for _ in ()).throw(OSError(errno.EPERM, "no links"))
        )

    def attempt() -> None:
        with Transaction() as transaction:
            for name in ("a", "b", "c"):
                transaction.write(tmp_path / name, b"new")

    with pytest.raises(OutputError, match=f"'.*{failing}'"):
        attempt()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {"a": b"old a", "c": b"old c"}


def test_two_outputs_of_one_name(tmp_path: Path) -> None:
    def attempt() -> None:
        with Transaction() as transaction:
            transaction.write(tmp_path / "a", b"1")
            transaction.write(tmp_path / "x" / ".." / "a", b"2")

    (tmp_path / "x").mkdir()
    with pytest.raises(OutputError, match="same name"):
        attempt()
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_mode_and_links_of_an_old_output_are_kept(tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (real / "target.onnx").write_bytes(b"old")
    (real / "target.onnx").chmod(0o640)
    (tmp_path / "out.onnx").symlink_to(real / "target.onnx")
    save(load(net()).model, tmp_path / "out.onnx", external=True)
    assert (tmp_path / "out.onnx").is_symlink()
    assert stat.S_IMODE((real / "target.onnx").stat().st_mode) == 0o640
    assert sorted(file.name for file in real.iterdir()) == ["target.onnx", "target.onnx.data"]
    assert same(run(real / "target.onnx"), run(net().SerializeToString()))


def test_new_files_have_the_usual_mode(tmp_path: Path) -> None:
    save(load(net()).model, tmp_path / "out.onnx")
    (tmp_path / "other").write_bytes(b"")
    assert (tmp_path / "out.onnx").stat().st_mode == (tmp_path / "other").stat().st_mode


# --------------------------------------------------------------------------------------------- ONNX's own suite


@pytest.mark.slow
def test_onnx_backend_suite(tmp_path: Path) -> None:
    """Every node test and every model the onnx package ships loads and comes back the same, or is refused as too old."""
    from onnx.backend.test.case.node import collect_testcases

    cases: list[tuple[str, onnx.ModelProto, list[object] | None]] = [
        (case.name, case.model, list(case.data_sets[0][0]) if case.data_sets else None)
        for case in collect_testcases(None)
    ]
    root = Path(onnx.__file__).parent / "backend" / "test" / "data"
    for path in (*root.rglob("model.onnx"), *(root / "light").glob("*.onnx")):
        cases.append((path.parent.name + path.stem, onnx.load(path), None))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    compared = 0
    for name, model, inputs in cases:
        try:
            loaded = load(model).model
        except ModelError as error:
            assert "opset" in str(error), (name, error)
            assert model.opset_import[0].version < 7, name
            continue
        data = to_bytes(loaded)
        try:
            onnx.checker.check_model(model, full_check=True)
            first = ort.InferenceSession(model.SerializeToString(), options)
        except Exception:
            continue
        onnx.checker.check_model(onnx.ModelProto.FromString(data), full_check=True)
        second = ort.InferenceSession(data, options)
        assert [value.name for value in first.get_inputs()] == [value.name for value in second.get_inputs()]
        if inputs is None or "bernoulli" in name:
            continue
        feeds = {value.name: given for value, given in zip(first.get_inputs(), inputs, strict=False)}
        try:
            expected = first.run(None, feeds)
        except Exception:
            continue
        for ours, theirs in zip(flat(second.run(None, feeds)), flat(expected), strict=True):
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
        compared += 1
    assert compared > 1000


def flat(outputs: list[object]) -> list[object]:
    """Tensors of outputs that may be sequences."""
    return [item for output in outputs for item in (flat(output) if isinstance(output, list) else [output])]
