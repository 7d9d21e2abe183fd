"""The initial parameters of a fit."""

import torch

from pyro_moe.inference.context import reproducible
from pyro_moe.inference.programs import Program, modules
from pyro_moe.inference.protocols import Adaptive, Resettable

from .annotations import expanded


def reset(
    model: Program,
    guide: Program,
    data: tuple[torch.Tensor, ...],
    seed: int,
    *,
    weights: torch.Tensor | None = None,
    keep: bool = False,
) -> None:
    """Initialize the parameters, and set the units of stories from the data.

    Each row counts as many times as its weight says.
    """
    for part in modules(model, guide):
        part.to(data[0][:1]).eval()  # only the epochs of `SVI` are in training mode
        if keep:
            continue
        with reproducible(seed):
            part.apply(_reset_parameters)
        if isinstance(part, Adaptive):
            with reproducible(seed, 0, 1), torch.no_grad():
                part.adapt(*expanded(data[:2], weights))


def _reset_parameters(module: torch.nn.Module) -> None:
    if isinstance(module, Resettable):
        module.reset_parameters()
