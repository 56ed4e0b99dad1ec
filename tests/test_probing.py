"""Probe shapes of inputs whose sizes are open: what fits the graph, and overrides that do not."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from onnx import helper

from graphprune.errors import UsageError
from graphprune.shapes import infer, probe_inputs
from tests.shape_nets import parse


def test_probe_of_images_and_sequences() -> None:
    model = parse(
        """agraph (float["n",3,"h","w"] x, int64["n","s"] ids, float["n","s",8] e, float z) => (float[] y) {
            y = Relu (x)
        }"""
    )
    assert probe_inputs(model, {}) == {"x": (1, 3, 224, 224), "ids": (1, 16), "e": (1, 16, 8), "z": ()}
    chosen = probe_inputs(model, {"ids": (2, 7)})
    assert chosen == {"x": (2, 3, 224, 224), "ids": (2, 7), "e": (2, 7, 8), "z": ()}


def test_probe_of_channels_last_and_of_open_channels() -> None:
    model = parse(
        """agraph (float["n","h","w",3] x, float["n","c","h2","w2"] v) => (float[] y) {
            y = Conv (v, k)  t = Relu (x)
        }""",
        k=(4, 5, 1, 1),
    )
    chosen = probe_inputs(model, {})
    assert chosen["x"] == (1, 224, 224, 3)
    assert chosen["v"] == (1, 5, 224, 224)  # the convolution's weight has five input channels


@pytest.mark.parametrize("size", [64, 320, 48])
def test_probe_tries_sizes_until_the_graph_agrees(size: int) -> None:
    text = f"""agraph (float["n",3,"h","w"] x) => (float[] y) {{
        s = Constant <value_ints = [0, {3 * size}, {size}]> ()  y = Reshape (x, s)
    }}"""
    model = parse(text)
    shape = probe_inputs(model, {})["x"]
    assert shape == (1, 3, size, size)
    assert not infer(model, {"x": shape}).problems


def test_probe_finds_a_length_that_audio_needs() -> None:
    model = parse(
        """agraph (float["n","samples"] x) => (float[] y) {
            a = Constant <value_ints = [1]> ()  u = Unsqueeze (x, a)  y = Conv <strides = [160]> (u, k)
        }""",
        k=(2, 1, 400),
    )
    assert probe_inputs(model, {})["x"][1] >= 400


def test_probe_works_out_sums_of_names() -> None:
    x = [helper.make_tensor_value_info(n, 7, s) for n, s in (("ids", ["n", "s"]), ("mask", ["n", "past + s"]))]
    past = helper.make_tensor_value_info("past_k", 1, ["n", 4, "past", 8])
    y = helper.make_tensor_value_info("y", 7, None)
    graph = helper.make_graph([helper.make_node("Identity", ["ids"], ["y"])], "g", [*x, past], [y])
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8))
    chosen = probe_inputs(model, {"ids": (1, 5), "past_k": (1, 4, 9, 8)})
    assert chosen["mask"] == (1, 14)


def test_probe_keeps_what_got_furthest_when_nothing_fits() -> None:
    model = parse(
        """agraph (float["n",3,"h","w"] x) => (float[] y) {
            r = Relu (x)  s = Constant <value_ints = [0, 7]> ()  y = Reshape (r, s)
        }"""
    )
    assert probe_inputs(model, {})["x"][:2] == (1, 3)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"z": (1,)}, ["no input is called 'z'", "x"]),
        ({"x": (1, 3, 8)}, ["'x'", "4 axes", "1x3x8"]),
        ({"x": (1, 4, 8, 8)}, ["axis 1", "'x'", "3", "1x4x8x8"]),
        ({"x": (1, 3, -8, 8)}, ["'x'", "negative"]),
    ],
)
def test_overrides_that_do_not_fit(overrides: dict[str, tuple[int, ...]], words: list[str]) -> None:
    model = parse('agraph (float["n",3,"h","w"] x) => (float[] y) { y = Relu (x) }')
    with pytest.raises(UsageError) as caught:
        probe_inputs(model, overrides)
    assert all(word in str(caught.value) for word in words)
