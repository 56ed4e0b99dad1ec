"""Accuracy after a cut, with and without recovery, on small networks that are trained here."""
