"""The torch backend: an ONNX graph as a trainable module, judged by ONNX Runtime and by torch's own modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

torch = pytest.importorskip("torch")

import graphprune as gp  # noqa: E402
from graphprune.backends.torch import to_module, update_model  # noqa: E402
from graphprune.backends.torch_ops.dtypes import from_numpy, to_numpy  # noqa: E402
from graphprune.frontends.onnx import load  # noqa: E402
from graphprune.frontends.torch import load_module  # noqa: E402
from tests.oracle import dim_choices, flat, graph_inputs, make_feeds, rel_error  # noqa: E402
from tests.oracle_constants import session  # noqa: E402
from tests.patterns import PATTERNS, Pattern  # noqa: E402
from tests.patterns.build import Net  # noqa: E402


def tensor(x: Any) -> Any:
    return [tensor(i) for i in x] if isinstance(x, list) else from_numpy(np.asarray(x), copy=True)


def array(y: Any) -> Any:
    return [array(i) for i in y] if isinstance(y, list) else to_numpy(y)


def run(module: Any, feeds: Sequence[Any]) -> list[Any]:
    with torch.no_grad():
        got = module(*[tensor(x) for x in feeds])
    return [array(y) for y in (got if isinstance(got, tuple) else (got,))]


def assert_close(want: Sequence[Any], got: Sequence[Any], tolerance: float = 1e-4) -> None:
    for a, b in zip(flat(want), flat(got), strict=True):
        for x, y in zip(a, b, strict=True):
            assert (x.dtype, x.shape) == (y.dtype, y.shape)
            assert rel_error(x, y) <= tolerance


@pytest.mark.parametrize("pattern", [pytest.param(p, id=name) for name, p in PATTERNS.items()])
def test_pattern_computes_what_onnx_runtime_does(pattern: Pattern) -> None:
    model = pattern.build()
    module, judge, rng = to_module(load(model).model), session(model), np.random.default_rng(0)
    for i, dims in enumerate(dim_choices(model, pattern.dims)):
        feeds = pattern.feeds(rng, i) if pattern.feeds else make_feeds(model, dims, pattern.ranges, rng)
        got = run(module, [feeds[v.name] for v in graph_inputs(model)])
        assert_close(judge.run(None, feeds), got, pattern.tolerance)


# -- a small network, with names a user would give -------------------------------------------------------------


def convnet(dropout: bool = False) -> onnx.ModelProto:
    g = Net()
    x = g.x("N", 3, 8, 8)
    x = g.cbr(x, "stem.conv", 6, 3)
    y = g.cbr(x, "block/1", 6, 6)
    x = g.Add(x, y)
    if dropout:
        x = g.Dropout(x, g.f(0.5))
    g.head(x, 6)
    return g.model()


def test_names_lead_to_parameters_and_buffers() -> None:
    module = to_module(load(convnet()).model)
    names = module.meta["names"]
    assert names["stem.conv.w"] == "stem.conv.w"
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    assert {"stem.conv.w", names["block/1.w"], names["stem.conv.s"], names["fc.b"]} <= parameters.keys()
    assert {names["stem.conv.m"], names["stem.conv.v"]} <= buffers.keys()
    assert set(names.values()) == parameters.keys() | buffers.keys()


def test_weights_are_copied_unless_asked() -> None:
    loaded = load(convnet()).model
    source = loaded.graph.initializers["fc.w"].const_value
    assert source is not None
    before = source.numpy().copy()
    module = to_module(loaded)
    with torch.no_grad():
        module.get_parameter("fc.w").zero_()
    assert np.array_equal(source.numpy(), before)
    writable = before.copy()
    loaded.graph.initializers["fc.w"].const_value = ir.Tensor(writable)
    shared = to_module(loaded, copy=False)
    with torch.no_grad():
        shared.get_parameter("fc.w").zero_()
    assert not writable.any()


def test_shared_initializer_is_one_parameter() -> None:
    g = Net()
    w = g.w("w", 5, 5)
    g.out(g.MatMul(g.Relu(g.MatMul(g.x("N", 5), w)), w))
    module = to_module(load(g.model()).model)
    assert [name for name, _ in module.named_parameters()] == ["w"]


def test_batch_norm_trains_as_torch_does() -> None:
    model = convnet()
    module = to_module(load(model).model)
    names = module.meta["names"]
    twin = torch.nn.BatchNorm2d(6, momentum=0.1, eps=1e-5)
    conv = torch.nn.functional.conv2d
    with torch.no_grad():
        for own, key in (("weight", "s"), ("bias", "h"), ("running_mean", "m"), ("running_var", "v")):
            getattr(twin, own).copy_(
                module.get_parameter("stem.conv.s") if key == "s" else _at(module, names[f"stem.conv.{key}"])
            )
    x = torch.randn(4, 3, 8, 8)
    module.train()
    twin.train()
    module(x)
    twin(conv(x, module.get_parameter("stem.conv.w"), padding=1))
    assert torch.allclose(_at(module, names["stem.conv.m"]), twin.running_mean, atol=1e-6)
    assert torch.allclose(_at(module, names["stem.conv.v"]), twin.running_var, atol=1e-6)
    kept = _at(module, names["stem.conv.m"]).clone()
    module.eval()
    module(x)
    assert torch.equal(kept, _at(module, names["stem.conv.m"]))


def _at(module: Any, path: str) -> Any:
    for part in path.split("."):
        module = getattr(module, part)
    return module


def test_dropout_acts_in_train_mode_only() -> None:
    module = to_module(load(convnet(dropout=True)).model)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(module(x), module(x))
    module.train()
    assert not torch.equal(module(x), module(x))


def test_gradients_equal_those_of_torchs_own_module() -> None:
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.Hardswish(), torch.nn.Conv2d(4, 4, 3, 2, groups=4),
        torch.nn.Flatten(), torch.nn.Linear(36, 7), torch.nn.LayerNorm(7),
    ).eval()  # fmt: skip
    x = torch.randn(2, 3, 8, 8)
    g = Net()
    for name, value in net.state_dict().items():
        if not name.endswith("tracked"):
            g.c(value.numpy(), np.float32, name)
    y = g.Conv(g.x("N", 3, 8, 8), "0.weight", "0.bias", pads=[1] * 4)
    y = g.HardSwish(g.BatchNormalization(y, "1.weight", "1.bias", "1.running_mean", "1.running_var"))
    y = g.Flatten(g.Conv(y, "3.weight", "3.bias", strides=[2, 2], group=4))
    y = g.LayerNormalization(g.Gemm(y, "5.weight", "5.bias", transB=1), "6.weight", "6.bias", epsilon=1e-5)
    g.out(y)
    module = to_module(load(g.model()).model)
    assert set(dict(module.named_parameters())) == set(dict(net.named_parameters()))
    for mode in (False, True):
        net.train(mode)
        module.train(mode)
        net.zero_grad()
        module.zero_grad()
        net(x).square().sum().backward()
        module(x).square().sum().backward()
        wanted = dict(net.named_parameters())
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None
            assert torch.allclose(parameter.grad, wanted[name].grad, atol=2e-4), name


def test_trained_weights_go_back_into_the_model(tmp_path: Any) -> None:
    loaded = load(convnet()).model
    module = to_module(loaded).train()
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(3):
        optimiser.zero_grad()
        module(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimiser.step()
    module.eval()
    update_model(loaded, module)
    ir.save(loaded, tmp_path / "trained.onnx")
    x = np.random.default_rng(1).standard_normal((2, 3, 8, 8)).astype(np.float32)
    judge = ort.InferenceSession(tmp_path / "trained.onnx", providers=["CPUExecutionProvider"])
    assert_close(judge.run(None, {judge.get_inputs()[0].name: x}), run(module, [x]))


def test_update_model_says_what_does_not_fit() -> None:
    loaded = load(convnet()).model
    module = to_module(loaded)
    with pytest.raises(gp.GraphPruneError, match="to_module made"):
        update_model(loaded, torch.nn.Linear(2, 2))
    loaded.graph.initializers["fc.w"].const_value = ir.Tensor(np.zeros((5, 4), np.float32))
    with pytest.raises(gp.GraphPruneError, match=r"fc\.w.*\[5, 4\].*\[5, 6\]"):
        update_model(loaded, module)


def test_module_can_be_copied_compiled_and_traced() -> None:
    model = convnet()
    module = to_module(load(model).model)
    x = torch.randn(2, 3, 8, 8)
    want = module(x)
    twin = copy.deepcopy(module)
    assert torch.equal(twin(x), want)
    assert twin.meta["names"] == module.meta["names"]
    assert twin.state_dict().keys() == module.state_dict().keys()
    assert torch.allclose(torch.compile(module, backend="eager")(x), want)
    assert torch.allclose(torch.fx.symbolic_trace(module)(x), want)
    assert torch.allclose(torch.fx.Transformer(module).transform()(x), want)


def test_shape_arithmetic_traces_and_compiles_with_open_axes() -> None:
    for name in ("window_partition_dynamic", "flatten_and_back_by_shape", "pad_to_multiple"):
        model = PATTERNS[name].build()
        module = to_module(load(model).model)
        rng = np.random.default_rng(0)
        compiled = torch.compile(module, backend="eager", dynamic=True)
        traced = torch.fx.symbolic_trace(module)
        for dims in dim_choices(model, PATTERNS[name].dims):
            feeds = [tensor(x) for x in make_feeds(model, dims, PATTERNS[name].ranges, rng).values()]
            want = module(*feeds)
            assert torch.allclose(compiled(*feeds), want, atol=1e-5)
            assert torch.allclose(traced(*feeds), want, atol=1e-5)


def test_inputs_are_taken_by_name_too() -> None:
    g = Net()
    g.out(g.Sub(g.x("N", 3, name="left"), g.x("N", 3, name="right:0")))
    module = to_module(load(g.model()).model)
    a, b = torch.ones(2, 3), torch.zeros(2, 3)
    keywords = module.meta["inputs"]
    assert torch.equal(module(**{keywords["right:0"]: b, keywords["left"]: a}), a)


def test_unknown_operator_is_refused_at_build_time() -> None:
    g = Net()
    g.out(g.op("Wobble", g.x("N", 3), domain="my.ops"), dtype=onnx.TensorProto.FLOAT, shape=["N", 3])
    with pytest.raises(gp.GraphPruneError, match=r"Wobble.*my\.ops.*register"):
        to_module(load(g.model()).model)


def test_fake_quantisation_has_a_gradient() -> None:
    module = to_module(load(PATTERNS["qdq_everything"].build()).model)
    x = torch.randn(2, *[int(d) for d in _shape(PATTERNS["qdq_everything"].build())[1:]], requires_grad=True)
    module(x).square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def _shape(model: onnx.ModelProto) -> list[int]:
    return [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]


def test_mapped_weights_that_are_shared_ask_for_no_gradient(tmp_path: Any) -> None:
    """They cannot be written: an optimiser that tried would end the process."""
    onnx.save(convnet(), tmp_path / "net.onnx")
    module = to_module(load(tmp_path / "net.onnx").model, copy=False)
    assert not any(p.requires_grad for p in module.parameters())
    assert all(p.requires_grad for p in to_module(load(tmp_path / "net.onnx").model).parameters())


def test_the_caller_says_what_is_trained() -> None:
    module = to_module(load(convnet()).model, trainable={"fc.w"})
    assert [name for name, _ in module.named_parameters()] == ["fc.w"]


def test_what_torch_exported_says_what_its_parameters_are() -> None:
    model = load(convnet()).model
    key = "pkg.torch.export.graph_signature.InputSpec.kind"
    model.graph.initializers["fc.w"].metadata_props[key] = "BUFFER"
    node = next(n for n in model.graph if n.op_type == "Gemm")
    node.metadata_props["pkg.torch.onnx.stack_trace"] = 'File "user.py", line 3, in forward\n    return self.fc(x)'
    module = to_module(model)
    assert "fc.w" in dict(module.named_buffers())
    assert any("self.fc(x)" in (n.stack_trace or "") for n in module.graph.nodes)


def test_one_layers_normalisation_can_be_frozen() -> None:
    module = to_module(load(convnet()).model).train()
    first = next(m for m in module.modules() if type(m).__name__ == "BatchNorm")
    first.eval()
    mean = module.meta["names"]["stem.conv.m"], module.meta["names"]["block/1.m"]
    before = [_at(module, path).clone() for path in mean]
    module(torch.randn(4, 3, 8, 8))
    assert torch.equal(_at(module, mean[0]), before[0])
    assert not torch.equal(_at(module, mean[1]), before[1])


def test_hardswish_written_out_is_torchs_own() -> None:
    g = Net()
    x = g.x("N", 4)
    g.out(g.Div(g.Mul(x, g.Clip(g.Add(x, g.f(3.0)), g.f(0.0), g.f(6.0))), g.f(6.0)))
    model = g.model()
    module = to_module(load(model).model)
    assert [n.target for n in module.graph.nodes if n.op == "call_function"] == [torch.nn.functional.hardswish]
    x = np.linspace(-5, 5, 8, dtype=np.float32).reshape(2, 4)
    assert_close(session(model).run(None, {"x": x}), run(module, [x]), 1e-6)


class Mixed(torch.nn.Module):
    """A bare parameter, a scalar one, a table that is none, groups, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = torch.nn.BatchNorm2d(8)
        self.groups = torch.nn.GroupNorm(2, 8)
        self.shift = torch.nn.Parameter(torch.randn(8, 1, 1))
        self.scale = torch.nn.Parameter(torch.tensor(1.5))
        self.register_buffer("table", torch.randn(8, 1, 1))
        self.fc = torch.nn.Linear(8, 4)

    def forward(self, x: Any) -> Any:
        x = torch.nn.functional.silu(self.norm(self.conv(x)))
        x = self.groups(x) * self.scale + self.shift * self.table
        return self.fc(x.mean((2, 3)))


def test_a_torch_module_comes_back_with_its_own_parameters() -> None:
    source = Mixed().eval()
    x = torch.randn(2, 3, 6, 6)
    wanted, same = dict(source.named_parameters()), source(x)
    module = to_module(load_module(source, (x,)).model)
    assert dict(module.named_parameters()).keys() == wanted.keys()
    assert {"table", "norm.running_mean", "norm.running_var"} <= dict(module.named_buffers()).keys()
    assert torch.allclose(module(x), same, atol=1e-5)
    assert any("self.fc(" in (n.stack_trace or "") for n in module.graph.nodes)
    source.train()
    module.train()
    source(x).square().sum().backward()
    module(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        assert torch.allclose(parameter.grad, wanted[name].grad, atol=1e-3), name
