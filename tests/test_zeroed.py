"""Zeroing the removed slices of a weight: by bits, for every element type."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from graphprune.masking import filled, zeroed

TYPES = ["float32", "float64", "float16", "int8", "uint8", "int64", "bool", "complex64", "complex128", ml_dtypes.bfloat16,
         ml_dtypes.float8_e4m3fn, ml_dtypes.int4]  # fmt: skip


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("axes", [(0,), (1,), (0, 1), (2,), (0, 3), ()], ids=str)
def test_like_assignment(dtype: object, axes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    array = rng.integers(1, 7, (4, 5, 3, 2)).astype(np.dtype(dtype))  # type: ignore[call-overload]
    kept = [(axis, np.flatnonzero(np.arange(array.shape[axis]) % 2)) for axis in axes]
    wanted = array.copy()
    for axis, indices in kept:
        gone = np.setdiff1d(np.arange(array.shape[axis]), indices)
        wanted[(slice(None),) * axis + (gone,)] = 0
    for found in (zeroed(array, kept), filled(array, kept, np.zeros(1, array.dtype))):
        assert found.dtype == array.dtype
        assert found.tobytes() == wanted.tobytes()
        assert not np.shares_memory(found, array)


def test_not_finite_and_not_contiguous() -> None:
    array = np.array([[np.inf, np.nan, -1.0], [np.nan, 2.0, -np.inf]], np.float32).T
    assert np.array_equal(zeroed(array, [(1, np.array([1]))]), [[0, np.nan], [0, 2], [0, -np.inf]], equal_nan=True)
    assert zeroed(np.ones(3, np.float32), [(0, np.array([2]))]).tolist() == [0, 0, 1]
