"""Effect handlers that make the assignments of rows relaxed, discrete or enumerated.

A story writes the assignment ``c`` as a `RelaxedOneHotCategorical` or as a `OneHotCategorical`. It
may have further layers: every other latent site of rows with such a distribution is one, whatever
its name, such as ``c1`` for the group of a component. The handlers replace their distributions
during inference, so that one model function serves all objectives.
"""

from typing import Any

import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch.distributions import register_kl

from pyro_moe.distributions import RelaxedOneHotCategorical, log_probabilities_of, one_hot_of


class CategoricalKL(RelaxedOneHotCategorical):
    r"""A relaxed one-hot variable with the KL divergence of the underlying categoricals.

    .. math:: \mathrm{KL}(q \,\|\, p) := \sum_k q_k (\log q_k - \log p_k)

    with the class probabilities q_k and p_k. Samples and densities are those of
    `RelaxedOneHotCategorical`. Only `torch.distributions.kl_divergence` differs (Jang et al.
    2017; paper §7).

    In a story of several layers the guide must draw them in the order of the model. It is then the
    divergence of a layer given the one above it.
    """


@register_kl(CategoricalKL, CategoricalKL)
def _kl_of_the_categoricals(q: CategoricalKL, p: CategoricalKL) -> torch.Tensor:
    # torch's own is infinite where p is too small for its type, and log p is not
    terms = (q.logits - p.logits).masked_fill(q.logits.isneginf(), 0.0)  # 0 log 0 = 0
    return (q.logits.exp() * terms).sum(-1)


class Relax(Messenger):
    """Make assignments relaxed one-hot variables.

    Args:
        temperature: τ > 0, a number or a scalar tensor.
        family: `RelaxedOneHotCategorical` or `CategoricalKL`.
        max_log_odds: b of `RelaxedOneHotCategorical`; None for unbounded logits.
        as_written: Whether a site that is already relaxed keeps its own temperature.
        keeps_bound: Whether a site has the bound with which it is written, if any, instead of b.
    """

    def __init__(
        self,
        temperature: torch.Tensor | float,
        family: type[RelaxedOneHotCategorical] = RelaxedOneHotCategorical,
        *,
        max_log_odds: float | None = None,
        as_written: bool = False,
        keeps_bound: bool = False,
    ) -> None:
        super().__init__()
        self.temperature, self.family = temperature, family
        self.max_log_odds, self.as_written = max_log_odds, as_written
        self.keeps_bound = keeps_bound

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if not is_assignment(msg):
            return
        written, logits = one_hot(msg["fn"]), log_probabilities(msg["fn"])
        keeps = self.as_written and isinstance(written, dist.RelaxedOneHotCategorical)
        temperature = torch.as_tensor(
            written.temperature if keeps else self.temperature,
            dtype=logits.dtype,
            device=logits.device,
        )
        bound = getattr(written, "max_log_odds", None) if self.keeps_bound else self.max_log_odds
        msg["fn"] = self.family(temperature, logits=logits, max_log_odds=bound)


class Discretize(Messenger):
    """Make assignments one-hot categorical variables, the limit of relaxed ones as τ → 0."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if is_assignment(msg):
            msg["fn"] = one_hot_of(log_probabilities(msg["fn"]))


class Undecided(Discretize):
    """Make assignments discrete and set them to their first value, where only q is of interest."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        super()._pyro_sample(msg)
        if is_assignment(msg):
            msg["value"] = one_hot_values(msg["fn"])[0, 0].expand(msg["fn"].shape())
            msg["done"] = True


class Enumerate(Discretize):
    """Make assignments discrete and enumerate the values of each along a dimension of its own.

    Inside the plate ``"data"`` of N rows the value of ``c`` is the identity matrix, shape
    (K, 1, K). Sites that depend on ``c`` then have batch shape (K, N). Every further layer has the
    next dimension to the left, in the order of the programs: the first has values of shape
    (G, 1, 1, G), and sites that depend on it and on ``c`` have batch shape (G, K, N). The dimension
    of a site is the entry ``"dim"`` of its ``infer``.
    """

    def __init__(self) -> None:
        super().__init__()
        self._places = {"c": 0}

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        super()._pyro_sample(msg)
        if is_assignment(msg):
            place = self._places.setdefault(msg["name"], len(self._places))
            msg["value"] = one_hot_values(msg["fn"], place)
            msg["infer"]["dim"] = -2 - place
            msg["done"] = True


class EnumerateInParallel(Discretize):
    """Make assignments discrete and mark them for `pyro.infer.TraceEnum_ELBO`."""

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        super()._pyro_sample(msg)
        if is_assignment(msg):
            msg["infer"].setdefault("enumerate", "parallel")


def is_assignment(msg: Any) -> bool:
    """Whether a message or trace node is an assignment that is not observed.

    It is the site ``c``, or another one-hot site in the plate ``"data"`` besides ``x`` and ``y``.
    """
    if msg["type"] != "sample" or msg["is_observed"]:
        return False
    return msg["name"] == "c" or _is_further_layer(msg)


def _is_further_layer(msg: Any) -> bool:
    distribution = msg["fn"]
    while isinstance(distribution, dist.MaskedDistribution):
        distribution = distribution.base_dist
    one_hot = isinstance(distribution, dist.OneHotCategorical | dist.RelaxedOneHotCategorical)
    return one_hot and msg["name"] not in ("x", "y") and is_in_plate(msg)


def is_in_plate(msg: Any) -> bool:
    """Whether a message or trace node is in the plate ``"data"``."""
    return any(frame.name == "data" for frame in msg["cond_indep_stack"])


def one_hot(distribution: Any) -> Any:
    """The discrete or relaxed one-hot distribution inside masks and `Independent` wrappers.

    Raises:
        TypeError: If it is another distribution.
    """
    inner = distribution
    while not isinstance(inner, dist.OneHotCategorical | dist.RelaxedOneHotCategorical):
        if not isinstance(inner, dist.MaskedDistribution | torch.distributions.Independent):
            raise TypeError(
                "expected a OneHotCategorical or RelaxedOneHotCategorical at site 'c'; "
                f"got {type(distribution).__name__}"
            )
        inner = inner.base_dist
    return inner


def log_probabilities(distribution: Any) -> torch.Tensor:
    """The normalized log-probabilities (..., K) of a discrete or relaxed one-hot distribution.

    Raises:
        TypeError: If it is another distribution.
    """
    inner = one_hot(distribution)
    if isinstance(inner, RelaxedOneHotCategorical):
        return inner.logits
    relaxed = isinstance(inner, dist.RelaxedOneHotCategorical)
    return log_probabilities_of((inner.base_dist if relaxed else inner)._categorical)


def one_hot_values(distribution: Any, place: int = 0) -> torch.Tensor:
    """The K one-hot values of a site, shape (K, 1, ..., 1, K), which broadcast over rows.

    Those of ``c`` have the shape (K, 1, K). Their attribute ``are_all`` tells `choose` that it need
    not look for the components.

    Args:
        distribution: That of the site.
        place: The number of dimensions between that of the site and that of the rows.
    """
    logits = one_hot(distribution).logits
    number = logits.shape[-1]
    values = torch.eye(number, dtype=logits.dtype, device=logits.device)
    values = values.reshape(number, *(1 for _ in range(place + 1)), number)
    values.are_all = place == 0  # type: ignore[attr-defined]
    return values
