"""What a user, a full disk, a damaged file or a signal can do to a run: one message, an exit code, nothing left."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphprune as gp
from graphprune.errors import OutputError
from tests.command import call, fails
from tests.nets import two_convs


def changed(path: Path, index: int, change: Callable[[np.ndarray], None]) -> Path:
    proto = onnx.load(path)
    tensor = proto.graph.initializer[index]
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    onnx.save(proto, path)
    return path


# ---------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--align", "99999999999999999999"], "outside 1.."),
        (["--align", "²"], "whole number"),
        (["--rate", "nan"], "outside (0, 1)"),
        (["--floor", "nan"], "outside [0, 1)"),
        (["--budget", "latency=8"], "a time has a unit, as in 8ms"),
        (["--budget", "macs=nan"], "write macs=0.5"),
        (["--mean", "0.5"], "give --data"),
        (["--std", "0"], "give --data"),
        (["--layout", "NCHW"], "give --data"),
        (["--data", ""], "--data"),
    ],
)
def test_bad_options(model: Path, tmp_path: Path, options: list[str], words: str) -> None:
    assert words in fails("run", model, "-o", tmp_path / "o.onnx", *options)
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("options", [["--align", "4096"], ["--rate", "0.001"]])
def test_a_run_that_cuts_nothing_says_so(model: Path, tmp_path: Path, options: list[str]) -> None:
    result = call("run", model, "-o", tmp_path / "o.onnx", "--json", *options)
    assert any("nothing was cut" in note for note in json.loads(result.stdout)["notes"])


def test_a_budget_of_few_units_is_met_by_a_step_in_one_group(model: Path) -> None:
    result = gp.prune(model, budget="params=0.3")
    assert abs(result.plan.after["params"] / result.plan.before["params"] - 0.3) <= 0.003
    assert not any("nearest possible" in note for note in result.state.notes)


# ------------------------------------------------------------------------------------------- weights and sizes


@pytest.mark.parametrize("criterion", ["l1", "l2", "entropy"])
@pytest.mark.parametrize("bad", [np.inf, -np.inf])
@pytest.mark.filterwarnings("error")
def test_an_infinite_weight_is_named(model: Path, tmp_path: Path, criterion: str, bad: float) -> None:
    changed(model, 2, lambda w: np.put(w, 7, bad))
    assert "'w2'" in fails("run", model, "-o", tmp_path / "o.onnx", "--pass", criterion)


def test_outputs_that_are_not_finite_prove_nothing(model: Path, tmp_path: Path) -> None:
    changed(model, 1, lambda w: w.fill(3e38))
    message = fails("run", model, "-o", tmp_path / "o.onnx", "--pass", "random")
    assert "nothing can be proved" in message
    assert not (tmp_path / "o.onnx").exists()


def test_absurd_sizes_inside_are_refused_before_they_are_labelled(tmp_path: Path) -> None:
    """A pad of 2^31 made the coupling label 2^31 indices: 4 GB for an error that came later (fuzz seed 2000048)."""
    proto = two_convs(16, 12)
    next(a for a in proto.graph.node[0].attribute if a.name == "pads").ints[2] = 2**31
    onnx.save(proto, tmp_path / "m.onnx")
    assert "more than memory holds" in fails("inspect", tmp_path / "m.onnx")


def test_absurd_constants_are_not_made(tmp_path: Path) -> None:
    """A bias that ConstantOfShape makes, of 2^31 elements (fuzz seed 2000888)."""
    proto = two_convs(16, 12)
    del proto.graph.initializer[1]
    proto.graph.initializer.append(numpy_helper.from_array(np.array([2**31]), "n"))
    proto.graph.node.insert(0, helper.make_node("ConstantOfShape", ["n"], ["b1"]))
    onnx.save(proto, tmp_path / "m.onnx")
    assert "more than memory holds" in fails("inspect", tmp_path / "m.onnx")


# --------------------------------------------------------------------------------------------- source and output


def beside(folder: Path, name: str) -> Path:
    """A model whose second convolution lies in the file ``name``."""
    proto = two_convs(16, 12)
    tensor = proto.graph.initializer[2]
    (folder / name).write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    path = folder / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    return path


def test_output_must_not_be_the_sources_data(tmp_path: Path) -> None:
    for name in ("w.onnx", "w.plan.json"):
        path = beside(tmp_path, name)
        before = (tmp_path / name).read_bytes()
        assert "source" in fails("run", path, "-o", tmp_path / "w.onnx")
        assert (tmp_path / name).read_bytes() == before
        (tmp_path / name).unlink()
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize("how", ["same", "relative", "symlink", "hardlink", "plan"])
def test_the_api_never_writes_over_the_source(model: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    before, out = model.read_bytes(), model.with_name("out.onnx")
    monkeypatch.chdir(model.parent)
    if how == "symlink":
        out.symlink_to(model)
    elif how == "hardlink":
        out.hardlink_to(model)
    elif how == "plan":
        out.with_name("out.plan.json").symlink_to(model)
    target = {"same": model, "relative": Path("model.onnx")}.get(how, out)
    result = gp.prune(model)
    with pytest.raises(OutputError, match="source"):
        result.save(target)
    assert model.read_bytes() == before


def test_a_cut_keeps_large_weights_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graphprune.backends.onnx._KEEP_EXTERNAL", 1000)
    assert call("run", beside(tmp_path, "w.bin"), "-o", tmp_path / "o.onnx").exit_code == 0
    assert (tmp_path / "o.onnx.data").exists()
    assert call("verify", tmp_path / "m.onnx", tmp_path / "o.onnx").exit_code == 0


def test_paths_with_folders_and_other_alphabets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "größe").mkdir()
    onnx.save(two_convs(16, 12), tmp_path / "größe" / "模型 1.onnx")
    monkeypatch.chdir(tmp_path)
    assert call("run", "größe/模型 1.onnx").exit_code == 0
    assert {p.name for p in tmp_path.iterdir()} == {"größe", "模型 1.pruned.onnx", "模型 1.pruned.plan.json"}
    assert call("verify", "größe/模型 1.onnx", "模型 1.pruned.onnx").exit_code == 0


# -------------------------------------------------------------------------------------------------------- --eval

EVALUATIONS = """
    import sys
    import numpy
    def boom(path): raise ValueError("one\\ntwo")
    def nothing(path): return None
    def text(path): return "abc"
    def array(path): return numpy.zeros(3)
    def words(path): return {"accuracy": "high"}
    def leaves(path): sys.exit(0)
    def lists(path): return {"a": [1, 2]}
    def mixed(path): return {"accuracy": numpy.float32(0.5), "loss": float("nan")}
