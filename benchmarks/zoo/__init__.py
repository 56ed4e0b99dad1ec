"""Model zoo: real architectures, random weights, exported to ONNX for tests and benchmarks.

``python -m benchmarks.zoo build`` writes the files; see README.md beside this file.
"""

from benchmarks.zoo import cnn, hf
from benchmarks.zoo.registry import ENTRIES, Built, Entry

__all__ = ["ENTRIES", "Built", "Entry", "cnn", "hf"]
