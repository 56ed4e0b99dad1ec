"""INT8 and 2:4 sparsity behind the cut: where pairs stand, what is refused, and every stage judged and proved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from click.testing import CliRunner

import graphprune as gp
from graphprune.backends import onnx as writer
from graphprune.backends.tensorrt import build
from graphprune.cli import cli
from graphprune.devices import resolve
from graphprune.frontends.onnx import load
from graphprune.lstsq import Rows
from graphprune.ops.linear_form import linear_form
from graphprune.ops.placement import PLACEMENTS
from graphprune.ops.sparsity import fours, sparse_layers
from graphprune.quantisation import Quantiser, Settings
from graphprune.sparsity import two_of_four
from tests.patterns.build import F16, Net

ROOT = Path(__file__).resolve().parents[1]
DIGITS = ROOT / "examples" / "digits"
RNG = np.random.default_rng(0)


def residual(opset: int = 17, **options: Any) -> onnx.ModelProto:
    """Two convolutions with batch norms and a residual addition, a pool and a classifier."""
    g = Net(**options)
    x = g.x("n", 4, 8, 8)
    y = g.Relu(g.Conv(x, g.w("stem", 8, 4, 3, 3), g.w("stem_b", 8), pads=[1] * 4))
    a = g.bn(g.Conv(y, g.w("inner", 8, 8, 3, 3), pads=[1] * 4), "norm", 8)
    z = g.Relu(g.Add(a, y))
    z = g.Flatten(g.GlobalAveragePool(z))
    g.out(g.Gemm(z, g.w("fc", 8, 4), g.w("fc_b", 4)), name="y")
    return g.model(opset)


def feeds(shape: tuple[int, ...] = (8, 4, 8, 8), count: int = 3) -> list[dict[str, np.ndarray]]:
    return [{"x": RNG.normal(size=shape).astype(np.float32)} for _ in range(count)]


def quantised(model: onnx.ModelProto, backend: str = "onnxruntime", **settings: Any) -> tuple[Quantiser, ir.Model]:
    found = Quantiser(load(model).model, feeds(), Settings(PLACEMENTS[backend], **settings))
    return found, found.run()


def run(model: Any, feed: dict[str, np.ndarray]) -> np.ndarray:
    data = model if isinstance(model, bytes) else model.SerializeToString() if isinstance(model, onnx.ModelProto) else writer.to_bytes(model)
    return np.asarray(ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, feed)[0])


def pairs_before(model: ir.Model, op: str) -> list[list[str]]:
    """Of every node of an op, the ops that make its inputs."""
    producers = [[v.producer() for v in node.inputs if v is not None] for node in model.graph if node.op_type == op]
    return [["" if p is None else p.op_type for p in made] for made in producers]


@pytest.mark.parametrize("backend", list(PLACEMENTS))
@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_every_placement_runs_and_computes_nearly_the_same(backend: str, method: Any) -> None:
    source = residual()
    _, model = quantised(source, backend, method=method)
    feed = feeds(count=1)[0]
    want, got = run(source, feed), run(model, feed)
    assert 0 < np.abs(want - got).max() < 0.1 * np.abs(want).max()
    assert all(made[:2] == ["DequantizeLinear"] * 2 for made in pairs_before(model, "Conv"))


def test_tensorrt_gets_signed_pairs_at_inputs_alone_and_one_addend_in_float() -> None:
    _, model = quantised(residual(), "tensorrt")
    assert [sorted(made) for made in pairs_before(model, "Add")] == [["Conv", "DequantizeLinear"]]
    for node in model.graph:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = node.inputs[2].const_value.numpy()
            assert zero.dtype == np.int8 and not zero.any()
        if node.op_type == "Conv":
            assert node.inputs[2].producer() is None  # the bias is float
            scale = node.inputs[1].producer().inputs[1].const_value.numpy()
            assert scale.shape == (8,)
    assert model.graph.outputs[0].producer().op_type == "Gemm"


def test_onnxruntime_gets_chains_in_integers() -> None:
    _, model = quantised(residual())
    assert pairs_before(model, "Add") == [["DequantizeLinear"] * 2]
    assert all(made == ["DequantizeLinear"] * 3 for made in pairs_before(model, "Conv"))
    codes = [node.inputs[2].const_value.numpy().dtype for node in model.graph if node.op_type == "QuantizeLinear"]
    assert set(codes) == {np.dtype(np.uint8)}
    assert not any(node.op_type == "BatchNormalization" for node in model.graph)  # folded before


def test_scales_of_dead_channels_are_not_zero() -> None:
    source = residual()
    for tensor in source.graph.initializer:
        if tensor.name in ("stem", "inner"):
            array = onnx.numpy_helper.to_array(tensor).copy()
            array[:2] = 0
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for backend in PLACEMENTS:
        _, model = quantised(source, backend)
        for node in model.graph:
            if node.op_type == "DequantizeLinear":
                scale = node.inputs[1].const_value.numpy()
                assert (scale > 0).all() and (scale < 0.9).all()  # 1 would round the biases, which are all that is left
        assert np.isfinite(run(model, feeds(count=1)[0])).all()


def test_a_constant_that_is_added_stays_in_floating_point_for_tensorrt() -> None:
    g = Net()
    y = g.Add(g.MatMul(g.x("n", 8), g.w("w", 8, 8)), g.w("b", 8))
    g.out(g.MatMul(g.Relu(y), g.w("v", 8, 4)), name="y")
    found = Quantiser(load(g.model()).model, feeds((4, 8)), Settings(PLACEMENTS["tensorrt"]))
    assert len(found.layers) == 2 and found.nodes == found.layers


def test_old_opsets_are_raised_and_equal() -> None:
    _, model = quantised(residual(opset=11))
    assert model.graph.opset_imports[""] >= 13


@pytest.mark.parametrize(("model", "said"), [
    (residual(dtype=F16), "float16"),
    (writer.to_proto(quantised(residual())[1]), "quantised already"),
])  # fmt: skip
def test_what_int8_cannot_start_from_is_told_before_any_work(model: onnx.ModelProto, said: str) -> None:
    with pytest.raises(gp.GraphPruneError, match=said):
        gp.prune(model, passes=["quantize"])


def test_a_model_without_layers_is_told() -> None:
    g = Net()
    g.out(g.Relu(g.x(2, 3)), name="y")
    with pytest.raises(gp.GraphPruneError, match="no layer"):
        gp.prune(g.model(), passes=["quantize"])


def test_a_large_model_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "INLINE_LIMIT", 100)
    with pytest.raises(gp.GraphPruneError, match="2 GB"):
        quantised(residual())


@pytest.mark.parametrize(("passes", "options", "said"), [
    (["quantize"], {"rate": 0.5}, "--rate is for a cut"),
    (["quantize", "recover"], {}, "--pass recover is for a cut"),
    (["recover"], {}, "no scoring pass"),
    (["quantize", "quantize"], {}, "given twice"),
    (["quantize{keep=[nothing*]}"], {}, "matches no node"),
    (["sparsify{keep=[nothing*]}"], {}, "matches no layer"),
    (["quantize{percentile=20}"], {}, "percentile"),
])  # fmt: skip
def test_what_cannot_be_meant_is_told(passes: list[str], options: dict[str, Any], said: str) -> None:
    with pytest.raises(gp.GraphPruneError, match=said):
        gp.prune(residual(), passes=passes, **options)


# -- whole runs --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The example network cut, recovered, made sparse and INT8, by the command line."""
    folder = tmp_path_factory.mktemp("quantize")
    done = CliRunner().invoke(cli, [
        "run", str(DIGITS / "digits.onnx"), "-o", str(folder / "cut.onnx"), "--pass", "l1", "--pass", "recover", "--pass", "sparsify",
        "--pass", "quantize{backend=tensorrt}", "--budget", "macs=0.5", "--allocate", "uniform", "--align", "4",
        "--data", str(DIGITS / "digits_calibration.npz"), "--eval", "examples.digits.evaluate:accuracy",
        "--report", str(folder / "report.html"),
    ])  # fmt: skip
    assert done.exit_code == 0, done.output
    for text in ("source", "cut", "recovered", "2:4 sparse", "INT8 alone", "accuracy", "divergence"):
        assert text in done.output
    return folder, json.loads((folder / "cut.plan.json").read_text())


