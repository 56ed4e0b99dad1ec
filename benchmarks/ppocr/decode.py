"""From the recogniser's output to text, and how right it is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray


def alphabet(model: str | Path) -> list[str]:
    """Character of every class: blank (empty) first, those of the file's metadata, space last.

    Raises
    ------
    ValueError
        The file's metadata has no ``character``.
    """
    proto = onnx.load(str(model), load_external_data=False)
    stored = {entry.key: entry.value for entry in proto.metadata_props}
    if "character" not in stored:
        raise ValueError(f"{model}: the metadata has no entry 'character': not a recogniser of rapidocr, or it was lost")
    return ["", *stored["character"].splitlines(), " "]


def ctc_greedy(scores: NDArray[Any], characters: Sequence[str]) -> list[str]:
    """Best class at each step, repeats merged, blanks (class 0) dropped.

    Parameters
    ----------
    scores
        float[batch, steps, classes].
    characters
        One per class.
    """
    best = scores.argmax(axis=2)
    keep = best != 0
    keep[:, 1:] &= best[:, 1:] != best[:, :-1]
    return ["".join(characters[i] for i in row[kept]) for row, kept in zip(best, keep, strict=True)]


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions and substitutions of single characters."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        above, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (x != y))
    return row[-1]


def rightness(read: Sequence[str], truth: Sequence[str]) -> dict[str, float]:
    """Share of lines exactly right, and of characters: 1 - edits / characters of the truth, 0 at least."""
    edits = sum(edit_distance(a, b) for a, b in zip(read, truth, strict=True))
    return {
        "lines right": sum(a == b for a, b in zip(read, truth, strict=True)) / len(truth),
        "characters right": max(0.0, 1 - edits / sum(map(len, truth))),
    }
