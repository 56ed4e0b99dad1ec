"""Latency budgets, on a runtime whose costs are a fixed staircase: nothing here depends on how long anything takes."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner

import graphprune as gp
from graphprune import shapes
from graphprune.allocation import importance_curves
from graphprune.backends.runtimes.base import LayerTime
from graphprune.backends.runtimes.onnx_runtime import OnnxRuntime
from graphprune.cli import cli
from graphprune.errors import NotFasterError, UsageError
from graphprune.latency.budget import next_aim
from graphprune.latency.layers import Micro, parts_of
from graphprune.latency.measure import timing_feed
from graphprune.latency.model import within
from graphprune.latency.steps import Bench, Table, calmed, find_step, grid_of, interpolate
from graphprune.options import Options
from tests.fake_runtime import BLOCK, FakeRuntime, install
from tests.nets import with_weights


def three_convs(width: int = 64) -> onnx.ModelProto:
    """A chain whose layers cost very different amounts."""
    model = with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[N, 3, 16, 16] x) => (float[N, 5] y) {
            a = Conv<pads=[1, 1, 1, 1]>(x, w1, b1)
            r = Relu(a)
            c = Conv<pads=[1, 1, 1, 1], strides=[2, 2]>(r, w2)
            s = Relu(c)
            d = Conv<pads=[1, 1, 1, 1], strides=[2, 2]>(s, w3)
            p = GlobalAveragePool(d)
            f = Flatten(p)
            y = Gemm<transB=1>(f, w4, b4)
        }""",
        w1=(width, 3, 3, 3), b1=(width,), w2=(2 * width, width, 3, 3), w3=(2 * width, 2 * width, 3, 3), w4=(5, 2 * width), b4=(5,),
    )  # fmt: skip
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    return model


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeRuntime:
    return install(monkeypatch, FakeRuntime(), tmp_path / "cache")


def ratio(result: gp.Result) -> float:
    return result.state.latency["after"] / result.state.latency["before"]


@pytest.mark.parametrize("allocate", [None, "uniform", "isomorphic"])
def test_a_share_of_the_time_is_met_on_the_staircase(fake: FakeRuntime, allocate: Any) -> None:
    result = gp.prune(three_convs(), budget="latency=0.5x", allocate=allocate, threads=1)
    assert ratio(result) == pytest.approx(0.5, rel=0.1)
    assert all(group["kept"] % BLOCK == 0 for group in result.plan.groups if group["kind"] == "channel")
    assert result.plan.options["budget"] == "latency=0.5x"
    assert result.plan.before["latency_ms"] == result.state.latency["before"] > result.plan.after["latency_ms"]
    assert any("rounded up to multiples of 8" in note for note in result.plan.notes)
    assert any("budget latency=0.5x: reached" in note for note in result.plan.notes)


def test_more_is_cut_where_more_time_goes(fake: FakeRuntime) -> None:
    result = gp.prune(three_convs(), budget="latency=0.5x", threads=1)
    kept = {name: group["kept"] / group["units"] for group in result.plan.groups for name, axis in group["members"] if axis == 0}
    # The second layer takes most of the time: both of its sides go first.
    assert kept["w1"] < kept["w3"] and kept["w2"] < kept["w3"]


def test_milliseconds(fake: FakeRuntime) -> None:
    source = gp.prune(three_convs(), budget="latency=0.9x", threads=1).state.latency["before"]
    result = gp.prune(three_convs(), budget=f"latency={0.6 * source:.4f}ms", threads=1)
    assert ratio(result) == pytest.approx(0.6, rel=0.1)
    with pytest.raises(UsageError, match="already; nothing to cut"):
        gp.prune(three_convs(), budget=f"latency={2 * source:.4f}ms", threads=1)


def test_what_the_layers_do_not_show_is_corrected_by_measuring_the_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, FakeRuntime(overhead=0.3), tmp_path)
    result = gp.prune(three_convs(), budget="latency=0.6x", threads=1)
    assert ratio(result) == pytest.approx(0.6, rel=0.1)
    way = next(note for note in result.plan.notes if "on the way" in note).split("on the way: ")[1].split(", ")
    assert len(way) > 1 and float(way[0]) > 0.65, "the first choice believes the layers"


def test_a_budget_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, FakeRuntime(overhead=0.5), tmp_path)
    result = gp.prune(three_convs(), budget="latency=0.3x", threads=1)
    assert any("missed by more than 10 %" in note for note in result.plan.notes)


