"""Priors and variational posteriors of the parameters of experts."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn

Prior = Callable[[str, torch.Tensor], Any]


def default_prior(name: str, parameter: torch.Tensor) -> dist.Distribution:
    r"""A weakly informative prior of an expert's parameter, in standard units.

    .. math:: V, b \sim N(0, 1), \quad \log \sigma \sim N(-1, 1)

    The prior standard deviation of an expert's mean is about the standard deviation of the
    target. The prior median of the noise scale is about a third of it. Other parameters have the
    prior N(0, 1).

    Args:
        name: Name of the parameter in the module of experts, such as ``"network.weight"``.
        parameter: Its value.

    Returns:
        A distribution with the shape of the parameter as its event shape.

    Example:
        >>> default_prior("log_scale", torch.zeros(3, 1)).event_shape
        torch.Size([3, 1])
    """
    loc = -1.0 if name.endswith("log_scale") else 0.0
    return dist.Normal(torch.full_like(parameter, loc), 1.0).to_event(parameter.dim())


class BayesianExperts(nn.Module):
    r"""A mixture of experts with a variational posterior over the parameters of its experts.

    .. math:: \theta \sim p(\theta), \quad y_n \mid x_n, c_n = k \sim p_k(y_n \mid x_n, \theta)

    .. math:: q(\theta) = \prod_i N(\theta_i \mid m_i, s_i^2)

    Each parameter tensor of the experts is a latent site outside the plate, with the name
    ``experts.`` followed by the parameter's name. All other parameters, such as those of the
    gate, are point estimates. q has the form of Pyro's ``AutoNormal``. Its means are initialized
    at the initial experts, also those of restarts and clusterings, and its scales are small.
    Predictions average over q and thus include the uncertainty about the experts' parameters.

    The parameters are independent in q. Where columns of x correlate, such as x and x², their
    deviations are therefore too small, by a factor √(1 - ρ²) for two columns of correlation ρ, and
    gradients need many steps to find the means. For stories without latent variables besides
    ``c``, `pyro_moe.laplace` has all covariances, those with the gate, too.

    Args:
        story: A mixture of experts with a module ``experts``. It is changed in place.
        prior: A function of a parameter's name and value that returns its prior.
        initial_scale: Initial s.

    Raises:
        ValueError: If the story has no experts with parameters.

    Example:
        >>> from .moe import ME
        >>> story = BayesianExperts(ME(x_dim=2, y_dim=1, num_components=3))
        >>> sorted(story.loc)
        ['log_scale', 'network_bias', 'network_weight']
    """

    def __init__(
        self, story: Any, *, prior: Prior = default_prior, initial_scale: float = 0.01
    ) -> None:
        super().__init__()
        experts = getattr(story, "experts", None)
        if not isinstance(experts, nn.Module) or not any(True for _ in experts.parameters()):
            raise ValueError(f"expected a story with experts; got {type(story).__name__}")
        self.x_dim = story.x_dim
        self.prior, self.initial_scale = prior, initial_scale
        self.story: Any = story
        self.story.experts = _Drawn(experts)
        self.loc = nn.ParameterDict()
        self.log_scale = nn.ParameterDict()
        for key, _, value in self._values_of_experts():
            self.loc[key] = nn.Parameter(value.clone())
            self.log_scale[key] = nn.Parameter(torch.empty_like(value))
        self.reset_parameters()

    def _values_of_experts(self) -> Iterator[tuple[str, str, torch.Tensor]]:
        experts = self.story.experts
        for name in experts.names:
            yield name.replace(".", "_"), name, experts.inner.get_buffer(name)

    def reset_parameters(self) -> None:
        """Initialize q around the current experts."""
        with torch.no_grad():
            for key, _, value in self._values_of_experts():
                self.loc[key].copy_(value)
                self.log_scale[key].fill_(math.log(self.initial_scale))

    def adapt(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Set the units from training rows x, shape (N, D), and y, shape (N,) or (N, M)."""
        self.story.adapt(x, y)
        self.reset_parameters()

    def m_step(self, weights: torch.Tensor, points: torch.Tensor, *data: torch.Tensor) -> None:
        """Take the story's M-step given responsibilities (N, K), and center q at its experts."""
        self.story.m_step(weights, points, *data)
        self.reset_parameters()

    def target_log_likelihoods(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Log p_k(y|x) at the mean of q, shape (N, K); zero in rows where y is missing."""
        with self._experts(lambda key, name, value: self.loc[key]):
            return self.story.target_log_likelihoods(x, y)

    def model(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Sample the experts from their prior, and run the story's model given them."""
        with self._experts(self._from_prior):
            self.story.model(x, y)

    def guide(self, x: torch.Tensor, y: torch.Tensor | None = None) -> None:
        """Sample the experts from q, and run the story's guide given them."""
        pyro.module("bayesian_experts", self)
        with self._experts(self._from_posterior):
            self.story.guide(x, y)

    def _from_prior(self, key: str, name: str, value: torch.Tensor) -> torch.Tensor:
        return pyro.sample(f"experts.{name}", self.prior(name, value))

    def _from_posterior(self, key: str, name: str, value: torch.Tensor) -> torch.Tensor:
        q = dist.Normal(self.loc[key], self.log_scale[key].exp()).to_event(value.dim())
        return pyro.sample(f"experts.{name}", q)

    @contextmanager
    def _experts(
        self, value_of: Callable[[str, str, torch.Tensor], torch.Tensor]
    ) -> Iterator[None]:
        """Replace the parameters of the story's experts."""
        experts = self.story.experts
        experts.values = {
            name: value_of(key, name, value) for key, name, value in self._values_of_experts()
        }
        try:
            yield
        finally:
            experts.values = {}


class _Drawn(nn.Module):
    """Experts with parameters set from outside. Their own are buffers, which Adam ignores."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner: Any = inner
        self.names = [name for name, _ in inner.named_parameters()]
        self.values: dict[str, torch.Tensor] = {}
        self._freeze()

    def forward(self, context: torch.Tensor) -> Any:
        return torch.func.functional_call(self.inner, self.values, (context,))

    def adapt(self, x: torch.Tensor, y: torch.Tensor) -> None:
        if hasattr(self.inner, "adapt"):
            self.inner.adapt(x, y)

    def maximize(self, context: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> None:
        for part, name in self._owners():
            value = getattr(part, name)
            delattr(part, name)
            part.register_parameter(name, nn.Parameter(value))
        try:
            self.inner.maximize(context, y, weights)
        finally:
            self._freeze()

    def _freeze(self) -> None:
        for part, name in self._owners():
            value = getattr(part, name).detach().clone()
            delattr(part, name)
            part.register_buffer(name, value)

    def _owners(self) -> Iterator[tuple[nn.Module, str]]:
        for path in self.names:
            owner, _, name = path.rpartition(".")
            yield self.inner.get_submodule(owner), name
