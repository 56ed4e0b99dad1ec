"""Labels that come with calibration data: subfolders of images, or an array ``labels`` beside the inputs in a ``.npz``."""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol, runtime_checkable

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from graphprune.errors import DataError
from graphprune.inputs import Samples

#: Name of the array in a ``.npz``.
KEY = "labels"


@runtime_checkable
class Labelled(Protocol):
    """A source of samples that may have labels."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes that the data have, those of samples that were not chosen too; empty where labels are numbers."""

    def label(self, index: int) -> str | NDArray[np.int64] | None:
        """The name of a sample's class, or the numbers of its labels; None without."""


def labels_of(samples: Samples, widths: Collection[int] = ()) -> NDArray[np.int64] | None:
    """Labels of all samples, int64[n, ...]; None where the data have none.

    Names of folders that are all whole numbers are class numbers. Others are numbered in sorted order, and then there must be
    as many as some output of the model gives.

    Parameters
    ----------
    widths
        How many classes outputs have.

    Raises
    ------
    DataError
        Some samples have labels and others none, or there are not as many folders as classes.
    """
    source = samples.source
    if not isinstance(source, Labelled):
        return None
    found = [source.label(i) for i in range(len(samples))]
    missing = sum(one is None for one in found)
    if missing == len(found):
        return None
    if missing:
        raise DataError(f"{missing} of {len(found)} samples have no label: put every image into the folder of its class")
    if not source.classes:
        return np.stack([np.asarray(one) for one in found]).astype(np.int64)
    names = source.classes
    if all(name.isascii() and name.isdigit() for name in names):
        return np.array([int(str(one)) for one in found], np.int64)
    if widths and len(names) not in widths:
        listed = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise DataError(
            f"the data have {len(names)} classes ({listed}), the model gives {' or '.join(map(str, sorted(set(widths))))}: name "
            "every folder by the number of its class (0, 1, ...), or give a folder for each class"
        )
    number = {name: i for i, name in enumerate(names)}
    return np.array([number[str(one)] for one in found], np.int64)


def class_counts(model: ir.Model) -> list[int]:
    """Sizes of the last axis of outputs that may hold classes, where the file says them."""
    out = []
    for value in model.graph.outputs:
        if value.shape is not None and len(value.shape) >= 2 and isinstance(size := value.shape[-1], int) and size > 1:
            out.append(size)
    return out
