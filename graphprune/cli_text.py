"""What several commands read out of the text of their options."""

from __future__ import annotations

import click


def numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    """``0.5,0.5,0.5`` as numbers; ``name`` is the option's, for the error."""
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise click.UsageError(f"{name} '{text}': numbers separated by commas") from None


def sizes(model: str, texts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """``x=1x3x224x224``, or sizes alone where the model has one input, as sizes by the name of the input."""
    if not texts:
        return {}
    from graphprune.calibration import input_specs
    from graphprune.frontends.factory import is_factory
    from graphprune.frontends.onnx import load
    from graphprune.inputs import parse_shapes

    if is_factory(model):
        raise click.UsageError(f"--shape is for ONNX files: the example inputs that {model} gives decide the shapes")

    names = None if all("=" in text for text in texts) else [spec.name for spec in input_specs(load(model).model)]
    return parse_shapes(texts, names)
