"""``graphprune demo``: a model and what was cut from it, side by side in a browser."""
