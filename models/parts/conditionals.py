"""Conditional distributions: modules that map a context to a distribution.

Encoders q(z|x), decoders p(x|z) and gates q(c|x) have the same form: a network computes the
parameters of a distribution of a given family.
"""

import math

import pyro.distributions as dist
import torch
from torch import nn

from pyro_moe.distributions import ContinuousBernoulli, Normal, rounded

from .networks import Standardize


class NormalConditional(nn.Module):
    r"""A normal distribution with mean and scale as functions of the context.

    .. math:: q(z \mid x) = N(z \mid \mu(x), \mathrm{diag}\, \sigma^2(x)), \quad
              [\mu, \log(\sigma / \sigma_0)] = f(x)

    Args:
        network: Maps a context to ``2 * L`` numbers.
        initial_scale: σ_0, approximately the initial scale. A small value makes an encoder start
            close to that of an autoencoder. With initial scales of one, training often ends in
            posterior collapse.

    Example:
        >>> NormalConditional(nn.Linear(3, 4))(torch.zeros(5, 3)).event_shape
        torch.Size([2])
    """

    def __init__(self, network: nn.Module, *, initial_scale: float = 0.1) -> None:
        super().__init__()
        self.network, self.initial_scale = network, initial_scale

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The distribution given a context, event shape ``(L,)``."""
        loc, log_scale = self.network(context).chunk(2, dim=-1)
        # Network outputs are unbounded far from the training data: exp must not overflow.
        scale = self.initial_scale * log_scale.clamp(-10.0, 10.0).exp()
        return Normal(loc, scale).to_event(1)


class NormalLikelihood(nn.Module):
    r"""A normal likelihood with a mean that depends on z and constant, learned scales.

    .. math:: p(x \mid z) = N(x \mid m + s f(z), \mathrm{diag}\, (s \sigma)^2)

    with the units m, s of the data. σ has one entry for each column, or a single entry if s has
    one. For a variance that depends on z see `HeteroscedasticNormalLikelihood`.

    Args:
        network: Maps z ``(..., L)`` to a mean ``(..., D)`` in standard units.
        units: The units of the data, shared with the encoder.
        initial_scale: Initial σ, in standard units.

    Example:
        >>> NormalLikelihood(nn.Linear(2, 3), Standardize(3))(torch.zeros(5, 2)).event_shape
        torch.Size([3])
    """

    def __init__(
        self, network: nn.Module, units: Standardize, *, initial_scale: float = 0.1
    ) -> None:
        super().__init__()
        self.network, self.units, self.initial_scale = network, units, initial_scale
        self.log_scale = nn.Parameter(torch.empty_like(units.scale))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all scales to ``initial_scale``."""
        nn.init.constant_(self.log_scale, math.log(self.initial_scale))

    def forward(self, z: torch.Tensor) -> dist.Distribution:
        """The distribution of x given z, event shape ``(D,)``."""
        loc = self.units.inverse(self.network(z).double())
        scale = self.units.scale * self.log_scale.double().exp()
        return rounded(Normal(loc, scale), z.dtype).to_event(1)


class HeteroscedasticNormalLikelihood(nn.Module):
    r"""A normal likelihood with mean and scale as functions of z (paper §3).

    .. math:: p(x \mid z) = N(x \mid m + s\, \mu(z), \mathrm{diag}\, (s\, \sigma(z))^2), \quad
              \sigma = \sigma_{\min} + \sigma_0 e^{h / 2}, \quad [\mu, h] = f(z)

    with the units m, s of the data. The lower limit σ_min bounds the density. Without it the
    likelihood is unbounded if the decoder fits a row exactly. The default is a hundredth of the
    standard deviation of a column. The log-density in standard units is then at most 3.7 nats
    for each column.

    Args:
        network: Maps z ``(..., L)`` to ``2 * D`` numbers.
        units: The units of the data, shared with the encoder.
        initial_scale: σ_0, approximately the initial scale, in standard units.
        min_scale: σ_min, in standard units.

    Example:
        >>> p = HeteroscedasticNormalLikelihood(nn.Linear(2, 6), Standardize(3))
        >>> p(torch.zeros(5, 2)).event_shape
        torch.Size([3])
    """

    def __init__(
        self,
        network: nn.Module,
        units: Standardize,
        *,
        initial_scale: float = 0.1,
        min_scale: float = 0.01,
    ) -> None:
        super().__init__()
        self.network, self.units = network, units
        self.initial_scale, self.min_scale = initial_scale, min_scale

    def forward(self, z: torch.Tensor) -> dist.Distribution:
        """The distribution of x given z, event shape ``(D,)``.

        Raises:
            ValueError: If the network does not return two numbers for each column.
        """
        output, x_dim = self.network(z), len(self.units.loc)
        if output.shape[-1] != 2 * x_dim:
            raise ValueError(
                f"expected a decoder to {2 * x_dim} numbers, a mean and a log-variance for each "
                f"column of x; got {output.shape[-1]}"
            )
        loc, log_variance = output.double().chunk(2, dim=-1)
        # Network outputs are unbounded far from the training data: exp must not overflow.
        scale = self.min_scale + self.initial_scale * (log_variance.clamp(-20.0, 20.0) / 2).exp()
        p = Normal(self.units.inverse(loc), self.units.scale * scale)
        return rounded(p, z.dtype).to_event(1)