"""


@pytest.fixture
def evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "evaluations_of_tests.py").write_text(textwrap.dedent(EVALUATIONS))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "evaluations_of_tests", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


@pytest.mark.usefixtures("evaluations")
@pytest.mark.parametrize("name", ["boom", "nothing", "text", "array", "words", "leaves", "lists"])
def test_evaluations_that_fail_or_give_no_number(model: Path, tmp_path: Path, name: str) -> None:
    before = sorted(tmp_path.iterdir())
    result = call("run", model, "-o", tmp_path / "o.onnx", "--eval", f"evaluations_of_tests:{name}")
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert f"evaluations_of_tests:{name}" in result.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.usefixtures("evaluations")
def test_evaluations_are_json_whatever_they_give(model: Path, tmp_path: Path) -> None:
    result = call("run", model, "-o", tmp_path / "o.onnx", "--json", "--eval", "evaluations_of_tests:mixed")
    assert result.exit_code == 0, result.output

    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    found = json.loads(result.stdout, parse_constant=refuse)["evaluation"]
    assert found["before"] == {"accuracy": 0.5, "loss": None}
    assert call("run", model, "-o", tmp_path / "o.onnx", "--eval", "evaluations_of_tests:mixed").exit_code == 0


# -------------------------------------------------------------------------------------------------------- verify

DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], int]] = {
    "other schema": (lambda p: p.update(schema=2), 2),
    "no tensors": (lambda p: p.pop("tensors"), 2),
    "tensors a list": (lambda p: p.update(tensors=[1]), 2),
    "entry a number": (lambda p: p["tensors"].update(w1=5), 2),
    "no shape": (lambda p: p["tensors"]["w1"].pop("shape"), 2),
    "shape a word": (lambda p: p["tensors"]["w1"].update(shape="x"), 2),
    "other shape": (lambda p: p["tensors"]["w1"].update(shape=[15, 3, 3, 3]), 2),
    "no kept": (lambda p: p["tensors"]["w1"].pop("kept"), 2),
    "kept a list": (lambda p: p["tensors"]["w1"].update(kept=[1]), 2),
    "kept words": (lambda p: p["tensors"]["w1"].update(kept={"0": ["a"]}), 2),
    "kept fractions": (lambda p: p["tensors"]["w1"].update(kept={"0": [0.5]}), 2),
    "kept truths": (lambda p: p["tensors"]["w1"].update(kept={"0": [True]}), 2),
    "kept nested": (lambda p: p["tensors"]["w1"].update(kept={"0": [[0], [1]]}), 2),
    "kept huge": (lambda p: p["tensors"]["w1"].update(kept={"0": [10**30]}), 2),
    "kept outside": (lambda p: p["tensors"]["w1"].update(kept={"0": [-1]}), 2),
    "kept none": (lambda p: p["tensors"]["w1"].update(kept={"0": []}), 2),
    "no such axis": (lambda p: p["tensors"]["w1"]["kept"].update({"9": [0]}), 2),
    "axis a word": (lambda p: p["tensors"]["w1"]["kept"].update({"x": [0]}), 2),
    "no such tensor": (lambda p: p["tensors"].update(zz=p["tensors"].pop("w1")), 2),
    "shapes a list": (lambda p: p["options"].update(shapes=[1]), 2),
    "shapes of words": (lambda p: p["options"].update(shapes={"x": ["a"]}), 2),
    "other file": (lambda p: p["source"].update(sha256="00"), 2),
    "one index less": (lambda p: p["tensors"]["w1"]["kept"]["0"].pop(), 3),
    "a tensor less": (lambda p: p["tensors"].pop("w1"), 3),
    "out of order": (lambda p: p["tensors"]["w1"]["kept"]["0"].reverse(), 3),
    "twice the same": (lambda p: p["tensors"]["w1"]["kept"].update({"0": [0, 0]}), 3),
}


@pytest.fixture(scope="module")
def proved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proved")
    onnx.save(two_convs(16, 12), folder / "model.onnx")
    assert call("run", folder / "model.onnx", "-o", folder / "o.onnx").exit_code == 0
    return folder


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_plans(proved: Path, tmp_path: Path, case: str) -> None:
    damage, code = DAMAGE[case]
    plan = json.loads((proved / "o.plan.json").read_text())
    damage(plan)
    (tmp_path / "p.json").write_text(json.dumps(plan))
    fails("verify", proved / "model.onnx", proved / "o.onnx", "--plan", tmp_path / "p.json", code=code)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe\x00", b"[" * 100_000, b'{"schema": 1', b"null"])
def test_plans_that_are_none(proved: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.json").write_bytes(content)
    assert "p.json" in fails("verify", proved / "model.onnx", proved / "o.onnx", "--plan", tmp_path / "p.json")


def renamed(what: str, node: int, place: int) -> Callable[[onnx.ModelProto], None]:
    def change(proto: onnx.ModelProto) -> None:
        getattr(proto.graph, what)[0].name = "zz"
        getattr(proto.graph.node[node], what)[place] = "zz"

    return change


TAMPERED: dict[str, Callable[[onnx.ModelProto], object]] = {
    "input renamed": renamed("input", 0, 0),
    "output renamed": renamed("output", -1, 0),
    "input added": lambda p: p.graph.input.append(helper.make_tensor_value_info("q", TensorProto.FLOAT, [1])),
    "output added": lambda p: p.graph.output.append(helper.make_tensor_value_info("r", TensorProto.FLOAT, None)),
    "activation gone": lambda p: setattr(p.graph.node[1], "op_type", "Identity"),
    "other pads": lambda p: p.graph.node[0].attribute[0].ints.__setitem__(0, 0),
    "does not run": lambda p: p.graph.node[3].CopyFrom(helper.make_node("Concat", ["c", "x"], ["p"], axis=1)),
}


@pytest.mark.parametrize("case", TAMPERED)
def test_tampered_cuts_are_not_proved(proved: Path, tmp_path: Path, case: str) -> None:
    proto = onnx.load(proved / "o.onnx")
    TAMPERED[case](proto)
    onnx.save(proto, tmp_path / "t.onnx")
    fails("verify", proved / "model.onnx", tmp_path / "t.onnx", "--plan", proved / "o.plan.json", code=3)


def branched() -> onnx.ModelProto:
    """Both branches of an If hold a weight of the same name; a scalar stands beside them."""
    arms = {}
    rng = np.random.default_rng(0)
    for i, arm in enumerate(("then_branch", "else_branch")):
        weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in
                   (("w", (6, 8)), ("v", (8, 5)))]  # fmt: skip
        nodes = [helper.make_node("MatMul", ["s", "w"], [f"h{i}"]), helper.make_node("Relu", [f"h{i}"], [f"g{i}"]),
                 helper.make_node("MatMul", [f"g{i}", "v"], [f"o{i}"])]  # fmt: skip
        out = [helper.make_tensor_value_info(f"o{i}", TensorProto.FLOAT, ["n", 5])]
        arms[arm] = helper.make_graph(nodes, arm, [], out, weights)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "k"], ["s"]), helper.make_node("If", ["c"], ["y"], **arms)], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6]),
         helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 5])],
        [numpy_helper.from_array(np.array(0.5, np.float32), "k")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_weights_of_branches_are_compared_too(tmp_path: Path) -> None:
    onnx.save(branched(), tmp_path / "m.onnx")
    result = gp.prune(tmp_path / "m.onnx", scope="group")
    assert {"y/then_branch/w", "y/else_branch/w"} <= set(result.plan.tensors)
    result.save(tmp_path / "o.onnx")
    assert call("verify", tmp_path / "m.onnx", tmp_path / "o.onnx").exit_code == 0
    for arm in range(2):
        proto = onnx.load(tmp_path / "o.onnx")
        node = next(node for node in proto.graph.node if node.op_type == "If")
        tensor = node.attribute[arm].g.initializer[0]
        # A last bit: too small for any tolerance, but not the source's weight.
        array = numpy_helper.to_array(tensor).copy()
        array.flat[0] = np.nextafter(array.flat[0], np.float32(9))
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(proto, tmp_path / "t.onnx")
        message = fails("verify", tmp_path / "m.onnx", tmp_path / "t.onnx", "--plan", tmp_path / "o.plan.json", code=3)
        assert "does not hold" in message


@pytest.mark.parametrize("calls", [1, 2])
def test_constants_of_functions_have_their_name_in_plans(tmp_path: Path, calls: int) -> None:
    weights = {"k1": np.ones((6, 8), np.float32), "k2": np.ones((8, 6), np.float32)}
    weights = {name: np.arange(1, 49, dtype=np.float32).reshape(w.shape) / 48 for name, w in weights.items()}
    nodes = [helper.make_node("Constant", [], [n], value=numpy_helper.from_array(w)) for n, w in weights.items()]
    nodes += [helper.make_node("MatMul", ["q", "k1"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
              helper.make_node("MatMul", ["b", "k2"], ["r"])]  # fmt: skip
    function = helper.make_function("l", "F", ["q"], ["r"], nodes, [helper.make_opsetid("", 17)])
    names = ["x", *(f"z{i}" for i in range(calls))]
    body = [helper.make_node("F", [a], [b], domain="l") for a, b in itertools.pairwise(names)]
    graph = helper.make_graph(
        [*body, helper.make_node("Relu", [names[-1]], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
    )  # fmt: skip
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("l", 1)]
    onnx.save(helper.make_model(graph, functions=[function], opset_imports=imports, ir_version=8), tmp_path / "m.onnx")
    result = gp.prune(tmp_path / "m.onnx", scope="group")
    result.save(tmp_path / "o.onnx")
    assert call("verify", tmp_path / "m.onnx", tmp_path / "o.onnx").exit_code == 0
    cut = {t.name: numpy_helper.to_array(t) for t in onnx.load(tmp_path / "o.onnx").graph.initializer}
    assert result.plan.tensors and len(cut) == 2 * calls
    if calls == 1:
        assert set(result.plan.tensors) == {"k1", "k2"}
    for name, entry in result.plan.tensors.items():
        array = weights[name.split("__")[0]]
        for axis, kept in entry["kept"].items():
            array = np.take(array, kept, axis=int(axis))
        assert np.array_equal(array, cut[name])


def test_a_recovered_cut_is_proved_as_it_was_cut(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((64, 3, 8, 8)).astype(np.float32))
    out = tmp_path / "o.onnx"
    assert call("run", model, "-o", out, "--pass", "l1", "--pass", "recover", "--data", tmp_path / "x.npy").exit_code == 0
    result = call("verify", model, out)
    assert result.exit_code == 0 and "before its weights were recovered" in result.output
    proto = onnx.load(out)
    # Its sizes and that it runs are checked all the same.
    proto.graph.node[3].CopyFrom(helper.make_node("Concat", ["c", "x"], ["p"], axis=1))
    onnx.save(proto, tmp_path / "t.onnx")
    fails("verify", model, tmp_path / "t.onnx", "--plan", tmp_path / "o.plan.json", code=3)


# --------------------------------------------------------------------------------- signals, faults, a full disk


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing_behind(model: Path, tmp_path: Path, number: int) -> None:
    """The process is stopped in the middle of writing: its temporary files are there, then they are gone."""
    code = textwrap.dedent("""
        import signal, sys, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs start without it
        import graphprune.cli, graphprune.pipeline
        write = graphprune.pipeline.writer.Transaction.write
        def slowly(self, path, data):
            write(self, path, data)
            print("WRITTEN", flush=True)
            time.sleep(60)
        graphprune.pipeline.writer.Transaction.write = slowly
        sys.argv = ["graphprune", *sys.argv[1:]]
        graphprune.cli.main()
    """)
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-c", code, "run", str(model), "-o", str(out / "o.onnx")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "WRITTEN" in process.stdout.readline()
        assert len(list(out.iterdir())) == 2
        start = time.monotonic()
        process.send_signal(number)
        _, message = process.communicate(timeout=50)
    assert process.returncode == 128 + number
    assert time.monotonic() - start < 40
    assert "nothing was written" in message and "Traceback" not in message
    assert not list(out.iterdir())


def test_handlers_of_signals_are_given_back(model: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert call("inspect", model).exit_code == 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (KeyError("gone"), "a fault in graphprune (KeyError: 'gone')"),
        (OSError(28, "No space left on device", "/tmp/x"), "No space left"),
        (RecursionError("deep"), "too deeply nested"),
    ],
)
def test_no_error_ends_in_a_traceback(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("graphprune.pipeline.run_state", broken)
    assert words in fails("run", model, "-o", tmp_path / "o.onnx")
    shown = call("--debug", "run", model, "-o", tmp_path / "o.onnx")
    assert shown.exception is error