def test_every_stage_is_judged(digits: tuple[Path, dict[str, Any]]) -> None:
    folder, plan = digits
    stages = {stage["stage"]: stage for stage in plan["stages"]}
    assert list(stages) == ["source", "cut", "recovered", "2:4 sparse", "INT8", "INT8 alone"]
    accuracy = {name: stage["evaluation"]["accuracy"] for name, stage in stages.items()}
    assert accuracy["cut"] < accuracy["recovered"] and accuracy["INT8"] > 0.9 * accuracy["2:4 sparse"]
    assert stages["INT8"]["bytes"] < stages["recovered"]["bytes"]
    assert stages["INT8"]["bytes"] == (folder / "cut.onnx").stat().st_size
    assert [stage["delivered"] for stage in plan["stages"]] == [True] * 5 + [False]
    page = (folder / "report.html").read_text()
    assert "INT8 alone" in page and "2:4 sparse" in page


def test_the_plan_replays_to_the_weights_before_and_the_file_is_proved(digits: tuple[Path, dict[str, Any]]) -> None:
    folder, plan = digits
    report = gp.verify(DIGITS / "digits.onnx", folder / "cut.onnx")
    assert report["passed"] and report["recovered"] and report["quantised"] == len(plan["quantize"]["tensors"])
    plain = gp.prune(DIGITS / "digits.onnx", passes=["l1"], budget="macs=0.5", allocate="uniform", align=4,
                     data=DIGITS / "digits_calibration.npz", samples=256)  # fmt: skip
    assert plain.plan.tensors == plan["tensors"]
    said = CliRunner().invoke(cli, ["verify", str(DIGITS / "digits.onnx"), str(folder / "cut.onnx")]).output
    assert "recovered and quantised" in said