class BernoulliLikelihood(nn.Module):
    r"""A likelihood of independent binary features.

    .. math:: p(x \mid z) = \prod_d \mathrm{Ber}(x_d \mid \mathrm{logit} = f_d(z))

    It is defined for x in {0, 1} only. For gray values use `ContinuousBernoulliLikelihood`.

    Args:
        network: Maps z ``(..., L)`` to logits ``(..., D)``.

    Example:
        >>> BernoulliLikelihood(nn.Linear(2, 3))(torch.zeros(5, 2)).event_shape
        torch.Size([3])
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: torch.Tensor) -> dist.Distribution:
        """The distribution of x given z, event shape ``(D,)``."""
        return dist.Bernoulli(logits=self.network(z)).to_event(1)


class ContinuousBernoulliLikelihood(nn.Module):
    r"""A likelihood of independent features in [0, 1], such as gray pixels.

    .. math:: p(x \mid z) = \prod_d C(\lambda_d)\, \lambda_d^{x_d} (1 - \lambda_d)^{1 - x_d},
              \quad \mathrm{logit}\, \lambda = b \tanh(f(z) / b), \quad b = 15

    It is the normalized form of the Bernoulli likelihood that is often used for gray pixels
    (Loaiza-Ganem and Cunningham, 2019). Many pixels are exactly 0 or 1, where the density grows
    without bound in the logits. Without the bound b these pixels would dominate training.

    Args:
        network: Maps z ``(..., L)`` to logits ``(..., D)``.

    Example:
        >>> ContinuousBernoulliLikelihood(nn.Linear(2, 3))(torch.zeros(5, 2)).event_shape
        torch.Size([3])
    """

    bound = 15.0

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, z: torch.Tensor) -> dist.Distribution:
        """The distribution of x given z, event shape ``(D,)``."""
        logits = self.bound * torch.tanh(self.network(z) / self.bound)
        return ContinuousBernoulli(logits=logits).to_event(1)


class CategoricalConditional(nn.Module):
    r"""A one-hot categorical distribution with probabilities as functions of the context.

    .. math:: q(c = k \mid x) = \mathrm{softmax}_k\, g(x)

    Args:
        network: Maps a context to K logits.

    Example:
        >>> CategoricalConditional(nn.Linear(3, 4))(torch.zeros(5, 3)).event_shape
        torch.Size([4])
    """

    evaluated_once = True

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, context: torch.Tensor) -> dist.Distribution:
        """The distribution of c, event shape ``(K,)``."""
        return dist.OneHotCategorical(logits=self.network(context))


LIKELIHOODS = ("normal", "normal-heteroscedastic", "bernoulli", "continuous-bernoulli")


def outputs_of(name: str) -> int:
    """Number of decoder outputs for each column of x that a likelihood requires."""
    return 2 if name == "normal-heteroscedastic" else 1


def likelihood_of(name: str, network: nn.Module, units: Standardize) -> nn.Module:
    """The conditional distribution p(x|z) by the name of its family.

    Args:
        name: ``"normal"``, ``"normal-heteroscedastic"``, ``"bernoulli"`` or
            ``"continuous-bernoulli"``.
        network: Maps z ``(..., L)`` to D numbers, or 2 D for ``"normal-heteroscedastic"``.
        units: The units of the data. Only the normal likelihoods use them.

    Raises:
        ValueError: If the name is none of these.

    Example:
        >>> p = likelihood_of("bernoulli", nn.Linear(2, 3), Standardize(3))
        >>> p(torch.zeros(5, 2)).event_shape
        torch.Size([3])
    """
    if name == "normal":
        return NormalLikelihood(network, units)
    if name == "normal-heteroscedastic":
        return HeteroscedasticNormalLikelihood(network, units)
    if name == "bernoulli":
        return BernoulliLikelihood(network)
    if name == "continuous-bernoulli":
        return ContinuousBernoulliLikelihood(network)
    raise ValueError(f"expected likelihood in {LIKELIHOODS}; got {name!r}")
