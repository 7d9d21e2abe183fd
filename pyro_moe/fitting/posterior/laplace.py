"""The Laplace approximation of the posterior of the parameters of a fit."""

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.fitted import Fit
from pyro_moe.inference.context import learning
from pyro_moe.inference.em import EM
from pyro_moe.inference.errors import ConvergenceWarning, warn

from .story import ParameterPosterior, in_double, prior_scales, with_story

STEPS = 20
CLOSE = 1e-6


class Laplace(ParameterPosterior):
    r"""A story with a normal posterior of all its parameters.

    .. math:: q(\theta) = N(\theta \mid \hat\theta, H^{-1})

    Args:
        story: A story with model and guide. It is changed in place.
        covariance: H⁻¹, shape (P, P), in the order of ``names``; see `laplace` for weights of a
            sample.

    Attributes:
        loc: θ̂, shape (P,).
        covariance: The covariance, shape (P, P).
    """

    covariance: torch.Tensor

    def __init__(self, story: nn.Module, covariance: torch.Tensor) -> None:
        super().__init__(story)
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
              H = -\nabla^2 \Big[ \sum_n \log p_\theta(d_n) + \log p(\theta)
                  - \tfrac{1}{2} \sum_j \theta_j^2 / \tau_j^2 \Big]_{\hat\theta}

    c is summed out of the likelihood, and p(θ) is the prior of the fit. τ is 10, and less for
    logits, see `hmc`. θ̂ is the maximum, to which Newton's method goes from the fit. q holds
    all parameters, those of the gate, too. All evaluation and criticism of the returned fit
    averages over q. Where rows are few, `hmc` is better. A strong prior, which is made from the
    rows themselves, counts its rows as if they were new. The deviations are then too small: fit
    with ``prior="weak"`` for intervals of coefficients.

    With sampling weights the rows tell less than so many rows would. The covariance then is that
    of the sandwich, H⁻¹ (Σ_n s_n s_nᵀ + diag(τ)⁻²) H⁻¹, with s_n the gradient of the weighted
    log-likelihood of a row or group (Ribatet, Cooley, Davison 2012).

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
        densities*, JASA 81. Ribatet, Cooley, Davison (2012), *Bayesian inference from composite
        likelihoods, with an application to spatial extremes*, Statistica Sinica 22.

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
    values = torch.linalg.eigvalsh(precision)
    if (values < -1e-6 * values.max()).any():
        warn(
            "expected parameters at a maximum of the likelihood; got a direction in which it "
            "increases: fit with a smaller tolerance, or with fewer components",
            ConvergenceWarning,
        )
    to_maximum(run, prior_scales(story))
    prior = prior_scales(story).to(precision).pow(-2).diag()
    covariance = torch.linalg.inv(_bounded(information(run)) + prior)
    if fit.weight_type == "sampling":
        each = scores(run).to(precision)
        covariance = covariance @ (each.mT @ each + prior) @ covariance
    return with_story(fit, Laplace(story, covariance).to(fit.training_rows[0]))


def to_maximum(run: EM, scales: torch.Tensor) -> None:
    """Go to the maximum with the normal prior by Newton's method, with steps that increase it.

    Args:
        run: A run, whose parameters are changed in place.
        scales: The standard deviations of the prior, shape (P,).
    """
    learned = list(run.parameters().values())
    inverse = scales.to(learned[0]).pow(-2)

    def objective() -> torch.Tensor:
        theta = torch.cat([value.flatten() for value in learned])
        return run.log_posterior() - 0.5 * (inverse * theta.square()).sum()

    for _ in range(STEPS):
        with learning():
            value = objective()
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(value, learned)])
        step = torch.linalg.solve(_bounded(information(run)) + inverse.diag(), gradient)
        if 0.5 * gradient @ step < CLOSE or not _moved(objective, value.detach(), learned, step):
            return


def _moved(
    objective: Callable[[], torch.Tensor],
    start: torch.Tensor,
    learned: list[torch.Tensor],
    step: torch.Tensor,
) -> bool:
    """Add a step, halved until the objective increases; False if it does not."""
    before = [value.detach().clone() for value in learned]
    pieces = step.split([value.numel() for value in learned])
    with torch.no_grad():
        for share in (*(0.5**halvings for halvings in range(12)), 0.0):
            for value, old, piece in zip(learned, before, pieces, strict=True):
                value.copy_(old + share * piece.reshape(old.shape))
            if share and objective() > start:
                return True
    return False


def _bounded(precision: torch.Tensor) -> torch.Tensor:
    """The nearest matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(precision)
    return (vectors * values.clamp_min(0.0)) @ vectors.mT


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


def scores(run: EM) -> torch.Tensor:
    """The gradient of each row's or group's log-likelihood, times its weight, shape (N, P)."""
    parameters, groups = list(run.parameters().values()), run.annotations.groups
    with learning():
        rows = run.log_likelihoods()
        if groups is not None:
            place = groups.unique(return_inverse=True)[1]
            rows = rows.new_zeros(int(place.max()) + 1).index_add(0, place, rows)
        each = [
            torch.autograd.grad(row, parameters, retain_graph=True, materialize_grads=True)
            for row in rows
        ]
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in each]).double()
