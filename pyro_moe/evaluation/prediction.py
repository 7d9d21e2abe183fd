"""Predictive distributions of targets."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from numpy.typing import ArrayLike
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites

from pyro_moe.distributions import (
    Mixture,
    Stacked,
    concatenate,
    in_double,
    log_probabilities_of,
)
from pyro_moe.fitted import Fit, in_order
from pyro_moe.inference.context import reproducible, running
from pyro_moe.inference.errors import DataError
from pyro_moe.inference.handlers import Enumerate, Given, Undrawn, log_probabilities
from pyro_moe.inference.handlers.evaluated_once import evaluated_once
from pyro_moe.inference.programs import beside, owner
from pyro_moe.inference.traces import compute_log_prob, joint_posterior, layers, marginal
from pyro_moe.rows import Data, as_tensors

from .gating import gate_estimates, log_mean_exp
from .imputation import completions
from .marginals import (
    MIXTURES,
    cdf_of,
    families,
    has_classes,
    mean_of,
    of_one_column,
    variance_of,
)
from .traces import batches, missing_site, node, shared_latents

FEW = 64
IMPUTATIONS = 32
ROWS = 2**14
VALUES = 2**22

Columns = tuple[Any, ...]


@dataclass(frozen=True)
class Prediction:
    r"""The predictive distribution of each of N rows, a mixture of S x K experts.

    .. math:: p(y \mid x) = \frac{1}{S} \sum_s \sum_k g_{sk}(x)\, p_{sk}(y \mid x)

    If the experts depend on latent variables other than ``c``, S is the number of draws of these.
    Otherwise S is one. All is computed in double precision, and the weights as logarithms: far
    from the training data the expert that fits a target may have a weight of 1e-60.

    Attributes:
        log_weights: log g of each draw, shape (S, N, K).
        distributions: For each draw the K experts' distributions, of batch shape (N, K), or
            (K, N) if ``leading``.
        leading: Whether K is the first batch dimension of the distributions.
        names: Names of the fitted columns of y, or None. Targets with names are matched by name.
    """

    log_weights: torch.Tensor
    distributions: tuple[Any, ...]
    leading: bool = False
    names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "log_weights", self.log_weights.double())
        object.__setattr__(self, "distributions", tuple(map(in_double, self.distributions)))

    def __len__(self) -> int:
        return self.log_weights.shape[1]

    @property
    def weights(self) -> torch.Tensor:
        """G of each draw, shape (S, N, K)."""
        return self.log_weights.exp()

    @property
    def gate(self) -> torch.Tensor:
        """The probability of each expert, shape (N, K)."""
        return self.weights.mean(0)

    @property
    def experts(self) -> torch.Tensor:
        """Each expert's mean, shape (N, K, M); for classes, their probabilities."""
        return self._means().mean(0)

    @property
    def mean(self) -> torch.Tensor:
        """The mean of y, shape (N, M); for classes, their probabilities."""
        return self._average(self._means())

    @property
    def within(self) -> torch.Tensor:
        """The variance within experts: the mean of the experts' variances, shape (N, M)."""
        return self._average(self._stack(variance_of))

    @property
    def between(self) -> torch.Tensor:
        """The variance between experts: of their means, over experts and draws, shape (N, M)."""
        return self._average((self._means() - self.mean.unsqueeze(1)).square())

    @property
    def variance(self) -> torch.Tensor:
        """The variance of y, within + between, shape (N, M)."""
        return self.within + self.between

    def log_prob(self, y: ArrayLike) -> torch.Tensor:
        """The log-density of targets, jointly over their columns, shape (N,).

        Args:
            y: Targets, shape (N,) or (N, M), in their own units.

        Raises:
            DataError: If y does not have the shape of the prediction, or a value is outside the
                support, such as an unknown class.
        """
        value = self._along_batch(self.targets(y))
        self._check_support(value)
        each = self._stack(lambda p: p.log_prob(value), events=False)
        return log_mean_exp((each + self.log_weights).logsumexp(-1), 0)

    def posterior(self, y: ArrayLike, groups: torch.Tensor | None = None) -> torch.Tensor:
        r"""The probability of each expert given x and the target, shape (N, K).

        .. math:: p(c = k \mid x, y) \propto \sum_s g_{sk}(x)\, p_{sk}(y \mid x)

        Args:
            y: Targets, shape (N,) or (N, M), in their own units.
            groups: Numbers of groups, shape (N,), whose rows have one expert: that of the whole
                group is then given all of its targets. If None, each row has its own.

        Raises:
            DataError: As `log_prob`.
        """
        value = self._along_batch(self.targets(y))
        self._check_support(value)
        each = self._stack(lambda p: p.log_prob(value), events=False)
        if groups is None:
            return (each + self.log_weights).logsumexp(0).softmax(-1)
        groups = groups.to(each.device)
        labels, place, sizes = groups.unique(return_inverse=True, return_counts=True)
        terms = each + self.log_weights / sizes[place].unsqueeze(-1)
        of_groups = terms.new_zeros(len(terms), len(labels), terms.shape[-1])
        return of_groups.index_add(1, place, terms).logsumexp(0).softmax(-1)[place]

    def cdf(self, y: ArrayLike) -> torch.Tensor:
        """P(y_m ≤ value) for each column separately, shape (N, M).

        Raises:
            DataError: If y does not have the shape of the prediction, or is a class.
        """
        return self._cdf(self.targets(y))

    def _cdf(self, value: torch.Tensor) -> torch.Tensor:
        along = self._along_batch(value)
        return self._average(self._stack(lambda p: cdf_of(p, along)))

    def quantile(self, q: float) -> torch.Tensor:
        """The quantile of each column, shape (N, M).

        It is found by bisection of `cdf`. For counts it is the smallest whole number whose
        cumulative probability is at least q.

        Args:
            q: Between 0 and 1.

        Raises:
            DataError: If y is a class.
            ValueError: If q is not between 0 and 1.
        """
        if not 0 < q < 1:
            raise ValueError(f"expected q between 0 and 1; got {q}")
        if has_classes(self.distributions[0]):
            raise DataError("expected a target whose values have an order; got classes")
        low, high = self._bracket(q)
        discrete = self.distributions[0].support.is_discrete
        for step in range(200):  # more than 60 where experts are far apart and narrow
            if discrete and (high - low < 0.4).all():  # one whole number is between them
                break
            if step >= 60 and (high - low <= 4e-16 * (low.abs() + high.abs())).all():
                break
            middle = (low + high) / 2
            above = self._cdf(middle.reshape(len(self), *self.distributions[0].event_shape)) >= q
            low, high = torch.where(above, low, middle), torch.where(above, middle, high)
        return high.round() if discrete else high

    def _bracket(self, q: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Values below and above the quantile, shape (N, M)."""
        means, deviations = self._means(), self._stack(variance_of).sqrt()
        reach = min(q, 1 - q) ** -0.5  # Chebyshev's inequality, for each expert
        rounding = 1e-12 * (means.abs() + deviations)
        low = (means - reach * deviations - rounding).amin((0, 2))
        high = (means + reach * deviations + rounding).amax((0, 2))
        if low.isfinite().all() and high.isfinite().all():
            return low, high
        # Heavy tails may have no variance or no mean: increase the distance from the middle.
        middle = means.nan_to_num().mean((0, 2))
        return self._beyond(middle, -1, q), self._beyond(middle, 1, q)

    def _beyond(self, middle: torch.Tensor, side: int, q: float) -> torch.Tensor:
        """Values on one side of the middle such that the quantile lies between them."""
        step = torch.ones_like(middle)
        while True:
            value = middle + side * step
            below = self._cdf(value.reshape(len(self), *self.distributions[0].event_shape)) < q
            near = below if side > 0 else ~below
            if not near.any() or not value.isfinite().all():
                return value
            step = torch.where(near, 2 * step, step)

    def sample(
        self, num_samples: int, *, seed: int = 0, groups: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Draw targets of all rows, shape (num_samples, N) or (num_samples, N, M).

        Each sample uses one draw of the shared latent variables for all rows.

        Args:
            num_samples: Number of samples.
            seed: Seed of the draws.
            groups: Numbers of groups, shape (N,), whose rows have one expert, drawn by the gate
                of the group's first row. If None, each row has its own.
        """
        first, place = None, None
        if groups is not None:
            labels, place = groups.cpu().unique(return_inverse=True)
            rows = torch.arange(len(place))
            first = rows.new_full((len(labels),), len(place)).scatter_reduce(0, place, rows, "amin")
        with reproducible(seed):
            draws = range(num_samples)
            return torch.stack(
                [self._sample(i % len(self.log_weights), first, place) for i in draws]
            )

    def _sample(
        self, draw: int, first: torch.Tensor | None, place: torch.Tensor | None
    ) -> torch.Tensor:
        each = self.distributions[draw].sample()
        each = each.transpose(0, 1) if self.leading else each
        weights = self.log_weights[draw].exp()
        chosen = torch.multinomial(weights if first is None else weights[first], 1).squeeze(-1)
        chosen = chosen if place is None else chosen[place]
        return each[torch.arange(len(self), device=each.device), chosen]

    def components(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Weights (N, S K, 1), means and variances (N, S K, M) of all mixture components."""
        shares = self.weights.unsqueeze(-1) / len(self.log_weights)
        parts = (shares, self._means(), self._stack(variance_of))
        weights, means, variances = (part.transpose(0, 1).flatten(1, 2) for part in parts)
        return weights, means, variances

    def _means(self) -> torch.Tensor:
        return self._stack(mean_of)

    def _stack(self, read: Callable[[Any], torch.Tensor], *, events: bool = True) -> torch.Tensor:
        """Values of each draw's distributions, shape (S, N, K), or (S, N, K, M) if ``events``."""
        each = torch.stack([read(p) for p in self.distributions]).double()
        if self.leading:
            each = each.transpose(1, 2)
        return each.reshape(*each.shape[:3], -1) if events else each

    def _average(self, each: torch.Tensor) -> torch.Tensor:
        return (self.weights.unsqueeze(-1) * each).sum(2).mean(0)

    def targets(self, y: ArrayLike) -> torch.Tensor:
        """Targets (N,) or (N, M) in the shape of the site, (N,) or (N, M).

        Raises:
            DataError: If y does not have the shape of the prediction, lacks a column by name, or
                has a value that is not finite.
        """
        event_shape = self.distributions[0].event_shape
        rows = in_order((self.gate, y), None, self.names)
        _, value = as_tensors(rows, dtype=torch.float64)
        value = value.to(self.log_weights)
        if value.shape[1:].numel() != event_shape.numel():
            expected = (len(self), *event_shape)
            raise DataError(f"expected y of shape {expected}; got {tuple(value.shape)}")
        return value.reshape(len(self), *event_shape)

    def _check_support(self, value: torch.Tensor) -> None:
        support = self.distributions[0].support
        possible = support.check(value).reshape(len(self), -1).all(-1)
        if not possible.all():
            row = int((~possible).nonzero()[0])
            base = of_one_column(support)
            got = value.reshape(len(self), -1)[row].tolist()
            raise DataError(f"expected y in the support of its distribution, {base}; got {got}")

    def _along_batch(self, value: torch.Tensor) -> torch.Tensor:
        return value if self.leading else value.unsqueeze(1)


def predict(fit: Fit, x: Data, *, num_samples: int = 64, seed: int = 0) -> Prediction:
    r"""Compute the predictive distribution of the target of each row.

    .. math:: p(y \mid x) = \sum_k g_k(x)\, p_k(y \mid x)

    It is read from the model's site ``y``. The site is either a mixture, or the distribution of one
    expert that depends on ``c``; the weights are then those of `gate`. If y depends on further
    latent variables, such as experts' parameters or a sampled z, the prediction is averaged over
    draws from the guide. In a
    story of several layers, p_k is the average over those besides ``c``.

    Args:
        fit: A fitted story with a site ``y``, whose model and guide take None for y.
        x: Rows, shape (N, D).
        num_samples: Draws of latent variables, a multiple of 8. A single one is used if y depends
            on none.
        seed: Seed of the draws.

    Returns:
        The prediction, in the units of the training targets.

    Raises:
        SiteError: If the model has no site ``y``.
    """
    completed = completions(fit, x, IMPUTATIONS, seed)
    if completed is not None:
        options = {"num_samples": num_samples, "seed": seed}
        return _in_equal_parts([predict(fit, rows, **options) for rows in completed])
    features = fit.features(x)
    with torch.no_grad(), reproducible(seed):
        few = _few(features)
        one, other = (_draw_of_batch(fit, few) for _ in range(2))
        same = all(
            torch.equal(read(one.distribution), read(other.distribution))
            for read in (mean_of, variance_of)
        )
        exact = same and torch.equal(one.log_weights, other.log_weights)
        forward = _forward(fit, few, one) if exact else None
        if forward is not None:
            with running(fit.programs.store):
                blocks = [_of_mixture(forward(x)) for x, *_ in _blocks(features)]
                draws = [_whole(blocks) or _of_mixture(forward(features[0]))]
        elif same and one.of_assignment:
            log_weights = log_mean_exp(gate_estimates(fit, features, num_samples, seed), 0)
            draws = [replace(_draw(fit, features, one.target), log_weights=log_weights)]
        elif exact:
            draws = [_draw(fit, features, one.target)]
        else:
            draws = [_draw(fit, features) for _ in range(num_samples)]
    return Prediction(
        torch.stack([draw.log_weights for draw in draws]),
        tuple(draw.distribution for draw in draws),
        draws[0].leading,
        fit.targets,
    )


def _in_equal_parts(predictions: Sequence[Prediction]) -> Prediction:
    """The mixture of predictions of the same rows in equal parts."""
    log_weights = torch.cat([each.log_weights for each in predictions])
    distributions = tuple(p for each in predictions for p in each.distributions)
    return replace(predictions[0], log_weights=log_weights, distributions=distributions)


def posterior(
    fit: Fit,
    data: Data,
    *,
    groups: Any = None,
    num_samples: int = 64,
    seed: int = 0,
    site: str = "c",
) -> torch.Tensor:
    r"""Compute the probability of each component given x and y.

    .. math:: p(c = k \mid x, y) \propto g_k(x)\, p_k(y \mid x)

    `gate` is p(c|x), before y is known. Where the data have groups, as those of a fit by groups
    have, it is that of the group of each row, given the targets of the whole group.

    Args:
        fit: A fitted story with a site ``y``.
        data: Rows (x, y).
        groups: Numbers of the groups of the rows, shape (N,). If None, those of the fit for its
            training rows, and the column of groups for a data frame of a formula.
        num_samples: As in `predict`.
        seed: Seed of the draws.
        site: The assignment: ``"c"``, or a further layer such as ``"c1"``. A further layer takes
            no groups.

    Returns:
        Shape (N, K), with rows that sum to one.

    Raises:
        DataError: If there are no targets, or one is outside of the support.
        SiteError: If the model has no site ``y``, or neither guide nor model has the assignment.
    """
    x, y = fit.as_tensors(data)[:2]
    if site != "c":
        return _posterior_of_layer(fit, x, y, site, num_samples, seed)
    prediction = predict(fit, x, num_samples=num_samples, seed=seed)
    groups = fit.groups_of(data) if groups is None else torch.as_tensor(groups)
    return prediction.posterior(y.cpu(), groups)


def _few(features: Columns) -> Columns:
    """Some rows from everywhere, which show on what the prediction depends."""
    x = features[0]
    rows = torch.linspace(0, len(x) - 1, min(FEW, len(x))).long()
    return tuple(None if column is None else column[rows.to(x.device)] for column in features)


def _blocks(features: Columns) -> Iterator[Columns]:
    """Minibatches of many rows, or of fewer if these are wide."""
    return batches(features, max(1, min(ROWS, VALUES // features[0][:1].numel())))


@dataclass(frozen=True)
class _Draw:
    """The experts' distributions and log-weights (N, K) at one draw of the latent variables."""

    distribution: Any
    log_weights: torch.Tensor
    leading: bool = False
    of_assignment: bool = False  # whether the weights are those of the site c
    target: torch.Tensor | None = None  # a drawn y of one row


def _draw(fit: Fit, features: Columns, target: torch.Tensor | None = None) -> _Draw:
    """One draw, minibatch by minibatch: what rows share is the same in all of them.

    Args:
        fit: The fit.
        features: The arguments of model and guide.
        target: A target of one row, if nothing depends on the unknown targets, so that these need
            not be drawn.
    """
    undrawn = nullcontext() if target is None else Undrawn("y", target)
    with Given(shared_latents(fit)), undrawn:
        return _whole([_draw_of_batch(fit, batch) for batch in _blocks(features)]) or (
            _draw_of_batch(fit, features)
        )


def _whole(blocks: list[_Draw]) -> _Draw | None:
    """The draw of all rows, or None if the family of the experts cannot be concatenated."""
    first = blocks[0]
    whole = concatenate([block.distribution for block in blocks], int(first.leading))
    if whole is None:
        return None
    log_weights = torch.cat([block.log_weights for block in blocks])
    return replace(first, distribution=whole, log_weights=log_weights)


def _draw_of_batch(fit: Fit, batch: Columns) -> _Draw:
    with Enumerate(), evaluated_once(fit.programs.model, fit.programs.guide):
        guide_trace = poutine.trace(fit.guide).get_trace(*batch)
        replayed = poutine.replay(fit.model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*batch)
    site = node(model_trace, "y", "model")
    p, target = site["fn"], site["value"].reshape(-1, *site["fn"].event_shape)[0]
    further = _further_layers(p, model_trace)
    if further:
        return replace(_averaged(fit, batch, model_trace, guide_trace, further), target=target)
    if len(p.batch_shape) == 1:
        if isinstance(p, MIXTURES):
            return replace(_of_mixture(p), target=target)
        return _Draw(Stacked([p]), mean_of(p).new_zeros(*p.batch_shape, 1), target=target)
    log_weights = _log_assignment(model_trace, guide_trace)
    if isinstance(p, Mixture) and p.is_choice:
        experts, leading = p.component_distribution, False
    else:
        experts, leading = p, True
    return _Draw(experts, log_weights, leading, of_assignment=True, target=target)


def _of_mixture(p: Any) -> _Draw:
    known = isinstance(p, Mixture)  # whose own logarithms are normalized
    log_weights = p.log_weights if known else log_probabilities_of(p.mixture_distribution)
    return _Draw(p.component_distribution, log_weights)


def _forward(fit: Fit, few: Columns, draw: _Draw) -> Callable[[torch.Tensor], Any] | None:
    """The story's ``forward``, if it is the distribution of y that the model has.

    It must be written where the model is, and agree with it on a few rows, see `Predictive`.
    """
    if beside(fit.programs.model, "forward") is None:
        return None
    story = owner(fit.programs.model)
    p = story(few[0])
    return story if isinstance(p, MIXTURES) and _agree(draw, _of_mixture(p)) else None


def _agree(one: _Draw, other: _Draw) -> bool:
    """Whether two draws have the same distributions up to rounding."""
    precision = 1e-5 if one.log_weights.dtype == torch.float32 else 1e-9
    kinds = ([type(p) for p in families(draw.distribution)] for draw in (one, other))
    if (
        next(kinds) != next(kinds)
        or one.leading
        or one.log_weights.shape != other.log_weights.shape
    ):
        return False
    pairs = [(one.log_weights.exp(), other.log_weights.exp())]
    pairs += [(read(one.distribution), read(other.distribution)) for read in (mean_of, variance_of)]
    return all(
        a.shape == b.shape and torch.allclose(a, b, rtol=precision, atol=precision, equal_nan=True)
        for a, b in pairs
    )


def _log_assignment(model_trace: Trace, guide_trace: Trace) -> torch.Tensor:
    """The log-probabilities (N, K) of c in the guide, or by Bayes' rule from all but y."""
    if [*layers(guide_trace)] == ["c"]:
        return log_probabilities(guide_trace.nodes["c"]["fn"])
    posterior, dims = _joint_posterior(model_trace, guide_trace)
    if "c" not in dims:
        return posterior.new_zeros(posterior.shape[-1], 1)
    return marginal(posterior, dims["c"]).log_softmax(0).T


def _joint_posterior(model_trace: Trace, guide_trace: Trace) -> tuple[torch.Tensor, dict[str, int]]:
    """The joint log-probabilities of assignments given all but y, and their dimensions."""
    model_trace = model_trace.copy()
    model_trace.remove_node("y")
    pruned = [prune_subsample_sites(trace) for trace in (model_trace, guide_trace)]
    for trace in pruned:
        compute_log_prob(trace)
    return joint_posterior(*pruned), layers(*pruned)


def _further_layers(p: Any, model_trace: Trace) -> dict[str, int]:
    """The assignments besides c on whose values a distribution depends, and their dimensions."""
    shape = p.batch_shape
    return {
        name: dim
        for name, dim in layers(model_trace).items()
        if name != "c" and len(shape) >= -dim and shape[dim] > 1
    }


def _averaged(
    fit: Fit, batch: Columns, model_trace: Trace, guide_trace: Trace, further: dict[str, int]
) -> _Draw:
    """The draw of a target that depends on further layers: each expert is a mixture over them."""
    posterior, dims = _joint_posterior(model_trace, guide_trace)
    summed = [dim for name, dim in dims.items() if name not in ("c", *further)]
    whole = posterior.logsumexp(summed, keepdim=True) if summed else posterior
    last = whole.movedim([*further.values()], [*range(-len(further), 0)])
    each = last.reshape(*whole.shape[-2:], -1)  # (K, N, values of the further layers)
    values = [model_trace.nodes[name]["value"].flatten(0, -2) for name in further]
    parts = []
    for chosen in product(*values):
        rows = (value.unsqueeze(0) for value in chosen)
        with Given(dict(zip(further, rows, strict=True))), Enumerate():
            replayed = poutine.replay(fit.model, trace=guide_trace)
            parts.append(node(poutine.trace(replayed).get_trace(*batch), "y", "model")["fn"])
    log_weights, leading = each.logsumexp(-1).log_softmax(0).T, True
    if all(isinstance(p, Mixture) and p.is_choice for p in parts):
        parts, leading = [p.component_distribution for p in parts], False
        each = each.transpose(0, 1)
    return _Draw(Mixture(each, Stacked(parts)), log_weights, leading, of_assignment="c" in dims)


def _posterior_of_layer(
    fit: Fit, x: torch.Tensor, y: torch.Tensor, site: str, num_samples: int, seed: int
) -> torch.Tensor:
    """The probability of each value of a further layer given x and y, shape (N, G)."""
    features = fit.features(x)
    blocks = []
    with torch.no_grad(), reproducible(seed):
        for batch, (_, targets) in zip(_blocks(features), _blocks((x, y)), strict=True):
            draws = [_log_layer(fit, batch, targets, site) for _ in range(num_samples)]
            blocks.append(torch.stack(draws).logsumexp(0).softmax(0).T)
    return torch.cat(blocks)


def _log_layer(fit: Fit, batch: Columns, y: torch.Tensor, site: str) -> torch.Tensor:
    """Log p(y, value of a layer | x) at one draw of the other latents, shape (G, N)."""
    x, _, *more = batch
    with Enumerate():
        guide_trace = poutine.trace(fit.guide).get_trace(*batch)
        replayed = poutine.replay(fit.model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(x, y, *more)
    target = node(model_trace, "y", "model")
    posterior, dims = _joint_posterior(model_trace, guide_trace)
    if site not in dims:
        raise missing_site(site, "guide or the model", model_trace, guide_trace)
    p, value, known = in_double(target["fn"]), target["value"].double(), target["mask"]
    if isinstance(p, MIXTURES) and len(p.batch_shape) == 1 and "c" in dims:
        draw = _of_mixture(p)  # whose gate takes the place of q(c|x)
        log_likelihood = draw.distribution.log_prob(value.unsqueeze(-1 - len(p.event_shape))).mT
        further = [dim for name, dim in dims.items() if name != "c"]
        posterior = posterior - posterior.logsumexp(further, keepdim=True) + draw.log_weights.mT
    else:
        log_likelihood = p.log_prob(value)
    if known is not None:
        log_likelihood = log_likelihood.where(torch.as_tensor(known), 0.0)
    return marginal(posterior + log_likelihood, dims[site])