def test_integers_that_are_not_the_sources_are_found(tmp_path: Path) -> None:
    source, cut = tmp_path / "m.onnx", tmp_path / "cut.onnx"
    g = Net()
    y = g.Relu(g.Conv(g.x(4, 4, 8, 8), g.w("a", 8, 4, 3, 3), g.w("ab", 8)))
    g.out(g.Conv(y, g.w("b", 4, 8, 3, 3), g.w("bb", 4)), name="y")
    onnx.save(g.model(), source)
    gp.prune(source, passes=["l1", "quantize"], rate=0.5).save(cut)
    assert gp.verify(source, cut)["quantised"]
    model = onnx.load(cut)
    tensor = next(t for t in model.graph.initializer if t.name == "a_quantized")
    array = onnx.numpy_helper.to_array(tensor).copy()
    array[0, 0, 0, 0] += 9 if array[0, 0, 0, 0] < 0 else -9
    tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    onnx.save(model, cut)
    with pytest.raises(gp.GraphPruneError, match="'a' does not hold the source's values"):
        gp.verify(source, cut)


def test_alone_nothing_is_cut(tmp_path: Path) -> None:
    onnx.save(residual(), tmp_path / "m.onnx")
    result = gp.prune(tmp_path / "m.onnx", passes=["quantize"], samples=16)
    assert not result.plan.tensors and [stage["stage"] for stage in result.plan.stages] == ["source", "INT8"]
    result.save(tmp_path / "q.onnx")
    assert gp.verify(tmp_path / "m.onnx", tmp_path / "q.onnx")["passed"]


def test_dynamic_axes_and_metadata_stay(tmp_path: Path) -> None:
    source = residual()
    source.metadata_props.add(key="characters", value="abc")
    source.producer_name = "someone"
    result = gp.prune(source, passes=["l1", "quantize"], rate=0.5, samples=16)
    proto = result.proto()
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "n"
    assert {(p.key, p.value) for p in proto.metadata_props} == {("characters", "abc")} and proto.producer_name == "someone"
    for n in (1, 5):
        assert run(result.ir, feeds((n, 4, 8, 8), 1)[0]).shape == (n, 4)


def test_in_steps_it_runs_once(tmp_path: Path) -> None:
    result = gp.prune(residual(), passes=["l1", "recover", "sparsify", "quantize"], rate=0.5, steps=2, samples=16)
    assert [stage["stage"] for stage in result.plan.stages][-3:] == ["2:4 sparse", "INT8", "INT8 alone"]
    with pytest.raises(gp.GraphPruneError, match="float16"):
        gp.prune(residual(dtype=F16), passes=["l1", "quantize"], rate=0.5, steps=2)


def test_keep_ends_and_tolerance_leave_layers_in_floating_point() -> None:
    settings: dict[str, Any] = {"samples": 16}
    kept = gp.prune(residual(), passes=["quantize{keep=[inner*]}"], **settings)
    assert ["DequantizeLinear"] * 2 not in [made[:2] for made in pairs_before(kept.ir, "Conv")][1:]
    ends = gp.prune(residual(), passes=["quantize{ends=true}"], **settings)
    assert len(ends.plan.quantize["left"]) == 2 and pairs_before(ends.ir, "Gemm")[0][1] == ""
    exact = gp.prune(residual(), passes=["quantize{tolerance=0}"], **settings)
    assert exact.plan.quantize["harmful"] and any("stay in floating point" in note for note in exact.plan.notes)
    whole = gp.prune(residual(), passes=["quantize"], **settings)
    assert exact.plan.quantize["divergence"]["after"] <= whole.plan.quantize["divergence"]["after"]


def test_a_torch_module_stays_in_floating_point() -> None:
    torch = pytest.importorskip("torch")
    net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
    result = gp.prune(net, torch.randn(32, 8), passes=["l1", "quantize"], rate=0.5, samples=32)
    assert net[0].out_features == 8 and net[0].weight.dtype == torch.float32
    assert any(node.op_type == "QuantizeLinear" for node in result.ir.graph)


