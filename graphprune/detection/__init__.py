"""Detectors: boxes in outputs, annotated pictures, average precision, and heads in graphs."""
