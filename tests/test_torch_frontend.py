"""Torch modules as sources: names, ties, inputs and outputs of every kind, each cut proved against plain torch code."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner

import graphprune as gp
from graphprune.backends.onnx import to_bytes
from graphprune.cli import cli
from graphprune.errors import ExportError

torch = pytest.importorskip("torch")  # the core is installed without it as well
nn = torch.nn

from torch.nn.utils import parametrize  # noqa: E402

from graphprune.frontends.torch import load_module  # noqa: E402
from tests.torch_nets import NETS  # noqa: E402


def plain(module):
    """The module with weights of its own where they were computed from others, and the weights' former names."""
    former = {}
    for path, one in list(module.named_modules()):
        path = f"{path}." if path else ""
        if hasattr(one, "weight_v"):
            nn.utils.remove_weight_norm(one)
            former[f"{path}weight_v"] = f"{path}weight"
        if parametrize.is_parametrized(one):
            last = "original1" if hasattr(one.parametrizations.weight, "original1") else "original"
            parametrize.remove_parametrizations(one, "weight", leave_parametrized=True)
            former[f"{path}parametrizations.weight.{last}"] = f"{path}weight"
    return former


def masked(name, plan):
    """The module whose removed slices are zero, by the plan's names; what scales a whole row leaves with the row."""
    module = build(name)[0].eval()
    former = plain(module)
    held = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    with torch.no_grad():
        for key, entry in plan.tensors.items():
            if key.endswith(("weight_g", "original0")):
                continue
            tensor = held[former.get(key, key)]
            assert list(tensor.shape) == entry["shape"]
            for axis, kept in entry["kept"].items():
                gone = np.setdiff1d(np.arange(tensor.shape[int(axis)]), kept)
                tensor.index_fill_(int(axis), torch.from_numpy(gone), 0)
    return module


def build(name):
    torch.manual_seed(3)
    return NETS[name]()


def tensors_of(value):
    """Tensors that a module gave, in order, those in plain objects left out."""
    if isinstance(value, torch.Tensor):
        return [value]
    if dataclasses.is_dataclass(value):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, dict):
        value = list(value.values())
    return [inner for item in value for inner in tensors_of(item)] if isinstance(value, (list, tuple)) else []


def worst(module, source, model):
    """Largest difference of the outputs of a module and of a graph, relative to each output's maximum."""
    session = ort.InferenceSession(to_bytes(model), providers=["CPUExecutionProvider"])
    found = session.run(None, dict(source.feed))
    with torch.no_grad():
        expected = tensors_of(module(*source.args, **source.kwargs))
    assert len(found) == len(expected)
    errors = [0.0]
    for a, b in zip(expected, found, strict=True):
        assert tuple(a.shape) == b.shape
        errors.append(float(np.abs(a.numpy() - b).max() / max(np.abs(a.numpy()).max(), 1e-12)))
    return max(errors)


@pytest.mark.parametrize("name", sorted(NETS))
def test_cut_equals_masked_module(name):
    module, example = build(name)
    module.train()
    reference = {key: value.clone() for key, value in module.state_dict().items()}
    result = gp.prune(module, example, rate=0.4, scope="group", exact=True, inplace=False)
    source = result.state.loaded.torch
    assert result.plan.tensors and result.plan.verify["passed"]
    known = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers(remove_duplicate=False))}
    assert set(result.plan.tensors) <= set(known)
    for names in source.aliases.values():
        entries = [result.plan.tensors.get(one) for one in names]
        assert all(entry == entries[0] for entry in entries)
    assert worst(masked(name, result.plan), source, result.ir) < 1e-5
    assert all(torch.equal(value, reference[key]) for key, value in module.state_dict().items())


class Deciding(nn.Module):
    """Looks at a value to decide."""

    def __init__(self):
        super().__init__()
        self.a, self.out = nn.Linear(6, 16), nn.Linear(16, 3)

    def forward(self, x):
        if x.sum() > 1000:
            x = x / 2
        return self.out(torch.relu(self.a(x)))


def test_decisions_by_value_are_traced_and_said():
    torch.manual_seed(0)
    module = Deciding()
    result = gp.prune(module, torch.randn(4, 6), rate=0.5, inplace=False)
    assert set(result.plan.tensors) == {"a.weight", "a.bias", "out.weight"}
    assert any("TorchScript" in note for note in result.state.notes)


