"""Traces of model and guide at all values of ``c``, and sums of their log-probabilities."""

from typing import Any

import torch
from pyro import poutine
from pyro.poutine import Trace
from pyro.poutine.util import prune_subsample_sites

from pyro_moe.distributions import in_double, is_precise

from .context import reproducible, running
from .handlers import Enumerate
from .handlers.assignment import is_in_plate
from .programs import Program
from .rows.groups import shares_of_groups, sums_of_groups


def enumerated_traces(
    model: Program, guide: Program, *args: Any, **kwargs: Any
) -> tuple[Trace, Trace]:
    """Traces of model and guide at all K values of ``c``, with log-probabilities.

    Sites that depend on ``c`` have batch shape (K, N). The others have batch shape (N,), or ()
    outside the plate ``"data"``.

    Raises:
        ValueError: If a latent site of the guide besides ``c`` is not reparameterized.
    """
    with Enumerate():
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(
            *args, **kwargs
        )
    model_trace, guide_trace = map(prune_subsample_sites, (model_trace, guide_trace))
    for name in guide_trace.stochastic_nodes:
        if name != "c" and not guide_trace.nodes[name]["fn"].has_rsample:
            raise ValueError(
                "expected reparameterized latent sites besides 'c'; "
                f"got {type(guide_trace.nodes[name]['fn']).__name__} at site {name!r}"
            )
    for trace in (guide_trace, model_trace):
        compute_log_prob(trace)
    return model_trace, guide_trace


def create_parameters(
    model: Program, guide: Program, store: dict[str, Any], *example: torch.Tensor
) -> None:
    """Create the `pyro.param`s of programs in a store, as a first step would.

    Args:
        model: A Pyro model.
        guide: Its guide.
        store: The state of Pyro's parameter store for these programs.
        example: A row of each column.
    """
    with torch.no_grad(), reproducible(0), running(store):
        enumerated_traces(model, guide, *example)


def compute_log_prob(trace: Trace) -> None:
    """Add the log-probabilities of all sites to a trace, in double precision where possible."""
    given = {}
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not is_precise(site["fn"]):
            given[name] = site["fn"], site["value"]
            site["fn"], site["value"] = in_double(site["fn"]), site["value"].double()
    trace.compute_log_prob()
    for name, (p, value) in given.items():
        trace.nodes[name]["fn"], trace.nodes[name]["value"] = p, value


def row_bounds(model_trace: Trace, guide_trace: Trace) -> torch.Tensor:
    r"""The ELBO of each row at one sample of z, shape (N,).

    .. math:: \sum_k q(c = k) [\log p(x, z, c = k) - \log q(z, c = k)]

    If the guide has no site ``c``, it is :math:`\log \sum_k p(x, z, c = k) - \log q(z)`. In rows
    whose component is known, q(c) is the given probability of each, see `assigned_bounds`. In rows
    of groups it is the row's share of the bound of its group, with the optimal q(c):

    .. math:: \log \sum_k p(c = k) \prod_{n} \frac{p(x_n, z_n \mid c = k)}{q(z_n)}
    """
    groups = groups_of(model_trace)
    if groups is not None:
        whole, share = group_log_weights(model_trace, guide_trace, groups)
        return share * _known_or(whole.logsumexp(0), whole, labels_of(model_trace))
    log_weights = row_log_weights(model_trace, guide_trace)
    free = _free_bounds(log_weights, model_trace, guide_trace)
    weights = model_trace.nodes["c"]["scale"] if "c" in model_trace.nodes else 1.0
    return _known_or(free, log_weights, labels_of(model_trace), weights)