def test_a_cut_that_is_not_faster_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install(monkeypatch, FakeRuntime(overhead=1.0), tmp_path)
    with pytest.raises(NotFasterError, match="no cut found is faster than the source by measurement"):
        gp.prune(three_convs(), budget="latency=0.5x", threads=1)
    source, out = tmp_path / "net.onnx", tmp_path / "out.onnx"
    onnx.save(three_convs(), source)
    arguments = ["run", str(source), "-o", str(out), "--budget", "latency=0.5x", "--threads", "1"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2 and "not those the runtime likes" in " ".join(done.output.split()) and not out.exists()
    done = CliRunner().invoke(cli, [*arguments, "--force", "--json"])
    assert done.exit_code == 0 and out.exists(), done.output
    assert any("because of --force" in note for note in json.loads(done.output)["notes"])


def test_layers_are_timed_once_ever(fake: FakeRuntime, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = gp.prune(three_convs(), budget="latency=0.5x", threads=1)
    count = fake.profiled
    again = gp.prune(three_convs(), budget="latency=0.5x", threads=1)
    assert fake.profiled == count + 1, "the whole model's profile alone"
    assert any(" 0 points measured now" in note for note in again.plan.notes)
    assert again.plan.tensors == first.plan.tensors
    gp.prune(three_convs(), budget="latency=0.5x", threads=2)
    assert fake.profiled > count + 3, "other threads are another measurement"
    for file in (tmp_path / "cache" / "layers").iterdir():
        file.write_text("damaged")
    assert gp.prune(three_convs(), budget="latency=0.5x", threads=1).plan.tensors == first.plan.tensors


def test_align_auto_takes_the_step_that_is_measured(fake: FakeRuntime) -> None:
    result = gp.prune(three_convs(), rate=0.45, align="auto", threads=1)
    assert all(group["kept"] % BLOCK == 0 for group in result.plan.groups)
    assert any("--align auto: multiples of 8" in note for note in result.plan.notes)
    fixed = gp.prune(three_convs(), budget="latency=0.5x", align=16, threads=1)
    assert all(group["kept"] % 16 == 0 for group in fixed.plan.groups)


def test_data_decide_how_the_time_is_shared(fake: FakeRuntime, digits: Path, calibration: Path) -> None:
    result = gp.prune(digits, budget="latency=0.7x", data=calibration, samples=32, threads=1)
    assert result.state.options.allocation == "dp"
    assert ratio(result) < 0.85


def test_the_report_and_the_terminal_show_it(fake: FakeRuntime, tmp_path: Path) -> None:
    source, page = tmp_path / "net.onnx", tmp_path / "r.html"
    onnx.save(three_convs(), source)
    arguments = ["--budget", "latency=0.5x", "--threads", "1", "--report", str(page)]
    done = CliRunner().invoke(cli, ["run", str(source), "-o", str(tmp_path / "o.onnx"), *arguments])
    assert done.exit_code == 0, done.output
    assert "latency, ms" in done.output
    text = page.read_text()
    assert "latency in ONNX Runtime" not in text and "latency in fake 1, ms" in text


# -- budgets and options


@pytest.mark.parametrize(
    ("text", "amount"),
    [("latency=0.5x", 0.5), ("latency=.5", 0.5), (" latency = 0.25 x ", 0.25), ("latency=8ms", 8000.0), ("latency=250us", 250.0),
     ("latency=1.5s", 1.5e6), ("latency=0.5ms", 500.0)],
)  # fmt: skip
def test_budgets(text: str, amount: float) -> None:
    assert Options(budget=text).parsed_budget() == ("latency", pytest.approx(amount))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budget": "latency=2x"}, "between 0 and 1"),
        ({"budget": "latency=8"}, "a time has a unit"),
        ({"budget": "latency=8min"}, "latency=8ms"),
        ({"budget": "latency=0x"}, "latency=8ms"),
        ({"budget": "latency=1.2.3ms"}, "latency=8ms"),
        ({"budget": "latency=0.1us"}, "no model runs in"),
        ({"budget": "latency=0.5x", "steps": 2}, "--steps"),
        ({"budget": "latency=0.5x", "combine": "parallel", "passes": ("l1", "l2")}, "--combine parallel"),
        ({"align": "often"}, "--align"),
        ({"runtime": "tensorflow"}, "--runtime"),
        ({"threads": 0}, "--threads"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Options(**options)


def test_compare_takes_no_latency_budgets(digits: Path) -> None:
    from graphprune.compare import compare

    with pytest.raises(UsageError, match="run each criterion with the latency budget alone"):
        compare(str(digits), ["l1"], budgets=["latency=0.5x"])


# -- a device's profile


def profile_of(model: onnx.ModelProto, path: Path, **changed: str) -> Path:
    """What trtexec would say of a model: each convolution fused with its activation."""
    steps = [("node_a + node_r", 1.0), ("node_c + node_s", 6.0), ("Reformatting CopyNode for Input", 0.2), ("node_d", 3.0),
             ("node_p", 0.1), ("node_y", 0.1)]  # fmt: skip
    path.write_text(json.dumps([{"count": 9}, *({"name": changed.get(name, name), "averageMs": ms} for name, ms in steps)]))
    return path


@pytest.mark.parametrize(("budget", "share"), [("latency=0.5x", 0.5), ("latency=6.24ms", 0.6)])
def test_a_profile_of_a_device_gives_an_estimate(tmp_path: Path, budget: str, share: float) -> None:
    path = profile_of(three_convs(), tmp_path / "profile.json")
    result = gp.prune(three_convs(), budget=budget, latency_from=str(path), align=8)
    said = next(note for note in result.plan.notes if "estimated at" in note)
    assert float(said.split("estimated at ")[1].split()[0]) == pytest.approx(share, rel=0.08)
    assert any("estimated, not measured" in note for note in result.plan.notes)
    assert not result.state.latency and "latency_ms" not in result.plan.after
    assert all(group["kept"] % 8 == 0 for group in result.plan.groups)
    kept = {name: group["kept"] / group["units"] for group in result.plan.groups for name, axis in group["members"] if axis == 0}
    assert kept["w1"] <= kept["w3"], "the second layer takes most of the time"


def test_profiles_that_do_not_fit(tmp_path: Path) -> None:
    path = profile_of(three_convs(), tmp_path / "p.json", **{"node_c + node_s": "myelin", "node_d": "other"})
    with pytest.raises(UsageError, match="only 12% of its time goes by names"):
        gp.prune(three_convs(), budget="latency=0.5x", latency_from=str(path))
    path = profile_of(three_convs(), tmp_path / "p.json")
    with pytest.raises(UsageError, match="already; nothing to cut"):
        gp.prune(three_convs(), budget="latency=20ms", latency_from=str(path))
    with pytest.raises(UsageError, match="give a latency budget too"):
        gp.prune(three_convs(), budget="macs=0.5", latency_from=str(path))
    path.write_text('[{"latencyMs": 1.0}]')
    with pytest.raises(UsageError, match="holds no layers"):
        gp.prune(three_convs(), budget="latency=0.5x", latency_from=str(path))


# -- the staircase


@pytest.mark.parametrize("step", [1, 4, 8, 16, 32])
def test_the_step_of_a_staircase_is_found(step: int) -> None:
    def times(widths: Any) -> list[float]:
        return [(-(-w // step) * step) ** 2 * 1e-3 + 0.05 for w in widths]

    assert find_step(times, 128) == step


def test_a_width_too_small_to_tell_has_no_step() -> None:
    assert find_step(lambda widths: [0.0 for _ in widths], 48) == 1


def test_grids_hold_the_source_and_multiples_of_the_step() -> None:
    assert grid_of(100, (0.1, 0.5), 16) == (16, 64, 100)
    assert grid_of(24, (0.1, 0.5), 16) == (2, 12, 24)
    assert grid_of(64, (0.1, 0.12), 32) == (6, 8, 64)


def test_times_between_those_measured() -> None:
    grid = ((16, 32, 100), (16, 64))
    ms = np.asarray([[2.0 + 0.1 * a + 0.01 * a * b for b in grid[1]] for a in grid[0]])
    table = Table(grid, ms)
    for a, b in itertools.product((16, 32, 48, 96, 100), (16, 32, 48, 64)):
        assert interpolate(table, np.asarray([float(a), float(b)]), 16) == pytest.approx(2.0 + 0.1 * a + 0.01 * a * b)
    assert interpolate(table, np.asarray([33.0, 17.0]), 16) == interpolate(table, np.asarray([48.0, 32.0]), 16)
    assert interpolate(table, np.asarray([97.0, 64.0]), 16) == table.full, "nothing is wider than the source"


def test_a_disturbed_point_is_no_longer_than_a_wider_layer() -> None:
    assert calmed(np.asarray([[1.0, 9.0, 3.0], [2.0, 3.0, 4.0]])).tolist() == [[1.0, 3.0, 3.0], [2.0, 3.0, 4.0]]


def test_the_next_question_lies_between_the_nearest_answers() -> None:
    assert next_aim([(0.5, 0.6)], 0.5) == pytest.approx(0.5 * 0.5 / 0.6)
    assert next_aim([(0.5, 0.4), (0.6, 0.6)], 0.5) == pytest.approx(0.55)
    assert 0.5 < next_aim([(0.5, 0.4), (0.6, 0.9), (0.58, 0.52)], 0.5) < 0.58
    assert next_aim([(0.5, 5.0)], 0.5) == 0.25, "never more than half at once"
    assert next_aim([(0.6, 0.1)], 0.5) < 1, "something is always cut"


# -- layers alone


def state_of(model: onnx.ModelProto) -> Any:
    return gp.inspect(model)


GROUPED = with_weights(
    """<ir_version: 8, opset_import: ["": 17]>
    net (float[1, 8, 9, 7] x) => (float[1, 4] y) {
        a = Conv<kernel_shape=[1, 1]>(x, w0)
        b = Conv<pads=[1, 1, 1, 1], group=16>(a, w1, b1)
        c = Conv<pads=[1, 1, 1, 1], group=4>(b, w2)
        d = ConvTranspose<strides=[2, 2]>(c, w3)
        p = GlobalAveragePool(d)
        f = Flatten(p)
        y = Gemm<transB=1>(f, w4)
    }""",
    w0=(16, 8, 1, 1), w1=(16, 1, 3, 3), b1=(16,), w2=(24, 4, 3, 3), w3=(24, 12, 2, 2), w4=(4, 12),
)  # fmt: skip
RECURRENT = with_weights(
    """<ir_version: 8, opset_import: ["": 17]>
    net (float[5, 1, 6] x) => (float[5, 1, 1, 3] y) {
        h, last, cell = LSTM<hidden_size=8>(x, w, r, b)
        y = MatMul(h, m)
    }""",
    w=(1, 32, 6), r=(1, 32, 8), b=(1, 64), m=(8, 3),
)  # fmt: skip


@pytest.mark.parametrize("model", [three_convs(16), GROUPED, RECURRENT], ids=["dense", "grouped", "lstm"])
def test_every_layer_runs_alone_at_other_widths(model: onnx.ModelProto) -> None:
    state = state_of(model)
    facts = shapes.infer(state.model, {name: array.shape for name, array in timing_feed(state).items()})
    orders = {group.id: group.units for group in state.coupling.groups}
    parts = parts_of(state.model, state.coupling, facts, orders)
    ran = 0
    for layer in parts.layers:
        if not layer.alone:
            continue
        micro = Micro(layer, state.model, facts, {v: state.coupling.coupler.is_parameter(v) for v in layer.node.inputs if v})
        for divisor in (1, 2):
            small, feed = micro.build([max(full // divisor, 1) for full, _ in layer.dims])
            OnnxRuntime().load(small, 1).run(feed)
            ran += 1
    assert ran >= 4


def test_layers_alike_are_one(fake: FakeRuntime) -> None:
    state = state_of(three_convs())
    facts = shapes.infer(state.model, {"x": (1, 3, 16, 16)})
    parts = parts_of(state.model, state.coupling, facts, {g.id: g.units for g in state.coupling.groups})
    convs = [layer for layer in parts.layers if layer.node.op_type == "Conv"]
    micros = [Micro(layer, state.model, facts, {layer.node.inputs[1]: True}) for layer in convs]
    assert len({micro.signature() for micro in micros}) == 3
    bench = Bench(fake, 1)
    assert bench.points(micros[1], [(64, 128), (8, 8), (64, 128)])[1] < bench.points(micros[1], [(64, 128)])[0]
    assert (bench.measured, bench.known) == (2, 1)


def test_fused_steps_count_for_the_node_that_multiplies() -> None:
    state = state_of(three_convs())
    facts = shapes.infer(state.model, {"x": (1, 3, 16, 16)})
    parts = parts_of(state.model, state.coupling, facts, {g.id: g.units for g in state.coupling.groups})
    steps = [LayerTime("node_r", "Conv", 2.0, 1.5), LayerTime("node_d", "Conv", 3.0, 3.0), LayerTime("?", "Reorder", 1.0, 1.0, True),
             LayerTime("else", "Mystery", 0.5, 0.25)]  # fmt: skip
    found, rest = within(parts.layers, steps, state.model)
    assert {node.name: ms for node, ms in found.items()} == {"node_a": 1.5, "node_d": 3.0} and rest == 0.25


def test_widths_of_heads_are_aligned_in_indices() -> None:
    from graphprune.choosing import Chooser
    from tests.patterns import PATTERNS

    pattern = next(p for name, p in PATTERNS.items() if "attention" in name)
    state = state_of(pattern.build())
    chooser = Chooser(state, state.coupling, np.ones(state.coupling.n_units))
    chooser.align_to(8)
    for group in chooser.groups:
        lanes = min(int((state.coupling.rows(v, a) == group.units[0]).any(axis=1).sum()) for v, a in group.members)
        assert chooser.steps[group.id] * lanes % 8 == 0


def test_curves_of_importance_grow_and_bend_upwards() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(40)
    units = np.argsort(scores)
    (curve,) = importance_curves(scores, {3: units}, {3: 36})
    assert curve.group == 3 and curve.error[0] == 0 and (np.diff(curve.error) > 0).all()
    slopes = np.diff(curve.error) / np.diff(curve.removed)
    assert (np.diff(slopes) > -1e-9).all()
    assert importance_curves(scores, {3: units}, {3: 0}) == []
