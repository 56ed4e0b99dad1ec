"""Latency as a budget: layers timed on the user's machine, widths chosen on the steps found, the result measured."""
