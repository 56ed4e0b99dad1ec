"""An example of a graphprune plug-in."""
