"""Tables of devices, JetPacks, flags and operators; targets and what they refuse."""

from __future__ import annotations

import csv
import itertools
import json
import re
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from click.testing import CliRunner

from graphprune.backends.tensorrt import command
from graphprune.backends.tensorrt.dla import _RULES as DLA_RULES
from graphprune.backends.tensorrt.legality import RULES, parse_rules
from graphprune.cli import cli
from graphprune.devices import Target, alignment, devices, jetpacks, operator, resolve, version
from graphprune.devices.tables import alignments, dla_rows, has_flag, operators, workspaces
from graphprune.errors import GraphPruneError, UsageError


def rows(name: str) -> list[dict[str, str]]:
    with resources.files("graphprune.devices").joinpath(f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("name", ["jetpack", "devices", "trtexec", "operators", "dla", "alignment", "workspace", "peaks", "reached"])
def test_every_row_names_its_source(name: str) -> None:
    table = rows(name)
    assert table and all(row["source"].strip() for row in table)


def test_tables_hold_what_vendors_say() -> None:
    assert jetpacks()["4.6.1"].tensorrt == (8, 2, 1) and jetpacks()["4.6.1"].opset == 13
    assert jetpacks()["6.2"].tensorrt == (10, 3, 0) and jetpacks()["5.1.2"].opset == 17
    assert devices()["tx2"].sm == 62 and not devices()["tx2"].int8 and devices()["thor"].fp8
    assert operator("LayerNormalization", (8, 5, 2)) is None and operator("LayerNormalization", (8, 6, 2)) is not None
    assert operator("Mish", (8, 6, 2)) is None and operator("Mish", (10, 3, 0)) is not None
    assert operator("NonZero", (8, 4, 1)) is None and operator("NonZero", (8, 5, 2)) is not None
    assert has_flag("workspace", (8, 2, 1)) and not has_flag("workspace", (8, 5, 2)) and not has_flag("workspace", (10, 3, 0))
    assert not has_flag("exportLayerInfo", (8, 0, 1)) and has_flag("exportLayerInfo", (8, 2, 1))
    assert not has_flag("skipInference", (8, 5, 2)) and has_flag("skipInference", (8, 6, 2))


def test_rules_of_tables_are_known() -> None:
    for row in itertools.chain.from_iterable(operators().values()):
        assert all(name in RULES for name, _ in parse_rules(row.rules)), row
    for dla in dla_rows().values():
        assert all(name in DLA_RULES for name, _ in parse_rules(dla.rules.replace("pad<kernel", "pad-below-kernel"))), dla
    assert alignments() and [row.memory_gb_from for row in workspaces()] == sorted(row.memory_gb_from for row in workspaces())


def test_operator_rows_do_not_overlap() -> None:
    for found in operators().values():
        for one, other in itertools.pairwise(found):
            assert one.before is not None and one.before <= other.since


def every_target() -> list[Target]:
    """Every device with every JetPack it had, every precision, with and without DLA."""
    found = []
    order = list(jetpacks())
    for device in devices().values():
        packs: list[str | None] = [None]
        if device.first_jetpack:
            packs = list(order[order.index(device.first_jetpack) : order.index(device.last_jetpack) + 1])
        for pack, precision, dla in itertools.product(packs, ("fp32", "fp16", "int8", "best"), (None, 0)):
            try:
                found.append(resolve(device.name, jetpack=pack, precision=precision, dla=dla))
            except UsageError:
                continue
    return found


def test_no_script_has_a_flag_that_its_version_lacks() -> None:
    """Read from the file itself, not through the package's own lookups."""
    table = {row["flag"]: row for row in rows("trtexec")}
    targets = every_target()
    assert len(targets) > 150
    seen = set()
    for target in targets:
        if target.rtx:
            continue
        profile = command.Profile({"x": (1, 3)}, {"x": (2, 3)}, {"x": (4, 3)})
        calls = [
            command.build_command(target, profile, explicit=explicit, calibrated=target.precision == "int8") for explicit in (False, True)
        ]
        calls += [command.time_command(target, profile), command.profile_command(target, profile)]
        calls.append(command.outputs_command(target, profile, {"x": "x.bin"}))
        for argument in itertools.chain.from_iterable(calls):
            match = re.fullmatch(r"--([A-Za-z0-9]+)(=.*)?", argument)
            assert match, argument
            row = table[match[1]]
            assert version(row["since"]) <= target.tensorrt, (argument, str(target))
            assert not row["before"] or target.tensorrt < version(row["before"]), (argument, str(target))
            seen.add(match[1])
    assert {"workspace", "memPoolSize", "buildOnly", "skipInference", "useDLACore", "allowGPUFallback", "calib", "fp16"} <= seen


@pytest.mark.parametrize(
    "name", ["tx2", "nano", "xavier-nx", "agx-xavier", "orin-nano", "orin-nx", "agx-orin", "thor", "rtx", "x86-gpu"]
)
def test_names_of_targets(name: str) -> None:
    assert resolve(f"jetson-{name}") == resolve(name) and resolve(name).device.name == name


def test_a_flag_that_is_missing_is_refused() -> None:
    with pytest.raises(GraphPruneError, match=r"8\.2\.1 has no --skipInference"):
        command.Command(resolve("tx2")).add("skipInference")
    with pytest.raises(GraphPruneError, match="not in the table"):
        command.Command(resolve("tx2")).add("turbo")


def test_exact_commands() -> None:
    none = command.Profile({}, {}, {})
    tx2 = command.build_command(resolve("jetson-tx2", jetpack="4.6.1"), none, explicit=False, calibrated=False)
    assert tx2 == ["--onnx=model.onnx", "--saveEngine=model.engine", "--fp16", "--workspace=1024", "--timingCacheFile=timing.cache",
                   "--profilingVerbosity=detailed", "--buildOnly"]  # fmt: skip
    orin = command.build_command(resolve("agx-orin", precision="int8", dla=1), none, explicit=False, calibrated=True)
    assert orin == ["--onnx=model.onnx", "--saveEngine=model.engine", "--int8", "--fp16", "--calib=calibration.cache",
                    "--useDLACore=1", "--allowGPUFallback", "--memPoolSize=workspace:4096", "--timingCacheFile=timing.cache",
                    "--profilingVerbosity=detailed", "--skipInference"]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("tx2", {"precision": "int8"}, "sm_62.*slower than FP16.*--precision fp16"),
        ("nano", {"precision": "int8"}, "sm_53"), ("tx1", {"precision": "int8"}, "sm_53"),
        ("orin-nano", {"dla": 0}, "has no deep learning accelerator"), ("thor", {"dla": 0}, "has no deep learning accelerator"),
        ("tx2", {"dla": 0}, "has no deep learning accelerator"), ("orin-nx-8", {"dla": 1}, "has 1, numbered from 0"),
        ("agx-orin", {"dla": 0, "jetpack": "7.2"}, "not known to drive it"), ("agx-orin", {"dla": 0, "precision": "fp32"}, "FP16 and INT8 only"),
        ("tx2", {"jetpack": "5.1"}, "never got it, its last is JetPack 4.6.6"), ("thor", {"jetpack": "6.2"}, "never got it, its first is"),
        ("tx2", {"jetpack": "4.7"}, "not in the table"), ("tx3", {}, "no such device.*tx2"), ("x86-gpu", {"jetpack": "6.2"}, "no Jetson"),
        ("tx2", {"tensorrt": "10.3"}, "cannot be changed inside it"), ("rtx", {"precision": "int8"}, "QuantizeLinear"),
        ("x86-gpu", {"tensorrt": "11.1", "precision": "int8"}, "strongly typed"), ("x86-gpu", {"tensorrt": "ten"}, "write a version"),
        ("agx-orin", {"precision": "fp7"}, "choose one of"),
    ],
)  # fmt: skip
def test_refusals_say_why(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve(name, **options)  # type: ignore[arg-type]


def test_defaults() -> None:
    assert resolve("jetson-agx-orin").jetpack == jetpacks()["7.2"]
    assert resolve("agx-orin", dla=0).jetpack == jetpacks()["6.2.2"]
    assert resolve("tx2").precision == "fp16" and resolve("rtx").precision == "fp32"
    assert resolve("x86-gpu", tensorrt="8.5").opset == 17 and resolve("x86-gpu", tensorrt="11.1").precision == "fp32"
    assert resolve("nano", memory_gb=2).workspace_mib < resolve("nano").workspace_mib


def test_alignment() -> None:
    assert alignment(resolve("agx-orin")) == 8 and alignment(resolve("agx-orin", precision="int8")) == 32
    assert alignment(resolve("agx-orin", precision="int8"), grouped=True) == 4
    assert alignment(resolve("tx2")) == 2 and alignment(resolve("tx2"), "fp32") == 1
    assert alignment(resolve("agx-orin", precision="best")) == 32 and alignment(resolve("agx-orin"), "int4") == 1


def test_the_docs_table_is_the_data(request: pytest.FixtureRequest) -> None:
    script = Path(request.config.rootpath) / "docs" / "make_devices_table.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("device", "each"), [("orin-nano", 8), ("tx2", 2)])
def test_align_auto_cuts_to_what_a_device_runs_fast(device: str, each: int, tmp_path: Path, digits: Path) -> None:
    out = tmp_path / "out.onnx"
    call = ["run", str(digits), "-o", str(out), "--rate", "0.4", "--scope", "group", "--align", "auto", "--device", device, "--json"]
    found = CliRunner().invoke(cli, call)
    assert found.exit_code == 0, found.output
    plan = json.loads((tmp_path / "out.plan.json").read_text())
    assert plan["options"]["align"] == "auto" and plan["options"]["device"] == device
    assert any(f"multiples of {each}, as Jetson" in note for note in plan["notes"])
    cut = [group["kept"] for group in plan["groups"] if group["kept"] < group["units"]]
    assert cut and all(width % each == 0 for width in cut)


def test_a_device_says_what_align_auto_takes(digits: Path) -> None:
    found = CliRunner().invoke(cli, ["run", str(digits), "--device", "tx2"])
    assert found.exit_code == 2 and "says what --align auto or a latency budget takes" in " ".join(found.output.split())
    found = CliRunner().invoke(cli, ["run", str(digits), "--align", "auto", "--device", "tx2:int8"])
    assert found.exit_code == 2 and "slower than FP16" in found.output
