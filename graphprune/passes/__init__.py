"""Passes: one a file, each a frozen dataclass whose fields are its options and whose docstring is its help."""
