"""Calibration data: shapes of dynamic inputs, and made-up samples."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphprune.data import Hints, InputSpec, load, parse_shapes, resolve_shapes, synthetic
from graphprune.errors import UsageError
from graphprune.inputs import image_axes
from graphprune.synthetic import pink
from tests.input_specs import EXAMPLE, F32, I64, IMAGE, only, spec

# ---------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("texts", "names", "shapes"),
    [
        (["x=1x3x224x224"], None, {"x": (1, 3, 224, 224)}),
        (["x=1,3,8"], None, {"x": (1, 3, 8)}),
        (["1X3x8"], ["x"], {"x": (1, 3, 8)}),
        (["5"], ["n"], {"n": (5,)}),
        (["a=b:0=2x2", "y = 4"], None, {"a=b:0": (2, 2), "y": (4,)}),
        ([], None, {}),
    ],
)
def test_parse_shapes(texts: list[str], names: list[str] | None, shapes: dict[str, tuple[int, ...]]) -> None:
    assert parse_shapes(texts, names) == shapes


@pytest.mark.parametrize(
    ("texts", "names", "message"),
    [
        (["1x3"], ["a", "b"], "name the input.*a, b"),
        (["1x3"], None, "name the input"),
        (["imge=1x3"], ["image", "mask"], "no input is named 'imge'; did you mean 'image'"),
        (["x=1x3", "x=1x4"], None, "given twice"),
        (["x="], None, "is not a shape"),
        (["x=1x0"], None, "sizes of 1 or more"),
        (["x=1x-3"], None, "is not a shape"),
        (["x=1x3.5"], None, "is not a shape"),
        (["x=1xx3"], None, "is not a shape"),
        (["x=1x²"], None, "is not a shape"),
    ],
)
def test_parse_shapes_refuses(texts: list[str], names: list[str] | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_shapes(texts, names)


@pytest.mark.parametrize(
    ("given_spec", "shape"),
    [
        (spec("x", F32, "batch", 3, None, None), (1, 3, 224, 224)),
        (spec("x", F32, None, None, None, None), (1, 3, 224, 224)),
        (spec("x", F32, None, "h", "w", 3), (1, 224, 224, 3)),
        (spec("x", F32, "n", 3, 640, "w"), (1, 3, 640, 640)),
        (spec("x", F32, 4, 1, 28, 28), (4, 1, 28, 28)),
        (spec("x", F32, "b", 64, "h", "w"), (1, 64, 56, 56)),
        (spec("x", F32, -1, 3, 0, 0), (1, 3, 224, 224)),
        (spec("ids", I64, "batch", "sequence"), (1, 16)),
        (spec("sound", F32, "batch", "samples"), (1, 16000)),
        (spec("mel", F32, "batch", 80, "t"), (1, 80, 128)),
        (spec("feats", F32, "batch", "frames", 40), (1, 64, 40)),
        (spec("x", F32, "sequence", "batch", 8), (64, 1, 8)),
        (spec("past", F32, "batch", 4, "past_sequence_length", 64), (1, 4, 16, 64)),
        (spec("video", F32, None, 3, None, None, None), (1, 3, 8, 112, 112)),
        (spec("flag", bool), ()),
    ],
)
def test_dynamic_axes_get_sensible_sizes(given_spec: InputSpec, shape: tuple[int, ...]) -> None:
    assert resolve_shapes([given_spec]) == {given_spec.name: shape}


def test_one_symbol_one_size_and_arithmetic() -> None:
    specs = [
        spec("ids", I64, "batch", "seq"),
        spec("mask", I64, "batch", "past + seq"),
        spec("past", F32, "batch", 2, "past", 8),
        spec("pair", F32, "2*batch", "seq//2"),
        spec("odd", F32, 1, "unk:12", "seq - 99"),
    ]
    shapes = resolve_shapes(specs, {"ids": (3, 10)})
    assert shapes["mask"] == (3, 10 + shapes["past"][2])
    assert shapes["past"][0] == 3
    assert shapes["pair"] == (6, 5)
    assert min(shapes["odd"]) >= 1
    assert resolve_shapes(specs, batch=5)["ids"] == (5, 16)


def test_spatial_default_is_a_multiple_of_the_stride() -> None:
    shapes = resolve_shapes([spec("x", F32, 1, 3, "h", "w")], hints=Hints(strides={"x": 64}))
    assert shapes["x"] == (1, 3, 256, 256)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"y": (1, 3, 32, 32)}, "no input is named 'y'"),
        ({"x": (1, 3, 32)}, r"has rank 4, \[batch, 3, 32, 32\]: give 4 sizes"),
        ({"x": (1, 1, 32, 32)}, "axis 1 of the input is fixed at 3"),
    ],
)
def test_shapes_that_contradict_the_model(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_shapes([IMAGE], shapes)


def test_one_symbol_cannot_have_two_sizes() -> None:
    with pytest.raises(UsageError, match="axis named 'n' two sizes, 2 and 3"):
        resolve_shapes([spec("a", F32, "n", 4), spec("b", F32, "n", 4)], {"a": (2, 4), "b": (3, 4)})


@pytest.mark.parametrize(
    ("given_spec", "channel"),
    [
        (spec("x", F32, 1, 3, 8, 8), 1),
        (spec("x", F32, 1, 8, 8, 3), 3),
        (spec("x", np.uint8, 1, 8, 8, 3), 3),
        (spec("x", F32, 3, 224, 224), 0),
        (spec("x", F32, 224, 224, 3), 2),
        (spec("x", F32, 1, 16, 768), None),
        (spec("x", F32, 1, 64, 8, 8), None),
        (spec("x", I64, 1, 3, 8, 8), None),
        (spec("attention_mask", F32, 1, 1, 8, 8), None),
        (spec("k", F32, "batch", 4, "past_len", 64), None),
        (spec("x", F32, 1, 10), None),
    ],
)
def test_image_axes(given_spec: InputSpec, channel: int | None) -> None:
    axes = image_axes(given_spec)
    assert (None if axes is None else axes.channel) == channel


# ------------------------------------------------------------------------------------------- synthetic


def test_synthetic_is_repeatable_and_seeded() -> None:
    first, again, other = (synthetic([IMAGE], 4, seed) for seed in (1, 1, 2))
    assert len(first) == 4 and first.feeds == 4
    assert first.shapes == {"x": (1, 3, 32, 32)}
    for a, b, c, d in zip(only(first), only(first), only(again), only(other), strict=True):
        assert a.shape == (1, 3, 32, 32) and a.dtype == np.float32
        assert np.array_equal(a, b) and np.array_equal(a, c) and not np.array_equal(a, d)
    one, two, *_ = only(first)
    assert not np.array_equal(one, two)
    assert first.description == "synthetic: 4 samples of image-like 1/f noise (give --data for real ones)"


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_images_are_smooth_with_channels_that_agree(layout: str) -> None:
    shape = (1, 3, 64, 64) if layout == "NCHW" else (1, 64, 64, 3)
    for image in only(synthetic([spec("x", F32, *shape)], 4, 0)):
        chw = image[0] if layout == "NCHW" else image[0].transpose(2, 0, 1)
        beside = np.corrcoef(chw[:, :, 1:].ravel(), chw[:, :, :-1].ravel())[0, 1]
        channels = np.corrcoef(chw[0].ravel(), chw[1].ravel())[0, 1]
        assert beside > 0.6  # white noise has 0
        assert channels > 0.4
        assert 0.3 < chw.std() < 2 and abs(chw.mean()) < 1.5


def test_pink_noise_falls_as_one_over_f() -> None:
    noise = pink(np.random.default_rng(0), (64, 256), (1,))
    power = (np.abs(np.fft.rfft(noise, axis=1)) ** 2).mean(axis=0)[1:128]
    slope = np.polyfit(np.log(np.arange(1, 128)), np.log(power), 1)[0]
    assert -2.2 < slope < -1.8  # power is the square of the amplitude
    assert np.allclose(noise.std(axis=1), 1) and np.allclose(noise.mean(axis=1), 0)
    assert np.array_equal(pink(np.random.default_rng(0), (3, 1, 1), (1, 2)), np.zeros((3, 1, 1)))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16, np.uint8, np.int8])
def test_images_come_in_the_type_of_the_input(dtype: object) -> None:
    (image,) = only(synthetic([spec("x", dtype, 1, 3, 16, 16)], 1, 0))
    assert image.dtype == np.dtype(dtype)  # type: ignore[call-overload]
    values = image.astype(np.float64)
    assert values.std() > 0.1
    if np.dtype(dtype) == np.uint8:  # type: ignore[call-overload]
        assert 60 < values.mean() < 200 and values.std() > 20
    if np.dtype(dtype) == np.int8:  # type: ignore[call-overload]
        assert -70 < values.mean() < 70 and values.std() > 20


def test_integers_are_what_their_names_ask_for() -> None:
    specs = [
        spec("input_ids", I64, "batch", "seq"),
        spec("attention_mask", I64, "batch", "seq"),
        spec("token_type_ids", I64, "batch", "seq"),
        spec("position_ids", I64, "batch", "seq"),
        spec("lengths", np.int32, "batch"),
        spec("use_cache", bool, 1),
        spec("unknown", I64, "batch", 40),
        spec("bias_mask", F32, "batch", 1, "seq", "seq"),
        spec("text", object, "batch"),
    ]
    samples = synthetic(specs, 8, 0, {"input_ids": (1, 64)}, Hints(limits={"input_ids": 11}))
    ids = []
    for feed in samples:
        assert {name: array.shape for name, array in feed.items()} == samples.shapes
        assert all(feed[s.name].dtype == s.dtype for s in specs)
        ids.append(feed["input_ids"])
        assert feed["attention_mask"].all() and feed["use_cache"].all() and feed["bias_mask"].all()
        assert not feed["token_type_ids"].any()
        assert feed["position_ids"].tolist() == [list(range(64))]
        assert feed["lengths"].tolist() == [64]
        assert set(feed["unknown"].ravel().tolist()) == {0, 1}
    assert set(np.concatenate(ids).ravel().tolist()) == set(range(11))


def test_limits_hold_for_positions_and_lengths_too() -> None:
    specs = [spec("position_ids", I64, 1, 16), spec("seq_lens", I64, 1)]
    (feed,) = synthetic(specs, 1, 0, hints=Hints(limits={"position_ids": 4, "seq_lens": 3}))
    assert feed["position_ids"].max() == 3 and feed["seq_lens"].tolist() == [2]


def test_detector_inputs_beside_the_image() -> None:
    specs = [spec("image", F32, None, 3, 96, 64), spec("im_shape", F32, None, 2), spec("scale_factor", F32, None, 2)]
    (feed,) = synthetic(specs, 1, 0)
    assert feed["im_shape"].tolist() == [[96, 64]] and feed["scale_factor"].tolist() == [[1, 1]]


def test_static_and_asked_batches() -> None:
    static = synthetic([spec("x", F32, 4, 3, 8, 8)], 6, 0)
    shapes = [array.shape[0] for array in only(static)]
    assert shapes == [4, 4] and len(static) == 6 and static.batch == 4
    dynamic = synthetic([spec("x", F32, None, 3, 8, 8)], 6, 0, batch=4)
    assert [array.shape[0] for array in only(dynamic)] == [4, 2]
    # The samples are the same, however they are batched.
    alone = np.concatenate(only(synthetic([spec("x", F32, None, 3, 8, 8)], 6, 0)))
    assert np.array_equal(np.concatenate(only(dynamic)), alone)
    assert np.array_equal(np.concatenate(only(static)), np.concatenate([alone, alone[:2]]))


def test_inputs_without_a_batch_axis() -> None:
    specs = [spec("x", F32, "batch", 6), spec("table", F32, 5, 6), spec("rate", F32)]
    feeds = list(synthetic(specs, 4, 0, batch=2))
    assert [feed["x"].shape for feed in feeds] == [(2, 6), (2, 6)]
    assert all(feed["table"].shape == (5, 6) and feed["rate"].shape == () for feed in feeds)
    (image,) = only(synthetic([spec("x", F32, 3, 32, 48)], 1, 0))
    assert image.shape == (3, 32, 48)
    sequence_first = [spec("x", F32, "seq", "batch", 6)]
    assert len(list(synthetic(sequence_first, 3, 0))) == 3


@pytest.mark.parametrize(("n", "seed", "batch"), [(0, 0, 1), (1, -1, 1), (1, 0, 0)])
def test_counts_that_make_no_sense(n: int, seed: int, batch: int) -> None:
    with pytest.raises(UsageError):
        synthetic([IMAGE], n, seed, batch=batch)
    with pytest.raises(UsageError):
        load(EXAMPLE, [IMAGE], n=n, seed=seed, batch=batch)


_sizes = st.one_of(st.integers(-1, 9), st.none(), st.sampled_from(["batch", "seq", "h", "w", "a + 1", "?!", "2*h"]))
_dtypes = st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16, np.int64, np.uint8, bool, ml_dtypes.int4])
_words = st.sampled_from(["x", "mask", "position_ids", "lengths", "segment", "image_size", "scale", "y"])


@given(
    st.dictionaries(_words, st.tuples(_dtypes, st.lists(_sizes, max_size=5)), min_size=1, max_size=3), st.integers(1, 3)
)
def test_any_model_gets_feeds_that_fit(inputs: dict[str, tuple[object, list[int | str | None]]], batch: int) -> None:
    specs = [
        spec(name, dtype, *(1 if size == 16000 else size for size in shape)) for name, (dtype, shape) in inputs.items()
    ]
    if any(np.prod(shape) > 1e6 for shape in resolve_shapes(specs, batch=batch).values()):
        return
    samples = synthetic(specs, 2, 0, hints=Hints(limits={"x": 3}), batch=batch)
    for feed in samples:
        for s in specs:
            array, shape = feed[s.name], samples.shapes[s.name]
            assert array.dtype == s.dtype
            assert array.shape == shape
            assert all(want in (None, have) for want, have in zip(map(s.size, range(len(shape))), shape, strict=True))
