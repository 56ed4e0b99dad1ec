"""Networks of the transformers library from small configs: importing this module registers all of them."""

from benchmarks.zoo import hf_dense, hf_speech, hf_text, hf_vision

__all__ = ["hf_dense", "hf_speech", "hf_text", "hf_vision"]
