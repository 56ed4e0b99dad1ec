"""Networks in plain torch: importing this module registers all of them."""

from benchmarks.zoo import cnn_classic, cnn_dense, cnn_detect, cnn_mobile, cnn_sequence, cnn_variants

__all__ = ["cnn_classic", "cnn_dense", "cnn_detect", "cnn_mobile", "cnn_sequence", "cnn_variants"]
