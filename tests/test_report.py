"""The HTML report: what it holds, that nothing of a model is read as markup, and how it behaves in a browser."""

from __future__ import annotations

import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import graphprune as gp
from graphprune import pipeline
from graphprune.errors import OutputError
from graphprune.options import Options
from graphprune.report import layout, payload
from graphprune.report.layout import BOX_WIDTH, layered
from graphprune.report.network import boxes_of
from graphprune.report.payload import histogram
from graphprune.report.recipe import command_line
from tests.command import call
from tests.nets import folded_residual, two_convs, with_weights

EVIL = "</script><script>window.bad=1</script><img src=x onerror='window.bad=1'>\"'&\u2028 é 漢 🙂"


def data_of(page: str) -> dict[str, Any]:
    """The data that a page holds, read as a browser does."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The report and the plan of a whole run of the example."""
    folder, root = tmp_path_factory.mktemp("report"), Path(__file__).resolve().parent.parent / "examples" / "digits"
    done = call("run", root / "digits.onnx", "-o", folder / "cut.onnx", "--pass", "l1", "--pass", "recover", "--rate", 0.4,
                "--data", root / "digits_calibration.npz", "--samples", 64, "--eval", "examples.digits.evaluate:accuracy",
                "--report", folder / "report.html", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["files"][-1] == str(folder / "report.html")
    return folder / "report.html", folder / "cut.plan.json"


# ---------------------------------------------------------------------------------------------------- content
def test_it_holds_what_the_plan_holds(digits_run: tuple[Path, Path]) -> None:
    page, plan = digits_run[0].read_text(), json.loads(digits_run[1].read_text())
    data = data_of(page)
    assert [row[1:] for row in data["costs"]] == [[plan["before"][k], plan["after"][k]] for k in ("macs", "params", "bytes")]
    assert [(g["id"], g["units"], g["kept"]) for g in data["groups"]] == [(g["id"], g["units"], g["kept"]) for g in plan["groups"]]
    assert [[m[:2] for m in g["members"]] for g in data["groups"]] == [g["members"] for g in plan["groups"]]
    assert sum(entry["axes"] for entry in data["frozen"]) == len(plan["frozen"])
    assert data["verify"]["passed"] and data["verify"]["max_rel_error"] <= data["verify"]["tolerance"]
    assert [layer["layer"] for layer in data["recovery"]["layers"]] == [layer["layer"] for layer in plan["recovery"]["layers"]]
    assert "block1.first.conv" in [layer["name"] for layer in data["recovery"]["layers"]]
    assert [row[0] for row in data["evaluation"]] == ["accuracy", "loss", "latency in ONNX Runtime, ms"]
    assert {row["measure"] for row in data["fidelity"]["rows"]} >= {"same best class"} and data["fidelity"]["recovered"]
    assert {"select", "verify", "recover"} <= {name for name, _ in data["seconds"]}
    assert data["notes"] == plan["notes"]
    assert data["model"]["sha256"] == plan["source"]["sha256"]


def test_it_asks_nothing_of_the_network_and_is_small(digits_run: tuple[Path, Path]) -> None:
    page = digits_run[0].read_text()
    without = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|@import|url\(|<link|src=", without)
    assert "default-src 'none'" in page and "unsafe-inline" not in page
    assert len(page) < 200_000


def test_scores_by_group_with_the_threshold(digits_run: tuple[Path, Path]) -> None:
    data = data_of(digits_run[0].read_text())
    (found,) = data["scores"]
    assert (found["name"], found["unit"]) == ("l1", "L1")
    for group in data["groups"]:
        one = found["groups"][str(group["id"])]
        assert (sum(one["kept"]), sum(one["gone"])) == (group["kept"], group["units"] - group["kept"])
        assert one["low"] < one["cut"] < one["high"] and 0 < one["place"] < 1


def test_histograms_worked_by_hand() -> None:
    gone = np.asarray([True, True, False, False])
    one = histogram(np.asarray([0.0, 1.0, 3.0, 4.0]), gone, bins=4)
    assert (one["gone"], one["kept"], one["cut"], one["place"], one["log"]) == ([1, 1, 0, 0], [0, 0, 0, 2], 2.0, 0.5, False)
    mixed = histogram(np.asarray([0.0, 3.0, 1.0, 4.0]), gone, bins=4)
    assert mixed["cut"] is None
    decades = histogram(np.asarray([1e-4, 1e-3, 1e-1, 1.0]), gone, bins=4)
    assert decades["log"] and decades["cut"] == pytest.approx(1e-2) and decades["gone"] == [1, 1, 0, 0]
    same = histogram(np.full(4, 2.0), gone, bins=4)
    assert sum(same["kept"]) == sum(same["gone"]) == 2
    assert histogram(np.asarray([-1.0]), np.asarray([False]))["cut"] is None


def test_the_graph_draws_layers_and_joins_with_their_groups() -> None:
    result = gp.prune(folded_residual(), rate=0.5)
    graph = payload.payload(result.state, result.plan)["graph"]
    names = [(box["kind"], box["name"], box["ops"]) for box in graph["boxes"]]
    assert [kind for kind, *_ in names] == ["input", "layer", "layer", "join", "layer", "output"]
    assert names[1][2] == ["Conv", "Relu"]
    assert [edge[:2] for edge in graph["edges"]] == [[0, 1], [1, 2], [1, 3], [2, 3], [3, 4], [4, 5]]
    # Both convolutions and their sum are one width.
    assert [box["out"] for box in graph["boxes"]] == [[], [0], [0], [0], [], []]
    assert [box["groups"] for box in graph["boxes"]] == [[], [0], [0], [], [0], []]
    assert graph["boxes"][4]["frozen"] == ["graph output 'y'"]


def test_layers_inside_branches_and_loops_stand_where_they_run() -> None:
    model = with_weights(
        """<ir_version: 8, opset_import: ["": 17]>
        net (float[2, 4] x, bool c) => (float[2, 3] y) {
            a = MatMul(x, w1)
            b = If (c) <
                then_branch = yes () => (float[2, 6] t) { t = Relu(a) },
                else_branch = no () => (float[2, 6] e) { m = MatMul(a, w2)  e = Relu(m) }
            >
            y = MatMul(b, w3)
        }""",
        w1=(4, 6), w2=(6, 6), w3=(6, 3),
    )  # fmt: skip
    state = gp.inspect(model)
    boxes = boxes_of(state.model, state.need_coupling())
    names = [(box.kind, box.ops[:1], [boxes[i].name for i in box.reads]) for box in boxes]
    assert [name[:2] for name in names[2:]] == [
        ("layer", ["MatMul"]), ("layer", ["MatMul"]), ("join", ["If"]), ("layer", ["MatMul"]), ("output", [])]  # fmt: skip
    assert boxes[4].reads == [1, 2, 3] and boxes[5].reads == [4]


# ---------------------------------------------------------------------------------------------------- layout
def test_boxes_do_not_overlap_and_edges_lead_down() -> None:
    rng = np.random.default_rng(3)
    n = 150
    edges = sorted({(int(rng.integers(max(0, b - 9), b)), b) for b in range(1, n) for _ in range(2)} | {(0, n - 1)})
    found = layered(n, edges)
    rows: dict[float, list[float]] = {}
    for x, y in found.centres:
        rows.setdefault(y, []).append(x)
    for row in rows.values():
        assert (np.diff(sorted(row)) >= BOX_WIDTH).all()
    for (a, b), bends in zip(edges, found.bends, strict=True):
        heights = [found.centres[a][1], *(y for _, y in bends), found.centres[b][1]]
        assert (np.diff(heights) > 0).all()
        for x, y in bends:
            assert all(abs(x - other) >= BOX_WIDTH / 2 for other in rows[y]), "an edge runs through a box"
    assert min(x for x, _ in found.centres) >= BOX_WIDTH / 2 and max(x for x, _ in found.centres) <= found.width


def test_a_chain_beside_long_edges_is_straight() -> None:
    edges = [(i, i + 1) for i in range(12)] + [(0, 4), (4, 8), (8, 12)]
    assert len({x for x, _ in layered(13, edges).centres}) == 1


def test_layouts_of_nothing_and_of_many_long_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    assert layered(0, []).centres == []
    assert layered(2, []).centres[0] != layered(2, []).centres[1]
    monkeypatch.setattr(layout, "MOST_DUMMIES", 50)
    dense = [(a, b) for b in range(40) for a in range(b)]
    assert sum(map(len, layered(40, dense).bends)) <= 50


# ---------------------------------------------------------------------------------------------------- hostile names
def hostile() -> onnx.ModelProto:
    model = two_convs()
    names = {value.name: f"{value.name}.{EVIL}" for value in [*model.graph.initializer, *model.graph.input, *model.graph.output]}
    for value in [*model.graph.initializer, *model.graph.input, *model.graph.output]:
        value.name = names[value.name]
    for i, node in enumerate(model.graph.node):
        node.name = f"n{i}{EVIL}"
        for values in (node.input, node.output):
            values[:] = [names.get(name, name) for name in values]
    return model


def test_names_of_a_model_are_never_markup(tmp_path: Path) -> None:
    source = tmp_path / "<b onclick='bad()'>&.onnx"
    onnx.save(hostile(), source)
    page = gp.prune(source, rate=0.5).report(tmp_path / "o.html").read_text()
    assert "onerror" in page and "<img" not in page and page.count("</script>") == 2
    assert "<title>&lt;b onclick=&#x27;bad()&#x27;&gt;&amp;.onnx" in page
    data = data_of(page)
    assert data["model"]["name"] == source.name
    assert EVIL in data["groups"][0]["members"][0][0]


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    result = gp.prune(two_convs(), rate=0.5)
    result.state.evaluation = {"before": float("nan"), "after": float("inf")}
    data = data_of(result.report(tmp_path / "o.html").read_text())
    assert data["evaluation"][:1] == [["evaluation", None, None]]


# ---------------------------------------------------------------------------------------------------- huge networks
def chain(n: int) -> onnx.ModelProto:
    """``n`` matrix products behind each other, each group of its own."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(n):
        weights.append(numpy_helper.from_array(rng.standard_normal((3, 3)).astype(np.float32) / 2, f"layer{i}.weight"))
        nodes.append(helper.make_node("MatMul", [f"v{i}" if i else "x", f"layer{i}.weight"], [f"v{i + 1}" if i < n - 1 else "y"]))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in "xy")
    return helper.make_model(helper.make_graph(nodes, "chain", [x], [y], weights), opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_huge_networks_are_capped_and_say_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in (("MOST_BOXES", 40), ("MOST_GROUPS", 30), ("MOST_LISTED", 45), ("MOST_FROZEN", 3), ("MOST_AXES", 2)):
        monkeypatch.setattr(payload, name, value)
    result = gp.prune(chain(120), rate=0.4, scope="group")
    data = payload.payload(result.state, result.plan)
    assert len(data["graph"]["boxes"]) == 40 and data["graph"]["boxes_in_all"] == 122
    assert all(max(edge[:2]) < 40 for edge in data["graph"]["edges"]) and data["graph"]["edges_left_out"] == 121 - 39
    assert len(data["groups"]) == 30 and data["groups_in_all"] == 119
    assert sum(len(group["members"]) for group in data["groups"]) == 45
    assert all(len(group["members"]) + group["more"] == 2 for group in data["groups"])
    assert sum(len(entry["entries"]) for entry in data["frozen"]) <= 3
    assert all(len(entry["entries"]) + entry["more"] == entry["axes"] for entry in data["frozen"])


def test_a_long_network_makes_a_small_file_soon(tmp_path: Path) -> None:
    result = gp.prune(chain(2500), rate=0.4, scope="group")
    start = time.perf_counter()
    path = result.report(tmp_path / "o.html")
    assert time.perf_counter() - start < 20  # a second or two; quadratic work would take minutes
    assert path.stat().st_size < 3_000_000


def test_long_names_keep_both_ends() -> None:
    assert payload._short("a" * 300 + "end").endswith("end") and len(payload._short("a" * 1000)) <= payload.LONGEST + 1


# ---------------------------------------------------------------------------------------------------- the recipe
@pytest.mark.parametrize(
    "args",
    [
        ["--pass", "l1", "--rate", "0.3"],
        ["--pass", "random", "--pass", "entropy{reading=conv}", "--budget", "macs=0.6", "--scope", "group", "--align", "2"],
        ["--pass", "l2", "--keep", "w3*", "--keep", "b3", "--exact", "--seed", "7", "--shape", "x=2x3x8x8", "--floor", "0.25"],
    ],
)
def test_the_command_repeats_the_run(args: list[str], tmp_path: Path) -> None:
    source = tmp_path / "it's a model.onnx"
    onnx.save(two_convs(), source)
    first = call("run", source, "-o", tmp_path / "a.onnx", *args, "--report", tmp_path / "a.html")
    assert first.exit_code == 0, first.output
    words = shlex.split(data_of((tmp_path / "a.html").read_text())["recipe"]["command"])
    assert words[:2] == ["graphprune", "run"]
    again = call(*words[1:], "-o", tmp_path / "b.onnx")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "a.plan.json").read_text() == (tmp_path / "b.plan.json").read_text()
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_rates_of_single_groups_and_steps_are_repeated_too(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    onnx.save(two_convs(), source)
    result = gp.prune(source, rate=0.5, steps=2)
    data = data_of(result.report(tmp_path / "a.html").read_text())
    assert "--steps 2" in data["recipe"]["command"]
    for group, entry in zip(data["groups"], result.plan.groups, strict=True):
        one = data["scores"][0]["groups"][str(group["id"])]
        assert (sum(one["kept"]), sum(one["gone"])) == (entry["kept"], entry["units"] - entry["kept"])
    first = gp.prune(source, rates={"w1": 0.25, "w2:0": 0.5})
    recipe = data_of(first.report(tmp_path / "b.html").read_text())["recipe"]
    assert recipe["command"].endswith("m.onnx --recipe recipe.yaml")
    (tmp_path / "recipe.yaml").write_text(recipe["yaml"])
    again = call("run", source, "-o", tmp_path / "b.onnx", "--recipe", tmp_path / "recipe.yaml")
    assert again.exit_code == 0, again.output
    assert (tmp_path / "b.plan.json").read_text() == first.plan.dumps()


def test_commands_of_other_options() -> None:
    options = Options(passes=("l1",), data="d.npz", mean=(0.5, 0.25), layout="NHWC", eval="m:f").to_json()
    line = command_line(options, None)
    assert line == "graphprune run MODEL.onnx --pass l1 --data d.npz --mean 0.5,0.25 --layout NHWC --eval m:f"


# ---------------------------------------------------------------------------------------------------- writing
@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "model.html"  # a model may be called anything
    onnx.save(two_convs(), path)
    return path


def test_a_report_never_overwrites_the_source(source: Path, tmp_path: Path) -> None:
    before = source.read_bytes()
    link = tmp_path / "link.html"
    link.symlink_to(source)
    for report in (source, link):
        done = call("run", source, "-o", tmp_path / "o.onnx", "--report", report)
        assert done.exit_code == 2 and "is the source file" in done.stderr
        with pytest.raises(OutputError, match="is the source file"):
            gp.prune(source).report(report)
    assert source.read_bytes() == before and not (tmp_path / "o.onnx").exists()


@pytest.mark.parametrize(("name", "message"), [("o.txt", "ends in .html"), ("none/o.html", "does not exist"), (".", "is a directory")])
def test_names_that_cannot_be_written_are_told_before_the_work(source: Path, tmp_path: Path, name: str, message: str,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr(pipeline, "prune", lambda *_, **__: pytest.fail("the work was done first"))
    done = call("run", source, "-o", tmp_path / "o.onnx", "--report", tmp_path / name)
    assert done.exit_code == 2 and message in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.html"]


def test_model_plan_and_report_are_written_together_or_not_at_all(source: Path, tmp_path: Path,
                                                                  monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    result = gp.prune(source)
    (tmp_path / "o.html").write_text("older")

    def fail(*_: object) -> bytes:
        raise RuntimeError("no report")

    with monkeypatch.context() as patch:
        patch.setattr("graphprune.report.render", fail)
        with pytest.raises(RuntimeError):
            result.save(tmp_path / "o.onnx", report=tmp_path / "o.html")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.html", "o.html"]
    assert (tmp_path / "o.html").read_text() == "older"
    files = result.save(tmp_path / "o.onnx", report=tmp_path / "o.html")
    assert files == [tmp_path / name for name in ("o.onnx", "o.plan.json", "o.html")]
    assert (tmp_path / "o.html").read_text().startswith("<!doctype html>")


def test_latency_is_measured_for_the_report(tmp_path: Path) -> None:
    result = gp.prune(two_convs(16, 12), passes=["l1"], rate=0.5)
    assert not result.state.latency
    result.report(tmp_path / "r.html")
    assert result.state.latency["before"] > 0 and result.state.latency["after"] > 0
    assert "latency in ONNX Runtime, ms" in (tmp_path / "r.html").read_text()
