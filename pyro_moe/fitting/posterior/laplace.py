"""The Laplace approximation of the posterior of the parameters of a fit."""

from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.fitted import Fit
from pyro_moe.inference.context import learning
from pyro_moe.inference.em import EM
from pyro_moe.inference.errors import ConvergenceWarning, warn

from .story import PRIOR_SCALE, ParameterPosterior, in_double, with_story


class Laplace(ParameterPosterior):
    r"""A story with a normal posterior of all its parameters.

    .. math:: q(\theta) = N(\theta \mid \hat\theta, H^{-1})

    Args:
        story: A story with model and guide. It is changed in place.
        precision: H, shape (P, P), in the order of ``names``.

    Attributes:
        loc: θ̂, shape (P,).
        covariance: The inverse of H, shape (P, P).
    """

    covariance: torch.Tensor

    def __init__(self, story: nn.Module, precision: torch.Tensor) -> None:
        super().__init__(story)
        covariance = torch.linalg.inv(precision)
        self.covariance = nn.Buffer((0.5 * (covariance + covariance.mT)).to(self.loc))

    def q(self) -> Any:
        """The normal posterior of the parameters."""
        return dist.MultivariateNormal(self.loc, self.covariance)

    def standard_errors(self) -> dict[str, torch.Tensor]:
        """The standard deviations of q by name, in the shapes of the parameters."""
        return self.named(self.covariance.diagonal().sqrt())


@learning()
def laplace(fit: Fit) -> Fit:
    r"""Add the uncertainty about the parameters to a fit, by a normal approximation.

    .. math:: q(\theta) = N(\theta \mid \hat\theta, H^{-1}), \quad
              H = -\nabla^2 \Big[ \sum_n \log p_\theta(d_n) + \log p(\theta) \Big]_{\hat\theta}

    H is the observed information of the likelihood with c summed out, and of the prior of the fit
    and N(0, 10² I). It holds all parameters, those of the gate, too. All evaluation and criticism
    of the returned fit averages over q. Where rows are few, `hmc` is better. A strong prior, which
    is made from the rows themselves, counts its rows as if they were new. The deviations are then
    too small.

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
    story, run = in_double(fit)
    precision = information(run)
    values, vectors = torch.linalg.eigh(precision)
    if (values < -1e-6 * values.max()).any():
        warn(
            "expected parameters at a maximum of the likelihood; got a direction in which it "
            "increases: fit with a smaller tolerance, or with fewer components",
            ConvergenceWarning,
        )
    precision = (vectors * values.clamp_min(0.0)) @ vectors.mT
    precision = precision + PRIOR_SCALE**-2 * torch.eye(len(precision)).to(precision)
    return with_story(fit, Laplace(story, precision).to(fit.training_rows[0]))


def information(run: EM) -> torch.Tensor:
    """The negative Hessian of the objective of EM in all parameters, shape (P, P)."""
    parameters = list(run.parameters().values())
    with learning():
        gradients = torch.autograd.grad(-run.log_posterior(), parameters, create_graph=True)
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        rows = [
            torch.autograd.grad(each, parameters, retain_graph=True, materialize_grads=True)
            for each in flat
        ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
