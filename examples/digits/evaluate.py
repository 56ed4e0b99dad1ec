"""Accuracy of the digits classifier: an example of what ``--eval MODULE:FUNCTION`` asks for.

The contract: a function of one argument, the path of an ``.onnx`` file as ``str``, that returns a number or a
``dict`` of name to number. It is called once for the source model and once for every model made from it, so
it must not remember anything between calls, and must measure on data that was used neither for training nor
for calibration.

    python examples/digits/evaluate.py examples/digits/digits.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

TEST_SET = Path(__file__).resolve().with_name("digits_test.npz")


def accuracy(model: str) -> dict[str, float]:
    """Share of the 450 held-out digits that a model names correctly, and its mean cross-entropy.

    Parameters
    ----------
    model
        Path of an ONNX file with one input ``image`` float32[batch, 1, 8, 8] and one output, logits
        float32[batch, 10].

    Returns
    -------
    dict
        ``accuracy`` in 0..1 and ``loss`` in nats.
    """
    with np.load(TEST_SET) as data:
        image, label = data["image"], data["label"]
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    logits = np.asarray(session.run(None, {"image": image})[0], dtype=np.float64)
    log_p = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    return {
        "accuracy": float((logits.argmax(axis=1) == label).mean()),
        "loss": float(-log_p[np.arange(len(label)), label].mean()),
    }


if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(path, accuracy(path))