def _known_or(
    free: torch.Tensor,
    log_weights: torch.Tensor,
    labels: torch.Tensor | None,
    weights: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    if labels is None:
        return free
    return torch.where(is_labeled(labels), assigned_bounds(log_weights, labels, weights), free)


def _free_bounds(log_weights: torch.Tensor, model_trace: Trace, guide_trace: Trace) -> torch.Tensor:
    if "c" in guide_trace.nodes:
        log_q, scaled = (guide_trace.nodes["c"][key] for key in ("unscaled_log_prob", "log_prob"))
        terms = (log_weights - scaled).masked_fill(log_q.isneginf(), 0.0)  # 0 log 0 = 0
        return (log_q.exp() * terms).sum(0)
    scale = model_trace.nodes["c"]["scale"] if "c" in model_trace.nodes else 1.0
    return scale * (log_weights / scale).logsumexp(0)


def row_log_weights(model_trace: Trace, guide_trace: Trace) -> torch.Tensor:
    r"""Log p(x, z, c=k) − log q(z) of each row, shape (K, N), or (1, N) without a site ``c``."""
    model_terms = _model_log_probs(model_trace, guide_trace, in_plate=True)
    guide_terms = _log_probs(guide_trace, in_plate=True)
    total = sum(model_terms.values()) - sum(
        term for name, term in guide_terms.items() if name != "c"
    )
    return torch.atleast_2d(torch.as_tensor(total).double())


def group_log_weights(
    model_trace: Trace, guide_trace: Trace, groups: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log p(x, z, c=k) − log q(z) of each row's group, (K, N), and the row's share of it, (N,).

    The log-probability of c is the mean of those of the group's rows.
    """
    site = model_trace.nodes["c"]
    weights = site["scale"] if isinstance(site["scale"], torch.Tensor) else None
    share = shares_of_groups(groups, weights)
    of_rows = row_log_weights(model_trace, guide_trace)
    terms = of_rows - site["log_prob"] + share * site["unscaled_log_prob"]
    return sums_of_groups(terms, groups), share


def groups_of(model_trace: Trace) -> torch.Tensor | None:
    """The groups of rows, shape (N,), see `Annotations`, or None."""
    site = model_trace.nodes.get("c")
    return None if site is None else site["infer"].get("groups")


def labels_of(model_trace: Trace) -> torch.Tensor | None:
    """The given probabilities of the components, shape (N, K), see `Annotations`, or None."""
    site = model_trace.nodes.get("c")
    return None if site is None else site["infer"].get("labels")


def is_labeled(labels: torch.Tensor) -> torch.Tensor:
    """In which rows the component is known, shape (N,)."""
    return ~labels[:, 0].isnan()


def assigned_bounds(
    log_weights: torch.Tensor, labels: torch.Tensor, weights: torch.Tensor | float = 1.0
) -> torch.Tensor:
    r"""The bound of each row at given probabilities r of its component, shape (N,).

    .. math:: \sum_k r_k [\log p(d, c = k) - \log r_k]

    It is log p(d, c = k) if the component k is certain.

    Args:
        log_weights: Log p(d, c=k), shape (K, N).
        labels: r, shape (N, K). Rows with NaN have the bound zero.
        weights: The weights by which the log-probabilities are scaled.
    """
    r = labels.nan_to_num(0.0).T
    terms = (log_weights - weights * r.log()).masked_fill(r == 0, 0.0)
    return (r * terms).sum(0)


def log_assignment(guide_trace: Trace) -> torch.Tensor | None:
    """Log q(c=k), shape (K, N), or None for a guide without ``c``."""
    return guide_trace.nodes["c"]["log_prob"] if "c" in guide_trace.nodes else None


def global_log_weight(model_trace: Trace, guide_trace: Trace) -> torch.Tensor | float:
    """Log p − log q of the latent variables outside the plate ``"data"``."""
    model_terms = _model_log_probs(model_trace, guide_trace, in_plate=False)
    guide_terms = _log_probs(guide_trace, in_plate=False)
    return sum(term.sum() for term in model_terms.values()) - sum(
        term.sum() for term in guide_terms.values()
    )


def _model_log_probs(
    model_trace: Trace, guide_trace: Trace, in_plate: bool
) -> dict[str, torch.Tensor]:
    """Log-probabilities without latent sites that only the model has, such as an unknown y.

    The model's distribution serves as the guide of such a site, so that its terms cancel.
    """
    drawn = set(model_trace.stochastic_nodes) - set(guide_trace.nodes) - {"c"}
    terms = _log_probs(model_trace, in_plate)
    return {name: term for name, term in terms.items() if name not in drawn}


def _log_probs(trace: Trace, in_plate: bool) -> dict[str, torch.Tensor]:
    return {
        name: site["log_prob"]
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and is_in_plate(site) is in_plate
    }
