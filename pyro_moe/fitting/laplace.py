"""The Laplace approximation of the posterior of the parameters of a fit."""

from dataclasses import fields
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.fitted import Fit
from pyro_moe.inference.em import EM
from pyro_moe.inference.errors import ConvergenceWarning, warn
from pyro_moe.inference.prior import Prior
from pyro_moe.inference.programs import Programs, isolated

PRIOR_SCALE = 10.0
LARGEST = 2000


class Laplace(nn.Module):
    r"""A story with a normal posterior of all its parameters.

    .. math:: \theta \sim N(0, 10^2 I), \quad q(\theta) = N(\theta \mid \hat\theta, H^{-1})

    All parameters, in standard units and without constraints, are one latent site
    ``"parameters"`` outside the plate. Predictions average over its draws.

    Args:
        story: A story with model and guide. It is changed in place.
        precision: H, shape (P, P), in the order of ``names``.

    Attributes:
        names: The names of the parameters in the story.
        loc: θ̂, shape (P,).
        covariance: The inverse of H, shape (P, P).
    """

    loc: torch.Tensor
    covariance: torch.Tensor

    def __init__(self, story: nn.Module, precision: torch.Tensor) -> None:
        super().__init__()
        self.programs = _Programs(story)
        named = dict(story.named_parameters())
        self.names = list(named)
        self.shapes = [value.shape for value in named.values()]
        self.x_dim = story.x_dim
        loc = torch.cat([value.detach().flatten() for value in named.values()])
        # Not a buffer: the type of a story is that of its parameters.
        self.loc = nn.Parameter(loc, requires_grad=False)
        covariance = torch.linalg.inv(precision)
        self.covariance = nn.Buffer((0.5 * (covariance + covariance.mT)).to(loc))
        for name, value in named.items():  # buffers, which `pyro.module` leaves alone
            path, _, last = name.rpartition(".")
            owner = story.get_submodule(path)
            delattr(owner, last)
            owner.register_buffer(last, value.detach())

    def model(self, *columns: torch.Tensor | None) -> Any:
        """Draw the parameters from their prior, and run the story's model with them."""
        prior = dist.Normal(torch.zeros_like(self.loc), PRIOR_SCALE).to_event(1)
        return self._run("model", prior, columns)

    def guide(self, *columns: torch.Tensor | None) -> Any:
        """Draw the parameters from q, and run the story's guide with them."""
        return self._run("guide", dist.MultivariateNormal(self.loc, self.covariance), columns)

    def standard_errors(self) -> dict[str, torch.Tensor]:
        """The standard deviations of q by name, in the shapes of the parameters."""
        deviations = self.covariance.diagonal().sqrt()
        return dict(zip(self.names, self._split(deviations), strict=True))

    def _run(self, program: str, p: Any, columns: tuple[torch.Tensor | None, ...]) -> Any:
        values = self._split(pyro.sample("parameters", p))
        named = {f"story.{name}": v for name, v in zip(self.names, values, strict=True)}
        return torch.func.functional_call(self.programs, named, (program, *columns))

    def _split(self, flat: torch.Tensor) -> list[torch.Tensor]:
        parts = flat.split([shape.numel() for shape in self.shapes])
        return [part.reshape(shape) for part, shape in zip(parts, self.shapes, strict=True)]


class _Programs(nn.Module):
    """The two programs of a story as one module, which `functional_call` can call."""

    def __init__(self, story: nn.Module) -> None:
        super().__init__()
        self.story = story

    def forward(self, program: str, *columns: torch.Tensor | None) -> Any:
        return getattr(self.story, program)(*columns)


def laplace(fit: Fit) -> Fit:
    r"""Add the uncertainty about the parameters to a fit, by a normal approximation.

    .. math:: q(\theta) = N(\theta \mid \hat\theta, H^{-1}), \quad
              H = -\nabla^2 \Big[ \sum_n \log p_\theta(d_n) + \log p(\theta) \Big]_{\hat\theta}

    H is the observed information of the likelihood with c summed out, and of the prior of the fit
    and N(0, 10² I). It holds all parameters, those of the gate, too. All evaluation and criticism
    of the returned fit averages over q: use it where rows are few. A strong prior, which is made
    from the rows themselves, counts its rows as if they were new. The deviations are then too
    small.

    Args:
        fit: A fit of a story without latent variables besides ``c``, with its training rows.

    Returns:
        A fit of the story with q, see `Laplace`.

    Raises:
        SiteError: If the story has other latent variables.
        ValueError: If model and guide are plain functions, or the story has more than 2,000
            parameters.
        DataError: If the fit was restored without its training rows.

    Warns:
        ConvergenceWarning: If the parameters are no maximum, so that some are not determined.

    References:
        Tierney, Kadane (1986), *Accurate approximations for posterior moments and marginal
        densities*, JASA 81.

    Example:
        >>> from pyro_moe import fit, models
        >>> x = torch.linspace(-1, 1, 40).unsqueeze(-1)
        >>> y = 2 * x + 0.1 * torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
        >>> story = models.ME(x_dim=1, y_dim=1, num_components=1)
        >>> fitted = laplace(fit(story.model, story.guide, (x, y), prior="weak", progress=False))
        >>> round(fitted.story.standard_errors()["experts.log_scale"].item(), 2)
        0.11
    """
    columns = fit.training_rows
    if not isinstance(fit.story, nn.Module):
        raise ValueError(f"expected the fit of a story; got that of {fit.programs.model!r}")
    number = sum(p.numel() for p in fit.story.parameters())
    if number > LARGEST:
        raise ValueError(f"expected at most {LARGEST:,} parameters; got {number:,}")
    model, guide = isolated(fit.programs.model, fit.programs.guide)
    story = model.__self__.double()
    data = tuple(c.double() if c.is_floating_point() else c for c in columns)
    prior = Prior(**fit.settings["prior"])
    about = fit.annotations.each(lambda c: c.double() if c.is_floating_point() else c)
    run = EM(model, guide, data, 0, fit.settings["seed"], prior, annotations=about)
    precision = information(run)
    values, vectors = torch.linalg.eigh(precision)
    if (values < -1e-6 * values.max()).any():
        warn(
            "expected parameters at a maximum of the likelihood; got a direction in which it "
            "increases: fit with a smaller tolerance, or with fewer components",
            ConvergenceWarning,
        )
    precision = (vectors * values.clamp_min(0.0)) @ vectors.mT
    precision = precision + PRIOR_SCALE**-2 * torch.eye(number).to(precision)
    posterior = Laplace(story, precision).to(columns[0])
    programs = Programs(posterior.model, posterior.guide, {"params": {}, "constraints": {}})
    values = {each.name: getattr(fit, each.name) for each in fields(Fit)}
    return Fit(**{**values, "programs": programs, "run": None})


def information(run: EM) -> torch.Tensor:
    """The negative Hessian of the objective of EM in all parameters, shape (P, P)."""
    parameters = list(run.parameters().values())
    with torch.enable_grad():
        gradients = torch.autograd.grad(-run.log_posterior(), parameters, create_graph=True)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        rows = [
            torch.autograd.grad(each, parameters, retain_graph=True, materialize_grads=True)
            for each in flat
        ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
