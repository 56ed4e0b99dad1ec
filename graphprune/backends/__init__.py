"""Where models go: the ONNX writer, ONNX Runtime, and what further targets need."""