def test_refusal_is_one_message():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(6, 16)

        def forward(self, x):
            return torch.linalg.eigvals(self.a(x)[:, :4] @ torch.ones(4, 4))

    with pytest.raises(gp.GraphPruneError, match=r"torch cannot export Sorted.*What to do: ") as told:
        gp.prune(Sorted(), torch.randn(4, 6))
    assert "\n" not in str(told.value)


def test_torch_prints_nothing_of_its_own(capfd):
    """TorchScript's exporter prints its graph from C++, where it fails."""

    class Deciding(nn.Module):
        def forward(self, x):
            return torch.linalg.eigvals(x).real if x.sum() > 0 else torch.linalg.eigvals(x).imag

    with pytest.raises(gp.GraphPruneError, match="TorchScript"):
        gp.prune(Deciding(), torch.randn(4, 4))
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize(
    "example, message",
    [(None, "needs example inputs"), ((torch.zeros(1), torch.zeros(1)), "does not take the example inputs"), ((3,), "hold no tensor")],
)
def test_bad_examples(example, message):
    with pytest.raises(gp.GraphPruneError, match=message):
        gp.prune(nn.Linear(3, 4), example)


def test_module_is_left_as_it_was():
    """Flags, hooks, gradients and attributes survive an inspection, and one that fails."""
    for module in (build("conv_bn")[0], build("keeps_tensors")[0], Deciding()):
        example = image_or_rows(module)
        module.train()
        module.requires_grad_(True)
        children = list(module.modules())
        children[-1].eval()
        next(module.parameters()).requires_grad_(False)
        called = []
        module.register_forward_hook(lambda *_, called=called: called.append(1))
        before = [(one.training, dict(vars(one))) for one in children]
        contents = [{k: list(v) for k, v in vars(one).items() if isinstance(v, (dict, list))} for one in children]
        gp.inspect(module, example)
        assert [(one.training, dict(vars(one))) for one in children] == before
        assert [{k: list(v) for k, v in vars(one).items() if isinstance(v, (dict, list))} for one in children] == contents
        assert torch.is_grad_enabled()
        assert not next(module.parameters()).requires_grad


class HooksItselfOnce(nn.Module):
    """Adds hooks to its layers on its first run, as transformers models do to collect hidden states."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        if not getattr(self, "hooked", False):
            self.hooked = True
            self.a.register_forward_hook(lambda _module, _inputs, out: out * 2)
        return self.b(torch.relu(self.a(x)))


def test_hooks_that_a_first_run_adds_are_added_once():
    torch.manual_seed(0)
    x = torch.randn(2, 8)
    used, fresh = HooksItselfOnce(), HooksItselfOnce()
    fresh.load_state_dict(used.state_dict())
    expected = used(x)
    gp.inspect(fresh, x)
    assert not hasattr(fresh, "hooked") and not fresh.a._forward_hooks
    assert torch.equal(fresh(x), expected)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d])
def test_layers_without_bias_are_cut_and_fitted(kind):
    """Exporters write computed zeros as their bias, from the weight's shape."""
    torch.manual_seed(0)
    spatial = int(kind.__name__[-2])
    module = nn.Sequential(kind(3, 16, 3, bias=False), nn.ReLU(), kind(16, 20, 3, bias=False), nn.ReLU(), nn.Flatten(1))
    x = torch.randn(4, 3, *[7] * spatial)
    module.append(nn.Linear(module(x).shape[1], 5))
    result = gp.prune(module, x, passes=["l1", "recover"], rate=0.5, scope="group", samples=32)
    assert module[2].in_channels == 8
    assert not result.plan.recovery["left"] and len(result.plan.recovery["layers"]) == 3


def test_sources_that_are_refused():
    for source in (torch.jit.script(nn.Linear(3, 4)), torch.jit.trace(nn.Linear(3, 4), torch.randn(2, 3))):
        with pytest.raises(gp.GraphPruneError, match="Linear is TorchScript"):
            gp.inspect(source, torch.randn(2, 3))
    with pytest.raises(gp.GraphPruneError, match="meta device"):
        gp.inspect(nn.Linear(3, 4, device="meta"), torch.randn(2, 3))


def image_or_rows(module):
    return torch.randn(2, 3, 8, 8) if isinstance(module, nn.Sequential) else torch.randn(4, 6)