# -- 2:4 ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("curvature", ["none", "moments", "inverse"])
def test_two_of_four_stay_and_they_are_the_best(curvature: str) -> None:
    weight = RNG.normal(size=(5, 8))
    columns = np.arange(8).reshape(2, 4)
    x = RNG.normal(size=(100, 8)) @ RNG.normal(size=(8, 8))
    moments = x.T @ x / len(x)
    given = {"none": None, "moments": np.diag(moments), "inverse": np.linalg.inv(moments)}[curvature]
    stays = two_of_four(weight, columns, given)
    assert (stays[:, columns].sum(2) == 2).all()

    def loss(row: np.ndarray, gone: list[int]) -> float:
        """What an output loses when some weights go and the others are fitted anew (or stay)."""
        if curvature == "none":
            return float(np.square(row[gone]).sum())
        if curvature == "moments":
            return float((np.square(row) * np.diag(moments))[gone].sum())
        left = [i for i in range(8) if i not in gone]
        fitted = np.linalg.lstsq(x[:, left], x @ row, rcond=None)[0]
        return float(np.square(x @ row - x[:, left] @ fitted).mean())

    for row, mask in zip(weight, stays, strict=True):
        for block in columns:
            others = [[int(block[a]), int(block[b])] for a in range(4) for b in range(a)]
            own = [int(i) for i in block if not mask[i]]
            assert loss(row, own) <= min(loss(row, other) for other in others) * (1 + 1e-6)


@pytest.mark.parametrize("count", [200, 8])
def test_a_fit_within_a_mask_is_the_least_squares_one(count: int) -> None:
    u = RNG.normal(size=(count, 1, 12)).astype(np.float32)
    weight, mask = RNG.normal(size=(1, 3, 12)), RNG.random((1, 3, 12)) < 0.5
    target = RNG.normal(size=(count, 1, 3)).astype(np.float32)
    e = target - np.einsum("rgd,god->rgo", u, weight)
    rows = Rows(12, count)
    rows.add(u, e.astype(np.float32))
    dw, db = rows.solve_within(weight, mask, 1e-2)
    assert not (weight + dw)[~mask].any()
    uc = u[:, 0] - u[:, 0].mean(0)
    shift = 1e-2 * np.square(uc).mean()
    for o in range(3):
        s = mask[0, o]
        left = (e[:, 0, o] - e[:, 0, o].mean()) + uc[:, ~s] @ weight[0, o, ~s]
        want = np.linalg.solve(uc[:, s].T @ uc[:, s] / count + shift * np.eye(s.sum()), uc[:, s].T @ left / count)
        assert np.allclose(dw[0, o, s], want, atol=1e-4)
        assert np.isclose(db[0, o], (e[:, 0, o] - u[:, 0] @ dw[0, o]).mean(), atol=1e-4)


def test_layers_in_fours() -> None:
    g = Net()
    y = g.Conv(g.x(1, 3, 8, 8), g.w("first", 8, 3, 3, 3))
    y = g.Conv(y, g.w("dense", 8, 8, 3, 3))
    y = g.Conv(y, g.w("grouped", 8, 4, 1, 1), group=2)
    g.out(g.MatMul(g.Flatten(y), g.w("fc", 128, 4)), name="y")
    nodes = [node for node in load(g.model()).model.graph if linear_form(node) is not None]
    found = [fours(linear_form(node), [int(n) for n in node.inputs[1].const_value.shape]) for node in nodes]
    assert [None if one is None else one.shape for one in found] == [None, (18, 4), None, (32, 4)]
    columns = found[1]
    assert columns is not None and columns[1].tolist() == [1, 10, 19, 28]  # channels 0 to 3 at the second tap


def test_sparse_weights_are_found_and_built_for(digits: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, plan = digits
    model = load(folder / "cut.onnx").model
    assert len(sparse_layers(model.graph)) == len(plan["sparsify"]["sparse"]) > 3
    assert not sparse_layers(load(DIGITS / "digits.onnx").model.graph)
    commands = {}
    for name in ("orin-nano", "xavier-nx"):
        made = build(folder / "cut.onnx", resolve(name), tmp_path / name)
        commands[name] = json.loads((tmp_path / name / "bundle.json").read_text())["commands"]["build"]
        assert any("2:4 sparse" in note for note in made.notes)
    assert "--sparsity=enable" in commands["orin-nano"] and "--int8" in commands["orin-nano"]
    assert "--sparsity=enable" not in commands["xavier-nx"]


def test_refitting_within_the_mask_helps() -> None:
    found = {}
    for refit in ("true", "false"):
        result = gp.prune(DIGITS / "digits.onnx", passes=[f"sparsify{{refit={refit}}}"], data=DIGITS / "digits_calibration.npz", samples=128)
        found[refit] = result.plan.sparsify["divergence"]["after"]
        assert not result.plan.tensors and result.plan.stages[-1]["stage"] == "2:4 sparse"
    assert found["true"] < 0.7 * found["false"]
