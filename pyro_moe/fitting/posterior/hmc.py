"""Draws from the posterior of the parameters by Hamiltonian Monte Carlo."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, cast

import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.fitted import Fit
from pyro_moe.inference.context import learning, reproducible, without_warnings
from pyro_moe.inference.em import EM
from pyro_moe.inference.errors import ConvergenceWarning, DataError, warn
from pyro_moe.inference.steps import Recording, traced

from .laplace import laplace
from .story import ParameterPosterior, in_double, prior_scales, with_buffers, with_story

LEAPFROGS = 8
BANDWIDTH = 0.1
ACCEPTANCE = 0.7
RATE = 0.2
MOST_R_HAT = 1.1
Target = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Sampled(ParameterPosterior):
    r"""A story with draws from the posterior of all its parameters.

    .. math:: q(\theta) = \frac{1}{S} \sum_s N(\theta \mid \theta_s, h^2 C)

    C is the covariance of the draws, and h = 0.1. The narrow kernels give q a density, which
    bounds need.

    Args:
        story: A story with model and guide. It is changed in place.
        draws: θ_s, shape (S, P), in the order of ``names``.
        r_hat: R̂ of each parameter, shape (P,), see `hmc`.
    """

    def __init__(self, story: nn.Module, draws: torch.Tensor, r_hat: torch.Tensor) -> None:
        super().__init__(story)
        self.draws = nn.Buffer(draws.to(self.loc))
        self.r_hat = nn.Buffer(r_hat.to(self.loc))
        noise = 1e-12 * draws.var(0).clamp_min(1e-12).diag()
        self.root = nn.Buffer(torch.linalg.cholesky(draws.T.cov() + noise).to(self.loc))

    def q(self) -> Any:
        """The kernel density of the draws."""
        return _KernelDensity(self.draws, BANDWIDTH * self.root)

    def samples(self) -> dict[str, torch.Tensor]:
        """The draws by name, in the shapes (S, …) of the parameters."""
        return self.named(self.draws)

    def standard_errors(self) -> dict[str, torch.Tensor]:
        """The standard deviations of the draws by name, in the shapes of the parameters."""
        return self.named(self.draws.std(0))


class _KernelDensity(dist.TorchDistribution):
    """A mixture of normal distributions of equal weights with the covariance L Lᵀ.

    Args:
        points: Their means, shape (S, P).
        root: L, shape (P, P).
        batch_shape: Shape of independent copies.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    support = dist.constraints.real_vector
    has_rsample = True

    def __init__(self, points: torch.Tensor, root: torch.Tensor, batch_shape: Any = ()) -> None:
        self.points, self.root = points, root
        super().__init__(torch.Size(batch_shape), points.shape[1:], validate_args=False)

    @property
    def mean(self) -> torch.Tensor:
        """The mean, shape (batch_shape, P)."""
        return self.points.mean(0).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> torch.Tensor:
        """The variances, shape (batch_shape, P)."""
        total = self.points.var(0, correction=0) + self.root.square().sum(-1)
        return total.expand(self.batch_shape + self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "_KernelDensity":
        """Independent copies."""
        return _KernelDensity(self.points, self.root, batch_shape)

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Draws, shape (sample_shape, batch_shape, P)."""
        shape = torch.Size(sample_shape) + self.batch_shape
        places = torch.randint(len(self.points), shape)
        centers = self.points[places.to(self.points.device)]
        return centers + torch.randn(centers.shape).to(centers) @ self.root.mT

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """Log-densities of values (…, P), shape (…,)."""
        kernels = dist.MultivariateNormal(self.points, scale_tril=self.root)
        return kernels.log_prob(value.unsqueeze(-2)).logsumexp(-1) - math.log(len(self.points))


@learning()
def hmc(
    fit: Fit,
    *,
    num_samples: int = 512,
    num_chains: int = 32,
    num_steps: int = 200,
    seed: int | None = None,
) -> Fit:
    r"""Draw the parameters of a fit from their posterior.

    .. math:: \theta_s \sim p(\theta \mid d) \propto
              N(\theta \mid 0, \mathrm{diag}(\tau)^2)\, p(\theta) \prod_n p_\theta(d_n)

    c is summed out, and p(θ) is the prior of the fit. τ = 10 in standard units, and 2.5 for
    log-odds: those of two components of a softmax gate, of two classes, and of a binary target.
    The parameters are those of `laplace`, which is a normal approximation of the same posterior
    and takes far less time. Where rows are few or components are well separated, the posterior is
    far from normal. Then use this function. For intervals of coefficients fit with
    ``prior="weak"``: a strong prior is made from the rows, which would count twice.

    The chains start at draws of `laplace`, which also gives their metric, and take steps together.
    Step sizes are adapted in the first half of the steps. The draws are from the second half. The
    chains stay near the components of the fit: they do not visit other maxima.

    Args:
        fit: A fit of a story without latent variables besides ``c``, with its training rows.
        num_samples: S, the number of draws, at most half of the steps of all chains.
        num_chains: Number of chains.
        num_steps: Steps of each chain.
        seed: Seed of the chains; that of the fit if None.

    Returns:
        A fit of the story with the draws, see `Sampled`. All evaluation and criticism of it
        averages over them.

    Raises:
        SiteError: If the story has other latent variables.
        ValueError: If a number is too small, there are too few steps for the draws, or weights
            are those of a sample; and see `laplace`.
        DataError: If the fit was restored without its training rows, or if x has gaps.

    Warns:
        ConvergenceWarning: If the chains do not agree about a parameter, R̂ > 1.1.

    References:
        Neal (2011), *MCMC using Hamiltonian dynamics*, Handbook of Markov Chain Monte Carlo.

    Example:
        >>> from pyro_moe import fit, models
        >>> x = torch.linspace(-1, 1, 40).unsqueeze(-1)
        >>> y = 2 * x + 0.1 * torch.randn(40, 1, generator=torch.Generator().manual_seed(0))
        >>> story = models.ME(x_dim=1, y_dim=1, num_components=1)
        >>> fitted = hmc(fit(story.model, story.guide, (x, y), prior="weak", progress=False))
        >>> fitted.story.samples()["experts.log_scale"].shape
        torch.Size([512, 1, 1])
    """
    _check(num_samples, num_chains, num_steps)
    if fit.weight_type == "sampling":
        raise ValueError(
            "expected rows without weights, or weights that count rows; got sampling weights, "
            "which have no likelihood: use laplace"
        )
    if fit.training_rows[0].isnan().any():
        raise DataError("expected rows without missing entries of x; got some: use laplace")
    normal = laplace(fit).story
    loc, (values, vectors) = normal.loc.double(), torch.linalg.eigh(normal.covariance.double())
    root = vectors * values.clamp_min(1e-9 * values.max()).sqrt()  # it may have been rounded
    target = log_density(*in_double(fit), num_chains)
    with reproducible(fit.settings["seed"] if seed is None else seed):
        start = loc + torch.randn(num_chains, len(loc)).to(loc) @ root.mT
        chains = sampled(target, start, loc, root, num_steps)
    r_hat = potential_scale_reduction(chains)
    if (r_hat > MOST_R_HAT).any():
        warn(
            f"expected chains that agree; got R̂ = {r_hat.max():.2f}: take more steps, or fit "
            "fewer components",
            ConvergenceWarning,
        )
    draws = chains.transpose(0, 1).flatten(0, 1)
    places = torch.linspace(0, len(draws) - 1, num_samples).round().long()
    story, _ = in_double(fit)
    return with_story(fit, Sampled(story, draws[places], r_hat).to(fit.training_rows[0]))


def _check(num_samples: int, num_chains: int, num_steps: int) -> None:
    least = {"num_samples": 2, "num_chains": 2, "num_steps": 4}
    values = {"num_samples": num_samples, "num_chains": num_chains, "num_steps": num_steps}
    for name, value in values.items():
        if value < least[name]:
            raise ValueError(f"expected {name} of at least {least[name]}; got {value}")
    most = (num_steps - num_steps // 2) * num_chains
    if num_samples > most:
        raise ValueError(
            f"expected num_samples of at most {most:,}, half of all steps; got {num_samples:,}"
        )


class _Objective(nn.Module):
    """The objective of EM as a module, which `functional_call` can call."""

    def __init__(self, story: nn.Module, run: EM) -> None:
        super().__init__()
        self.story, self.run = story, run

    def forward(self) -> torch.Tensor:
        return self.run.log_posterior()


def log_density(story: nn.Module, run: EM, number: int) -> Target:
    """The log-density of the posterior, up to a constant, and its gradients.

    Args:
        story: The story of the run. Its parameters become buffers.
        run: A run of EM with the rows and the prior.
        number: S, the number of points at which it is evaluated together.

    Returns:
        A function of parameters, shape (S, P), with results of shapes (S,) and (S, P).
    """
    named = dict(story.named_parameters())
    sizes = [value.numel() for value in named.values()]
    flat = torch.cat([value.detach().flatten() for value in named.values()])
    shapes = [value.shape for value in named.values()]
    scales = prior_scales(story).to(flat)
    with_buffers(story)
    objective = _Objective(story, run)

    def evaluate(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        theta = theta.detach().requires_grad_()
        parts = zip(named, theta.split(sizes), shapes, strict=True)
        values = {f"story.{name}": part.reshape(shape) for name, part, shape in parts}
        value = torch.func.functional_call(objective, values)
        value = value - 0.5 * (theta / scales).square().sum()
        (gradient,) = torch.autograd.grad(value, theta)
        return value.detach(), gradient

    evaluate(flat)  # EM finds out what cannot be recorded
    many = flat.expand(number, -1).contiguous()
    with without_warnings(Warning):
        together = torch.func.vmap(traced(evaluate, flat))
        recording = Recording(traced(together, many), [many])

    def target(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        value, (gradient,) = recording(theta)
        return value, cast(torch.Tensor, gradient)

    return target


def sampled(
    target: Target, start: torch.Tensor, loc: torch.Tensor, root: torch.Tensor, num_steps: int
) -> torch.Tensor:
    r"""The second half of the states of chains, shape (num_steps / 2, number of chains, P).

    .. math:: \theta = L u, \quad u' = u + \epsilon v + \dots, \quad v \sim N(0, I)

    Args:
        target: The log-densities of parameters (S, P), and their gradients.
        start: The first states, shape (S, P). A state of a density near zero begins at ``loc``.
        loc: The maximum of the density, shape (P,).
        root: L, with the metric (L Lᵀ)⁻¹, shape (P, P).
        num_steps: Number of steps, of `LEAPFROGS` leapfrog steps each.
    """
    value, gradient = target(start)
    lost = ~(value > target(loc.expand_as(start).contiguous())[0] - 10.0 * len(loc))
    theta = torch.where(lost.unsqueeze(-1), loc, start)
    value, gradient = target(theta)
    step, states = 0.2, []
    for number in range(num_steps):
        velocity = torch.randn(theta.shape).to(theta)
        size = step * (0.5 + torch.rand(len(theta), 1).to(theta))
        new, speed, slope = theta, velocity, gradient
        for _ in range(LEAPFROGS):
            speed = speed + 0.5 * size * (slope @ root)
            new = new + size * (speed @ root.mT)
            new_value, slope = target(new)
            speed = speed + 0.5 * size * (slope @ root)
        energies = 0.5 * (velocity.square() - speed.square()).sum(-1)
        log_ratio = (new_value - value + energies).nan_to_num(-torch.inf)
        accepted = torch.rand(len(theta)).to(theta).log() < log_ratio
        theta = torch.where(accepted.unsqueeze(-1), new, theta)
        gradient = torch.where(accepted.unsqueeze(-1), slope, gradient)
        value = torch.where(accepted, new_value, value)
        if number < num_steps // 2:
            rate = log_ratio.clamp(max=0.0).exp().mean().item()
            step = min(1.0, step * 10.0 ** (RATE * (rate - ACCEPTANCE)))
        else:
            states.append(theta)
    return torch.stack(states)


def potential_scale_reduction(chains: torch.Tensor) -> torch.Tensor:
    r"""R̂ of each parameter, shape (P,).

    .. math:: \hat R = \sqrt{\frac{n - 1}{n} + \frac{B}{W}}

    B is the variance of the chains' means, W the mean variance within chains, and n the number of
    draws of a chain.

    Args:
        chains: Draws, shape (number of draws, number of chains, P).

    References:
        Gelman, Rubin (1992), *Inference from iterative simulation using multiple sequences*,
        Statistical Science 7.
    """
    within = chains.var(0).mean(0)
    between = chains.mean(0).var(0)
    return ((len(chains) - 1) / len(chains) + between / within).sqrt().nan_to_num(1.0)
