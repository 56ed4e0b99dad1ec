"""What is cut: the patterns of the tests, and models of the transformers library from their configs."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable
from typing import Any

Made = tuple[Any, tuple[Any, ...], dict[str, Any]]
Make = Callable[[], Made]


def patterns() -> list[str]:
    """Names of the small modules."""
    from tests.torch_patterns import PATTERNS

    return list(PATTERNS)


def transformers_models() -> list[str]:
    """Names of the models: every zoo entry that comes from the transformers library, and `MORE`."""
    from benchmarks.torch_modules.more_models import MORE
    from benchmarks.zoo import hf  # noqa: F401 (registers)
    from benchmarks.zoo.registry import ENTRIES

    return [*(n for n, e in ENTRIES.items() if "register" in e.build.__qualname__), *MORE]


def maker(kind: str, name: str) -> Make:
    """A function that builds the source of that name, the same at every call."""
    if kind == "patterns":
        from tests.torch_patterns import PATTERNS

        return PATTERNS[name].make
    return lambda: transformers_model(name)


def transformers_model(name: str) -> Made:
    """A transformers model as its class gives it, with the library's default attention, called by keywords."""
    import torch

    from benchmarks.torch_modules.more_models import MORE
    from benchmarks.zoo import hf  # noqa: F401 (registers)
    from benchmarks.zoo.initialise import randomise
    from benchmarks.zoo.registry import ENTRIES

    torch.manual_seed(zlib.crc32(name.encode()))
    if name in MORE:
        module, kwargs = MORE[name]()
    else:
        built = ENTRIES[name].build()
        module, kwargs = built.module.model, dict(zip(built.input_names, built.inputs, strict=True))
    kwargs = {key: batch_of_two(value) for key, value in kwargs.items()}
    with contextlib.suppress(ValueError, AttributeError):  # not every model has it
        module.set_attn_implementation("sdpa")
    if hasattr(module.config, "use_cache"):
        module.config.use_cache = False
    randomise(module)
    for key, buffer in module.named_buffers():
        if key.endswith("running_mean"):
            buffer.add_(torch.randn_like(buffer) * 0.2)
        elif key.endswith("running_var"):
            buffer.mul_(torch.rand_like(buffer) + 0.5)
    module.eval()
    return module, (), kwargs


def batch_of_two(value: Any) -> Any:
    """Two samples where the builder made one; the second is the first in another order."""
    import torch

    if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == 1:
        return torch.cat([value, value.flip(-1)])
    return value
