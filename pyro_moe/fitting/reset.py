"""The initial parameters of a fit."""

import torch

from pyro_moe.inference.context import reproducible
from pyro_moe.inference.programs import Program, modules
from pyro_moe.inference.protocols import Adaptive, Resettable


def reset(
    model: Program, guide: Program, data: tuple[torch.Tensor, ...], seed: int, *, keep: bool = False
) -> None:
    """Initialize the parameters, and set the units of stories from the data."""
    for part in modules(model, guide):
        part.to(data[0][:1]).eval()  # only the epochs of `SVI` are in training mode
        if keep:
            continue
        with reproducible(seed):
            part.apply(_reset_parameters)
        if isinstance(part, Adaptive):
            with reproducible(seed, 0, 1), torch.no_grad():
                part.adapt(*data[:2])


def _reset_parameters(module: torch.nn.Module) -> None:
    if isinstance(module, Resettable):
        module.reset_parameters()
