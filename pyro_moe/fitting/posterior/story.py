"""Stories whose parameters are a latent variable with a posterior."""

import math
from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.fitted import Fit
from pyro_moe.inference.em import EM
from pyro_moe.inference.prior import penalized
from pyro_moe.inference.programs import Programs, isolated

from ..columns import em_of

PRIOR_SCALE = 10.0
LARGEST = 2000


class ParameterPosterior(nn.Module, ABC):
    r"""A story whose parameters θ are one latent site ``"parameters"`` outside the plate.

    .. math:: \theta \sim N(0, \mathrm{diag}(\tau)^2), \quad \theta \sim q

    The parameters are in standard units and without constraints, see `prior_scales` for τ.
    Predictions average over draws of q.

    Args:
        story: A story with model and guide. It is changed in place.

    Attributes:
        names: The names of the parameters in the story.
        shapes: Their shapes.
        loc: Their values in the story, shape (P,).
        prior_scale: τ, shape (P,).
    """

    loc: torch.Tensor
    prior_scale: torch.Tensor

    def __init__(self, story: nn.Module) -> None:
        super().__init__()
        self.programs = _Programs(story)
        named = dict(story.named_parameters())
        self.names = list(named)
        self.shapes = [value.shape for value in named.values()]
        self.x_dim = story.x_dim
        loc = torch.cat([value.detach().flatten() for value in named.values()])
        # Not a buffer: the type of a story is that of its parameters.
        self.loc = nn.Parameter(loc, requires_grad=False)
        self.prior_scale = nn.Buffer(prior_scales(story).to(loc))
        with_buffers(story)

    @abstractmethod
    def q(self) -> Any:
        """The posterior of the parameters, of event shape (P,)."""

    @abstractmethod
    def standard_errors(self) -> dict[str, torch.Tensor]:
        """The standard deviations of q by name, in the shapes of the parameters."""

    def model(self, *columns: torch.Tensor | None) -> Any:
        """Draw the parameters from their prior, and run the story's model with them."""
        prior = dist.Normal(torch.zeros_like(self.loc), self.prior_scale).to_event(1)
        return self._run("model", prior, columns)

    def guide(self, *columns: torch.Tensor | None) -> Any:
        """Draw the parameters from q, and run the story's guide with them."""
        return self._run("guide", self.q(), columns)

    def _run(self, program: str, p: Any, columns: tuple[torch.Tensor | None, ...]) -> Any:
        named = self.named(pyro.sample("parameters", p))
        named = {f"story.{name}": value for name, value in named.items()}
        return torch.func.functional_call(self.programs, named, (program, *columns))

    def named(self, flat: torch.Tensor) -> dict[str, torch.Tensor]:
        """Values (…, P) by name, in the shapes of the parameters."""
        parts = flat.split([shape.numel() for shape in self.shapes], -1)
        shapes = [flat.shape[:-1] + shape for shape in self.shapes]
        values = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        return dict(zip(self.names, values, strict=True))


class _Programs(nn.Module):
    """The two programs of a story as one module, which `functional_call` can call."""

    def __init__(self, story: nn.Module) -> None:
        super().__init__()
        self.story = story

    def forward(self, program: str, *columns: torch.Tensor | None) -> Any:
        return getattr(self.story, program)(*columns)


def prior_scales(story: Any) -> torch.Tensor:
    r"""The standard deviations τ of the normal prior of all parameters, shape (P,).

    They are 10, but those of logits are smaller, see `prior_scale` of gates and experts: few rows
    leave logits unbounded, or too far from zero. Weights are meant for columns in standard units.

    References:
        Gelman, Jakulin, Pittau, Su (2008), *A weakly informative default prior distribution for
        logistic and other regression models*, Annals of Applied Statistics 2.
    """
    scales = {}
    parts: list[Any] = [*penalized(story.model)]
    for part in parts:
        scale = getattr(part, "prior_scale", PRIOR_SCALE)
        for name, value in part.named_parameters() if scale != PRIOR_SCALE else ():
            width = value.shape[-1] if name.endswith("weight") else 1  # w = V / √D, `AffineMaps`
            scales[value] = scale * math.sqrt(max(width, 1))
    each = [torch.full((p.numel(),), scales.get(p, PRIOR_SCALE)) for p in story.parameters()]
    return torch.cat(each).double()


def with_buffers(story: nn.Module) -> None:
    """Turn the parameters of a story into buffers, which `pyro.module` leaves alone."""
    for name, value in dict(story.named_parameters()).items():
        path, _, last = name.rpartition(".")
        owner = story.get_submodule(path)
        delattr(owner, last)
        owner.register_buffer(last, value.detach())


def in_double(fit: Fit) -> tuple[nn.Module, EM]:
    """A copy of the fitted story in double precision, and the objective of its training rows.

    Raises:
        ValueError: If model and guide are plain functions, or the story has more than 2,000
            parameters.
        DataError: If the fit was restored without its training rows.
    """
    if not isinstance(fit.story, nn.Module):
        raise ValueError(f"expected the fit of a story; got that of {fit.programs.model!r}")
    number = sum(p.numel() for p in fit.story.parameters())
    if number > LARGEST:
        raise ValueError(f"expected at most {LARGEST:,} parameters; got {number:,}")
    model, guide = isolated(fit.programs.model, fit.programs.guide)
    return model.__self__.double(), em_of(fit, model, guide)


def with_story(fit: Fit, story: ParameterPosterior) -> Fit:
    """The fit with another story."""
    programs = Programs(story.model, story.guide, {"params": {}, "constraints": {}})
    values = {each.name: getattr(fit, each.name) for each in fields(Fit)}
    return Fit(**{**values, "programs": programs, "run": None})
