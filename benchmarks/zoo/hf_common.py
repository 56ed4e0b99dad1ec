"""How a transformers config becomes a zoo entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.zoo.registry import Axes, Built, entry

if TYPE_CHECKING:
    import torch

Config = Callable[[], Any] | dict[str, Any]
Make = Callable[[], "torch.Tensor"]


def _wrap(model: Any, names: Sequence[str], keys: Sequence[str], fixed: dict[str, Any]) -> Any:
    """A module that takes tensors by position and returns the named fields of the model's output."""
    from torch import Tensor, nn

    class Fields(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *args: Tensor) -> tuple[Tensor, ...]:
            out = self.model(**dict(zip(names, args, strict=True)), **fixed)
            if isinstance(out, Tensor):
                return (out,)
            return tuple(out[key] for key in keys)

    return Fields()


def register(
    name: str,
    family: str,
    model_class: str,
    config: Config,
    inputs: dict[str, Make],
    *,
    keys: Sequence[str],
    dynamic: Axes | None = None,
    **fixed: Any,
) -> None:
    """Register ``transformers.<model_class>`` built from `config`.

    Parameters
    ----------
    config : dict or callable
        Arguments of the model's own config class, or a function that returns a ready config (nested ones).
    inputs : dict
        Forward argument name to a function that makes its example tensor.
    keys : sequence of str
        Fields of the model output that become graph outputs.
    **fixed
        Further forward arguments, constant.
    """

    @entry(name, family)
    def build() -> Built:
        import transformers

        cls = getattr(transformers, model_class)
        if callable(config):
            ready = config()
        else:
            ready = cls.config_class(**config)
        # the fused attention op hides the head layout behind exporter-specific decompositions
        ready._attn_implementation = "eager"
        model = cls(ready)
        tensors = tuple(make() for make in inputs.values())
        return Built(_wrap(model, tuple(inputs), keys, fixed), tensors, list(inputs), dynamic)


def ids(vocabulary: int, *shape: int) -> Make:
    """Token ids in ``[3, vocabulary)``: special tokens mostly sit below."""

    def make() -> torch.Tensor:
        import torch

        return torch.randint(3, vocabulary, shape)

    return make


def ones(*shape: int) -> Make:
    """An attention mask that masks nothing."""

    def make() -> torch.Tensor:
        import torch

        return torch.ones(shape, dtype=torch.int64)

    return make


def noise(*shape: int) -> Make:
    """Standard normal floats."""

    def make() -> torch.Tensor:
        import torch

        return torch.randn(shape)

    return make
