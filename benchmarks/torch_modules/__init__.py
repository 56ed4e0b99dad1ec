"""Torch modules in and out, beside Torch-Pruning: patterns, models of the transformers library, time and memory."""
