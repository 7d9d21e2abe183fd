"""What a fitted story says of rows: its gate, codes, reconstructions, samples and bounds.

Everything is read off the traces of whatever model and guide were fitted, by the names of their
sites; no story is asked for its class.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, overload

import torch
from numpy.typing import ArrayLike
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.messenger import Messenger
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from pyro_moe.inference.context import reproducible
from pyro_moe.inference.errors import DataError, SiteError
from pyro_moe.inference.objectives import (
    AtTheMean,
    enumerated_traces,
    row_bounds,
    row_log_weights,
)
from pyro_moe.inference.relaxation import Discretise, has_rsample, log_probabilities

from .fitting import Fit
from .rows import Data

REPLICATES = 8


@overload
def gate(
    fit: Fit,
    x: Data,
    *,
    num_samples: int = ...,
    seed: int = ...,
    return_error: Literal[False] = ...,
) -> torch.Tensor: ...
@overload
def gate(
    fit: Fit, x: Data, *, num_samples: int = ..., seed: int = ..., return_error: Literal[True]
) -> tuple[torch.Tensor, torch.Tensor]: ...
def gate(
    fit: Fit, x: Data, *, num_samples: int = 64, seed: int = 0, return_error: bool = False
) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
    r"""How probable each component is for each row.

    .. math:: g_k(x) = E_{q(z \mid x)}\, q(c = k \mid x, z)

    Exact where q(c|x) is amortised, as in a DMVAE. Where it depends on a latent z, as in VaDE
    (paper §5.1), the expectation is taken over scrambled Sobol points, whose error falls nearly
    as 1/S for a smooth gate, where that of the paper's random samples falls as 1/√S. A guide
    without ``c`` leaves it to the model: p(c|x, z).

    Args:
        fit: A fitted story with a site ``c``.
        x: Rows, shape (N, D).
        num_samples: S, points z for each row, a multiple of 8; unused where q(c|x) is exact.
        seed: Seed of the points.
        return_error: Whether to return the standard error, too.

    Returns:
        g of shape (N, K), rows summing to one; and its standard error, estimated from eight
        independent scramblings, if asked for (zeros where g is exact).

    Raises:
        SiteError: If neither guide nor model has a site ``c``.
    """
    if num_samples < REPLICATES or num_samples % REPLICATES:
        raise ValueError(
            f"expected num_samples to be a multiple of {REPLICATES}; got {num_samples}"
        )
    with torch.no_grad(), reproducible(seed):
        blocks = [_gate(fit, batch, num_samples) for batch in _batches(fit, x, 1024)]
    means = torch.cat(blocks, dim=1)
    g = means.mean(0)
    return (g, means.std(0) / math.sqrt(len(means))) if return_error else g


def _gate(fit: Fit, batch: tuple[torch.Tensor, ...], num_samples: int) -> torch.Tensor:
    """Independent estimates of the gate, shape (replicates, N, K); equal ones if exact."""
    with SobolSamples(num_samples), Discretise():
        guide_trace = poutine.trace(fit.guide).get_trace(*batch)
    if "c" not in guide_trace.nodes:
        return _model_gate(fit, batch, num_samples)
    probs = _assignment_probs(guide_trace)
    if probs.dim() == 2 and guide_trace.stochastic_nodes[0] == "c":
        return probs.expand(2, *probs.shape)
    if probs.dim() == 2:  # c may depend on sites outside the plate, or discrete ones
        with Discretise():
            traces = (poutine.trace(fit.guide).get_trace(*batch) for _ in range(num_samples))
            probs = torch.stack([*map(_assignment_probs, traces)])
    return probs.reshape(REPLICATES, -1, *probs.shape[1:]).mean(1)


def _assignment_probs(guide_trace: Trace) -> torch.Tensor:
    return log_probabilities(guide_trace.nodes["c"]["fn"]).exp()


def _model_gate(fit: Fit, batch: tuple[torch.Tensor, ...], num_samples: int) -> torch.Tensor:
    """The same for a guide without ``c``: p(c|x, z) at random samples z."""
    sums = [torch.tensor(0.0)] * REPLICATES
    for sample in range(num_samples):
        traces = enumerated_traces(fit.model, fit.guide, *batch)
        if "c" not in traces[0].nodes:
            raise _missing("c", "guide or the model", *traces)
        sums[sample % REPLICATES] = sums[sample % REPLICATES] + row_log_weights(*traces).softmax(0)
    return torch.stack(sums).mT * (REPLICATES / num_samples)


class SobolSamples(Messenger):
    """Give normal latent sites S quasi-random values at once, along a new leftmost dimension.

    The points are eight independently scrambled Sobol sequences of S/8 points each, one after
    the other. Latent sites that are not normal get S random values.
    """

    def __init__(self, num_samples: int) -> None:
        super().__init__()
        self.num_samples = num_samples

    def _pyro_sample(self, msg: Any) -> None:
        in_plate = any(frame.name == "data" for frame in msg["cond_indep_stack"])
        if msg["is_observed"] or msg["name"] == "c" or not in_plate or not has_rsample(msg["fn"]):
            return
        msg["value"], msg["done"] = self._values(msg["fn"]), True

    def _values(self, distribution: Any) -> torch.Tensor:
        if len(distribution.batch_shape) > 1:  # depends on a site that has S values already
            return distribution.rsample()
        independent = isinstance(distribution, torch.distributions.Independent)
        base = distribution.base_dist if independent else distribution
        if not isinstance(base, torch.distributions.Normal):
            return distribution.rsample((self.num_samples,))
        size = distribution.event_shape.numel()
        noise = standard_normal_points(self.num_samples, size).to(base.loc)
        return base.loc + base.scale * noise.reshape(-1, 1, *distribution.event_shape)


def standard_normal_points(num_points: int, dim: int) -> torch.Tensor:
    """Eight scrambled Sobol sequences in a row, shape (num_points, dim), mapped to N(0, I)."""
    blocks = []
    for _ in range(REPLICATES):
        engine = torch.quasirandom.SobolEngine(
            dim, scramble=True, seed=int(torch.randint(2**31 - 1, ()))
        )
        points = engine.draw(num_points // REPLICATES, dtype=torch.float64)
        order = torch.randperm(len(points))  # sites are paired at random, not along the sequence
        blocks.append(points[order])
    uniform = torch.cat(blocks).clamp(1e-10, 1 - 1e-10)
    return math.sqrt(2.0) * torch.erfinv(2.0 * uniform - 1.0)


def encode(fit: Fit, x: Data) -> torch.Tensor:
    r"""The latent means :math:`E_q[z \mid x]`.

    Args:
        fit: A fitted story with a site ``z``.
        x: Rows, shape (N, D).

    Returns:
        Codes, shape (N, L).

    Raises:
        SiteError: If the guide has no site ``z``.
    """
    return _at_the_mean(fit, x, lambda guide, model: _node(guide, "z", "guide")["value"])


def reconstruct(fit: Fit, x: Data) -> torch.Tensor:
    r"""What the story makes of each row's code, :math:`E[x \mid z = E_q[z \mid x]]`.

    Args:
        fit: A fitted story with sites ``z`` and ``x``.
        x: Rows, shape (N, D).

    Returns:
        Reconstructions, shape (N, D).

    Raises:
        SiteError: If the guide has no site ``z``, or the model no site ``x``.
    """

    def mean_of_x(guide: Trace, model: Trace) -> torch.Tensor:
        _node(guide, "z", "guide")
        return _node(model, "x", "model")["fn"].mean

    return _at_the_mean(fit, x, mean_of_x)


def _at_the_mean(fit: Fit, x: Data, read: Callable[[Trace, Trace], torch.Tensor]) -> torch.Tensor:
    results = []
    with torch.no_grad(), reproducible(0), Discretise():
        for batch in _batches(fit, x):
            with AtTheMean():
                guide_trace = poutine.trace(fit.guide).get_trace(*batch)
            replayed = poutine.replay(fit.model, trace=guide_trace)
            model_trace = poutine.trace(replayed).get_trace(*batch)
            results.append(read(guide_trace, model_trace))
    return torch.cat(results)


def sample(
    fit: Fit,
    num_samples: int,
    *,
    component: int | None = None,
    noise: bool = True,
    seed: int = 0,
) -> torch.Tensor:
    r"""Rows that the story generates, of all components or of one: :math:`x \sim p(x \mid c = k)`.

    Args:
        fit: A fitted story with a site ``x``.
        num_samples: N, rows to draw.
        component: k, or None for c ~ p(c).
        noise: Whether to draw x given z, rather than take its mean, the smooth picture.
        seed: Seed of the draws.

    Returns:
        Rows, shape (N, D).

    Raises:
        SiteError: If the model has no site ``x``, or ``component`` is given and it has no ``c``.
        ValueError: If there is no such component.
    """
    template = tuple(column[:1].expand(num_samples, *column.shape[1:]) for column in fit.run.data)
    model = poutine.uncondition(fit.model)
    with torch.no_grad(), reproducible(seed), Discretise():
        trace = poutine.trace(model).get_trace(*template)
        if component is not None:
            num_components = _node(trace, "c", "model")["value"].shape[-1]
            if not 0 <= component < num_components:
                raise ValueError(
                    f"expected component from 0 to {num_components - 1}; got {component}"
                )
            c = torch.zeros_like(trace.nodes["c"]["value"])
            c[..., component] = 1.0
            trace = poutine.trace(poutine.condition(model, {"c": c})).get_trace(*template)
    site = _node(trace, "x", "model")
    return site["value"] if noise else site["fn"].mean


def elbo(fit: Fit, data: Data, *, num_samples: int = 8, seed: int = 0) -> torch.Tensor:
    r"""The marginal ELBO of each row, a lower bound on log p(x), in nats.

    .. math:: L_n = E_{q(z, c \mid x_n)} [\log p(x_n, z, c) - \log q(z, c \mid x_n)]

    with ``c`` summed out exactly, whatever loss was trained on; the gap between the two is a
    measure of what a relaxation costs. Terms outside the plate are not part of a row's bound.

    Args:
        fit: A fitted story.
        data: Rows, held out if the bound is to say something about new ones.
        num_samples: Samples of z to average over.
        seed: Seed of the samples.

    Returns:
        Bounds, shape (N,).
    """
    return _over_samples(fit, data, row_bounds, num_samples, seed).mean(0)


def importance_weighted_bound(
    fit: Fit, data: Data, *, num_samples: int = 64, seed: int = 0
) -> torch.Tensor:
    r"""The importance-weighted bound on each row's log p(x), in nats (Burda et al. 2016).

    .. math:: L_n^S = E \log \frac{1}{S} \sum_{s=1}^S \sum_k
              \frac{p(x_n, z_s, c = k)}{q(z_s \mid x_n)}

    It rises to log p(x) as S grows. Terms outside the plate are not part of a row's bound.

    Args:
        fit: A fitted story.
        data: Rows, held out if the bound is to say something about new ones.
        num_samples: S.
        seed: Seed of the samples.

    Returns:
        Bounds, shape (N,).
    """

    def log_weight(model_trace: Trace, guide_trace: Trace) -> torch.Tensor:
        return row_log_weights(model_trace, guide_trace).logsumexp(0)

    log_weights = _over_samples(fit, data, log_weight, num_samples, seed)
    return log_weights.logsumexp(0) - math.log(num_samples)


def _over_samples(
    fit: Fit,
    data: Data,
    read: Callable[[Trace, Trace], torch.Tensor],
    num_samples: int,
    seed: int,
) -> torch.Tensor:
    """What is read off traces, shape (num_samples, N)."""
    results = []
    with torch.no_grad(), reproducible(seed):
        for batch in _batches(fit, data):
            traces = (enumerated_traces(fit.model, fit.guide, *batch) for _ in range(num_samples))
            results.append(torch.stack([read(*pair) for pair in traces]))
    return torch.cat(results, dim=-1)


def clustering_scores(gate: ArrayLike, labels: ArrayLike) -> dict[str, float]:
    r"""How well clusters agree with labels that no training saw.

    .. math:: \mathrm{accuracy} = \max_\pi \frac{1}{N} \sum_n 1[\pi(\hat c_n) = y_n]

    over one-to-one maps π from clusters to labels.

    Args:
        gate: Responsibilities (N, K), whose largest entries decide, or clusters (N,).
        labels: Labels (N,), integers.

    Returns:
        ``"accuracy"``, ``"nmi"`` (normalised mutual information) and ``"ari"`` (adjusted Rand
        index).

    Raises:
        DataError: If there are not as many labels as rows.

    Example:
        >>> clustering_scores([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]], [1, 0, 0])["accuracy"]
        1.0
    """
    clusters, truth = torch.as_tensor(gate), torch.as_tensor(labels)
    if clusters.dim() == 2:
        clusters = clusters.argmax(-1)
    if truth.shape != clusters.shape:
        raise DataError(f"expected {len(clusters)} labels; got shape {tuple(truth.shape)}")
    predicted, actual = clusters.cpu().numpy(), truth.cpu().numpy()
    counts = contingency_matrix(actual, predicted)
    rows, columns = linear_sum_assignment(counts, maximize=True)
    return {
        "accuracy": float(counts[rows, columns].sum() / counts.sum()),
        "nmi": float(normalized_mutual_info_score(actual, predicted)),
        "ari": float(adjusted_rand_score(actual, predicted)),
    }


def _batches(fit: Fit, data: Data, rows: int = 4096) -> Iterator[tuple[torch.Tensor, ...]]:
    return zip(*(column.split(rows) for column in fit.as_tensors(data)), strict=True)


def _node(trace: Trace, site: str, program: str) -> Any:
    if site not in trace.nodes:
        raise _missing(site, program, trace)
    return trace.nodes[site]


def _missing(site: str, program: str, *traces: Trace) -> SiteError:
    names = {
        name
        for trace in traces
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not poutine.util.site_is_subsample(node)
    }
    return SiteError(f"expected a site {site!r} in the {program}; got sites {sorted(names)}")
