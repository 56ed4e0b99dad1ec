"""ONNX's own node tests, which carry models and expected results, against the torch backend.

Every test passes, or stands in `NOT_SUPPORTED` with a reason and fails: one that begins to pass must leave the table. A part runs
in the normal suite, all of them with ``-m slow``.
"""

from __future__ import annotations

import re
import warnings
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from graphprune.backends.torch import to_module  # noqa: E402
from graphprune.backends.torch_ops.dtypes import from_numpy, to_numpy  # noqa: E402
from graphprune.frontends.onnx import load  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # the generators of the tests overflow and divide by zero on purpose
    from onnx.backend.test.loader import load_model_tests

    TESTS = {test.name: test for test in load_model_tests(kind="node")}

_WIDE = "torch has no arithmetic on uint16, uint32, uint64"
#: What is not supported, by regular expressions for names of tests, and why.
NOT_SUPPORTED = {
    # Not a network's work: text, files, trees, optimisers.
    "test_image_decoder_.*": "ImageDecoder decodes files",
    "test_tfidfvectorizer_.*": "TfIdfVectorizer is text processing",
    "test_strnormalizer_.*": "torch has no strings",
    "test_string_.*": "torch has no strings",
    "test_regex_.*": "torch has no strings",
    "test_equal_string.*": "torch has no strings",
    "test_ai_onnx_ml_label_encoder_.*": "LabelEncoder maps labels by a table, mostly of strings",
    "test_ai_onnx_ml_tree_ensemble_.*": "TreeEnsemble: decision trees",
    "test_adagrad.*": "an optimiser's step as an operator (preview domain)",
    "test_adam.*": "an optimiser's step as an operator (preview domain)",
    "test_momentum.*": "an optimiser's step as an operator (preview domain)",
    "test_nesterov_momentum": "an optimiser's step as an operator (preview domain)",
    r"test_flexattention(?!.*expanded).*": "FlexAttention takes parts of its formula as graphs (preview domain)",
    # Element types.
    r"test_(add|sub|mul|div|mod|max|min|equal|greater|less|greater_equal|less_equal)_uint(16|32|64)(_expanded)?": _WIDE,
    "test_bitwise_not_3d": _WIDE,
    "test_cast.*FLOAT4E2M1.*": "torch has no arithmetic on 4-bit floats",
    "test_.*quantizelinear_float4e2m1": "torch has no arithmetic on 4-bit floats",
    "test_cast.*E8M0.*": "torch has no arithmetic on float8e8m0",
    # Random numbers: right by distribution, never the generator's own.
    "test_bernoulli.*": "the expected numbers are drawn by numpy",
    "test_training_dropout_default.*": "the expected numbers are drawn by numpy",
    "test_training_dropout": "the expected numbers are drawn by numpy",
    "test_training_dropout_mask": "the expected numbers are drawn by numpy",
    # Differences in numbers.
    "test_dft_inverse": "the expected value is rounding noise of 2e-7 where the exact one is 0, the tolerance 1e-7",
    "test_dft_inverse_opset19": "the expected value is rounding noise of 2e-7 where the exact one is 0, the tolerance 1e-7",
    "test_resize_downsample_scales_.*_align_corners": "positions follow ONNX Runtime: by the rounded size, not by size times scale",
    # Older than what graphprune reads.
    "test_not_.d": "opset 1; graphprune reads 7 and newer",
}
EPS = {np.dtype(np.float16): 2.0**-10, np.dtype(ml_dtypes.bfloat16): 2.0**-7}
SMALL = ("int4", "uint4", "int2", "uint2")


def reason(name: str) -> str | None:
    return next((why for pattern, why in NOT_SUPPORTED.items() if re.fullmatch(pattern, name)), None)


def tensor(x: Any) -> Any:
    if x is None or isinstance(x, list):
        return None if x is None else [tensor(i) for i in x]
    return from_numpy(onnx.numpy_helper.to_array(x) if isinstance(x, onnx.TensorProto) else np.asarray(x), copy=True)


def check(want: Any, got: Any, rtol: float, atol: float) -> None:
    if isinstance(want, list):
        for a, b in zip(want, got, strict=True):
            check(a, b, rtol, atol)
        return
    if want is None:
        assert got is None
        return
    want = onnx.numpy_helper.to_array(want) if isinstance(want, onnx.TensorProto) else np.asarray(want)
    got = to_numpy(got)
    assert want.shape == got.shape
    assert want.dtype == got.dtype or str(want.dtype) in SMALL  # kept in 8 bits
    # Two units in the last place of 16-bit floats, whose sums depend on the order of addition.
    rtol = max(rtol, 2 * EPS.get(want.dtype, 0))
    if want.dtype.kind not in "bc":
        with np.errstate(invalid="ignore"):
            want, got = want.astype(np.float64), got.astype(np.float64)
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


def run(name: str) -> None:
    test = TESTS[name]
    assert test.model is not None
    module = to_module(load(test.model).model)
    for inputs, outputs in test.data_sets or ():
        with torch.no_grad():
            got = module(*[tensor(x) for x in inputs])
        check(list(outputs), list(got) if isinstance(got, tuple) else [got], test.rtol, test.atol)


def judge(name: str) -> None:
    if reason(name) is None:
        run(name)
        return
    with pytest.raises(Exception):  # noqa: B017
        run(name)


@pytest.mark.parametrize("name", list(TESTS)[::9])
def test_some_of_onnxs_node_tests(name: str) -> None:
    judge(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TESTS))
def test_all_of_onnxs_node_tests(name: str) -> None:
    judge(name)


def test_most_node_tests_are_supported() -> None:
    listed = sum(reason(name) is not None for name in TESTS)
    print(f"{len(TESTS) - listed} of ONNX {onnx.__version__}'s {len(TESTS)} node tests are supported")
    assert listed <= 0.1 * len(TESTS)
    assert all(any(re.fullmatch(p, name) for name in TESTS) for p in NOT_SUPPORTED) or onnx.__version__ < "1.23"
