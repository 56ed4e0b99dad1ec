"""Frontends: bring a model into the one representation everything else works on, ``onnx_ir.Model``."""