@pytest.mark.parametrize("name", ["conv_bn", "attention", "tied_embedding"])
@pytest.mark.parametrize("size", [1, 2])
def test_dynamic_batch(name, size):
    module, example = build(name)
    example = example[:size]
    result = gp.prune(module, example, rate=0.4, scope="group", exact=True, dynamic_batch=True, inplace=False)
    assert not isinstance(result.ir.graph.inputs[0].shape[0], int)
    source = result.state.loaded.torch
    more = torch.cat([example, example.flip(0), example])
    wider = dataclasses.replace(source, args=(more,), feed={next(iter(source.feed)): more.numpy()})
    reference = masked(name, result.plan)
    assert worst(reference, source, result.ir) < 1e-5
    assert worst(reference, wider, result.ir) < 1e-5


def test_fixed_batch_is_said():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.out = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.out(torch.relu(self.a(x.view(4, 6))))

    result = gp.prune(Fixed(), torch.randn(4, 6), dynamic_batch=True, inplace=False)
    assert any("fixed to 4" in note for note in result.state.notes)


def test_dynamic_shapes_as_torch_takes_them():
    module, example = build("tied_embedding")
    shapes = {"ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", max=64)}}
    result = gp.prune(module, example, dynamic_shapes=shapes, inplace=False)
    assert not any(isinstance(size, int) for size in result.ir.graph.inputs[0].shape)
    with pytest.raises(gp.GraphPruneError, match="dynamic_shapes names 'other'"):
        gp.prune(module, example, dynamic_shapes={"other": {0: torch.export.Dim("batch")}})


@pytest.mark.parametrize("kind", ["graph_module", "program"])
def test_other_torch_sources(kind):
    module, example = build("residual")
    module.eval()
    if kind == "program":
        source, given = torch.export.export(module, (example,)), None
    else:
        source, given = torch.fx.symbolic_trace(module), example
    result = gp.prune(source, given, rate=0.4, scope="group", inplace=False)
    assert set(result.plan.tensors) <= set(module.state_dict())
    assert worst(masked("residual", result.plan), result.state.loaded.torch, result.ir) < 1e-5


def test_weights_are_not_copied():
    module, example = build("conv_bn")
    loaded = load_module(module, example)
    held = loaded.model.graph.initializers["0.0.weight"].const_value.numpy()
    assert np.shares_memory(held, module[0][0].weight.detach().numpy())


FACTORIES = """
import torch
from torch import nn

def good():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)), torch.randn(4, 6)

def alone():
    return good()[0]

def wrong():
    return 3

def broken():
    raise ValueError("no such weights")
"""


def test_factory_on_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    runner = CliRunner()
    done = runner.invoke(cli, ["run", "own_nets:good", "-o", "out.onnx", "--rate", "0.5", "--dynamic-batch"])
    assert done.exit_code == 0, done.output
    ort.InferenceSession("out.onnx").run(None, {"input": np.zeros((7, 6), np.float32)})
    assert runner.invoke(cli, ["verify", "own_nets:good", "out.onnx"]).exit_code == 0
    assert "2.weight" in runner.invoke(cli, ["inspect", "own_nets:good", "--json"]).output
    for name, message in {
        "alone": "needs example inputs", "wrong": "gave int", "broken": "no such weights", "missing": "has no 'missing'",
    }.items():  # fmt: skip
        told = runner.invoke(cli, ["run", f"own_nets:{name}"])
        assert told.exit_code == 2 and message in told.output
    assert "cannot be imported" in runner.invoke(cli, ["inspect", "no_such_nets:good"]).output


def test_onnx_takes_no_example(tmp_path):
    with pytest.raises(gp.GraphPruneError, match="passes are given by name"):
        gp.prune("model.onnx", "l1")


def test_operators_of_other_libraries_are_written_as_told() -> None:
    from onnxscript import opset18 as op

    from graphprune.frontends.torch_export import TRANSLATIONS

    @torch.library.custom_op("graphprune_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    double.register_fake(torch.empty_like)

    class Doubling(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Linear(4, 8), torch.nn.Linear(8, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(double(self.one(x)))

    with pytest.raises(ExportError, match="graphprune_test"):
        load_module(Doubling(), torch.randn(2, 4))
    target = torch.ops.graphprune_test.double.default
    TRANSLATIONS[target] = lambda x: op.Add(x, x)
    try:
        module = Doubling()
        result = gp.prune(module, torch.randn(2, 4), rate=0.5, scope="group")
    finally:
        del TRANSLATIONS[target]
    assert "Add" in {node.op_type for node in result.ir.graph} and result.plan.verify["passed"]
